"""A width for each group of units, by one of several methods; ``wua.recommend_widths``.

Tests: ``tests/widths/test_recommend.py``, ``tests/widths/test_effective.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, get_args

import numpy as np
from torch import Tensor, nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.data.tasks import Task
from wua_mlflow.errors import did_you_mean
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pruning.activations import run_over
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.reference import outputs_without
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.rng import checked_seed
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import LayerUsage, ModelUsage
from wua_mlflow.what_to_cut import WhatToCut
from wua_mlflow.widths.margin_search import MarginSearch, Probe
from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation
from wua_mlflow.widths.retrain_search import Search, retrained_widths
from wua_mlflow.widths.scoring import (
    Loss,
    Score,
    Scoring,
    batches_of,
    checked_tensor,
    scoring,
)
from wua_mlflow.widths.spectrum import Spectrum, rank_width, score_projected, spectra

__all__ = [
    "METHODS", "effective_width", "effective_widths", "recommend_widths", "width_of_share",
]


_ROUNDING = 1e-9
"""Relative slack before rounding down: of 20 equal weights exp(entropy) is 19.999999999999996."""


def effective_widths(
    usage: ModelUsage, original: Sequence[int], layers: Sequence[Sequence[str]]
) -> tuple[int, ...]:
    """Widths by the tutorial's rule: floor(effective weights ÷ weights × units), at least 1.

    An entry that sets several layers takes the largest of theirs. The rule describes how
    concentrated the importance is; whether the narrower network is as good is for the verdict.

    Args:
        usage: of the original network.
        original: its widths.
        layers: for each entry the layers that it sets, from ``layers_by_width``.

    Raises:
        ValueError: ``layers`` of another length than ``original``, or an entry none of whose layers
            was analysed.

    >>> import torch
    >>> from torch import Tensor, nn
    >>> from wua_mlflow.usage.analyze import analyze
    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2), criterion="magnitude")
    >>> 1 <= effective_widths(usage, [10], [["0"]])[0] <= 10
    True
    """
    if len(layers) != len(original):
        raise ValueError(f"layers: expected {len(original)} entries, one a width, "
                         f"but got {len(layers)}")
    widths = []
    for index, names in enumerate(layers):
        share = max((layer.effective_share for layer in _analysed(usage, names)), default=None)
        if share is None:
            raise ValueError(f"slim_hidden: no width can be derived for entry {index + 1}, since "
                             f"none of its layers was analysed; give the widths, e.g. "
                             f"slim_hidden={','.join(str(w) for w in original)}")
        widths.append(width_of_share(share, original[index]))
    return tuple(widths)


def effective_width(usage: ModelUsage, layers: Sequence[str]) -> LayerWidth | None:
    """The width of layers that share their units, with a curve; None, if none was analysed.

    The rule looks at one number, the effective share. The curve says what importance the k most
    important units hold, of the layer that is read.

    Args:
        usage: of the network.
        layers: those that make the units; the one of the largest share is read.
    """
    analysed = _analysed(usage, layers)
    if not analysed:
        return None
    layer = max(analysed, key=lambda layer: layer.effective_share)
    width = width_of_share(layer.effective_share, layer.units)
    sums = np.cumsum(np.sort(layer.unit_importance.astype(np.float64))[::-1])
    shares = (sums / sums[-1] if sums[-1] else np.ones_like(sums)).tolist()
    axis = f"share of the importance (effective weights ÷ weights {layer.effective_share:.4f})"
    curve = Curve(tuple(range(1, layer.units + 1)), tuple(shares), 1.0, shares[width - 1], axis)
    return LayerWidth(layer.name, layer.units, width, curve, width, tuple(layers))


def _analysed(usage: ModelUsage, layers: Sequence[str]) -> list[LayerUsage]:
    """The layers of these names; an LSTM's weights are below its name."""
    return [usage_of_layer for name, usage_of_layer in usage.layers.items()
            if any(name == layer or name.startswith(f"{layer}.") for layer in layers)]


def width_of_share(share: float, units: int) -> int:
    """floor(share × units), at least 1 and at most ``units``.

    >>> width_of_share(15.7751 / 20, 10)
    7
    """
    return max(1, min(units, math.floor(share * units * (1 + _ROUNDING))))


METHODS = ("effective", "rank", "projection", "ablation", "search")
_DEFAULT_CRITERION = {"effective": "output", "ablation": "taylor"}
_DIRECTIONS = ("rank", "projection", "search")
_NO_TARGETS_NEEDED = ("output", "input", "wanda", "magnitude")


@dataclass(frozen=True)
class _Request:
    """The arguments of ``recommend_widths``, checked, as a method takes them."""

    model: nn.Module
    data: Any
    structure: UnitGroups
    method: str
    margin: float
    jointly: bool
    criterion: str
    seed: int
    task: Task | None
    loss: Loss | None
    score: Score | str | None
    fit: Any
    batch_to_inputs: Callable[[Any], Any] | None
    search: Search | None

    @property
    def batches(self) -> Batches:
        """The data, for the model."""
        return batches_of(self.data, self.model, self.batch_to_inputs)

    def scoring(self) -> Scoring:
        return scoring(self.model, self.data, task=self.task, loss=self.loss, score=self.score,
                       batch_to_inputs=self.batch_to_inputs)

    def spectra(self, groups: Sequence[UnitGroup]) -> tuple[dict[str, Spectrum], dict[str, str]]:
        """The spectra of the groups' activations on ``fit``, or else on the inputs."""
        return spectra(self.model, groups, partial(run_over, self.model, self.fit))

    def result(
        self, layers: Sequence[LayerWidth], skipped: Mapping[str, str],
        joint: Curve | None = None, note: str = "",
    ) -> WidthRecommendation:
        return WidthRecommendation(self.method, self.margin, tuple(layers), joint,
                                   {**self.structure.not_prunable, **skipped}, note)

    def within_margin(
        self, judge: Scoring, groups: Sequence[UnitGroup], probe: Probe, skipped: Mapping[str, str]
    ) -> WidthRecommendation:
        """The smallest widths whose score, by the probe, is within the margin."""
        search = MarginSearch(probe, judge.mean_score(self.model), self.margin, judge.axis)
        layers, joint = search.search(groups, jointly=self.jointly)
        return self.result(layers, skipped, joint)


def recommend_widths(  # noqa: PLR0913 - the options of one question, each by name
    model: nn.Module, data: Any, *, method: str = "rank", margin: float = 0.02,
    layers: Sequence[str] | None = None, task: Task | None = None, loss: Loss | None = None,
    score: Score | str | None = None, criterion: str | None = None, jointly: bool = True,
    fit_data: Any = None, structure: UnitGroups | None = None,
    what: str | Sequence[str] | WhatToCut | None = None, search: Search | None = None,
    seed: int = 0, batch_to_inputs: Callable[[Any], Any] | None = None,
) -> WidthRecommendation:
    """A width for each group of units of a trained network; only ``search`` trains others.

    ``effective``
        floor(effective weights ÷ weights × units): the tutorial's rule. It looks at no score.
    ``rank``
        the effective rank of the scaled, centred activations (Roy & Vetterli 2007), rounded up. It
        looks at no score.
    ``projection``
        the smallest k whose projection of the activations on their k principal directions, in
        inference, keeps the mean score within the margin (Berngardt 2024, arXiv 2405.14147).
    ``ablation``
        units removed from the least important up; the smallest number kept within the margin.
    ``search``
        the cheapest widths whose networks, trained anew, hold on validation data
        (``search_widths``), from those of ``rank`` on, by bisection.

    "Within the margin" is a point estimate: mean score ≥ that of all units − margin, on these data.
    A score is not always monotone in the width: chosen is the smallest k from which every larger
    one *that was tried* is within (16 widths, geometrically spaced, then bisection). No width says
    that a network trained anew at it is as good: that is for the verdict.

    Args:
        model: any module whose outputs hold a tensor; it is left as found, also when it raises.
        data: inputs and targets, each of shape (examples, ...), or a Dataset, a DataLoader or a
            list of batches: the validation part, or, for ``effective`` and ``rank``, the part that
            the widths are to be measured on. ``projection`` and ``ablation`` go over it many times.
        method: see above; ``rank`` did best of those that train nothing (``benchmarks/knee.py``).
        margin: how much of the mean score may be lost, in its unit; in [0, 1).
        layers: names of groups, or of layers in them; all groups, if None.
        task: ``binary``, ``multiclass`` or ``regression``; read from the data, if None.
        loss: of outputs and targets, the mean over examples; that of the task, if None. For the
            criterion ``taylor``.
        score: of outputs and targets, one number an example, or a name as in ``compare``; right or
            wrong, or an example's share of R², if None. For ``projection`` and ``ablation``.
        criterion: what makes a unit important (``ablation``: ``taylor``, any of ``analyze``'s, or
            ``random``), or a weight (``effective``: ``output``).
        jointly: whether the widths of several groups together are to be within the margin
            (``projection``, ``ablation``); else each is where all other groups are whole.
        fit_data: inputs, shape (examples, ...), or batches, whose activations ``rank`` and
            ``projection`` take the directions of; those of ``data``, if None.
        structure: the groups; found, if None.
        what: of which kinds of units, where the groups are to be found: ``units``, ``heads``,
            ``stream`` (the model's width, which norms go over), or several; ``units,heads``, if
            None. The widths are as the method finds them: ``multiple_of`` and ``same_widths`` are
            for ``slim``.
        search: for ``search``: how networks of other widths are trained, and the budget.
        seed: of the criterion ``random`` and of the search.
        batch_to_inputs: as of ``analyze``.

    Raises:
        ValueError: one line that names the argument.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> data = torch.rand(64, 2), torch.randint(2, (64,))
    >>> recommendation = recommend_widths(model, data, method="rank")
    >>> list(recommendation.widths), 1 <= recommendation.widths["0"] <= 8
    (['0'], True)
    """
    _check(method, margin, criterion, fit_data)
    if (search is None) is (method == "search"):
        wanted = "a Search (how networks are trained)" if method == "search" else "none"
        raise ValueError(f"search: expected {wanted} for the method {method}, but got {search!r}")
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected one of {', '.join(get_args(Task))}, but got {task!r}")
    model = plain_weights(unwrapped(model))
    batches = batches_of(data, model, batch_to_inputs)
    if structure is None:
        structure = unit_groups(model, next(iter(batches)).accepted_example(model, 2),
                                WhatToCut.of(what or WhatToCut()).kinds)
    if isinstance(fit_data, Tensor | np.ndarray):
        fit_data = checked_tensor(fit_data, "inputs")
    fit = batches if fit_data is None else Batches(fit_data, model, batch_to_inputs)
    return _BY_METHOD[method](_Request(
        model, data, _selected(structure, layers), method, float(margin), jointly,
        criterion or _DEFAULT_CRITERION.get(method, ""), checked_seed(seed), task, loss, score, fit,
        batch_to_inputs, search))


def _effective(request: _Request) -> WidthRecommendation:
    if request.criterion in _NO_TARGETS_NEEDED:
        usage = analyze(request.model, request.batches, criterion=request.criterion)
    else:
        judge = request.scoring()
        usage = analyze(request.model, judge.batches, criterion=request.criterion,
                        loss=judge.loss)
    widths = {group.name: effective_width(usage, group.layers)
              for group in request.structure.groups}
    return request.result(
        [replace(width, layer=name) for name, width in widths.items() if width],
        {name: "none of its layers was analysed" for name, width in widths.items() if not width})


def _rank(request: _Request) -> WidthRecommendation:
    by_group, skipped = request.spectra(request.structure.groups)
    return request.result([rank_width(spectrum) for spectrum in by_group.values()], skipped)


def _projection(request: _Request) -> WidthRecommendation:
    judge = request.scoring()
    skipped = {group.name: "its units are read by their own layer at the next step"
               for group in request.structure.groups if group.kind == "hidden"}
    by_group, unseen = request.spectra(
        [group for group in request.structure.groups if group.name not in skipped])

    def probe(widths: Mapping[str, int]) -> float:
        return score_projected(by_group, widths, lambda: judge.mean_score(request.model))

    return request.within_margin(judge, [spectrum.group for spectrum in by_group.values()], probe,
                                 {**skipped, **unseen})


def _ablation(request: _Request) -> WidthRecommendation:
    judge, structure = request.scoring(), request.structure
    importance = unit_importance(
        request.model, structure, judge.batches, judge.loss,
        criterion=request.criterion, seed=request.seed)

    def probe(widths: Mapping[str, int]) -> float:
        removed = {name: structure.group(name).others(most_important(importance[name], kept))
                   for name, kept in widths.items()}
        return float(outputs_without(request.model, structure, removed,
                                     partial(judge.mean_score, request.model)))

    return request.within_margin(judge, structure.groups, probe, {})


def _search(request: _Request) -> WidthRecommendation:
    assert request.search is not None, "checked before"
    suggested = _rank(request)
    layers, note = retrained_widths(request.search, suggested.layers, margin=request.margin)
    return replace(suggested, layers=layers, note=note)


_BY_METHOD = {"effective": _effective, "rank": _rank, "projection": _projection,
              "ablation": _ablation, "search": _search}


def _selected(structure: UnitGroups, layers: Sequence[str] | None) -> UnitGroups:
    """The groups of these layers; all, if None."""
    if not structure.groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in structure.not_prunable.items())
        raise ValueError("model: expected a layer whose units can be removed, but got none"
                         f"{f' ({reasons})' if reasons else ''}")
    if layers is None:
        return structure
    names = {structure.group_of_layer(name, argument="layers").name for name in layers}
    if not names:
        raise ValueError("layers: expected at least one name, but got none")
    return replace(structure, groups=tuple(
        group for group in structure.groups if group.name in names))


def _check(method: str, margin: float, criterion: str | None, fit_data: Any) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, but got '{method}'"
                         f"{did_you_mean(str(method), METHODS)}")
    if isinstance(margin, bool) or not isinstance(margin, Real) or not 0 <= margin < 1:
        raise ValueError(f"margin: expected a number in [0, 1), but got {margin!r}")
    if criterion is not None and method not in _DEFAULT_CRITERION:
        raise ValueError(f"criterion: expected none for the method {method}, which uses no "
                         f"importance, but got '{criterion}'")
    if fit_data is not None and method not in _DIRECTIONS:
        raise ValueError(f"fit_data: expected none for the method {method}, which looks at no "
                         "directions")
