"""The report of a pipeline: markdown for MLflow's description, HTML with pictures, plain text.

Pure: from variants' metrics and a comparison to text. May import: the result types.
Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wua_mlflow.pipeline.comparison import Comparison
from wua_mlflow.plots.quantities import savings
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tutorial import flops_text, report_text
from wua_mlflow.usage import ModelUsage

__all__ = ["Report", "Row", "html_report", "markdown_report", "table_text", "terminal_reports"]


@dataclass(frozen=True)
class Row:
    """A line of the table: a quantity, its value by variant, and what the slim one saves."""

    label: str
    values: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class Report:
    """Everything that the report says; ``metrics`` by the contract's names, a dict a variant."""

    title: str
    names: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    comparison: Comparison
    usages: Mapping[str, ModelUsage] = field(default_factory=dict)
    again: str = ""

    @property
    def headline(self) -> str:
        """The verdict in a line, with its interval; the recipe's where there is one."""
        return self.comparison.verdict.headline

    @property
    def saved(self) -> str:
        """What the slim model saves, or costs more, in one sentence."""
        found = savings(self.metrics[0], self.metrics[-1])
        return f"The slim model: {found}." if found else "The slim model saves nothing."

    @property
    def rows(self) -> list[Row]:
        """The table."""
        return [row for spec in _ROWS if (row := _row(spec, self.metrics))]


_SPACE = "\N{NO-BREAK SPACE}" * 4

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
    (Metric.USAGE_ENTROPY, "entropy, nats", "{:.4f}", ""),
    (Metric.USAGE_EFFECTIVE_WEIGHTS, "effective weights", "{:,.4f}", ""),
    (Metric.USAGE_EFFECTIVE_SHARE, "effective share", "{:.3f}", ""),
    (Metric.USAGE_NULL_SHARE, "the same in untrained networks", "{:.3f}", ""),
    (Metric.USAGE_TOP90_SHARE, "share of weights that holds 90%", "{:.2%}", ""),
    (Metric.USAGE_LOW_SHARE, "share of low weights", "{:.2%}", ""),
)


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


def markdown_report(report: Report) -> str:
    """First the verdict with its interval, then what is saved, then the table and the caveats."""
    lines = [f"**{report.headline}**", "", report.saved, "", *_table(report), "",
             *(f"- {line}" for line in _notes(report))]
    if report.again:
        lines += ["", report.again]
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    """In markdown."""
    head = ["", *report.names, "change"]
    rows = [[row.label, *row.values, row.change] for row in report.rows]
    return [_cells(head), "|---" * len(head) + "|", *map(_cells, rows)]


def _cells(cells: Sequence[str]) -> str:
    """A line of a table; MLflow shows no space between cells, so they bring their own."""
    return f"| {' | '.join(f'{cell}{_SPACE}' if cell else '' for cell in cells)} |"


def _notes(report: Report) -> list[str]:
    comparison = report.comparison
    notes = [comparison.verdict.sentence]
    if comparison.budget:
        notes.append(comparison.budget)
    if comparison.verdict.settle:
        notes.append(comparison.verdict.settle)
    if comparison.recipe is None:
        notes.append("No recipe verdict: it needs at least 5 seeds (setting `seeds`).")
    else:
        notes.append(comparison.artifact.sentence)
    if comparison.churn is not None:
        notes.append(f"The two models' predictions differ on {100 * comparison.churn:.1f}% of the "
                     f"test examples.")
    if comparison.worst_class_delta is not None:
        points = f"{100 * comparison.worst_class_delta:+.1f}".replace("-", "−")
        which = f" ({comparison.worst_class})" if comparison.worst_class else ""
        notes.append(f"The class that changes worst{which}: {points} points of accuracy.")
    notes += comparison.notes
    skipped = dict.fromkeys(f"{layer} ({reason})" for usage in report.usages.values()
                            for layer, reason in usage.skipped.items())
    if skipped:
        notes.append(f"Not analysed: {'; '.join(skipped)}.")
    notes.append("Effective weights describe how concentrated the importance is, not what is "
                 "unused; they depend on how the network is parametrised, and mean something "
                 "only beside the untrained networks' value.")
    return notes


def table_text(report: Report) -> str:
    """The table in aligned columns."""
    cells = [["", *report.names, "change"],
             *([row.label, *row.values, row.change] for row in report.rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]),
                   *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))])
        .rstrip() for line in cells)


def terminal_reports(report: Report) -> str:
    """The tutorial's reports of each variant, then the verdict, for a person at a terminal."""
    blocks = []
    for name, metrics in zip(report.names, report.metrics, strict=True):
        usage = report.usages.get(name)
        block = [name, "=" * len(name)]
        if Metric.FLOPS_PTFLOPS_TRAINING in metrics:
            block.append(flops_text(metrics[Metric.FLOPS_PTFLOPS_TRAINING],
                                    metrics[Metric.FLOPS_PTFLOPS_INFERENCE]))
        score = Metric.ACCURACY_TRAIN if Metric.ACCURACY_TRAIN in metrics else Metric.SCORE_TRAIN
        word = "Accuracy" if score == Metric.ACCURACY_TRAIN else "R²"
        test = score.replace("train", "test")
        block.append(f"{word}: {metrics[score]:.4f} on the training data, {metrics[test]:.4f} on "
                     f"data that training never saw")
        for layer in usage.layers.values() if usage else ():
            block += [f"-- {layer.name}", report_text({
                "total_weights": layer.weights, "nodes": layer.units, "entropy": layer.entropy,
                "effective_weights": layer.effective_weights,
                "top_90_percent_contrib": layer.top90_share,
                "low_contrib_percentage": 100 * layer.low_share})]
        blocks.append("\n".join(block))
    verdict = [f"Verdict: {report.headline}", report.comparison.verdict.sentence]
    if report.comparison.verdict.settle:
        verdict.append(report.comparison.verdict.settle)
    if report.comparison.budget:
        verdict.append(report.comparison.budget)
    if report.comparison.recipe:
        verdict.append(report.comparison.artifact.sentence)
    return "\n\n".join([*blocks, "\n".join([*verdict, report.saved])])


def html_report(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The same as one HTML page, with the pictures, PNG, by name."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in ("", *report.names, "change"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>"
                         for cell in (row.label, *row.values, row.change)) + "</tr>"
        for row in report.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(report))
    images = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"></figure>' for name, png in pictures.items())
    again = f"<p>{html.escape(report.again)}</p>" if report.again else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(report.title)}'
        f"</title><style>{_STYLE}</style><h1>{html.escape(report.title)}</h1>"
        f"<p><strong>{html.escape(report.headline)}</strong></p><p>{html.escape(report.saved)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><ul>{notes}</ul>{images}{again}"
        f"</html>\n"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2933}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;"
    "border-bottom:1px solid #d9dee3;text-align:right}td:first-child{text-align:left}"
    "img{max-width:100%}code{background:#f1f3f5;padding:.1rem .3rem}"
)
