"""``analyze``: how a model's weights are used, in one streaming pass over the data.

May import: the leaves, usage, null. Tests: ``tests/test_analysis.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.hooks import observe
from wua_mlflow.importance import CRITERIA
from wua_mlflow.null import with_null
from wua_mlflow.usage import (
    LayerUsage,
    ModelUsage,
    effective_count,
    entropy_nats,
    histogram,
    low_share,
    top_share,
)

__all__ = ["OUTPUT_LAYER", "analyze", "layer_importance"]

ANALYZED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The kinds of layer that are analysed; any other with parameters is listed in ``skipped``."""

OUTPUT_LAYER = "the output layer: its units are the model's outputs"
TUTORIAL_LOW = 0.01
"""Criterion ``output``: an importance below this is low, as in the tutorial."""
LOW_OF_MEAN = 0.01
"""Other criteria: low is below this share of the layer's mean importance."""


@dataclass
class _Mean:
    """Sum of a layer's signed outputs by unit, float64 across batches."""

    total: Tensor | None = None
    count: int = 0
    calls: int = 0

    def add(self, outputs: Tensor, unit_dim: int) -> None:
        per_unit = outputs.detach().movedim(unit_dim, 0)
        per_unit = per_unit.reshape(len(per_unit), -1)
        batch = per_unit.sum(1, dtype=torch.float64)
        self.total = batch if self.total is None else self.total + batch
        self.count += per_unit.shape[1]
        self.calls += 1

    def value(self) -> Tensor:
        if self.total is None:
            raise ValueError("the layer was never called")
        return self.total / self.count


@dataclass(frozen=True)
class _Pass:
    """What one pass over the data gathered: each called layer's mean output, in forward order."""

    means: Mapping[str, _Mean]
    samples: int


def analyze(
    model: nn.Module,
    data: Any,
    *,
    criterion: str = "output",
    layers: Sequence[str] | None = None,
    null: int = 0,
    seed: int = 0,
) -> ModelUsage:
    """How concentrated the importance of each layer's weights is, beside networks that know nothing.

    Linear and convolutional layers are analysed in the *real* forward, in eval mode; the output
    layer is left out where there is another one (name it in ``layers`` to have it). The model is
    left as found.

    Args:
        model: any module; ``Linear`` and ``Conv1d/2d/3d`` in it are analysed.
        data: a tensor or array, shape (samples, ...), or an iterable of batches; of a batch that
            is a tuple or list the first entry is the input.
        criterion: a key of ``importance.CRITERIA``.
        layers: names of the layers to analyse; all but the output layer, if None.
        null: how many networks that learned nothing to draw beside it; 0 for none.
        seed: of the nulls' own random numbers; torch's global generator is left alone.

    Returns:
        The usage by layer, in forward order, and what was skipped and why.

    Raises:
        ValueError: unknown criterion or layer, no data, nothing to analyse, or an output that is
            NaN or infinite.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2))
    >>> usage.layers["0"].weights, dict(usage.skipped)
    (20, {'2': "the output layer: its units are the model's outputs"})
    """
    if criterion not in CRITERIA:
        raise ValueError(
            f"criterion: expected one of {', '.join(CRITERIA)}, but got '{criterion}'")
    modules, skipped = _candidates(model)
    chosen = _chosen(modules, layers)
    if null and not isinstance(data, Tensor | np.ndarray):
        data = list(data)
    seen = _stream(model, chosen, data)
    called = [name for name in seen.means if seen.means[name].calls]
    skipped.update({name: "never called in the forward" for name in chosen if name not in called})
    if layers is None and len(called) > 1:
        skipped[called.pop()] = OUTPUT_LAYER
    if not called:
        raise ValueError("model: expected a Linear or convolutional layer that the forward calls, "
                         "but found none")
    usage = ModelUsage(
        criterion=criterion,
        samples=seen.samples,
        layers={name: _layer_usage(name, chosen[name], seen.means[name], criterion)
                for name in called},
        skipped=skipped,
    )
    if not null:
        return usage

    def measure(blank: nn.Module) -> ModelUsage:
        return analyze(blank, data, criterion=criterion, layers=called)

    return with_null(usage, model, measure, draws=null, seed=seed)


def layer_importance(
    model: nn.Module, data: Any, layers: Iterable[str], criterion: str = "output"
) -> dict[str, Tensor]:
    """The importance of each weight of the named layers, in the weight's shape, float64."""
    chosen = {name: model.get_submodule(name) for name in layers}
    seen = _stream(model, chosen, data)
    return {name: _importance(name, chosen[name], seen.means[name], criterion) for name in chosen}


def _candidates(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    modules, skipped = {}, {}
    for name, module in model.named_modules():
        if type(module) in ANALYZED:
            modules[name] = module
        elif any(True for _ in module.parameters(recurse=False)):
            skipped[name] = f"{type(module).__name__} is not a kind of layer that is analysed"
    return modules, skipped


def _chosen(modules: dict[str, nn.Module], layers: Sequence[str] | None) -> dict[str, nn.Module]:
    if layers is None:
        return modules
    for name in layers:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ValueError(f"layers: expected names among {', '.join(modules)}, "
                             f"but got '{name}'{hint}")
    return {name: modules[name] for name in layers}


def _stream(model: nn.Module, modules: Mapping[str, nn.Module], data: Any) -> _Pass:
    means: dict[str, _Mean] = {}

    def seen(name: str, outputs: Tensor) -> None:
        unit_dim = -1 if isinstance(modules[name], nn.Linear) else 1
        means.setdefault(name, _Mean()).add(outputs, unit_dim)

    samples = 0
    with observe(model, modules, seen):
        for inputs in _batches(data, model):
            samples += len(inputs)
            model(inputs)
    if not samples:
        raise ValueError("data: expected at least one sample, but got none")
    return _Pass(means, samples)


def _batches(data: Any, model: nn.Module, chunk: int = 4096) -> Iterator[Tensor]:
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else None
    dtype = parameter.dtype if parameter is not None else torch.float32
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    whole = isinstance(data, Tensor)
    for batch in data.split(chunk) if whole else data:
        inputs = torch.as_tensor(batch[0] if isinstance(batch, tuple | list) else batch)
        yield inputs.to(device=device, dtype=dtype if inputs.is_floating_point() else None)


def _importance(name: str, module: nn.Module, mean: _Mean, criterion: str) -> Tensor:
    weight, mean_output = module.weight.detach(), mean.value()
    for what, values in (("weight", weight), ("output", mean_output)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"layer {name}: expected a finite {what}, but got NaN or infinity")
    return CRITERIA[criterion](weight, mean_output)


def _layer_usage(name: str, module: nn.Module, mean: _Mean, criterion: str) -> LayerUsage:
    importance = _importance(name, module, mean, criterion)
    low = TUTORIAL_LOW if criterion == "output" else LOW_OF_MEAN * importance.mean().item()
    return LayerUsage(
        name=name,
        kind=type(module).__name__,
        weights=importance.numel(),
        units=importance.shape[0],
        entropy=entropy_nats(importance),
        effective_weights=effective_count(importance),
        top90_share=top_share(importance),
        low_share=low_share(importance, below=low),
        unit_importance=importance.flatten(1).sum(1).cpu().numpy(),
        histogram=histogram(importance),
        dead=not bool((importance > 0).any()),
    )
