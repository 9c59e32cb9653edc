"""The method ``search``: networks of other widths are trained, and judged on validation data.

Trains nothing itself: the caller scores widths. May import: numpy, optuna, verdict.
Tests: ``tests/widths/test_search.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wua_mlflow.verdict.compare import Verdict, compare
from wua_mlflow.verdict.sample_size import required_examples_without_discordance
from wua_mlflow.widths.results import Curve, LayerWidth, SearchResult, Trial, listed

__all__ = ["Retrain", "Search", "retrained_widths", "search_widths"]


Widths = tuple[int, ...]
RULES = ("non_inferior", "mean")
POINTS = 1024
"""Steps of the path from the original widths to the suggestion."""


@dataclass
class _Search:
    """The trials so far; a width is never trained twice."""

    score: Callable[[Widths], ArrayLike]
    cost: Callable[[Widths], float]
    margin: float
    confidence: float
    rule: str
    runs: int
    until: float
    clock: Callable[[], float]
    baseline: np.ndarray = field(default_factory=lambda: np.empty(0))
    trials: dict[Widths, Trial] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        return len(self.trials) >= self.runs or (len(self.trials) > 1
                                                 and self.clock() >= self.until)

    def begin(self, original: Widths) -> None:
        self.baseline = self._scored(original)
        self.trials[original] = Trial(original, self.cost(original), "original", 0.0, 0.0, 0.0,
                                      float(self.baseline.mean()))

    def holds(self, widths: Widths) -> bool | None:
        """Whether these widths do; None where the budget is spent."""
        if widths not in self.trials:
            if self.spent:
                return None
            self.trials[widths] = self._judged(widths)
        return self.held(self.trials[widths])

    def held(self, trial: Trial) -> bool:
        if trial.outcome == "original":
            return True
        return trial.outcome == "non_inferior" if self.rule == "non_inferior" else \
            trial.delta >= -self.margin

    def _judged(self, widths: Widths) -> Trial:
        scores = self._scored(widths)
        verdict: Verdict = compare(self.baseline, scores, margin=self.margin,
                                   confidence=self.confidence)
        return Trial(widths, self.cost(widths), verdict.outcome, verdict.delta, verdict.low,
                     verdict.high, float(scores.mean()))

    def _scored(self, widths: Widths) -> np.ndarray:
        scores = np.asarray(self.score(widths), dtype=np.float64)
        if self.baseline.size and scores.shape != self.baseline.shape:
            raise ValueError(f"score: expected the shape {self.baseline.shape} for the widths "
                             f"{listed(widths)} too, but got {scores.shape}")
        if not scores.size or not np.isfinite(scores).all():
            raise ValueError(f"score: expected finite scores for the widths {listed(widths)}, "
                             f"but got {'none' if not scores.size else 'NaN or infinity'}")
        return scores


def search_widths(  # noqa: PLR0913 - what is searched, by what rule, within what budget
    score: Callable[[Widths], ArrayLike],
    original: Sequence[int],
    suggestion: Sequence[int],
    *,
    margin: float,
    confidence: float = 0.95,
    runs: int | None = None,
    seconds: float | None = None,
    cost: Callable[[Widths], float] | None = None,
    rule: str = "non_inferior",
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """The smallest widths whose networks, trained anew, are as good on validation data.

    First along the path from the original through the suggestion towards one unit everywhere,
    geometric in every width: the suggestion, then outwards or back by bisection in the logarithm.
    Of several widths that hold the smallest is taken above which none that was tried is worse than
    the margin beyond doubt (``inferior``): outcomes are noisy, and one lucky narrow network under a
    wider one that fails is no evidence. Then, where there are several widths and budget is left,
    Optuna's TPE moves each for itself among those that cost less.

    Selection alone: the winner is the best of several looks, so it is to be confirmed on data that
    the search did not see.

    Args:
        score: trains networks of these widths and gives the scores of the validation examples,
            shape (seeds, examples) or (examples,), higher is better; the same examples each time.
        original: widths to begin with.
        suggestion: another method's, none above the original's.
        margin: the loss that is accepted, in [0, 1).
        confidence: of the verdicts' intervals.
        runs: at most so many calls of ``score``, the original's among them.
        seconds: no further call after so many.
        cost: of a network of these widths, e.g. its FLOPs; the sum of the widths, if None.
        rule: ``non_inferior``: by the verdict; ``mean``: by the mean difference alone, which claims
            nothing.
        seed: of Optuna.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: a budget that allows no candidate, widths that do not fit, an unknown rule, or
            scores of another shape.

    >>> def score(widths):
    ...     return np.arange(1000) % 100 < (90 if widths[0] >= 8 else 70)
    >>> search_widths(score, [64], [32], margin=0.02).widths
    (8,)
    """
    start, aim = _checked(original, suggestion, rule, runs, seconds)
    state = _Search(score, cost or (lambda widths: float(sum(widths))), margin, confidence, rule,
                    runs or 10**9, clock() + (seconds or math.inf), clock)
    state.begin(start)
    path = list(_path(start, aim))
    _along(state, path, path.index(aim) if aim in path else len(path) // 2)
    if len(start) > 1 and not state.spent:
        _apart(state, start, seed)
    best = _best(state)
    stopped = "budget" if state.spent else "converged"
    return SearchResult(best.widths, tuple(state.trials.values()), stopped,
                        _note(state, best, start), margin, rule)


def _checked(
    original: Sequence[int], suggestion: Sequence[int], rule: str, runs: int | None,
    seconds: float | None,
) -> tuple[Widths, Widths]:
    start, aim = tuple(map(int, original)), tuple(map(int, suggestion))
    if not start or len(start) != len(aim) or min(start) < 1 or min(aim) < 1 \
            or any(new > old for new, old in zip(aim, start, strict=False)):
        raise ValueError(f"suggestion: expected {len(start)} widths of at least 1 and at most the "
                         f"original's ({listed(start)}), but got {listed(aim)}")
    if rule not in RULES:
        raise ValueError(f"rule: expected {' or '.join(RULES)}, but got '{rule}'")
    if runs is not None and runs < 2:
        raise ValueError(f"runs: expected at least 2, the original's and a candidate's, but got "
                         f"{runs}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0, but got {seconds}")
    return start, aim


def _path(start: Widths, aim: Widths) -> Iterator[Widths]:
    """Widths from the original through the suggestion to ones, each narrower than the one before.

    >>> list(_path((4, 2), (2, 1)))
    [(4, 2), (3, 2), (3, 1), (2, 1), (1, 1)]
    """
    if aim == start:
        aim = tuple(1 for _ in start)
    last: Widths = ()
    legs = ((start, aim), (aim, tuple(1 for _ in start)))
    for begin, end in legs:
        for step in range(POINTS + 1):
            t = step / POINTS
            widths = tuple(max(1, round(math.exp((1 - t) * math.log(a) + t * math.log(b))))
                           for a, b in zip(begin, end, strict=True))
            if widths != last and (not last or all(
                    new <= old for new, old in zip(widths, last, strict=True))):
                yield widths
                last = widths


def _along(state: _Search, path: Sequence[Widths], first: int) -> None:
    """Bisection: ``good`` is the last place known to hold, ``bad`` the first known not to."""
    good, bad, probe = 0, len(path), max(first, 1)
    while bad - good > 1:
        found = state.holds(path[probe])
        if found is None:
            return
        good, bad = (probe, bad) if found else (good, probe)
        probe = (good + bad) // 2


def _apart(state: _Search, start: Widths, seed: int) -> None:
    """Each width for itself: Optuna among the candidates that cost less than the best so far."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=0, multivariate=False))
        space: dict[str, Any] = {
            str(place): optuna.distributions.IntDistribution(1, width, log=True)
            for place, width in enumerate(start)}
        for trial in state.trials.values():
            study.add_trial(optuna.trial.create_trial(
                params=_named(trial.widths), distributions=space, value=_value(state, trial)))
        idle = 0
        while not state.spent and idle < 50:
            asked = study.ask(space)
            widths = tuple(asked.params[str(place)] for place in range(len(start)))
            if widths in state.trials or state.cost(widths) >= _best(state).cost \
                    or _hopeless(state, widths):
                idle += 1
                study.tell(asked, state.cost(widths) + _best(state).cost)
                continue
            idle = 0
            if state.holds(widths) is not None:
                study.tell(asked, _value(state, state.trials[widths]))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _hopeless(state: _Search, widths: Widths) -> bool:
    """Whether a wider network in every layer was worse than the margin beyond doubt."""
    return any(trial.outcome == "inferior"
               and all(new <= old for new, old in zip(widths, trial.widths, strict=True))
               for trial in state.trials.values())


def _value(state: _Search, trial: Trial) -> float:
    """What Optuna minimises: the cost; where it does not hold, above all costs by what is missing.
    """
    if state.held(trial):
        return trial.cost
    most = max(one.cost for one in state.trials.values())
    missing = -state.margin - (trial.low if state.rule == "non_inferior" else trial.delta)
    return most * (1 + max(0.0, missing))


def _named(widths: Widths) -> dict[str, Any]:
    return {str(place): width for place, width in enumerate(widths)}


def _best(state: _Search) -> Trial:
    """The cheapest trial that holds and has no ``inferior`` one above it."""
    held = [trial for trial in state.trials.values()
            if state.held(trial) and not _hopeless(state, trial.widths)]
    return min(held, key=lambda trial: (trial.cost, trial.widths))


def _note(state: _Search, best: Trial, start: Widths) -> str:
    if best.widths != start:
        return ""
    tried = [trial for trial in state.trials.values() if trial.outcome != "original"]
    nearest = max(tried, key=lambda trial: trial.low, default=None)
    note = "" if nearest is None else \
        f"nearest came {listed(nearest.widths)}: {100 * nearest.delta:+.1f} points " \
        f"({100 * nearest.low:+.1f} to {100 * nearest.high:+.1f})"
    examples = state.baseline.shape[-1]
    needed = required_examples_without_discordance(state.margin, state.confidence) \
        if 0 < state.margin < 1 else None
    if state.rule == "non_inferior" and needed is not None and examples < needed:
        note += f"; {examples:,} validation examples show nothing at this margin: it takes " \
                f"at least {needed:,}"
    return note.removeprefix("; ")


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
