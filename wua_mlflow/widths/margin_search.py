"""The smallest widths whose mean score stays within a margin.

Tests: ``tests/widths/test_margin_search.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wua_mlflow.pruning.unit_groups import UnitGroup
from wua_mlflow.widths.results import Curve, LayerWidth

__all__ = ["GRID_SIZE", "MarginSearch", "width_path"]


GRID_SIZE = 16
"""At most so many widths are tried before bisection."""
_SLACK = 1e-9
"""In floating point 21/40 − 0.05 is more than 19/40."""

Probe = Callable[[Mapping[str, int]], float]
"""The mean score where groups keep so many units; those that are not named keep all."""


@dataclass(frozen=True)
class MarginSearch:
    """Searches the smallest widths whose score is at most ``margin`` below ``baseline``.

    Attributes:
        probe: the mean score of widths.
        baseline: the score of all units.
        margin: how much of it may be lost.
        axis: what the score is.
    """

    probe: Probe
    baseline: float
    margin: float
    axis: str

    def search(
        self, groups: Sequence[UnitGroup], *, jointly: bool
    ) -> tuple[tuple[LayerWidth, ...], Curve | None]:
        """The width of each group alone, or of all together.

        >>> def probe(widths):
        ...     return 1 - 0.1 * (widths.get("a", 4) < 2) - 0.1 * (widths.get("b", 4) < 3)
        >>> groups = [UnitGroup(name, (name,), (), 4) for name in "ab"]
        >>> layers, _ = MarginSearch(probe, 1.0, 0.05, "accuracy").search(groups, jointly=True)
        >>> [layer.width for layer in layers]
        [2, 3]
        """
        layers = tuple(map(self._alone, groups))
        return self._together(layers, groups) if jointly and len(layers) > 1 else (layers, None)

    def _alone(self, group: UnitGroup) -> LayerWidth:
        """The width of one group, where every other one keeps all its units."""
        index, scores = self._smallest(lambda index: self.probe({group.name: index + 1}),
                                       group.units)
        curve = self._curve([index + 1 for index in scores], scores)
        return LayerWidth(group.name, group.units, index + 1, curve, index + 1, group.layers)

    def _together(
        self, layers: Sequence[LayerWidth], groups: Sequence[UnitGroup]
    ) -> tuple[tuple[LayerWidth, ...], Curve]:
        """Widths of all groups at once, on the path from what each keeps alone to all units.

        What each group loses alone adds up, so those widths together may cost more than the
        margin; and none can be below its own, which alone costs as much as is allowed. Between the
        two the path is the one on which every group has gone the same share of its own way, in
        logarithms: which layer gives much and which little is what the exact curves of each say,
        not a comparison of importances over layers. The widths kept are those of the smallest
        network on it that was tried, it and all larger ones being within the margin.
        """
        path = width_path({layer.layer: layer.alone for layer in layers}, groups)
        index, scores = self._smallest(lambda index: self.probe(path[index]), len(path))
        curve = self._curve([sum(path[index].values()) for index in scores], scores)
        return tuple(replace(layer, width=path[index][layer.layer]) for layer in layers), curve

    def _curve(self, widths: Sequence[int], scores: Mapping[int, float]) -> Curve:
        return Curve(tuple(widths), tuple(scores.values()), self.baseline,
                     self.baseline - self.margin, self.axis)

    def _smallest(self, score: Callable[[int], float], count: int) -> tuple[int, dict[int, float]]:
        """The smallest index from which on every one that was tried is within the margin.

        Up to ``GRID_SIZE``, geometrically spaced where there are more, are tried first; then those
        between the largest that fails and the next that was tried, by bisection. The last one is
        the baseline, and is not tried.

        Returns:
            The index, and the score of each that was tried, ascending.
        """
        grid = range(count) if count <= GRID_SIZE else [
            int(width) - 1 for width in np.unique(np.geomspace(1, count, GRID_SIZE).round())]
        scores = {index: score(index) for index in grid if index < count - 1}
        scores[count - 1] = self.baseline
        least = self.baseline - self.margin - _SLACK
        low = max((index for index, value in scores.items() if value < least), default=-1)
        high = min(index for index in scores if index > low)
        while high - low > 1:
            middle = (low + high) // 2
            scores[middle] = score(middle)
            if scores[middle] >= least:
                high = middle
            else:
                low = middle
        return high, dict(sorted(scores.items()))


def width_path(alone: Mapping[str, int], groups: Sequence[UnitGroup]) -> list[dict[str, int]]:
    """Widths of all groups from ``alone`` up to all units, each step at least one unit wider.

    A group that has gone the share t of its way keeps at least units · (alone ÷ units)ᵗ units.

    >>> groups = [UnitGroup("a", ("a",), (), 4), UnitGroup("b", ("b",), (), 2)]
    >>> width_path({"a": 1, "b": 2}, groups)
    [{'a': 1, 'b': 2}, {'a': 2, 'b': 2}, {'a': 3, 'b': 2}, {'a': 4, 'b': 2}]
    """
    steps = sorted(
        (math.log(group.units / width) / math.log(group.units / alone[group.name]), group.name,
         width)
        for group in groups for width in range(alone[group.name], group.units))
    path = [{group.name: group.units for group in groups}]
    last_share = None
    for share, name, width in steps:
        if last_share is not None and math.isclose(share, last_share, abs_tol=1e-12):
            path[-1] = {**path[-1], name: width}
        else:
            path.append({**path[-1], name: width})
        last_share = share
    return path[::-1]
