"""The smallest width that a probe lets through: per group, and all groups at once.

May import: nothing of torch. Tests: ``tests/widths/test_descent.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wua_mlflow.widths.recommendation import Curve, LayerWidth

__all__ = ["MOST_ON_THE_GRID", "Descent", "Span", "chain", "narrowest"]

MOST_ON_THE_GRID = 16
"""At most so many widths are tried before bisection."""
_SLACK = 1e-9
"""In floating point 21/40 − 0.05 is more than 19/40."""

Probe = Callable[[Mapping[str, int]], float]
"""The mean score where groups keep so many units; those that are not named keep all."""


@dataclass(frozen=True)
class Span:
    """A group's name, its units, and the layers that they belong to."""

    name: str
    units: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Descent:
    """How far down widths go: by at most ``margin`` below ``baseline``, the probe's whole score."""

    probe: Probe
    baseline: float
    margin: float
    axis: str

    def alone(self, span: Span) -> LayerWidth:
        """The width of one group, where every other one keeps all its units."""
        index, scores = _smallest(
            lambda number: self.probe({span.name: number + 1}), span.units,
            self.baseline, self._threshold)
        curve = self._curve([number + 1 for number in scores], scores)
        return LayerWidth(span.name, span.units, index + 1, curve, index + 1, span.layers)

    def together(self, found: Sequence[LayerWidth], spans: Sequence[Span]) -> tuple[
            tuple[LayerWidth, ...], Curve]:
        """Widths of all groups at once, on the way from all units to what each keeps alone.

        What each group loses alone adds up, so those widths together may cost more than the
        margin; and none can be below its own, which alone costs as much as is allowed. Between the
        two the way is the one on which every group has gone the same share of its own way, in
        logarithms: which layer gives much and which little is what the exact curves of each say,
        not a comparison of importances over layers. The widths kept are those of the smallest
        network on it that was tried, it and all larger ones being within the margin.
        """
        ways = chain({one.layer: one.alone for one in found}, spans)
        index, scores = _smallest(lambda number: self.probe(ways[number]), len(ways),
                                  self.baseline, self._threshold)
        curve = self._curve([sum(ways[number].values()) for number in scores], scores)
        layers = tuple(LayerWidth(one.layer, one.units, ways[index][one.layer], one.curve,
                                  one.alone, one.layers) for one in found)
        return layers, curve

    @property
    def _threshold(self) -> float:
        return self.baseline - self.margin

    def _curve(self, widths: Sequence[int], scores: Mapping[int, float]) -> Curve:
        return Curve(tuple(widths), tuple(scores.values()), self.baseline, self._threshold,
                     self.axis)


def narrowest(
    descent: Descent, spans: Sequence[Span], *, jointly: bool
) -> tuple[tuple[LayerWidth, ...], Curve | None]:
    """The width of each group alone, or of all together.

    >>> probe = lambda widths: 1.0 - 0.1 * (widths.get("a", 4) < 2) - 0.1 * (widths.get("b", 4) < 3)
    >>> descent = Descent(probe, 1.0, 0.05, "accuracy")
    >>> layers, _ = narrowest(descent, [Span("a", 4), Span("b", 4)], jointly=True)
    >>> [one.width for one in layers]
    [2, 3]
    """
    found = tuple(descent.alone(span) for span in spans)
    if not jointly or len(found) < 2:
        return found, None
    return descent.together(found, spans)


def chain(alone: Mapping[str, int], spans: Sequence[Span]) -> list[dict[str, int]]:
    """Widths of all groups from ``alone`` up to all units, each step at least one unit wider.

    A group that has gone the share t of its way keeps at least units · (alone ÷ units)ᵗ units.

    >>> chain({"a": 1, "b": 2}, [Span("a", 4), Span("b", 2)])
    [{'a': 1, 'b': 2}, {'a': 2, 'b': 2}, {'a': 3, 'b': 2}, {'a': 4, 'b': 2}]
    """
    marks = sorted(
        (math.log(span.units / width) / math.log(span.units / alone[span.name]), span.name, width)
        for span in spans for width in range(alone[span.name], span.units))
    ways = [{span.name: span.units for span in spans}]
    last = None
    for share, name, width in marks:
        if last is not None and math.isclose(share, last, abs_tol=1e-12):
            ways[-1] = {**ways[-1], name: width}
        else:
            ways.append({**ways[-1], name: width})
        last = share
    return ways[::-1]


def _smallest(
    score: Callable[[int], float], count: int, baseline: float, threshold: float
) -> tuple[int, dict[int, float]]:
    """The smallest index from which on every one that was tried reaches the threshold.

    Up to ``MOST_ON_THE_GRID``, geometrically spaced where there are more, are tried first; then
    those between the largest that fails and the next that was tried, by bisection. The last one is
    the baseline, and is not tried.

    Returns:
        The index, and the score of each that was tried, ascending.
    """
    grid = range(count) if count <= MOST_ON_THE_GRID else [
        int(number) - 1 for number in np.unique(np.geomspace(1, count, MOST_ON_THE_GRID).round())]
    scores = {number: score(number) for number in grid if number < count - 1}
    scores[count - 1] = baseline
    reached = {number: value >= threshold - _SLACK for number, value in scores.items()}
    low = max((number for number, fine in reached.items() if not fine), default=-1)
    high = min(number for number in scores if number > low)
    while high - low > 1:
        middle = (low + high) // 2
        scores[middle] = score(middle)
        if scores[middle] >= threshold - _SLACK:
            high = middle
        else:
            low = middle
    return high, dict(sorted(scores.items()))
