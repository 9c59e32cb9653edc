"""The method ``search``: networks of other widths are trained, and judged on validation data.

Trains nothing itself: the caller scores widths. Tests: ``tests/widths/test_retrain_search.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.sample_size import required_examples_without_discordance
from wua_mlflow.widths.results import Curve, LayerWidth, SearchResult, Trial, comma_separated

__all__ = ["Retrain", "Search", "retrained_widths", "search_widths"]


Widths = tuple[int, ...]
RULES = ("non_inferior", "mean")
POINTS = 1024
"""Steps of the path from the original widths to the suggestion."""
CTRL_C = 130
"""The ``exit_code`` of an interrupt from the keyboard; other signals end the search's caller too.
"""


@dataclass
class _Trials:
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
    by_widths: dict[Widths, Trial] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def spent(self) -> bool:
        """Whether no further widths may be tried."""
        return self.interrupted or len(self.by_widths) >= self.runs or (
            len(self.by_widths) > 1 and self.clock() >= self.until)

    @property
    def best(self) -> Trial:
        """The cheapest trial that is as good and has no ``inferior`` one above it."""
        return min((trial for trial in self.by_widths.values()
                    if self.is_as_good(trial) and not self.is_hopeless(trial.widths)),
                   key=lambda trial: (trial.cost, trial.widths))

    def begin(self, original: Widths) -> None:
        self.baseline = self._checked_scores(original)
        self.by_widths[original] = Trial(original, self.cost(original), "original", 0.0, 0.0, 0.0,
                                         float(self.baseline.mean()))

    def try_widths(self, widths: Widths) -> bool | None:
        """Whether these widths are as good as the original's; None where the budget is spent."""
        if widths not in self.by_widths:
            if self.spent:
                return None
            try:
                scores = self._checked_scores(widths)
            except KeyboardInterrupt as signal:
                if getattr(signal, "exit_code", CTRL_C) != CTRL_C:
                    raise
                self.interrupted = True
                return None
            verdict = compare(self.baseline, scores, margin=self.margin, confidence=self.confidence)
            self.by_widths[widths] = Trial(
                widths, self.cost(widths), verdict.outcome, verdict.delta, verdict.low,
                verdict.high, float(scores.mean()))
        return self.is_as_good(self.by_widths[widths])

    def is_as_good(self, trial: Trial) -> bool:
        if trial.outcome == "original":
            return True
        return trial.outcome == "non_inferior" if self.rule == "non_inferior" else \
            trial.delta >= -self.margin

    def is_hopeless(self, widths: Widths) -> bool:
        """Whether a network at least as wide in every layer was worse than the margin for sure."""
        return any(trial.outcome == "inferior"
                   and all(new <= old for new, old in zip(widths, trial.widths, strict=True))
                   for trial in self.by_widths.values())

    def is_below_failed(self, widths: Widths) -> bool:
        """Whether a network at least as wide in every layer was tried and is not as good."""
        return any(not self.is_as_good(trial)
                   and all(new <= old for new, old in zip(widths, trial.widths, strict=True))
                   for trial in self.by_widths.values())

    def _checked_scores(self, widths: Widths) -> np.ndarray:
        scores = np.asarray(self.score(widths), dtype=np.float64)
        if self.baseline.size and scores.shape != self.baseline.shape:
            raise ValueError(f"score: expected the shape {self.baseline.shape} for the widths "
                             f"{comma_separated(widths)} too, but got {scores.shape}")
        if not scores.size or not np.isfinite(scores).all():
            raise ValueError(f"score: expected finite scores for the widths "
                             f"{comma_separated(widths)}, but got "
                             f"{'none' if not scores.size else 'NaN or infinity'}")
        return scores


def search_widths(  # noqa: PLR0913 - what is searched, by what rule, within what budget
    score: Callable[[Widths], ArrayLike], original: Sequence[int], suggestion: Sequence[int], *,
    margin: float, confidence: float = 0.95, runs: int | None = None, seconds: float | None = None,
    cost: Callable[[Widths], float] | None = None, rule: str = "non_inferior", seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """The smallest widths whose networks, trained anew, are as good on validation data.

    First along the path from the original through the suggestion towards one unit everywhere,
    geometric in every width: the suggestion, then outwards or back by bisection in the logarithm.
    Of several widths that hold the smallest is taken above which none that was tried is worse than
    the margin beyond doubt (``inferior``): outcomes are noisy, and one lucky narrow network under a
    wider one that fails is no evidence. Then, where there are several widths and budget is left,
    Optuna's TPE moves each for itself among those that cost less.

    An interrupt from the keyboard while a candidate is trained ends the search with the best so
    far, and its caller goes on; while the original is trained it is passed on, as are other
    signals. ``note`` says what a search that was cut short did not try.

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
    start, target = _checked(original, suggestion, rule, runs, seconds)
    trials = _Trials(score, cost or (lambda widths: float(sum(widths))), margin, confidence, rule,
                     runs or 10**9, clock() + (seconds or math.inf), clock)
    trials.begin(start)
    path = _path(start, target)
    bisected = _bisect(trials, path, path.index(target) if target in path else len(path) // 2)
    if len(start) > 1 and not trials.spent:
        _vary_each(trials, start, seed)
    best = trials.best
    stopped = "interrupted" if trials.interrupted else "budget" if trials.spent else "converged"
    note = "; ".join(filter(None, (
        _cut_short(trials, runs, bisected=bisected, separately=len(start) > 1),
        _note(trials, best, start))))
    return SearchResult(best.widths, tuple(trials.by_widths.values()), stopped, note, margin, rule)


def _cut_short(
    trials: _Trials, runs: int | None, *, bisected: bool, separately: bool
) -> str:
    """What a search that was stopped did not try; nothing, where it ended by itself.

    Args:
        trials: those made.
        runs: how many were allowed, the original's among them.
        bisected: whether the common path was searched to its end.
        separately: whether there are several widths, each of which may vary for itself.
    """
    if not trials.spent or (bisected and not separately):
        return ""
    tried = len(trials.by_widths) - 1
    of = "" if runs is None else f" of {runs - 1}"
    rest = "other combinations of them" if bisected else "smaller ones"
    return f"stopped after {tried}{of} width{'s' * ((runs or tried + 1) != 2)}; " \
           f"{rest} were not tried"


def _checked(
    original: Sequence[int], suggestion: Sequence[int], rule: str, runs: int | None,
    seconds: float | None,
) -> tuple[Widths, Widths]:
    start, target = tuple(map(int, original)), tuple(map(int, suggestion))
    if not start or len(start) != len(target) or min(start) < 1 or min(target) < 1 \
            or any(new > old for new, old in zip(target, start, strict=False)):
        raise ValueError(f"suggestion: expected {len(start)} widths of at least 1 and at most the "
                         f"original's ({comma_separated(start)}), but got "
                         f"{comma_separated(target)}")
    if rule not in RULES:
        raise ValueError(f"rule: expected {' or '.join(RULES)}, but got '{rule}'")
    if runs is not None and runs < 2:
        raise ValueError(f"runs: expected at least 2, the original's and a candidate's, but got "
                         f"{runs}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds: expected a number above 0, but got {seconds}")
    return start, target


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
    """Bisection of the path: ``good`` is the last place as good, ``bad`` the first that is not.

    Whether it came to its end.
    """
    good, bad, probe = 0, len(path), max(first, 1)
    while bad - good > 1:
        as_good = trials.try_widths(path[probe])
        if as_good is None:
            return False
        good, bad = (probe, bad) if as_good else (good, probe)
        probe = (good + bad) // 2
    return True


def _vary_each(trials: _Trials, start: Widths, seed: int) -> None:
    """Vary each width separately by Optuna, among candidates cheaper than the best so far."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=0, multivariate=False))
        space: dict[str, Any] = {
            str(place): optuna.distributions.IntDistribution(1, width, log=True)
            for place, width in enumerate(start)}
        for trial in trials.by_widths.values():
            params = {str(place): width for place, width in enumerate(trial.widths)}
            study.add_trial(optuna.trial.create_trial(
                params=params, distributions=space, value=_objective(trials, trial)))
        idle = 0
        while not trials.spent and idle < 50:
            proposal = study.ask(space)
            widths = tuple(proposal.params[str(place)] for place in range(len(start)))
            cost, best = trials.cost(widths), trials.best
            if widths in trials.by_widths or cost >= best.cost or trials.is_below_failed(widths):
                idle += 1
                study.tell(proposal, cost + best.cost)
                continue
            idle = 0
            if trials.try_widths(widths) is not None:
                study.tell(proposal, _objective(trials, trials.by_widths[widths]))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _objective(trials: _Trials, trial: Trial) -> float:
    """What Optuna minimises: the cost; where a trial is not as good, more than all trials cost."""
    if trials.is_as_good(trial):
        return trial.cost
    most = max(other.cost for other in trials.by_widths.values())
    shortfall = -trials.margin - (trial.low if trials.rule == "non_inferior" else trial.delta)
    return most * (1 + max(0.0, shortfall))


def _note(trials: _Trials, best: Trial, start: Widths) -> str:
    """Where nothing narrower is as good: which came nearest, and whether the data could show it."""
    if best.widths != start:
        return ""
    tried = [trial for trial in trials.by_widths.values() if trial.outcome != "original"]
    nearest = max(tried, key=lambda trial: trial.low, default=None)
    parts = [] if nearest is None else [
        f"nearest came {comma_separated(nearest.widths)}: {100 * nearest.delta:+.1f} points "
        f"({100 * nearest.low:+.1f} to {100 * nearest.high:+.1f})"]
    examples = trials.baseline.shape[-1]
    needed = required_examples_without_discordance(trials.margin, trials.confidence) \
        if 0 < trials.margin < 1 else None
    if trials.rule == "non_inferior" and needed is not None and examples < needed:
        parts.append(f"{examples:,} validation examples show nothing at this margin: it takes at "
                     f"least {needed:,}")
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
    names = [layer.layer for layer in suggested]
    cost = search.cost

    def named(widths: Widths) -> dict[str, int]:
        return dict(zip(names, widths, strict=True))

    result = search_widths(
        lambda widths: search.retrain(named(widths)), [layer.units for layer in suggested],
        [layer.width for layer in suggested], margin=margin, confidence=search.confidence,
        runs=search.runs, seconds=search.seconds, seed=seed,
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
