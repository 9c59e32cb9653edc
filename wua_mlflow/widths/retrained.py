"""``recommend_widths(method="search")``: the search's widths, with a curve for each group.

May import: numpy, widths, verdict. Tests: ``tests/widths/test_retrained.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from numpy.typing import ArrayLike

from wua_mlflow.widths.recommendation import Curve, LayerWidth
from wua_mlflow.widths.search import search_widths
from wua_mlflow.widths.searched import SearchResult

__all__ = ["Retrain", "Search", "retrained_widths"]

Retrain = Callable[[Mapping[str, int]], ArrayLike]
"""Trains networks of these widths, by group; gives the validation scores, (seeds, examples)."""
AXIS = "mean validation score after retraining"


@dataclass(frozen=True)
class Search:
    """How a search trains, and its budget; see ``search_widths``."""

    retrain: Retrain
    runs: int | None = None
    seconds: float | None = None
    confidence: float = 0.95
    cost: Callable[[Mapping[str, int]], float] | None = None


def retrained_widths(
    search: Search, suggested: tuple[LayerWidth, ...], *, margin: float, seed: int
) -> tuple[tuple[LayerWidth, ...], str]:
    """The smallest widths whose retrained networks are non-inferior, and a note.

    Each group's curve has the best mean score of the networks that were tried at that width of it,
    whatever the others' widths; ``alone`` is what was suggested.

    Args:
        search: how to train, and for how long.
        suggested: where to look first, one a group.
        margin: of the verdicts, in [0, 1).
        seed: of the search.

    Raises:
        ValueError: as ``search_widths``.
    """
    names = [one.layer for one in suggested]
    cost = search.cost

    def named(widths: tuple[int, ...]) -> dict[str, int]:
        return dict(zip(names, widths, strict=True))

    found = search_widths(
        lambda widths: search.retrain(named(widths)), [one.units for one in suggested],
        [one.width for one in suggested], margin=margin, confidence=search.confidence,
        runs=search.runs, seconds=search.seconds, seed=seed,
        cost=None if cost is None else lambda widths: cost(named(widths)))
    layers = tuple(
        LayerWidth(one.layer, one.units, width, _curve(found, place), one.width, one.layers)
        for place, (one, width) in enumerate(zip(suggested, found.widths, strict=True)))
    tried = f"{found.looks} narrower networks were tried; the search ended by its budget" if \
        found.stopped == "budget" else f"{found.looks} narrower networks were tried"
    return layers, ". ".join(filter(None, (tried, found.note)))


def _curve(found: SearchResult, place: int) -> Curve:
    best: dict[int, float] = {}
    for trial in found.trials:
        width = trial.widths[place]
        best[width] = max(trial.score, best.get(width, trial.score))
    baseline = found.trials[0].score
    widths = tuple(sorted(best))
    return Curve(widths, tuple(best[width] for width in widths), baseline, baseline - found.margin,
                 AXIS)
