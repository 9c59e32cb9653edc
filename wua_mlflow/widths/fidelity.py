"""How well an importance predicts the change of the loss without a unit, on held-out data.

Tests: ``tests/widths/test_fidelity.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.tasks import Task
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pruning.reference import outputs_without
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.rng import Purpose, numpy_generator
from wua_mlflow.widths.scoring import Loss, Scoring, scoring

__all__ = ["Fidelity", "GroupFidelity", "exact_changes", "fidelity"]


MAX_POINTS = 64
"""Of an ablation curve; groups with more units are removed several at a time."""
_MIN_UNITS = 3
_PREFIX, _AREA = "fidelity/", "fidelity_area/"


@dataclass(frozen=True)
class GroupFidelity:
    """The fidelity in one group of units; NaN where undefined (under three units, or all alike).

    Attributes:
        name: the group's.
        units: how many.
        changes: by unit, mean loss without it − mean loss; below 0 where the loss falls.
        spearman: by criterion, the rank correlation of importance and change.
        reliability: the rank correlation of the changes on one half of the data and on the other.
        area: by criterion, (its area − random's) ÷ (greedy's − random's) of the ablation curves.
    """

    name: str
    units: int
    changes: tuple[float, ...]
    spearman: Mapping[str, float]
    reliability: float
    area: Mapping[str, float]


@dataclass(frozen=True)
class Fidelity:
    """The fidelity of importances: means over groups, weighted by units; NaN where undefined."""

    groups: tuple[GroupFidelity, ...]

    @property
    def spearman(self) -> dict[str, float]:
        """The rank correlation by criterion."""
        return {name: self._mean([group.spearman[name] for group in self.groups])
                for name in self._criteria}

    @property
    def area(self) -> dict[str, float]:
        """By criterion: 0 is as good as a random order, 1 as good as the greedy one."""
        return {name: self._mean([group.area.get(name, math.nan) for group in self.groups])
                for name in self._criteria}

    @property
    def reliability(self) -> float:
        """Split-half correlation of the exact changes."""
        return self._mean([group.reliability for group in self.groups])

    @property
    def reliability_of_whole(self) -> float:
        """The reliability of all the data, by Spearman and Brown: 2 r ÷ (1 + r).

        Its square root bounds what a perfect importance could reach here.
        """
        return 2 * self.reliability / (1 + self.reliability) if self.reliability > 0 else math.nan

    def metrics(self) -> dict[str, float]:
        """``fidelity/<criterion>``, ``fidelity/reliability`` and ``fidelity_area/<criterion>``.

        Those that are NaN are left out.
        """
        values = {_PREFIX + name: value for name, value in self.spearman.items()}
        values[f"{_PREFIX}reliability"] = self.reliability
        values |= {_AREA + name: value for name, value in self.area.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    @property
    def _criteria(self) -> list[str]:
        return list(self.groups[0].spearman) if self.groups else []

    def _mean(self, values: Sequence[float]) -> float:
        numbers, units = np.array(values), np.array([group.units for group in self.groups])
        defined = ~np.isnan(numbers)
        return float(np.average(numbers[defined], weights=units[defined])) if defined.any() \
            else math.nan


def fidelity(  # noqa: PLR0913 - the options of one question, each by name
    model: nn.Module, data: Any, structure: UnitGroups,
    importances: Mapping[str, Mapping[str, Tensor]], *, task: Task | None = None,
    loss: Loss | None = None, halves: int = 20, orders: int = 10, seed: int = 0,
) -> Fidelity:
    """The rank correlation of each importance with the exact loss change, and its ceiling.

    Args:
        model: any module whose output is a tensor; left as found.
        data: inputs and targets, each of shape (examples, ...), that no importance was made from.
        structure: the groups of units.
        importances: by criterion and group, shape (units,).
        task: read from the data, if None.
        loss: of outputs and targets, the mean over examples; that of the task, if None.
        halves: random divisions of the data in two for the reliability, their mean is taken.
        orders: random orders for the ablation curve's area, their mean is taken; 0: no areas,
            which take about units² ÷ 2 forward passes over the data in each group.
        seed: of divisions and orders.

    Raises:
        ValueError: one line; bad data, or an importance lacks a group or has other units.

    >>> from wua_mlflow.pruning.cut import unit_groups
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    >>> data = torch.rand(32, 2), torch.randint(2, (32,))
    >>> structure = unit_groups(model, data[0])
    >>> result = fidelity(model, data, structure, {"first last": {"0": torch.arange(6)}})
    >>> sorted(result.metrics())
    ['fidelity/first last', 'fidelity/reliability', 'fidelity_area/first last']
    """
    for name, count, least in (("halves", halves, 1), ("orders", orders, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, but got "
                             f"{count!r}")
    model = unwrapped(model)
    by_group = {group.name: {criterion: _checked(criterion, importance, group)
                             for criterion, importance in importances.items()}
                for group in structure.groups}
    judge = scoring(model, data, task=task, loss=loss)
    random = numpy_generator(seed, Purpose.RESAMPLING)
    examples = sum(batch.samples for batch in judge.batches)
    parts = [part for _ in range(halves)
             for part in torch.from_numpy(random.permutation(examples)).tensor_split(2)]
    results = []
    for group in structure.groups:
        changes, *of_parts = exact_changes(model, judge, structure, group.name, [None, *parts])
        values = by_group[group.name]
        halves_agree = [_spearman(first, second)
                        for first, second in zip(of_parts[::2], of_parts[1::2], strict=True)]
        curves = _Curves(model, judge, structure, group.name, group.units)
        results.append(GroupFidelity(
            group.name, group.units, tuple(changes.tolist()),
            {name: _spearman(value, changes) for name, value in values.items()},
            float(np.mean(halves_agree)),
            curves.areas(values, orders, random) if orders else {}))
    return Fidelity(tuple(results))


def exact_changes(
    model: nn.Module, judge: Scoring, structure: UnitGroups, group: str,
    parts: Iterable[Tensor | None] = (None,),
) -> np.ndarray:
    """Mean loss without each unit − mean loss, shape (parts, units); a part None is all the data.

    Args:
        model: left as found.
        judge: the data and the loss.
        structure: the groups.
        group: the name of the one whose units are removed, one at a time.
        parts: rows of the data.
    """
    rows = list(parts)

    def losses(removed: Sequence[int]) -> list[float]:
        outputs = outputs_without(model, structure, {group: removed},
                                  partial(judge.outputs, model))
        return [judge.mean_loss(outputs, part) for part in rows]

    unmasked = losses([])
    without = [losses([unit]) for unit in range(structure.group(group).units)]
    changes: np.ndarray = np.array(without).T - np.array(unmasked)[:, None]
    return changes


@dataclass(frozen=True)
class _Curves:
    """The loss against the number of units removed, by order of removal, in one group."""

    model: nn.Module
    judge: Scoring
    structure: UnitGroups
    group: str
    units: int

    @property
    def points(self) -> list[int]:
        """Numbers removed, from 1 to all but one."""
        last = self.units - 1
        return sorted(set(np.linspace(1, last, min(last, MAX_POINTS)).round().astype(int).tolist()))

    def areas(
        self, importances: Mapping[str, np.ndarray], orders: int, random: np.random.Generator
    ) -> dict[str, float]:
        """By criterion, 0 at the random orders' mean and 1 at the greedy order."""
        if self.units < _MIN_UNITS:
            return dict.fromkeys(importances, math.nan)
        chance = float(np.mean([self._area(random.permutation(self.units))
                                for _ in range(orders)]))
        best = self._area(self._greedy())
        return {name: (self._area(np.argsort(values, kind="stable")) - chance) / (best - chance)
                if best != chance else math.nan for name, values in importances.items()}

    def _area(self, order: np.ndarray) -> float:
        return float(np.mean([self._loss(order[:count]) for count in self.points]))

    def _loss(self, removed: np.ndarray) -> float:
        return self.judge.mean_loss(outputs_without(
            self.model, self.structure, {self.group: removed.tolist()},
            partial(self.judge.outputs, self.model)))

    def _greedy(self) -> np.ndarray:
        """At each point the units go whose removal costs least beside those removed before."""
        removed: list[int] = []
        for count in self.points:
            remaining = [unit for unit in range(self.units) if unit not in removed]
            costs = [self._loss(np.array([*removed, unit])) for unit in remaining]
            cheapest = np.argsort(costs, kind="stable")[:count - len(removed)]
            removed += [remaining[place] for place in cheapest]
        return np.array(removed)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < _MIN_UNITS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def _checked(criterion: str, importance: Mapping[str, Tensor], group: UnitGroup) -> np.ndarray:
    if group.name not in importance:
        raise ValueError(f"importances: expected one of every group, but {criterion} lacks "
                         f"{group.name}")
    values: np.ndarray = torch.as_tensor(importance[group.name]).detach().double().cpu().numpy()
    if values.shape != (group.units,) or not np.isfinite(values).all():
        got = f"shape {values.shape}" if values.shape != (group.units,) else "NaN or infinity"
        raise ValueError(f"importances: expected {group.units} finite numbers for {group.name}, "
                         f"but {criterion} gave {got}")
    return values
