"""The method ``search``: networks of other widths are trained, and judged on validation data.

Trains nothing itself: the caller scores one network at a time. Seeds are added to a width one by
one, until the rest could hardly change whether it holds (stochastic curtailment). Tests:
``tests/widths/test_retrain_search.py``; what it takes and costs: ``benchmarks/search.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wua_mlflow.signals import goes_on
from wua_mlflow.verdict.inputs import checked_level
from wua_mlflow.verdict.intervals import (
    Crossed,
    SideVariance,
    collapsed_seeds,
    crossed,
    normal_quantile,
)
from wua_mlflow.verdict.sample_size import required_examples_without_discordance
from wua_mlflow.what_to_cut import ROUNDED_ABOVE, rounded_up
from wua_mlflow.widths.results import Curve, LayerWidth, SearchResult, Trial, comma_separated

__all__ = ["MOST_SEEDS", "FinalVerdict", "Search", "retrained_widths", "search_widths"]


Widths = tuple[int, ...]
Floats = NDArray[np.float64]
MOST_SEEDS = 8
"""Networks of one width that are trained to judge it."""
DROPPED, TAKEN = 0.1, 0.9
"""Below, above this chance that it holds with all its seeds a width gets no further one."""
POWER = 0.8
"""Of the final verdict, at the smallest difference that a width may show."""
FINE = 1.25
"""Bisection ends where the cost of what holds is at most so many times that of what fails."""
POINTS = 1024
"""Steps of the path from the original widths to the suggestion."""


@dataclass(frozen=True)
class FinalVerdict:
    """The verdict that the widths are chosen for: seeds a side, and test examples."""

    seeds: int
    examples: int


@dataclass(frozen=True)
class _Rule:
    """When a width holds: its difference from the original, on validation data, reaches a limit.

    Attributes:
        baseline: the original's scores, shape (seeds, examples), seeds that collapsed left out.
        collapses: whether some of the original's seeds had collapsed.
        margin: of the final verdict.
        confidence: of its interval.
        most_seeds: of a candidate.
        final: the verdict to come.
    """

    baseline: Floats
    collapses: bool
    margin: float
    confidence: float
    most_seeds: int
    final: FinalVerdict

    def collapsed(self, scores: Floats) -> NDArray[np.bool_]:
        """Which of a candidate's networks lie as far below the original's as a collapse."""
        return collapsed_seeds(scores, self.margin, typical=self.baseline)

    def parts(self, scores: Floats) -> Crossed:
        """Of the difference's variance; both sides' seeds spread as those of the two together."""
        found = crossed(self.baseline, scores)
        sides = [side for side in (found.candidate, found.baseline) if side.seeds > 1]
        degrees = sum(side.seeds - 1 for side in sides)
        if not degrees:
            return found

        between, within = (
            sum(getattr(side, part) * (side.seeds - 1) for side in sides) / degrees
            for part in ("seed_means_variance", "residual_variance"))

        def pooled(side: SideVariance) -> SideVariance:
            return replace(side, seed_means_variance=between, residual_variance=within)

        return replace(found, candidate=pooled(found.candidate), baseline=pooled(found.baseline))

    def limit(self, parts: Crossed) -> float:
        """The smallest difference that holds.

        So far above −margin that it is non-inferior on validation data with all its seeds; and
        that the final verdict is with the chance ``POWER``, for which no more than half the margin
        is set aside. Never above 0, where an identical network has an even chance.
        """
        now = parts.predicted(self.most_seeds, len(self.baseline), parts.examples)
        last = parts.predicted(self.final.seeds, self.final.seeds, self.final.examples)
        validated = normal_quantile(self.confidence) * math.sqrt(now.variance)
        judged = last.half_width(self.confidence) + \
            normal_quantile(2 * POWER - 1) * math.sqrt(last.variance + now.variance)
        above = max(validated, min(self.margin / 2, judged))
        return -self.margin + min(self.margin, above)

    def chance(self, parts: Crossed) -> float:
        """The chance that the difference, with all its seeds, reaches the limit."""
        from scipy.special import stdtr

        seeds, side = parts.candidate.seeds, parts.candidate
        above = parts.mean - self.limit(parts)
        ahead = max(0.0, 1 / seeds - 1 / self.most_seeds)
        spread = math.sqrt(side.seed_means_variance * ahead)
        if spread <= 1e-12:
            return float(above >= 0)
        return float(stdtr(len(self.baseline) + seeds - 2, above / spread))


@dataclass
class _Trials:
    """The trials so far; a width is never judged twice."""

    score: Callable[[Widths, int], ArrayLike]
    cost: Callable[[Widths], float]
    rule: _Rule
    runs: int
    until: float
    clock: Callable[[], float]
    tried: Callable[[Trial], None]
    multiples: Widths
    by_widths: dict[Widths, Trial] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def spent(self) -> bool:
        """Whether no further widths may be tried."""
        return self.interrupted or len(self.by_widths) >= self.runs or (
            len(self.by_widths) > 1 and self.clock() >= self.until)

    @property
    def best(self) -> Trial:
        """The cheapest trial that holds and has none above it that fails."""
        return min((trial for trial in self.by_widths.values()
                    if trial.holds and not self.is_below_failed(trial.widths)),
                   key=lambda trial: (trial.cost, trial.widths))

    def rounded(self, widths: Widths, most: Widths) -> Widths:
        """The widths, above ``ROUNDED_ABOVE`` their multiples, but never more than ``most``."""
        return tuple(map(rounded_up, widths, most, self.multiples))

    def begin(self, original: Widths) -> None:
        self.by_widths[original] = Trial(original, self.cost(original), "original", 0.0, 0.0, 0.0,
                                         float(self.rule.baseline.mean()), len(self.rule.baseline))

    def try_widths(self, widths: Widths) -> bool | None:
        """Whether these widths hold; None where the budget is spent."""
        if widths not in self.by_widths:
            if self.spent:
                return None
            try:
                self.by_widths[widths] = self._judged(widths)
                self.tried(self.by_widths[widths])
            except KeyboardInterrupt as signal:
                if not goes_on(signal):
                    raise
                self.interrupted = True
                return None
        return self.by_widths[widths].holds

    def _judged(self, widths: Widths) -> Trial:
        """Train networks of these widths until it is clear whether they hold.

        Where the time is up, those so far decide as all would.
        """
        rule, rows = self.rule, np.empty((0, self.rule.baseline.shape[1]))
        while True:
            rows = np.concatenate([rows, self._checked_scores(widths, len(rows))[None]])
            lost = rule.collapsed(rows)
            kept = rows[~lost]
            if lost.any() and (not rule.collapses or lost.sum() > rule.most_seeds // 2):
                return self._trial(widths, rows, holds=False)
            if len(kept) < min(2, rule.most_seeds):
                continue
            parts = rule.parts(kept)
            chance = rule.chance(parts)
            if len(rows) == rule.most_seeds or self.clock() >= self.until:
                return self._trial(widths, kept, holds=parts.mean >= rule.limit(parts))
            if not DROPPED <= chance <= TAKEN:
                return self._trial(widths, kept, holds=chance > TAKEN)

    def _trial(self, widths: Widths, scores: Floats, *, holds: bool) -> Trial:
        parts = self.rule.parts(scores)
        half = parts.half_width(self.rule.confidence)
        return Trial(widths, self.cost(widths), "holds" if holds else "fails", parts.mean,
                     parts.mean - half, parts.mean + half, float(scores.mean()), len(scores))

    def is_below_failed(self, widths: Widths) -> bool:
        """Whether a network at least as wide in every layer was tried and fails."""
        return any(not trial.holds
                   and all(new <= old for new, old in zip(widths, trial.widths, strict=True))
                   for trial in self.by_widths.values())

    def _checked_scores(self, widths: Widths, number: int) -> Floats:
        scores = np.asarray(self.score(widths, number), dtype=np.float64)
        if scores.shape != self.rule.baseline.shape[1:]:
            raise ValueError(f"score: expected the shape {self.rule.baseline.shape[1:]} for the "
                             f"widths {comma_separated(widths)} too, but got {scores.shape}")
        if not np.isfinite(scores).all():
            raise ValueError(f"score: expected finite scores for the widths "
                             f"{comma_separated(widths)}, but got NaN or infinity")
        return scores


def search_widths(  # noqa: PLR0913 - what is searched, for which verdict, within what budget
    score: Callable[[Widths, int], ArrayLike], original: Sequence[int], suggestion: Sequence[int],
    *, baseline: ArrayLike, margin: float, confidence: float = 0.95,
    final: FinalVerdict | None = None, most_seeds: int = MOST_SEEDS, runs: int | None = None,
    seconds: float | None = None, cost: Callable[[Widths], float] | None = None,
    widen: float | None = None, multiples: Sequence[int] | None = None,
    tried: Callable[[Trial], None] = lambda trial: None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """The cheapest widths whose networks, trained anew, hold on validation data.

    Widths hold where the mean of their networks is expected not to lie below the original's by more
    than the final verdict can bear (``_Rule.limit``). Networks of a width are trained one by one:
    after each the chance that the mean reaches the limit with ``most_seeds`` of them is taken
    (Student's t, the seeds' variance pooled with the original's); below 10% the width is dropped,
    above 90% taken (stochastic curtailment: Lan, Simon & Halperin 1982, Sequential Analysis 1:207).
    A network that collapsed, as none of the original's did, drops its width at once.

    First along the path from the original through the suggestion towards one unit everywhere,
    geometric in every width, by bisection in the logarithm, to within ``FINE`` of the cost. Then,
    where there are several widths and budget is left, each for itself. Nothing is tried that is in
    every layer at most as wide as what failed.

    An interrupt from the keyboard ends the search with the best so far, and its caller goes on;
    other signals are passed on. ``note`` says what a search that was cut short did not try.

    Selection alone: the winner's seeds helped to choose it, so it is to be confirmed with others,
    on data that the search did not see.

    Args:
        score: trains network ``number`` (from 0) of these widths and gives the scores of the
            validation examples, shape (examples,), higher is better; the same examples each time.
        original: widths to begin with.
        suggestion: another method's, none above the original's.
        baseline: scores of the original's networks, shape (seeds, examples) or (examples,).
        margin: the loss that is accepted, in [0, 1).
        confidence: of the final verdict's interval.
        final: the final verdict's seeds and examples; as many as here, if None.
        most_seeds: networks of one width at most.
        runs: at most so many widths, the original's among them.
        seconds: no further width after so many, nor more than two networks of one.
        cost: of a network of these widths, e.g. its FLOPs; the sum of the widths, if None.
        widen: if given, nothing below the suggestion is tried: it, then widths so many times as
            wide each time, until they hold.
        multiples: of each width what it is a multiple of above ``ROUNDED_ABOVE`` units (the
            original's own, and the suggestion's, aside); any, if None.
        tried: is told of each trial once it is judged.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: a budget that allows no candidate, widths that do not fit, or scores of another
            shape.

    >>> def score(widths, number):
    ...     return np.arange(1000) % 100 < (90 if widths[0] >= 8 else 70)
    >>> search_widths(score, [64], [32], baseline=score([64], 0), margin=0.02).widths
    (8,)
    """
    start, target = _checked(original, suggestion, runs, seconds)
    margin, confidence = checked_level(margin, confidence)
    scores = _checked_baseline(baseline)
    collapsed = collapsed_seeds(scores, margin) if len(scores) > 1 else np.zeros(1, dtype=bool)
    rule = _Rule(scores[~collapsed], bool(collapsed.any()), margin, confidence, most_seeds,
                 final or FinalVerdict(most_seeds, scores.shape[1]))
    trials = _Trials(score, cost or (lambda widths: float(sum(widths))), rule, runs or 10**9,
                     clock() + (seconds or math.inf), clock, tried,
                     tuple(multiples or (1,) * len(start)))
    trials.begin(start)
    if widen:
        ended, rest = _widen(trials, start, target, widen), "wider ones"
    else:
        path = list(dict.fromkeys(
            widths if widths == target else trials.rounded(widths, start)
            for widths in _path(start, target)))
        ended = _bisect(trials, path, path.index(target) if target in path else len(path) // 2)
        rest = "smaller ones"
        if ended and len(start) > 1:
            ended, rest = _narrow_each(trials), "other combinations of them"
    best = trials.best
    stopped = "interrupted" if trials.interrupted else "converged" if ended else "budget"
    note = "; ".join(filter(None, (
        "" if ended else _cut_short(trials, runs, rest), _note(trials, best, start))))
    return SearchResult(best.widths, tuple(trials.by_widths.values()), stopped, note, margin)


def _cut_short(trials: _Trials, runs: int | None, rest: str) -> str:
    """What a search that was stopped did not try.

    Args:
        trials: those made.
        runs: how many were allowed, the original's among them.
        rest: what was not tried.
    """
    tried = len(trials.by_widths) - 1
    of = "" if runs is None else f" of {runs - 1}"
    return f"stopped after {tried}{of} width{'s' * ((runs or tried + 1) != 2)}; " \
           f"{rest} were not tried"


def _checked(
    original: Sequence[int], suggestion: Sequence[int], runs: int | None, seconds: float | None
) -> tuple[Widths, Widths]:
    start, target = tuple(map(int, original)), tuple(map(int, suggestion))
    if not start or len(start) != len(target) or min(start) < 1 or min(target) < 1 \
            or any(new > old for new, old in zip(target, start, strict=False)):
        raise ValueError(f"suggestion: expected {len(start)} widths of at least 1 and at most the "
                         f"original's ({comma_separated(start)}), but got "
                         f"{comma_separated(target)}")
    if runs is not None and runs < 2:
        raise ValueError(f"runs: expected at least 2, the original's and a candidate's, but got "
                         f"{runs}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0, but got {seconds}")
    return start, target


def _checked_baseline(baseline: ArrayLike) -> Floats:
    scores = np.atleast_2d(np.asarray(baseline, dtype=np.float64))
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(f"baseline: expected finite scores of at least two examples, shape "
                         f"(seeds, examples), but got "
                         f"{scores.shape if np.isfinite(scores).all() else 'NaN or infinity'}")
    return scores


def _path(start: Widths, target: Widths) -> list[Widths]:
    """Widths from the original through the suggestion to ones, each narrower than the one before.

    >>> _path((4, 2), (2, 1))
    [(4, 2), (3, 2), (3, 1), (2, 1), (1, 1)]
    """
    ones = (1,) * len(start)
    if target == start:
        target = ones
    path = np.concatenate([np.geomspace(*ends, POINTS + 1) for ends in (
        (start, target), (target, ones))]).round().astype(int)
    return list(dict.fromkeys(map(tuple, np.minimum.accumulate(path).tolist())))


def _bisect(trials: _Trials, path: Sequence[Widths], first: int) -> bool:
    """Bisection of the path: ``good`` is the last place that holds, ``bad`` the first that fails.

    Whether it came to its end.
    """
    at = [float(np.log(widths).mean()) for widths in path]
    at.append(at[-1] - math.log(2))  # below one unit everywhere
    good, bad, probe = 0, len(path), max(first, 1)
    while bad - good > 1 and not (good and bad < len(path)
                                  and _near(trials.cost, path[good], path[bad])):
        holds = trials.try_widths(path[probe])
        if holds is None:
            return False
        good, bad = (probe, bad) if holds else (good, probe)
        middle = (at[good] + at[bad]) / 2
        probe = min(range(good + 1, bad), key=lambda place: abs(at[place] - middle), default=good)
    return True


def _near(cost: Callable[[Widths], float], good: Widths, bad: Widths) -> bool:
    """Whether what holds costs little more than what fails."""
    return cost(good) <= FINE * cost(bad)


def _widen(trials: _Trials, start: Widths, target: Widths, factor: float) -> bool:
    """Widths from ``target`` up until some hold; whether it came to its end."""
    widths = target
    while widths != start:
        holds = trials.try_widths(widths)
        if holds is not False:
            return holds is True
        widths = trials.rounded(tuple(min(most, math.ceil(factor * width)) for width, most
                                      in zip(widths, start, strict=True)), start)
    return True


def _narrow_each(trials: _Trials) -> bool:
    """Narrow each width for itself by bisection, the one that saves most of the cost first.

    Whether it came to its end.
    """
    best = trials.best.widths

    def narrowed(place: int, units: int) -> Widths:
        return (*best[:place], units, *best[place + 1:])

    order = sorted(range(len(best)), key=lambda place: trials.cost(narrowed(place, 1)))
    for place in order:
        good, bad = best[place], 0
        while good - bad > 1:
            units = max(bad + 1, min(good - 1, round(math.sqrt(good * max(bad, 0.5)))))
            units = min(rounded_up(units, good, trials.multiples[place]),
                        _next_below(good, trials.multiples[place]))
            if units <= bad:
                break
            candidate = narrowed(place, units)
            if _near(trials.cost, best, candidate):
                break
            holds = False if trials.is_below_failed(candidate) else trials.try_widths(candidate)
            if holds is None:
                return False
            good, bad = (units, bad) if holds else (good, units)
            if holds:
                best = candidate
    return True


def _next_below(width: int, multiple_of: int) -> int:
    """The next width below this one that may be tried.

    >>> _next_below(100, 8), _next_below(72, 8), _next_below(64, 8)
    (96, 64, 63)
    """
    if width <= ROUNDED_ABOVE:
        return width - 1
    return max(ROUNDED_ABOVE, (width - 1) // multiple_of * multiple_of)


def _note(trials: _Trials, best: Trial, start: Widths) -> str:
    """Where nothing narrower holds: which came nearest, and whether the data could show it."""
    if best.widths != start:
        return ""
    tried = [trial for trial in trials.by_widths.values() if trial.outcome != "original"]
    nearest = max(tried, key=lambda trial: trial.delta, default=None)
    parts = [] if nearest is None else [
        f"nearest came {comma_separated(nearest.widths)}: {100 * nearest.delta:+.1f} points "
        f"({100 * nearest.low:+.1f} to {100 * nearest.high:+.1f})"]
    rule = trials.rule
    needed = required_examples_without_discordance(rule.margin, rule.confidence) \
        if 0 < rule.margin < 1 else None
    examples = rule.baseline.shape[-1]
    if needed is not None and examples < needed:
        parts.append(f"{examples:,} validation examples tell little at this margin: it takes at "
                     f"least {needed:,} to show even that equal networks are as good")
    return "; ".join(parts)


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
    search: Search, suggested: tuple[LayerWidth, ...], *, margin: float
) -> tuple[tuple[LayerWidth, ...], str]:
    """The smallest widths whose retrained networks hold, and a note.

    Each group's curve has the best mean score of the networks that were tried at that width of it,
    whatever the others' widths; ``alone`` is what was suggested.

    Args:
        search: how to train, and for how long.
        suggested: where to look first, one a group.
        margin: of the verdict to come, in [0, 1).

    Raises:
        ValueError: as ``search_widths``.
    """
    names = [layer.layer for layer in suggested]
    cost = search.cost
    units = tuple(layer.units for layer in suggested)
    scores: dict[Widths, Floats] = {}

    def named(widths: Widths) -> dict[str, int]:
        return dict(zip(names, widths, strict=True))

    def all_seeds(widths: Widths) -> Floats:
        if widths not in scores:
            scores[widths] = np.atleast_2d(
                np.asarray(search.retrain(named(widths)), dtype=np.float64))
        return scores[widths]

    baseline = all_seeds(units)
    result = search_widths(
        lambda widths, number: all_seeds(widths)[number], units,
        [layer.width for layer in suggested], baseline=baseline, margin=margin,
        confidence=search.confidence, most_seeds=len(baseline), runs=search.runs,
        seconds=search.seconds,
        cost=None if cost is None else lambda widths: cost(named(widths)))
    layers = tuple(
        replace(layer, width=width, alone=layer.width, curve=_curve(result, place))
        for place, (layer, width) in enumerate(zip(suggested, result.widths, strict=True)))
    ended = {"budget": "; the search ended by its budget",
             "interrupted": "; the search was interrupted"}.get(result.stopped, "")
    return layers, ". ".join(filter(None, (
        f"{result.looks} narrower networks were tried{ended}", result.note)))


def _curve(result: SearchResult, place: int) -> Curve:
    """The best score at each width of one group."""
    best: dict[int, float] = {}
    for trial in result.trials:
        width = trial.widths[place]
        best[width] = max(trial.score, best.get(width, trial.score))
    baseline = result.trials[0].score
    widths = tuple(sorted(best))
    return Curve(widths, tuple(best[width] for width in widths), baseline,
                 baseline - result.margin, AXIS)
