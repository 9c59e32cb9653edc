"""The verdict in one sentence for who has to decide: quality, latency, bytes, and what to decide.

May import: comparison, names, wording. Tests: ``tests/pipeline/test_report_summary.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wua_mlflow.results import Comparison
from wua_mlflow.tracking.names import Metric, Outcome
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.text import margin_words, no_realistic_n, ratio_words

__all__ = ["Row", "caveats", "in_short", "latency_words", "table_rows"]


SAME_SIZE, SAME_LATENCY, FEWER = 1.005, 1.05, 1.005
"""Ratios nearer to 1 than these count as the same, whatever their interval; so do the pictures."""

_OUTCOMES = {Outcome.NON_INFERIOR: "non-inferior", Outcome.INFERIOR: "inferior",
             Outcome.INCONCLUSIVE: "inconclusive"}


def in_short(
    comparison: Comparison, original: Mapping[str, float], slim: Mapping[str, float]
) -> str:
    """One sentence; the verdict is the recipe's where there is one, else the artifact's.

    Args:
        comparison: of the two.
        original: its metrics, by the contract's names.
        slim: likewise.
    """
    verdict = comparison.verdict
    both = (latency_words(comparison, original, slim), _size(original, slim))
    found = [one for one in both if one]
    gained = any(good for _, good in found)
    said = f"{_quality(verdict)}{_and_is(verdict, found)}" if found else \
        f"{_quality(verdict)}; neither its latency nor its size was measured"
    return f"{said}; {_decision(comparison, gained)}."


def caveats(comparison: Comparison) -> list[str]:
    """Where the other reading of the same data comes to another outcome, a sentence each."""
    said = [comparison.class_loss] if comparison.class_loss else []
    decided = comparison.verdict.outcome
    artifact, all_looks = comparison.artifact, comparison.bonferroni
    if artifact.outcome != decided:
        said.append(f"That is the recipe's verdict, over seeds; of the two saved models alone it "
                    f"is {_OUTCOMES[artifact.outcome]}.")
    if all_looks is not None and all_looks.outcome != decided:
        said.append(f"Read for all {comparison.looks:,} looks at this test set it is "
                    f"{_OUTCOMES[all_looks.outcome]}.")
    return said


def _quality(verdict: Verdict) -> str:
    does = "answers" if verdict.score == "accuracy" else "predicts"
    rests = f"{verdict.seeds:,} seeds" if verdict.kind == "recipe" else "these two saved models"
    sure = f"({100 * verdict.confidence:.4g}% confidence, {rests})"
    margin = margin_words(verdict)
    if verdict.outcome == Outcome.INCONCLUSIVE:
        return (f"It is open whether the slim model {does} as well as the original within "
                f"{margin} {sure}")
    if verdict.outcome == Outcome.INFERIOR:
        by = f", by more than {margin}" if verdict.margin else ""
        return f"The slim model {does} worse than the original{by} {sure}"
    if verdict.low > 0:
        return f"The slim model {does} better than the original {sure}"
    if verdict.high < 0:
        return f"The slim model {does} worse than the original, but by less than {margin} {sure}"
    return f"The slim model {does} as well as the original within {margin} {sure}"


def _and_is(verdict: Verdict, found: list[tuple[str, bool]]) -> str:
    good = [words for words, is_good in found if is_good]
    bad = [words for words, is_good in found if not is_good]
    joint = " though " if verdict.outcome == Outcome.INFERIOR else " but "
    said = joint.join(" and ".join(part) for part in (good, bad) if part)
    if verdict.outcome == Outcome.INCONCLUSIVE:
        return f"; it is {said}"
    if verdict.outcome == Outcome.INFERIOR:
        return f", but is {said}" if good else f", and is {said}"
    return f", is {said}" if good else f", but is {said}"


def latency_words(
    comparison: Comparison, original: Mapping[str, float], slim: Mapping[str, float]
) -> tuple[str, bool] | None:
    """Against the original's, and whether that is a gain; None where it was not measured."""
    if comparison.latency_ratio is not None:
        ratio, low, high = comparison.latency_ratio
        if low <= 1 <= high:
            return "not measurably faster per sample", False
        return _speed(ratio)
    before, after = original.get(Metric.LATENCY_P50), slim.get(Metric.LATENCY_P50)
    if not before or not after:
        return None
    return _speed(before / after)


def _speed(ratio: float) -> tuple[str, bool]:
    words = ratio_words(ratio, "faster", "slower", same_within=SAME_LATENCY, same="about as fast")
    return f"{words} per sample", ratio >= SAME_LATENCY


def _size(original: Mapping[str, float], slim: Mapping[str, float]) -> tuple[str, bool] | None:
    before, after = original.get(Metric.SIZE_BYTES), slim.get(Metric.SIZE_BYTES)
    if not before or not after:
        return None
    words = ratio_words(before / after, "smaller", "larger", same_within=SAME_SIZE,
                        same="no smaller")
    return f"{words} on disk", before / after >= SAME_SIZE


def _decision(comparison: Comparison, gained: bool) -> str:
    verdict = comparison.verdict
    owner = "whoever owns the product"
    if verdict.outcome == Outcome.INCONCLUSIVE:
        return _open_decision(verdict, owner)
    if verdict.outcome == Outcome.INFERIOR:
        if not gained:
            return "by the margin set, the original stays"
        return f"to use it, {owner} would have to accept that loss"
    if gained and verdict.low > 0:
        return f"{owner} decides whether it takes the original's place"
    if gained:
        return f"{owner} decides whether {margin_words(verdict, of=False)} is the right margin"
    flops = comparison.ratios.get(Metric.FLOPS_RATIO, 1.0)
    if flops > FEWER:
        fewer = ratio_words(flops, "fewer", "more")
        return f"{owner} decides whether {fewer} FLOPs alone are worth the change"
    return "there is nothing to gain by it"


def _open_decision(verdict: Verdict, owner: str) -> str:
    recipe = verdict.kind == "recipe"
    if verdict.settle == no_realistic_n(recipe=recipe):
        return (f"more data would hardly tell, so {owner} decides whether to take the risk or to "
                f"keep the original")
    what = "more seeds or test examples" if recipe else "more test examples"
    return f"{owner} decides whether to take the risk or to pay for {what}"


@dataclass(frozen=True)
class Row:
    """A line of the table: a quantity, its value by variant, and what the slim one saves."""

    label: str
    values: tuple[str, ...]
    change: str


_ROWS = (
    (Metric.ACCURACY_TEST, "accuracy, test", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_MEAN, "accuracy, test, mean over seeds", "{:.4f}", "difference"),
    (Metric.ACCURACY_TEST_STD, "its standard deviation over seeds", "{:.4f}", ""),
    (Metric.ACCURACY_TRAIN, "accuracy, training data", "{:.4f}", "difference"),
    (Metric.SCORE_TEST, "R², test", "{:.4f}", "difference"),
    (Metric.SCORE_TRAIN, "R², training data", "{:.4f}", "difference"),
    (Metric.FLOPS_FORWARD, "FLOPs, one sample", "{:,.0f}", "ratio"),
    (Metric.FLOPS_TRAINING, "FLOPs, training", "{:,.0f}", "ratio"),
    (Metric.FLOPS_PTFLOPS_INFERENCE, "FLOPs, inference, tutorial's count", "{:,.0f}", "ratio"),
    (Metric.FLOPS_PTFLOPS_TRAINING, "FLOPs, training, tutorial's count", "{:,.0f}", "ratio"),
    (Metric.PARAMS_TOTAL, "parameters", "{:,.0f}", "ratio"),
    (Metric.SIZE_BYTES, "bytes on disk", "{:,.0f}", "ratio"),
    (Metric.LATENCY_P50, "latency, p50, ms", "{:.4f}", "ratio"),
    (Metric.LATENCY_P95, "latency, p95, ms", "{:.4f}", "ratio"),
    (Metric.LATENCY_THROUGHPUT, "samples a second, batched", "{:,.0f}", "inverse"),
    (Metric.TRAINING_SECONDS, "training, seconds", "{:,.2f}", "ratio"),
    (Metric.USAGE_ENTROPY, "entropy, nats", "{:.4f}", ""),
    (Metric.USAGE_EFFECTIVE_WEIGHTS, "effective weights", "{:,.4f}", ""),
    (Metric.USAGE_EFFECTIVE_SHARE, "effective share", "{:.3f}", ""),
    (Metric.USAGE_NULL_SHARE, "the same in untrained networks", "{:.3f}", ""),
    (Metric.USAGE_TOP90_SHARE, "share of weights that holds 90%", "{:.2%}", ""),
    (Metric.USAGE_LOW_SHARE, "share of low weights", "{:.2%}", ""),
)


def table_rows(metrics: Sequence[Mapping[str, float]]) -> list[Row]:
    """The table; a quantity that no variant has is left out."""
    return [row for spec in _ROWS if (row := _row(spec, metrics))]


def _row(spec: tuple[str, str, str, str], metrics: Sequence[Mapping[str, float]]) -> Row | None:
    key, label, shape, change = spec
    classification = Metric.ACCURACY_TEST in metrics[0]
    if (classification and key.startswith("score/")) or not any(key in m for m in metrics):
        return None
    values = [m.get(key) for m in metrics]
    text = tuple("–" if value is None else shape.format(value) for value in values)
    return Row(label, text, _change(values[0], values[-1], change))


def _change(first: float | None, last: float | None, change: str) -> str:
    if first is None or last is None or not change:
        return ""
    if change == "difference":
        return f"{last - first:+.4f}".replace("-", "−")
    ratio = first / last if last else 0.0
    return f"{1 / ratio if change == 'inverse' and ratio else ratio:.2f}×"
