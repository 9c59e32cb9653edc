"""The tutorial's rule: as many units as the share of effective weights says.

May import: usage, the result types. Tests: ``tests/widths/test_effective.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, get_args

import numpy as np
from torch import Tensor, nn

from wua_mlflow.data.tasks import Task
from wua_mlflow.errors import did_you_mean
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.masking import masked
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.rng import checked_seed
from wua_mlflow.training.evaluation import outputs_of
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import LayerUsage, ModelUsage
from wua_mlflow.widths.margin_search import (
    GroupSize,
    Loss,
    MarginSearch,
    Score,
    Scoring,
    narrowest,
    scoring,
    tensors_of,
)
from wua_mlflow.widths.results import Curve, LayerWidth, WidthRecommendation
from wua_mlflow.widths.retrain_search import Search, retrained_widths
from wua_mlflow.widths.spectrum import projected, rank_width, spectra

__all__ = [
    "METHODS", "effective_width", "effective_widths", "largest_share", "recommend_widths",
    "width_of_share",
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
    >>> from torch import nn
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
        share = largest_share(usage, names)
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
    known = _analysed(usage, layers)
    if not known:
        return None
    read = max(known, key=lambda layer: layer.effective_share)
    width = width_of_share(read.effective_share, read.units)
    held = np.cumsum(np.sort(read.unit_importance.astype(np.float64))[::-1])
    shares = (held / held[-1] if held[-1] else np.ones_like(held)).tolist()
    axis = f"share of the importance (effective weights ÷ weights {read.effective_share:.4f})"
    curve = Curve(tuple(range(1, read.units + 1)), tuple(shares), 1.0, shares[width - 1], axis)
    return LayerWidth(read.name, read.units, width, curve, width, tuple(layers))


def largest_share(usage: ModelUsage, layers: Sequence[str]) -> float | None:
    """The largest effective share among those layers that were analysed; None, if none was."""
    return max((one.effective_share for one in _analysed(usage, layers)), default=None)


def _analysed(usage: ModelUsage, layers: Sequence[str]) -> list[LayerUsage]:
    """The layers of these names, and those within: the weights of an LSTM go by its parameters'."""
    return [one for name, one in usage.layers.items()
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
class _Asked:
    """What a method works on: the model, the groups asked for, and how it is asked."""

    model: nn.Module
    data: Any
    structure: UnitGroups
    margin: float
    jointly: bool
    criterion: str
    seed: int
    task: Task | None
    loss: Loss | None
    score: Score | None
    fit: Tensor | None
    search: Search | None

    @property
    def groups(self) -> dict[str, UnitGroup]:
        return {group.name: group for group in self.structure.groups}

    def scoring(self) -> Scoring:
        return scoring(self.model, self.data, task=self.task, loss=self.loss, score=self.score)

    def directions_from(self) -> Tensor:
        return tensors_of(self.data, self.model)[0] if self.fit is None else self.fit


@dataclass(frozen=True)
class _Found:
    layers: tuple[LayerWidth, ...]
    skipped: Mapping[str, str]
    joint: Curve | None = None
    note: str = ""


def recommend_widths(  # noqa: PLR0913 - the options of one question, each by name
    model: nn.Module,
    data: Any,
    *,
    method: str = "rank",
    margin: float = 0.02,
    layers: Sequence[str] | None = None,
    task: Task | None = None,
    loss: Loss | None = None,
    score: Score | None = None,
    criterion: str | None = None,
    jointly: bool = True,
    fit_data: Any = None,
    structure: UnitGroups | None = None,
    search: Search | None = None,
    seed: int = 0,
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
        the smallest widths whose networks, trained anew, are non-inferior on validation data, from
        those of ``rank`` on, by bisection (and Optuna, of several groups).

    "Within the margin" is a point estimate: mean score ≥ that of all units − margin, on these data.
    A score is not always monotone in the width: chosen is the smallest k from which every larger
    one *that was tried* is within (16 widths, geometrically spaced, then bisection). No width says
    that a network trained anew at it is as good: that is for the verdict.

    Args:
        model: any module whose output is a tensor; it is left as found, also when it raises.
        data: inputs and targets, each of shape (examples, ...): the validation part, or, for
            ``effective`` and ``rank``, the part that the widths are to be measured on.
        method: see above; ``rank`` did best of those that train nothing (``benchmarks/knee.py``).
        margin: how much of the mean score may be lost, in its unit; in [0, 1).
        layers: names of groups, or of layers in them; all groups, if None.
        task: ``binary``, ``multiclass`` or ``regression``; read from the data, if None.
        loss: of outputs and targets, the mean over examples; that of the task, if None. For the
            criterion ``taylor``.
        score: of outputs and targets, one number an example; right or wrong, or its share of R²,
            if None. For ``projection`` and ``ablation``.
        criterion: what makes a unit important (``ablation``: ``taylor``, any of ``analyze``'s, or
            ``random``), or a weight (``effective``: ``output``).
        jointly: whether the widths of several groups together are to be within the margin
            (``projection``, ``ablation``); else each is where all other groups are whole.
        fit_data: inputs, shape (examples, ...), whose activations ``rank`` and ``projection`` take
            the directions of; those of ``data``, if None.
        structure: the groups; found, if None.
        search: for ``search``: how networks of other widths are trained, and the budget.
        seed: of the criterion ``random`` and of the search.

    Raises:
        ValueError: one line that names the argument.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> data = torch.rand(64, 2), torch.randint(2, (64,))
    >>> found = recommend_widths(model, data, method="rank")
    >>> list(found.widths), 1 <= found.widths["0"] <= 8
    (['0'], True)
    """
    _check(method, margin, criterion, fit_data)
    if (search is None) is (method == "search"):
        wanted = "a Search (how networks are trained)" if method == "search" else "none"
        raise ValueError(f"search: expected {wanted} for the method {method}, but got {search!r}")
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected one of {', '.join(get_args(Task))}, but got {task!r}")
    model = unwrapped(model)
    inputs, _ = tensors_of(data, model)
    structure = unit_groups(model, inputs[:2]) if structure is None else structure
    fit = None if fit_data is None else tensors_of((fit_data, fit_data), model)[0]
    asked = _Asked(
        model, data, _wanted(structure, layers), float(margin), jointly,
        criterion or _DEFAULT_CRITERION.get(method, ""), checked_seed(seed), task, loss, score, fit,
        search)
    found = _BY_METHOD[method](asked)
    return WidthRecommendation(method, float(margin), found.layers, found.joint,
                               {**structure.fixed, **found.skipped}, found.note)


def _effective(asked: _Asked) -> _Found:
    inputs, targets = tensors_of(asked.data, asked.model)
    judge = asked.scoring() if asked.criterion not in _NO_TARGETS_NEEDED else None
    data = inputs if judge is None else [(judge.inputs, judge.targets)]
    usage = analyze(asked.model, data, criterion=asked.criterion,
                    loss=None if judge is None else judge.loss)
    layers, skipped = [], {}
    for name, group in asked.groups.items():
        found = effective_width(usage, group.layers)
        if found is None:
            skipped[name] = "none of its layers was analysed"
        else:
            layers.append(replace(found, layer=name))
    return _Found(tuple(layers), skipped)


def _rank(asked: _Asked) -> _Found:
    found, skipped = spectra(asked.model, asked.groups,
                             partial(outputs_of, asked.model, asked.directions_from()))
    return _Found(tuple(rank_width(one) for one in found.values()), skipped)


def _projection(asked: _Asked) -> _Found:
    judge = asked.scoring()
    groups = {name: group for name, group in asked.groups.items() if group.kind != "hidden"}
    skipped = {name: "its units are read by their own layer at the next step"
               for name in asked.groups if name not in groups}
    found, unseen = spectra(asked.model, groups,
                            partial(outputs_of, asked.model, asked.directions_from()))

    def probe(widths: Mapping[str, int]) -> float:
        return projected(found, widths, lambda: judge.mean_score(asked.model))

    return _descended(asked, judge, [groups[name] for name in found], probe, {**skipped, **unseen})


def _ablation(asked: _Asked) -> _Found:
    judge = asked.scoring()
    importance = unit_importance(
        asked.model, asked.structure, (judge.inputs, judge.targets), judge.loss,
        criterion=asked.criterion, seed=asked.seed)

    def removed(name: str, kept: int) -> list[int]:
        stay = set(most_important(importance[name], kept))
        return [unit for unit in range(len(importance[name])) if unit not in stay]

    def probe(widths: Mapping[str, int]) -> float:
        gone = {name: removed(name, kept) for name, kept in widths.items()}
        with masked(asked.model, asked.structure, gone):
            return judge.mean_score(asked.model)

    return _descended(asked, judge, asked.structure.groups, probe, {})


def _descended(
    asked: _Asked, judge: Scoring, groups: Sequence[UnitGroup], probe: Any,
    skipped: Mapping[str, str],
) -> _Found:
    descent = MarginSearch(probe, judge.mean_score(asked.model), asked.margin, judge.axis)
    spans = [GroupSize(one.name, one.units, one.layers) for one in groups]
    layers, joint = narrowest(descent, spans, jointly=asked.jointly)
    return _Found(layers, skipped, joint)


def _search(asked: _Asked) -> _Found:
    assert asked.search is not None, "checked before"
    suggested = _rank(asked)
    layers, note = retrained_widths(asked.search, suggested.layers, margin=asked.margin,
                                    seed=asked.seed)
    return _Found(layers, suggested.skipped, note=note)


_BY_METHOD = {"effective": _effective, "rank": _rank, "projection": _projection,
              "ablation": _ablation, "search": _search}


def _wanted(structure: UnitGroups, layers: Sequence[str] | None) -> UnitGroups:
    if not structure.groups:
        reasons = "; ".join(f"{name}: {why}" for name, why in structure.fixed.items())
        raise ValueError("model: expected a layer whose units can be removed, but got none"
                         + (f" ({reasons})" if reasons else ""))
    if layers is None:
        return structure
    known = {name: group for group in structure.groups for name in (group.name, *group.layers)}
    for name in layers:
        if name not in known:
            why = structure.fixed.get(name)
            raise ValueError(f"layers: expected names of layers whose units can be removed, but "
                             f"got '{name}'" + (f" ({why})" if why else did_you_mean(name, known)))
    chosen = {known[name].name for name in layers}
    if not chosen:
        raise ValueError("layers: expected at least one name, but got none")
    kept = tuple(group for group in structure.groups if group.name in chosen)
    return replace(structure, groups=kept)


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
