"""``analyze``: how a model's weights are used, in one streaming pass over the data.

May import: chunks, concentration, hooks, importance, null, randomness, usage.
Tests: ``tests/test_analysis.py``, ``tests/test_analysis_data.py``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.chunks import rows_at_once
from wua_mlflow.concentration import entropy_nats, histogram, low_share, top_share
from wua_mlflow.hooks import observe, unwrapped
from wua_mlflow.importance import CRITERIA
from wua_mlflow.null import with_null
from wua_mlflow.randomness import isolated
from wua_mlflow.usage import LayerUsage, ModelUsage

__all__ = ["OUTPUT_LAYER", "analyze", "layer_importance"]

ANALYZED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The kinds of layer that are analysed; any other with parameters is listed in ``skipped``."""

OUTPUT_LAYER = "the output layer: its units are the model's outputs"
NEVER_CALLED = "never called in the forward"
NOT_ASKED = "not among the layers asked for"
TUTORIAL_LOW = 0.01
"""Criterion ``output``: an importance below this is low, as in the tutorial."""
LOW_OF_MEAN = 0.01
"""Other criteria: low is below this share of the layer's mean importance."""
_DATASET_BATCH = 64


@dataclass
class _Mean:
    """Sum of a layer's signed outputs by unit: float32 within a batch, float64 across batches."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def add(self, outputs: Tensor, unit_dim: int) -> None:
        by_unit = outputs.detach().movedim(unit_dim, 0)
        others = list(range(1, by_unit.dim()))
        within = torch.promote_types(outputs.dtype, torch.float32)
        batch = by_unit.sum(others, dtype=within) if others else by_unit
        self.total = self.total + _off_mps(batch).double()
        self.count += by_unit[0].numel()

    def value(self) -> Tensor:
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
    """How concentrated each layer's importance is, beside networks that learned nothing.

    Linear and convolutional layers are analysed in the *real* forward, in eval mode; the output
    layer is left out where there is another one (name it in ``layers`` to have it). The model is
    left as found.

    Args:
        model: any module; ``Linear`` and ``Conv1d/2d/3d`` in it are analysed. A compiled one is
            unwrapped.
        data: a tensor or array, shape (samples, ...), a ``Dataset``, or an iterable of batches;
            of a batch (or a ``Dataset``'s sample) that is a tuple or list the first entry is the
            input.
        criterion: a key of ``importance.CRITERIA``.
        layers: names of the layers to analyse; all but the output layer, if None.
        null: how many networks that learned nothing to draw beside it; 0 for none. Each goes over
            the data again; batches from a one-way iterator are kept for it.
        seed: of the nulls' own random numbers; the global random streams are left alone.

    Returns:
        The usage by layer, in forward order, and what was skipped and why.

    Raises:
        ValueError: unknown criterion or layer, no data or data of another kind, nothing to
            analyse, or an output that is NaN or infinite.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2))
    >>> usage.layers["0"].weights, dict(usage.skipped)
    (20, {'2': "the output layer: its units are the model's outputs"})
    """
    _check_criterion(criterion)
    if null < 0 or null != int(null):
        raise ValueError(f"null: expected a whole number of at least 0, but got {null}")
    model = unwrapped(model)
    modules, skipped = _candidates(model)
    chosen = _chosen(modules, layers)
    if null and isinstance(data, Iterator):
        with isolated():
            data = list(data)
    seen = _stream(model, chosen, data)
    called = [name for name in seen.means if seen.means[name].count]
    skipped.update({name: NOT_ASKED for name in modules if name not in chosen})
    skipped.update({name: NEVER_CALLED for name in chosen if name not in called})
    if layers is None and len(called) > 1:
        skipped[called.pop()] = OUTPUT_LAYER
    if not called:
        raise ValueError("model: expected a Linear or convolutional layer that the forward calls, "
                         "but found none")
    usage = ModelUsage(
        criterion=criterion,
        samples=seen.samples,
        layers={name: _layer_usage(name, chosen[name], seen, criterion) for name in called},
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
    """The importance of each weight of the named layers, in the weight's shape, float64.

    Args:
        model: any module.
        data: as for ``analyze``.
        layers: names of ``Linear`` or ``Conv1d/2d/3d`` layers.
        criterion: a key of ``importance.CRITERIA``.

    Raises:
        ValueError: as ``analyze``, or a layer that the forward never calls.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> layer_importance(model, torch.rand(100, 2), ["0"])["0"].shape
    torch.Size([10, 2])
    """
    _check_criterion(criterion)
    model = unwrapped(model)
    chosen = _chosen(_candidates(model)[0], list(layers))
    seen = _stream(model, chosen, data)
    return {name: _importance(name, chosen[name], seen, criterion) for name in chosen}


def _check_criterion(criterion: str) -> None:
    if criterion not in CRITERIA:
        raise ValueError(
            f"criterion: expected one of {', '.join(CRITERIA)}, but got '{criterion}'")


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
        unit_dim = 1 - _weight(modules[name]).dim()  # from the end: a conv's input may be unbatched
        means.setdefault(name, _Mean()).add(outputs, unit_dim)

    samples = 0
    with observe(model, modules, seen):
        for inputs in _batches(data, model):
            samples += len(inputs)
            model(inputs)
    if not samples:
        raise ValueError("data: expected at least one sample, but got none")
    return _Pass(means, samples)


def _batches(data: Any, model: nn.Module) -> Iterator[Tensor]:
    """The inputs, batch by batch, on the model's device; floating-point ones in its dtype."""
    parameter = next(model.parameters(), torch.empty(0))
    for batch in _split(data):
        inputs = _tensor(batch[0] if isinstance(batch, tuple | list) and batch else batch)
        dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
        yield inputs.to(device=parameter.device, dtype=dtype)


def _split(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray) and data.ndim:
        step = rows_at_once(data.shape)
        return (data[start:start + step] for start in range(0, len(data), step))
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=_DATASET_BATCH)
    if isinstance(data, Iterable) and not isinstance(data, str | Mapping | Tensor | np.ndarray):
        return data
    raise ValueError("data: expected a tensor or array of shape (samples, ...), a Dataset, or an "
                     f"iterable of batches, but got {type(data).__name__}")


def _tensor(batch: Any) -> Tensor:
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(np.array(batch))  # a copy: the array may be read-only
    if not isinstance(batch, Tensor) or not batch.dim():
        raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), but "
                         f"got {batch!r:.60}")
    return batch


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight).detach()


def _off_mps(tensor: Tensor) -> Tensor:
    """On the CPU, where the tensor's device has no float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _importance(name: str, module: nn.Module, seen: _Pass, criterion: str) -> Tensor:
    if name not in seen.means or not seen.means[name].count:
        raise ValueError(f"layer {name}: expected the forward to call it, but it never does")
    weight, mean_output = _off_mps(_weight(module)), seen.means[name].value()
    for what, values in (("weight", weight), ("output", mean_output)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"layer {name}: expected a finite {what}, but got NaN or infinity")
    return CRITERIA[criterion](weight, mean_output)


def _layer_usage(name: str, module: nn.Module, seen: _Pass, criterion: str) -> LayerUsage:
    importance = _importance(name, module, seen, criterion)
    low = TUTORIAL_LOW if criterion == "output" else LOW_OF_MEAN * importance.mean().item()
    entropy, dead = entropy_nats(importance), not bool((importance > 0).any())
    return LayerUsage(
        name=name,
        kind=type(module).__name__,
        weights=importance.numel(),
        units=importance.shape[0],
        entropy=entropy,
        effective_weights=0.0 if dead else math.exp(entropy),
        top90_share=top_share(importance),
        low_share=low_share(importance, below=low),
        unit_importance=importance.flatten(1).sum(1).cpu().numpy(),
        histogram=histogram(importance),
        dead=dead,
    )
