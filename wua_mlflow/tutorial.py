"""The tutorial's functions, with its names and results; thin over the library.

They keep its tuples and dicts. Definitions: ``docs/conventions.md``.
Tests: ``tests/test_tutorial.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.flops import ptflops_forward_flops
from wua_mlflow.hooks import unwrapped
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.network import network_data, plot_network
from wua_mlflow.usage.analyze import layer_importance
from wua_mlflow.usage.statistics import effective_count, entropy_nats, low_share, top_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "compute_weight_importance", "estimate_flops", "flops_text", "generate_report",
    "plot_importance_histogram", "print_flops_report", "print_report", "report_text", "show",
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

    Raises:
        ValueError: no ``Linear`` layer, or one that the forward never calls.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())
    >>> [(importance, weights, name)] = compute_weight_importance(model, np.random.rand(50, 2))
    >>> importance.shape, weights.shape, name
    ((2, 10), (2, 10), '0')
    """
    layers = _linear(model)
    if skip_last and len(layers) >= 2:
        layers = layers[:-1]
    if not layers:
        raise ValueError("model: expected at least one Linear layer, but found none")
    importance = layer_importance(model, _array(X), [name for name, _ in layers])
    return [(importance[name].T.cpu().numpy(), _weights(layer).T, name) for name, layer in layers]


def generate_report(importance: Any, weights: Any) -> tuple[dict[str, float], np.ndarray]:
    """The report of one layer, and its normalized importance as a flat array.

    Nothing is added to p, so that the figures hold at any size (the tutorial's library adds 1e-8;
    on its own network both agree to the digits it prints).

    Args:
        importance: shape (in_features, out_features), from ``compute_weight_importance``.
        weights: the same shape.

    Raises:
        ValueError: the shapes differ, or an importance is negative, NaN or infinite.

    >>> report, normalized = generate_report(np.ones((2, 4)), np.ones((2, 4)))
    >>> report["nodes"], round(report["effective_weights"], 4), normalized[0]
    (4, 8.0, np.float64(0.125))
    """
    values = torch.from_numpy(np.array(importance, dtype=np.float64))
    shape = np.shape(weights)
    if not shape or tuple(values.shape) != tuple(shape):
        raise ValueError(f"importance, weights: expected the same shape (in_features, "
                         f"out_features), but got {tuple(values.shape)} and {tuple(shape)}")
    total = values.sum()
    report = {
        "total_weights": values.numel(),
        "nodes": values.shape[-1],
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

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())
    >>> estimate_flops(model, nb_epochs=50, dataset=np.zeros((1000, 2)))
    (12200000, 122000)
    """
    inputs = _array(dataset)
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

    Raises:
        ValueError: there is no ``Linear`` layer, or they form no chain.
    """
    return plot_network(network_data({name: _weights(layer) for name, layer in _linear(model)}))


def _linear(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in unwrapped(model).named_modules()
            if type(module) is nn.Linear]


def _weights(layer: nn.Linear) -> np.ndarray:
    return layer.weight.detach().cpu().double().numpy()


def _array(data: Any) -> Tensor | np.ndarray:
    return data if isinstance(data, Tensor) else np.asarray(data)
