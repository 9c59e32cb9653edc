"""The sentences of a verdict: what was found, and what would settle an inconclusive one.

For readers who know the margin but no statistics. May import: numpy, ``settling``.
Tests: ``tests/test_verdict.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.verdict.sample_size import RequiredSampleSize

if TYPE_CHECKING:
    from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "TOO_FEW_SEEDS", "TRAINED_ELSEWHERE", "interval_words", "latency_unlike_flops",
    "looks_sentence", "margin_text", "margin_words", "no_difference_seen", "no_realistic_n",
    "outcome_words", "points", "question_answered", "ratio_words", "required_n_sentence",
    "verdict_headline", "verdict_sentence",
]


TOO_FEW_SEEDS = "No recipe verdict: it needs at least 5 seeds (setting `seeds`)."
TRAINED_ELSEWHERE = "No recipe verdict: how the original was trained elsewhere is not known."
NOTEWORTHY_RATIO = 1.05
"""FLOPs that fall by more than this are expected to show in the latency."""
_AS_SEEN = "with a chance of 80%, if the true difference and its spread are as seen"


def verdict_sentence(verdict: Verdict) -> str:
    """The verdict in one sentence; accuracies are in percentage points."""
    delta, interval, margin = _figures(verdict)
    return (
        f"{_subject(verdict)} minus the original's is {delta} "
        f"({_percent(verdict.confidence)}% interval {interval}), against a margin of "
        f"{margin}: {_outcome_in_words(verdict)}."
    )


def verdict_headline(verdict: Verdict) -> str:
    """The verdict as a headline: outcome, difference, interval, margin, what it rests on."""
    delta, interval, margin = _figures(verdict)
    word = {"non_inferior": "As good within the margin", "inferior": "Not as good"}.get(
        verdict.outcome, "Inconclusive")
    rests = f"{verdict.seeds:,} seeds" if verdict.kind == "recipe" else "these two models"
    return (
        f"{word}: {verdict.score} {delta} ({_percent(verdict.confidence)}% interval {interval}; "
        f"margin {margin}; {rests})"
    )


def looks_sentence(looks: int, verdict: Verdict | None = None) -> str:
    """How often the test set was looked at, and the verdict read for so many looks."""
    said = (
        f"This test set has been looked at for {looks:,} verdicts: the more looks, the likelier "
        "that one is good by luck."
    )
    if verdict is None:
        return said
    _, interval, _ = _figures(verdict)
    return (
        f"{said} Read for {looks:,} looks (Bonferroni, {_percent(verdict.confidence)}% interval "
        f"{interval}): {_outcome_in_words(verdict)}."
    )


def question_answered(original: str, candidate: str, verdict: Verdict) -> str:
    """Whether the candidate is as good as the original, by their names: a picture's headline."""
    margin = margin_words(verdict)
    if verdict.outcome == "inferior":
        answer = f"No: {candidate} is worse than {original} by more than {margin}"
    elif verdict.outcome == "inconclusive":
        answer = f"Undecided: {candidate} may be worse than {original} by more than {margin}"
    elif verdict.high < 0:
        answer = f"Worse, but within the margin: {candidate} is behind {original} by less than " \
                 f"{margin}"
    else:
        answer = f"Yes: {candidate} is as good as {original}, to within {margin}"
    return answer if verdict.kind == "recipe" else f"{answer} (these two models)"


def outcome_words(verdict: Verdict) -> str:
    """The outcome in a few words, beside its interval."""
    if verdict.outcome == "non_inferior":
        return "worse, within the margin" if verdict.high < 0 else "non-inferior"
    return verdict.outcome


def interval_words(verdict: Verdict) -> str:
    """Difference and interval without a unit, ``−1.2 (−3.1 to +0.7)``; accuracy in points.

    There are as many decimals as show each limit on its side of the margin.
    """
    delta, interval, _ = _figures(verdict)
    return f"{delta.removesuffix(' points')} ({interval})"


def margin_words(verdict: Verdict, *, of: bool = True) -> str:
    """A verdict's margin with its unit, as ``margin_text`` writes it."""
    return margin_text(verdict.margin, verdict.score, of=of)


def margin_text(margin: float, score: str, *, of: bool = True) -> str:
    """A margin with its unit; that of an accuracy in points, named unless not ``of``.

    >>> margin_text(0.02, "accuracy"), margin_text(0.01, "accuracy", of=False)
    ('2 points of accuracy', '1 point')
    >>> margin_text(0.02, "R²")
    '0.02 of R²'
    """
    words = points(margin, score)
    if score != "accuracy":
        return f"{words} of {score}"
    return f"{words} point{'' if words == '1' else 's'}{' of accuracy' if of else ''}"


def points(value: float, score: str) -> str:
    """A margin or a difference without rounding noise; accuracy in points (0.02 is 2 points).

    >>> points(-0.02, "accuracy"), points(0.05, "R²")
    ('−2', '0.05')
    """
    scaled = (100 if score == "accuracy" else 1) * value + 0.0  # + 0.0: no sign on a zero
    return f"{scaled:.4g}".replace("-", "−")


def ratio_words(
    ratio: float, less: str, more: str, *, same_within: float = 1.005, same: str = "same"
) -> str:
    """A ratio original ÷ slim in words; one nearer to 1 than ``same_within`` is ``same``.

    >>> ratio_words(122 / 86, "fewer", "more"), ratio_words(0.5, "faster", "slower")
    ('1.4× fewer', '2.0× slower')
    """
    times, word = (ratio, less) if ratio >= 1 else (1 / ratio, more)
    if times < same_within:
        return same
    digits = 2 if times < 1.095 else 1 if times < 9.95 else 0
    return f"{times:,.{digits}f}× {word}"


def latency_unlike_flops(
    flops_ratio: float, latency_ratio: tuple[float, float, float] | None
) -> str:
    """A sentence where FLOPs fall and the latency is not shown to fall; else "".

    Args:
        flops_ratio: original ÷ slim.
        latency_ratio: the same of the latencies at batch 1, with its interval.
    """
    if latency_ratio is None or flops_ratio <= NOTEWORTHY_RATIO or latency_ratio[1] > 1:
        return ""
    ratio, low, high = latency_ratio
    return (f"FLOPs fall {flops_ratio:.1f}×, but latency at batch 1 does not: ratio {ratio:.2f} "
            f"({low:.2f} to {high:.2f}).")


def _figures(verdict: Verdict) -> tuple[str, str, str]:
    """Difference, interval and margin, in percentage points where the score is an accuracy."""
    scale, unit = (100.0, " points") if verdict.score == "accuracy" else (1.0, "")
    decimals = _decimals(verdict, scale, first=1 if unit else 3)
    delta, low, high = (
        _signed(scale * value, decimals) for value in (verdict.delta, verdict.low, verdict.high)
    )
    margin = _margin(scale, verdict.margin)
    return f"{delta}{unit}", f"{low} to {high}", f"{margin:g}{unit if margin != 1 else unit[:-1]}"


def required_n_sentence(
    need: RequiredSampleSize, *, examples: int, seeds: int, recipe: bool
) -> str:
    """``need`` in one sentence, beside the ``examples`` and ``seeds`` at hand."""
    if not recipe:
        return (
            f"About {need.examples:,} test examples (now {examples:,}) would settle it, {_AS_SEEN}."
        )
    if need.seeds and need.examples:
        return (
            f"About {need.seeds:,} seeds (now {seeds:,}) on the same test examples, or about "
            f"{need.examples:,} test examples (now {examples:,}) with the same seeds, would settle "
            f"it, {_AS_SEEN}."
        )
    if need.seeds:
        return (
            f"About {need.seeds:,} seeds (now {seeds:,}) would settle it, {_AS_SEEN}; more test "
            "examples alone cannot: the spread between seeds is too large."
        )
    if need.examples:
        return (
            f"About {need.examples:,} test examples (now {examples:,}) would settle it, {_AS_SEEN};"
            " more seeds alone may not: too few test examples tell the two apart, or the examples "
            "differ too much."
        )
    if need.both:
        return (
            "Neither more seeds nor more test examples alone would settle it; about "
            f"{need.both[0]:,} seeds with {need.both[1]:,} test examples (now {seeds:,} and "
            f"{examples:,}) would, {_AS_SEEN}."
        )
    return no_realistic_n(recipe=recipe)


def no_difference_seen(required: int, *, examples: int) -> str:
    """Where no example tells the two models apart: ``required`` such examples would do."""
    return (
        f"No test example tells the two apart, but {examples:,} are too few to show it: at least "
        f"{required:,} test examples without a difference would settle it."
    )


def no_realistic_n(*, recipe: bool) -> str:
    """Where the estimate lies too close to −margin, for its uncertainty, for a realistic number."""
    what = "seeds or test examples" if recipe else "test examples"
    return (
        f"No realistic number of {what} would settle it, by what was seen here: more than 100 "
        "times those at hand. The estimated difference lies too near minus the margin for its "
        "uncertainty."
    )


def _subject(verdict: Verdict) -> str:
    examples = f"{verdict.examples:,} test examples"
    if verdict.kind == "recipe":
        return (
            f"Recipe verdict (both trained with {verdict.seeds:,} seeds, {examples}): on average "
            f"the slim model's {verdict.score}"
        )
    return (
        f"Artifact verdict (these two saved models, {examples}): "
        f"the slim model's {verdict.score}"
    )


def _outcome_in_words(verdict: Verdict) -> str:
    if verdict.outcome == "inferior":
        return "worse by more than the margin (inferior)"
    if verdict.outcome == "inconclusive":
        return "the data cannot tell whether the loss stays within the margin (inconclusive)"
    if verdict.high < 0:
        return "worse, but within the margin (non-inferior)"
    return f"{'better' if verdict.low > 0 else 'as good within the margin'} (non-inferior)"


def _percent(confidence: float) -> str:
    """A confidence in percent, with three digits of what is missing to 100.

    >>> _percent(0.95), _percent(1 - 0.05 / 3), _percent(1 - 0.05 / 1000), _percent(0.8)
    ('95', '98.33', '99.995', '80')
    """
    decimals = max(1, 2 - math.floor(math.log10(100 * (1 - confidence))))
    return f"{100 * confidence:.{decimals}f}".rstrip("0").rstrip(".")


def _margin(scale: float, margin: float) -> float:
    return round(scale * margin, 9)


def _decimals(verdict: Verdict, scale: float, *, first: int) -> int:
    """The fewest decimals at which both limits are shown on their side of −margin and of 0."""
    bounds = (-_margin(scale, verdict.margin), 0.0)
    limits = (round(scale * verdict.low, 9), round(scale * verdict.high, 9))
    for decimals in range(first, 9):
        shown = [round(limit, decimals) for limit in limits]
        if all(
            np.sign(limit - bound) == np.sign(rounded - bound)
            for limit, rounded in zip(limits, shown, strict=True)
            for bound in bounds
        ):
            return decimals
    return 9


def _signed(value: float, decimals: int) -> str:
    """``value`` with a typographic sign; zero has none."""
    rounded = round(value, decimals)
    text = f"{abs(rounded):.{decimals}f}"
    return text if rounded == 0 else f"{'−' if rounded < 0 else '+'}{text}"
