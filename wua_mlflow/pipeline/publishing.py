"""What a pipeline's run shows: the verdict copied, the report, the picture, the views.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_chain.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.comparison import Comparison
from wua_mlflow.pipeline.report import Report, html_report, markdown_report
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.plots import (
    VariantFigures,
    VerdictInterval,
    comparison_data,
    plot_comparison,
    variant_colour,
)
from wua_mlflow.tracking.log import Files, write
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.store import Store
from wua_mlflow.tracking.view import ensure_view, latest_view
from wua_mlflow.usage import ModelUsage
from wua_mlflow.verdict import Verdict

__all__ = ["publish", "title_of"]

AGAIN = "To run it again: `wua run --config config.yaml`, with this run's artifact of that name."


def publish(
    store: Store,
    run_id: str,
    variants: Sequence[Variant],
    comparison: Comparison,
    *,
    usages: Mapping[str, ModelUsage] | None = None,
    files: Files | None = None,
) -> Report:
    """Copy the verdict to the pipeline's run, with the report and ``files``, and set the views.

    Args:
        store: where the runs are.
        run_id: the pipeline's.
        variants: the original first, the slim one last, controls between.
        comparison: of those two.
        usages: by variant's name; the report lists what was not analysed.
        files: further ones to log.
    """
    original, slim = variants[0], variants[-1]
    report = Report(title_of(slim.settings, original.widths, slim.widths),
                    [v.name for v in variants], [v.metrics for v in variants], comparison,
                    usages=usages or {}, again=AGAIN)
    picture = BytesIO()
    plot_comparison(comparison_data(
        [_figures(variant) for variant in variants],
        [_interval(verdict) for verdict in (comparison.artifact, comparison.recipe) if verdict],
    )).savefig(picture, format="png")
    png = picture.getvalue()
    markdown = markdown_report(report)
    write(store.client, run_id, metrics=comparison.metrics,
          tags={**comparison.tags, Tag.RESULT: slim.run_id, "mlflow.note.content": markdown,
                "mlflow.runName": report.title},
          files={
              ArtifactPath.REPORT_MARKDOWN: f"# {report.title}\n\n{markdown}",
              ArtifactPath.REPORT_HTML: html_report(report, {"comparison": png}),
              ArtifactPath.COMPARISON_PLOT: lambda path: path.write_bytes(png),
              **(files or {}),
          })
    ensure_view(store.client, store.experiment_id)
    latest_view(store.client, store.experiment_id, run_id, report.title,
                classification=Metric.ACCURACY_TEST in original.metrics)
    return report


def title_of(settings: Settings, *widths: tuple[int, ...]) -> str:
    """The pipeline's name: its data and its networks' widths, ``usecase 10 → 7``."""
    name = settings.data.rsplit("/", 1)[-1]
    data = name.rsplit(".", 1)[0] if "." in name and ":" not in name else name
    return f"{data} {' → '.join('-'.join(map(str, units)) for units in widths)}"


def _figures(variant: Variant) -> VariantFigures:
    scores = [one.score for one in variant.replicates]
    return VariantFigures(variant.name, variant_colour(variant.variant), variant.metrics,
                          scores if len(scores) > 1 else None)


def _interval(verdict: Verdict) -> VerdictInterval:
    return VerdictInterval(verdict.kind, verdict.delta, verdict.low, verdict.high, verdict.margin,
                           verdict.outcome, verdict.score)
