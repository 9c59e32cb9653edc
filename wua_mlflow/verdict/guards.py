"""What no difference of two scores shows: constant answers, tests that tell nothing, lost classes.

Guards only ever lower an outcome. Definitions: ``docs/conventions.md``; what they cost:
``benchmarks/scores.py``. Tests: ``tests/verdict/test_guards.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wua_mlflow.verdict import intervals, text
from wua_mlflow.verdict.predictions import Paired
from wua_mlflow.verdict.scores import SCORES, by_group

__all__ = ["Finding", "Guarded", "guarded"]

Floats = NDArray[np.float64]

_INSTEAD = {"labels": ("balanced_accuracy", "mcc", "f1_macro"),
            "probabilities": ("average_precision", "roc_auc")}
"""Scores that may tell a good model from a constant one where another does not."""

_LEAD = 2.0
"""The original must lead a constant answer by so many margins."""

_CONSTANT = 1e-6
"""Predictions within this share of their size are one and the same."""


@dataclass(frozen=True)
class Finding:
    """Why an outcome was lowered.

    Attributes:
        outcome: what it is at best.
        words: what was found, a clause.
        remedy: what can be done about it, a sentence.
    """

    outcome: str
    words: str
    remedy: str


@dataclass(frozen=True)
class Guarded:
    """What two models and a constant answer score, and why the outcome was lowered, if it was.

    ``constant`` is the score of the commonest class (of all classes' shares, of the mean); None
    where it has none.
    """

    baseline: float
    candidate: float
    constant: float | None
    finding: Finding | None = None


def guarded(
    pair: Paired, outcome: str, *, margin: float, confidence: float,
    class_margin: float | None, groups: ArrayLike | None = None,
) -> Guarded:
    """What the guards say of an outcome.

    Args:
        pair: both sides' predictions.
        outcome: by the interval of the difference.
        margin: as a fraction; of a score where less is better a share of the baseline's value.
        confidence: of all intervals here, two-sided; of the classes' all together (Bonferroni).
        class_margin: the loss of a class's recall that is accepted; None for any.
        groups: shape (n,); examples of one group are one draw.
    """
    test = _Test(pair, margin, confidence, groups)
    found = Guarded(test.values[0], test.values[1], test.constant_value)
    if outcome == "inferior":
        return found
    lost = None if class_margin is None else _lost_class(test, class_margin)
    if lost is not None and lost.outcome == "inferior":
        return replace(found, finding=lost)
    if outcome == "inconclusive":
        return found
    return replace(found, finding=_constant_candidate(test) or lost or _blind_test(test))


class _Test:
    """Both sides beside a constant answer, on the same examples."""

    def __init__(
        self, pair: Paired, margin: float, confidence: float, groups: ArrayLike | None
    ) -> None:
        self.pair, self.margin, self.confidence = pair, margin, confidence
        self.groups = None if groups is None else np.asarray(groups)
        self.values = pair.value(pair.baseline), pair.value(pair.candidate)
        self.constant_value: float | None
        try:
            self.constant_value = pair.value(pair.constant)
        except ValueError:  # a function of the user's that constants have no value by
            self.constant_value = None

    @property
    def sign(self) -> float:
        return -1.0 if self.pair.score.less_is_better else 1.0

    def above_constant(self, predictions: NDArray[Any]) -> tuple[float, float]:
        """The interval of what these predictions score above the constant answer."""
        return limits(self.pair.examples(self.pair.constant), self.pair.examples(predictions),
                      confidence=self.confidence, groups=self.groups)

    def lead(self) -> float:
        """Of the baseline over the constant answer."""
        assert self.constant_value is not None
        return self.sign * (self.values[0] - self.constant_value)


def limits(
    old: Floats, new: Floats, *, confidence: float, groups: ArrayLike | None = None
) -> tuple[float, float]:
    """An interval of the mean difference of (S, n) and (S, n): Tango's, or Student's t, widened."""
    if groups is not None:
        old, new = by_group(old, groups), by_group(new, groups)
    if len(old) == len(new) == 1 and bool(np.isin([old, new], (0.0, 1.0)).all()):
        return intervals.tango_interval(int((new > old).sum()), int((new < old).sum()), old.size,
                                        confidence=confidence)
    parts = intervals.crossed(old, new)
    _, unseen, _ = intervals.score_range(old, new)
    reach = unseen * intervals.zero_event_limit(parts.examples, confidence=confidence)
    half = max(parts.half_width(confidence), reach)
    return parts.mean - half, parts.mean + half


def _constant_candidate(test: _Test) -> Finding | None:
    predictions = test.pair.candidate
    scores = test.pair.score.takes == "scores"
    alike = np.array([np.allclose(row, test.pair.constant[0]) if scores else _is_constant(row)
                      for row in predictions])
    if 2 * alike.sum() >= len(alike):
        return Finding("inconclusive", text.constant_answers(int(alike.sum()), len(alike)),
                       text.CONSTANT_REMEDY)
    if test.constant_value is not None and test.above_constant(predictions)[1] < 0:
        return Finding("inconclusive", text.below_constant(_kind(test)), text.CONSTANT_REMEDY)
    return None


def _blind_test(test: _Test) -> Finding | None:
    """Where the original is not shown well above a constant answer."""
    if test.constant_value is None:
        return None
    lead, needed = test.lead(), _LEAD * test.margin * abs(test.pair.share(test.pair.baseline))
    low, high = test.above_constant(test.pair.baseline)
    if low > 0 and needed <= lead:
        return None
    words = text.blind_test(test.pair.score.name, _kind(test), lead, low, high,
                            margin=needed / _LEAD if low > 0 else None)
    return Finding("inconclusive", words, text.blind_test_remedy(_telling_score(test)))


def _telling_score(test: _Test) -> str | None:
    """A score of the same predictions by which the original is shown above a constant answer."""
    score = test.pair.score
    for name in _INSTEAD.get(score.takes, ()):
        if name == score.name or (len(test.pair.classes) > 2 and name == "roc_auc"):
            continue
        other = _Test(replace(test.pair, score=SCORES[name]), test.margin, test.confidence,
                      test.groups)
        if other.constant_value is not None and other.above_constant(other.pair.baseline)[0] > 0 \
                and _LEAD * test.margin <= other.lead():
            return name
    return None


def _lost_class(test: _Test, class_margin: float) -> Finding | None:
    """The class whose recall falls most, where it is shown to fall and by more than the margin."""
    guessed = test.pair.guessed
    if guessed is None:
        return None
    present = np.unique(test.pair.targets)
    confidence = 1 - (1 - test.confidence) / len(present)
    losses = []
    for label in present:
        of_class = test.pair.targets == label
        sides = [np.asarray(side[:, of_class] == label, dtype=np.float64) for side in guessed]
        fall = float(sides[1].mean() - sides[0].mean())
        groups = None if test.groups is None else test.groups[of_class]
        few = of_class.sum() < 2 or (groups is not None and len(set(groups.tolist())) < 2)
        if few or fall >= -class_margin:
            continue
        low, high = limits(*sides, confidence=confidence, groups=groups)
        if high < 0:
            losses.append((high >= -class_margin, fall, low, high, label, int(of_class.sum())))
    if not losses:
        return None
    unsure, fall, low, high, label, examples = min(losses, key=lambda loss: loss[:2])
    words = text.lost_class(test.pair.classes[label], examples, fall, low, high, confidence)
    return Finding("inconclusive" if unsure else "inferior", words,
                   text.lost_class_remedy(class_margin))


def _is_constant(row: NDArray[Any]) -> bool:
    if row.dtype.kind in "USb":
        return bool((row == row[0]).all())
    size = max(float(np.abs(row).max()), math.ulp(0.0))
    return bool((np.ptp(row, axis=0) <= _CONSTANT * size).all())


def _kind(test: _Test) -> str:
    """What a constant answer is here."""
    takes = test.pair.score.takes
    return {"labels": "the commonest class", "probabilities": "the classes' shares",
            "values": "the mean"}.get(takes, "a constant answer")
