"""The sentence for who has to decide: quality, what is saved, what the choice is.

Tests: ``tests/verdict/test_decision.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wua_mlflow.verdict.text import (
    SAME_COST,
    SAME_LATENCY,
    amount_words,
    basis_words,
    in_points,
    margin_text,
    margin_words,
    no_realistic_n,
    ratio,
    ratio_words,
    reading,
)

if TYPE_CHECKING:
    from wua_mlflow.verdict.compare import Verdict

__all__ = ["decision_sentence", "latency_gain", "size_gain"]


def decision_sentence(
    verdict: Verdict, gains: Sequence[tuple[str, bool]], saved: float, what: str = "FLOPs", *,
    artifact: Verdict | None = None, equal_budget: str = "",
) -> str:
    """One sentence for who has to decide: quality, what is saved, what to decide.

    Args:
        verdict: the one that decides.
        gains: what was measured of latency and size, and whether that is a gain.
        saved: original ÷ slim of what is saved most of FLOPs and parameters.
        what: which of the two that is.
        artifact: the verdict on the two saved models, where a recipe's decides.
        equal_budget: outcome of the verdict against the original with the same budget; "" of none.
    """
    fewer = f"needs {ratio_words(saved, 'fewer', 'more')} {what}" if saved > SAME_COST else ""
    measured = _gain_words(verdict, gains, fewer)
    unlike = artifact is not None and verdict.outcome == "non_inferior" != artifact.outcome
    decision = _decision(verdict, any(is_gain for _, is_gain in gains), bool(fewer), _Place(
        "networks of its recipe" if unlike else "it", equal_budget in ("", "non_inferior")))
    saved_one = "; of the one that was saved alone this is not shown" if unlike else ""
    return f"{_quality(verdict)}{measured}; {decision}{saved_one}."


@dataclass(frozen=True)
class _Place:
    """Who can take the original's place, and whether also if that is trained for as long."""

    who: str
    trained_on: bool


def _quality(verdict: Verdict) -> str:
    margin = margin_words(verdict)
    if verdict.guard and verdict.outcome == "inferior":
        return (f"The slim model is worse than the original: {verdict.guard} "
                f"({basis_words(verdict, 'these two saved models')})")
    quality = {
        "better": "better than the original",
        "worse": f"worse than the original, but by less than {margin}",
        "inferior": f"worse than the original, by more than {margin}" if verdict.margin else
                    "worse than the original",
    }.get(reading(verdict), f"as well as the original within {margin}")
    start = "It is not settled whether the" if verdict.outcome == "inconclusive" else "The"
    does = "answers" if in_points(verdict.score) else "predicts"
    return (f"{start} slim model {does} {quality} ({100 * verdict.confidence:.4g}% confidence, "
            f"{basis_words(verdict, 'these two saved models')})")


def _gain_words(verdict: Verdict, gains: Sequence[tuple[str, bool]], fewer: str) -> str:
    """What is saved, then what is not; ``fewer`` is a saving that was counted, not measured."""
    good = [words for words, is_gain in gains if is_gain]
    bad = [words for words, is_gain in gains if not is_gain]
    inferior = verdict.outcome == "inferior"
    words = (" though " if inferior else " but ").join(
        " and ".join(part) for part in (good, bad) if part)
    measured = f"is {words}" if gains else ""
    between = " and " if good else " though it " if inferior else " but "
    clause = between.join(filter(None, (fewer, measured)))
    unknown = "" if gains else "; neither its latency nor its size was measured"
    if not clause:
        return unknown
    saves = bool(good or fewer)
    start = "; it" if verdict.outcome == "inconclusive" else \
        f", {'but' if saves else 'and'}" if inferior else "," if saves else ", but"
    return f"{start} {clause}{unknown}"


def _decision(verdict: Verdict, gained: bool, fewer: bool, place: _Place) -> str:
    if verdict.outcome == "inconclusive":
        recipe = verdict.kind == "recipe"
        if verdict.guard:
            return f"what stands against it: {verdict.guard}"
        if verdict.settle == no_realistic_n(recipe=recipe):
            return ("more data would hardly settle it, so the choice is to accept that risk or to "
                    "keep the original")
        more = "more seeds" if recipe else "more test examples"
        amount = amount_words(verdict.needed, as_seen=True) if verdict.needed else more
        return f"the choice is to accept that risk or to test with {amount}"
    if verdict.outcome == "inferior":
        return "to use it is to accept that loss" if gained or fewer else \
            "by the margin set, the original stays"
    if gained:
        margin = margin_text(verdict.margin, verdict.score, of=False)
        condition = "" if verdict.low > 0 else f" if {margin} is the right margin"
        which = "the original's place" if place.trained_on else \
            "the place of the original as it was trained"
        return f"{place.who} can take {which}{condition}"
    if fewer:
        return "that is its only gain"
    return "there is nothing to gain by it"


def latency_gain(
    original_ms: float | None, slim_ms: float | None,
    interval: tuple[float, float, float] | None,
) -> tuple[str, bool] | None:
    """The latency against the original's, and whether it is a gain; None if not measured.

    Args:
        original_ms: median.
        slim_ms: median.
        interval: original ÷ slim with its interval, where both were timed in turns.
    """
    if interval and interval[1] <= 1 <= interval[2]:
        return "not measurably faster per sample", False
    speedup = interval[0] if interval else ratio(original_ms, slim_ms)
    if not speedup:
        return None
    words = ratio_words(speedup, "faster", "slower", same_within=SAME_LATENCY, same="about as fast")
    return f"{words} per sample", speedup >= SAME_LATENCY


def size_gain(original: float | None, slim: float | None) -> tuple[str, bool] | None:
    """The bytes on disk against the original's, and whether that is a gain."""
    times = ratio(original, slim)
    if not times:
        return None
    words = ratio_words(times, "smaller", "larger", same="no smaller")
    return f"{words} on disk", times >= SAME_COST
