"""The report as plain text, for a person at a terminal.

May import: the report's content, names, tutorial. Tests: ``tests/pipeline/test_report.py``.
"""

from __future__ import annotations

from wua_mlflow.pipeline.report.content import Report
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tutorial import flops_text, report_text

__all__ = ["table_text", "terminal_reports"]


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
    """The tutorial's reports of each variant, then the verdict, its sentence for who decides last.

    """
    verdict = [f"Verdict: {report.headline}", report.comparison.verdict.sentence]
    if report.comparison.verdict.settle:
        verdict.append(report.comparison.verdict.settle)
    if report.comparison.budget:
        verdict.append(report.comparison.budget)
    if report.comparison.recipe:
        verdict.append(report.comparison.artifact.sentence)
    verdict += [report.saved, *report.comparison.notes]
    return "\n\n".join([*_variants(report), "\n".join(verdict), f"In short: {report.in_short}"])


def _variants(report: Report) -> list[str]:
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
    return blocks
