"""The report's table: a quantity a row, a variant a column, and what the slim one saves.

May import: names. Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wua_mlflow.tracking.names import Metric

__all__ = ["Row", "table_rows"]


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
