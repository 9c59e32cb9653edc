"""The tutorial's functions, with its names and results; thin over the library.

They keep its tuples and dicts. Figures: ``docs/tutorial.md``. May import: the library's leaves.
Tests: ``tests/test_tutorial.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.analysis import layer_importance
from wua_mlflow.flops import ptflops_forward_flops
from wua_mlflow.plots import histogram_data, network_data, plot_histogram, plot_network
from wua_mlflow.usage import effective_count, entropy_nats, low_share, top_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "compute_weight_importance",
    "estimate_flops",
    "flops_text",
    "generate_report",
    "plot_importance_histogram",
    "print_flops_report",
    "print_report",
    "report_text",
    "show",
]

LOW = 0.01


def compute_weight_importance(
    model: nn.Module, X: Any, skip_last: bool = True  # noqa: N803 - the tutorial's name
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """|w| · |mean z| of each Linear layer's weights, z being its output before the activation.

    Each layer sees its real input; the tutorial's library fed the pre-activations forward, which
    is the same where there is one hidden layer.

    Args:
        model: any module with ``Linear`` layers.
        X: inputs, array or tensor, shape (samples, features).
        skip_last: leave out the last Linear layer, where there are at least two.

    Returns:
        A tuple a layer: importance and weights, each of shape (in_features, out_features), and the
        layer's name.
    """
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    if skip_last and len(names) >= 2:
        names = names[:-1]
    if not names:
        raise ValueError("model: expected at least one Linear layer, but found none")
    importance = layer_importance(model, _tensor(X), names)
    return [
        (importance[name].T.cpu().numpy(),
         model.get_submodule(name).weight.detach().T.cpu().double().numpy(), name)
        for name in names
    ]


def generate_report(importance: Any, weights: Any) -> tuple[dict[str, float], np.ndarray]:
    """The report of one layer, and its normalized importance as a flat array.

    Nothing is added to p, so that the figures hold at any size (the tutorial's library adds 1e-8;
    on its own network both agree to the digits it prints).

    Args:
        importance: shape (in_features, out_features), from ``compute_weight_importance``.
        weights: the same shape.
    """
    values = torch.as_tensor(np.asarray(importance, dtype=np.float64))
    shape = np.shape(weights)
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"weights: expected the importance's shape {tuple(values.shape)}, "
                         f"but got {tuple(shape)}")
    total = values.sum()
    report = {
        "total_weights": values.numel(),
        "nodes": int(shape[-1]),
        "entropy": entropy_nats(values),
        "effective_weights": effective_count(values),
        "top_90_percent_contrib": top_share(values),
        "low_contrib_percentage": 100 * low_share(values, below=LOW),
    }
    return report, (values / total if total > 0 else values).flatten().numpy()


def report_text(report: dict[str, float]) -> str:
    """The report as the tutorial prints it."""
    return "\n".join([
        f"Total weights: {report['total_weights']:,}",
        f"Nodes: {report['nodes']:,}",
        f"Entropy: {report['entropy']:.4f}",
        f"Effective weights: {report['effective_weights']:.4f}",
        f"Contribution of top 90% of weights: {100 * report['top_90_percent_contrib']:.2f}%",
        f"Percentage of low weights (<1e-2): {report['low_contrib_percentage']:.2f}%",
    ])


def print_report(report: dict[str, float]) -> None:
    """Print a report of ``generate_report``."""
    print(report_text(report))


def estimate_flops(model: nn.Module, nb_epochs: int, dataset: Any) -> tuple[int, int]:
    """FLOPs of training and of inference over ``dataset``, by the tutorial's count.

    A sample's forward is 2 × the multiply-accumulates that ptflops counts; training is taken as
    2 × inference × epochs. ``count_flops`` measures instead.

    Raises:
        ValueError: ptflops cannot count the model.
    """
    inputs = _tensor(dataset)
    forward = ptflops_forward_flops(model, tuple(inputs.shape[1:]))
    if forward is None:
        raise ValueError("model: ptflops cannot count it; count_flops(model, inputs) can")
    inference = forward * len(inputs)
    return 2 * inference * nb_epochs, inference


def flops_text(training: float, inference: float) -> str:
    """The two counts as the tutorial prints them."""
    return f"FLOPs, training: {training:,.0f}\nFLOPs, inference: {inference:,.0f}"


def print_flops_report(model: nn.Module, nb_epochs: int, dataset: Any) -> None:
    """Print the tutorial's FLOPs of training and of inference over ``dataset``."""
    print(flops_text(*estimate_flops(model, nb_epochs, dataset)))


def plot_importance_histogram(normalized_importance: Any, entropy: float) -> Figure:
    """The histogram of a layer's normalized importance."""
    return plot_histogram(histogram_data(np.asarray(normalized_importance), entropy))


def show(model: nn.Module, X: Any = None) -> Figure:  # noqa: N803 - the tutorial's name
    """The network diagram: a circle a neuron, a line a weight, red where |w| > 0.1.

    Args:
        model: a chain of ``Linear`` layers.
        X: accepted as in the tutorial; the drawing does not need it.
    """
    linear = [(name, module.weight.detach().cpu().numpy())
              for name, module in model.named_modules() if type(module) is nn.Linear]
    names, weights = zip(*linear, strict=True) if linear else ((), ())
    return plot_network(network_data(weights, names))


def _tensor(data: Any) -> Tensor:
    return torch.as_tensor(np.asarray(data) if not isinstance(data, Tensor) else data)
