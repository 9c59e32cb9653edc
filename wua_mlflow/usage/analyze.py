"""``analyze``: how concentrated a model's importance is, from one streaming pass over the data.

Tests: ``tests/usage/test_analyze.py``, ``tests/usage/test_analyze_criteria.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.distributed import is_sharded
from wua_mlflow.hooks import unwrapped
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.usage.criteria import Criterion, output
from wua_mlflow.usage.gradients import Loss
from wua_mlflow.usage.layer_statistics import (
    LayerStatistics,
    layer_statistics,
    rank_of,
    reason_not_applicable,
    required_stats,
    resolve_criteria,
)
from wua_mlflow.usage.null import with_null
from wua_mlflow.usage.results import LayerUsage, ModelUsage
from wua_mlflow.usage.run import PassStatistics, is_part, layer_filter, parts_of, run_pass
from wua_mlflow.usage.statistics import Summary, summarize
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer
from wua_mlflow.usage.tracing.skipped import skipped_outputs

__all__ = ["analyze", "layer_importance"]


NOT_ASKED = "not among the layers asked for"
TUTORIAL_LOW = 0.01
"""Criterion ``output``: an importance below this is low, as in the tutorial."""
MOST_IN_A_DRAW = 2**22
"""Of a layer with more weights than this, a null draw analyses a sample of units."""


@overload
def analyze(
    model: nn.Module, data: Any, *, criterion: str | Criterion = ..., layers: Sequence[str] | None
    = ..., null: int = ..., seed: int = ..., loss: Loss | None = ...,
    batch_to_inputs: Callable[[Any], Any] | None = ..., effective_rank: bool = ...,
    null_data: Any = ..., null_seconds: float = ...,
) -> ModelUsage: ...


@overload
def analyze(
    model: nn.Module, data: Any, *, criterion: Sequence[str | Criterion], layers: Sequence[str] |
    None = ..., null: int = ..., seed: int = ..., loss: Loss | None = ...,
    batch_to_inputs: Callable[[Any], Any] | None = ..., effective_rank: bool = ...,
    null_data: Any = ..., null_seconds: float = ...,
) -> dict[str, ModelUsage]: ...


def analyze(  # noqa: PLR0913 - the options of one question, each by name
    model: nn.Module,
    data: Any,
    *,
    criterion: str | Criterion | Sequence[str | Criterion] = "output",
    layers: Sequence[str] | None = None,
    null: int = 0,
    seed: int = 0,
    loss: Loss | None = None,
    batch_to_inputs: Callable[[Any], Any] | None = None,
    effective_rank: bool = False,
    null_data: Any = None,
    null_seconds: float = math.inf,
) -> ModelUsage | dict[str, ModelUsage]:
    """How concentrated each layer's importance is, beside networks that learned nothing.

    Every weight that is multiplied with activations in the *real* forward, in eval mode, makes a
    layer: those of linear, convolutional, embedding, attention, recurrent and bilinear modules, of
    subclasses of them, and parameters that the model's own code multiplies. What is left out is in
    ``skipped``, with the reason; so are the output layers where there is another one (name them in
    ``layers`` to have them). The model is left as found, also when its forward raises.

    Inside an initialised ``torch.distributed`` each process streams its own share of the data, and
    all of them get the figures of the whole.

    Args:
        model: any module. A compiled, ``DataParallel`` or ``DistributedDataParallel`` one is
            unwrapped; one sharded by FSDP2 is gathered layer by layer.
        data: a tensor or array, shape (samples, ...), a ``Dataset``, or an iterable of batches:
            of tensors or arrays, of tuples (the input first, the target second), or of dicts
            (keyword arguments; ``attention_mask`` says what is padding, ``labels`` are targets).
        criterion: a key of ``criteria.CRITERIA``, a function of your own (see there), or
            several of them for one pass; then the result is a dict by name.
        layers: names of the layers to analyse; all but the output layers, if None.
        null: how many networks that learned nothing to draw beside it; 0 for none. Each goes over
            the data again.
        seed: of the nulls' own random numbers; the global random streams are left alone.
        loss: for ``taylor``: of the model's outputs and a batch's targets, the mean over its
            samples; not needed where the outputs have a ``loss`` of their own.
        batch_to_inputs: from a batch of another kind to a tensor, a tuple of positional arguments
            or a dict of keyword arguments.
        effective_rank: also the effective rank of each layer's activations, from at most 2,048
            sampled rows.
        null_data: what the nulls go over, in the same forms: a sample, where ``data`` are large;
            ``data``, if None.
        null_seconds: no more of the nulls than fit into these by the first one's time, but at
            least 5.

    Returns:
        The usage by layer, in forward order, and what was skipped and why.

    Raises:
        ValueError: one line that names the argument, or the layer and the batch: unknown criterion
            or layer, no data or data of another kind, nothing to analyse, targets lacking, or
            weights, activations or data that are NaN or infinite.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2))
    >>> usage.layers["0"].weights, dict(usage.skipped)
    (20, {'2': "the output layer: its units are the model's outputs"})
    """
    several = not isinstance(criterion, str) and not callable(criterion)
    criteria = resolve_criteria(criterion if several else [criterion])  # type: ignore[arg-type, list-item]
    if not isinstance(null, int) or null < 0:
        raise ValueError(f"null: expected a whole number of at least 0, but got {null}")
    model = unwrapped(model)
    batches = Batches(data, model, batch_to_inputs)
    null_batches = batches if null_data is None else Batches(null_data, model, batch_to_inputs)
    if null and null_batches.once:
        raise ValueError("data: expected batches that can be gone over again, since null asks for "
                         "more passes, but got an iterator; give a DataLoader or a list")
    needed = required_stats(list(criteria.values()), rows=effective_rank)
    if is_sharded(model):
        _check_sharded(null, needed)
    wanted = layer_filter(model, layers)  # the rank is scaled by those that read a layer, too
    pass_stats = run_pass(model, batches, needed, loss=loss,
                          wanted=layer_filter(model, None) if effective_rank else wanted)
    for name in layers or ():
        parts_of(name, pass_stats)  # raises where a slice was not used
    usages = _model_usages(pass_stats, criteria, layers)
    if null:
        usages = _with_nulls(usages, model, null_batches, criteria,
                             (null, seed, loss, null_seconds))
    return usages if several else next(iter(usages.values()))


def _check_sharded(null: int, needed: RequiredStats) -> None:
    if null:
        raise ValueError("null: expected 0 for a sharded model, which cannot be re-initialised, "
                         f"but got {null}")
    if needed.gradient:
        raise ValueError("criterion: taylor needs gradients, which a sharded model has in pieces "
                         "only; choose another, or a model that is not sharded")


def layer_importance(
    model: nn.Module,
    data: Any,
    layers: Iterable[str],
    criterion: str | Criterion = "output",
    *,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """The importance of each weight of the named layers, shape (units, ...), float64.

    Args:
        model: any module.
        data: as for ``analyze``.
        layers: names of layers; that of a parameter stands for all its slices.
        criterion: as for ``analyze``.
        loss: as for ``analyze``.

    Raises:
        ValueError: as ``analyze``, or a layer that the forward never calls.

    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> layer_importance(model, torch.rand(100, 2), ["0"])["0"].shape
    torch.Size([10, 2])
    """
    rule, = resolve_criteria([criterion]).values()
    model, names = unwrapped(model), list(layers)
    importances: dict[str, Tensor] = {}
    pass_stats = run_pass(model, Batches(data, model), required_stats([rule], rows=False),
                          wanted=layer_filter(model, names), loss=loss)
    for name in (part for requested in names for part in parts_of(requested, pass_stats)):
        layer = pass_stats.layers.get(name)
        reason = pass_stats.skipped.get(name) or (layer and reason_not_applicable(layer, rule))
        if layer is None or reason:
            raise ValueError(f"layer {name}: expected one that can be analysed, but got: {reason}")
        statistics = layer_statistics(layer, pass_stats)
        importance = statistics.importance(rule)(slice(None), slice(None))
        if not bool(((importance >= 0) & importance.isfinite()).all()):
            statistics.refuse_broken()
            raise ValueError(f"layer {name}: expected finite importances of 0 or more, got others")
        importances[name] = importance.double().reshape(statistics.weight.shape)
    return importances


def _model_usages(
    pass_stats: PassStatistics, criteria: Mapping[str, Criterion], layers: Sequence[str] | None
) -> dict[str, ModelUsage]:
    slices = [name for name in pass_stats.not_requested if "[" in name]
    not_requested = [name for name in (*pass_stats.layers, *pass_stats.skipped, *slices)
                     if layers is not None and not name.endswith("[...]")
                     and not any(is_part(name, requested) for requested in layers)]
    skipped = {**pass_stats.skipped, **dict.fromkeys(not_requested, NOT_ASKED)}
    analyzed = [name for name in pass_stats.layers if name not in skipped]
    if layers is None:
        skipped.update(skipped_outputs(pass_stats.last, analyzed))
        analyzed = [name for name in analyzed if name not in skipped]
    usages: dict[str, dict[str, LayerUsage]] = {name: {} for name in criteria}
    inapplicable: dict[str, dict[str, str]] = {name: {} for name in criteria}
    for layer_name in analyzed:
        layer = pass_stats.layers[layer_name]
        statistics = layer_statistics(layer, pass_stats)
        rank = rank_of(layer, pass_stats)
        for name, rule in criteria.items():
            reason = reason_not_applicable(layer, rule)
            if reason:
                inapplicable[name][layer_name] = reason
            else:
                usages[name][layer_name] = replace(
                    _layer_usage(layer, statistics, rule), effective_rank=rank,
                    forward_flops=layer.flops / pass_stats.samples)
    by_criterion = {}
    for name, usage in usages.items():
        if not usage:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in
                            list({**inapplicable[name], **skipped}.items())[:3])
            raise ValueError("model: expected a layer whose weights the forward multiplies with "
                             f"activations, but found none{f' ({reasons})' if reasons else ''}")
        by_criterion[name] = ModelUsage(criterion=name, samples=pass_stats.samples, layers=usage,
                                        skipped={**skipped, **inapplicable[name]})
    return by_criterion


def _layer_usage(
    layer: TracedLayer, statistics: LayerStatistics, criterion: Criterion
) -> LayerUsage:
    summary = _summarize_layer(layer, statistics, criterion)
    signed_units = statistics.signed_units(criterion)
    by_unit = summary.unit_importance if signed_units is None else signed_units.cpu().numpy()
    importance = np.abs(by_unit)
    row = torch.from_numpy(importance).reshape(1, -1)
    units = summarize(lambda rows, columns: row[rows, columns], (1, layer.units))
    dead = layer.dead_units()
    return LayerUsage(
        name=layer.name,
        kind=layer.kind,
        weights=summary.usage.count,
        units=layer.units,
        entropy=summary.usage.entropy,
        effective_weights=summary.usage.effective,
        top90_share=summary.usage.top90_share,
        low_share=summary.usage.low_share,
        unit_importance=importance,
        histogram=summary.histogram,
        dead=summary.dead,
        unit_usage=units.usage,
        dead_units=None if dead is None else int(dead.sum()),
        head_importance=_head_importance(layer, by_unit) if layer.heads else None,
    )


def _head_importance(layer: TracedLayer, by_unit: np.ndarray) -> np.ndarray:
    """The importance of a layer's heads, shape (heads,), each of equally many units.

    The sum over a head's units, under ``taylor`` |Σ a·g| over all of the head's outputs (as Michel
    et al. 2019, arXiv 1905.10650, weigh heads, but the mean before the absolute value).
    """
    importance: np.ndarray = np.abs(by_unit.reshape(layer.head_parts, layer.heads, -1).sum((0, 2)))
    return importance


def _summarize_layer(
    layer: TracedLayer, statistics: LayerStatistics, criterion: Criterion
) -> Summary:
    try:
        return summarize(statistics.importance(criterion), statistics.shape,
                         low=TUTORIAL_LOW if criterion is output else None,
                         by_column=layer.by_column)
    except ValueError as error:
        statistics.refuse_broken()
        raise ValueError(f"layer {layer.name}: {error}") from error


def _with_nulls(
    usages: Mapping[str, ModelUsage],
    model: nn.Module,
    batches: Batches,
    criteria: Mapping[str, Criterion],
    options: tuple[int, int, Loss | None, float],
) -> dict[str, ModelUsage]:
    draws, seed, loss, seconds = options
    needed = required_stats(list(criteria.values()), rows=False)
    names = {layer for usage in usages.values() for layer in usage.layers}
    generator = torch_generator(seed, Purpose.NULL_UNITS)

    def measure(untrained: nn.Module) -> dict[str, ModelUsage]:
        pass_stats = run_pass(untrained, batches, needed, wanted=names.__contains__, loss=loss)
        return {name: replace(usage, layers={
            layer: _null_layer(usage.layers[layer], pass_stats, criteria[name], generator)
            for layer in usage.layers if layer in pass_stats.layers})
            for name, usage in usages.items()}

    return with_null(usages, model, measure, draws=draws, seed=seed, seconds=seconds)


def _null_layer(
    usage: LayerUsage, pass_stats: PassStatistics, criterion: Criterion, generator: torch.Generator
) -> LayerUsage:
    """The layer's usage in one null draw; that of a large layer is scaled up from sampled units."""
    layer = pass_stats.layers[usage.name]
    statistics = layer_statistics(layer, pass_stats)
    units, weights_a_unit = statistics.shape
    most_units = max(1, MOST_IN_A_DRAW // max(1, weights_a_unit))
    if units > most_units:
        sample = torch.randperm(units, generator=generator)[:most_units].sort().values
        statistics = statistics.sampled(sample)
    summary = _summarize_layer(layer, statistics, criterion)
    effective = summary.usage.effective * (units / statistics.shape[0])
    return replace(usage, entropy=math.log(effective) if effective > 0 else 0.0,
                   effective_weights=effective, dead=summary.dead)
