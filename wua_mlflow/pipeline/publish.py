"""Registering the result of slimming, if its artifact verdict allows it.

May import: tracking, config, the pipeline's slimming.
Tests: ``tests/pipeline/test_registering.py``.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.compare import Comparison
from wua_mlflow.pipeline.pictures import MOST_ROWS
from wua_mlflow.pipeline.slim import Round, Slimmed
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.plots.comparison import VariantFigures, comparison_data, plot_comparison
from wua_mlflow.plots.pareto import pareto_data, plot_pareto
from wua_mlflow.plots.style import variant_colour
from wua_mlflow.plots.usage import layers_data, plot_layers
from wua_mlflow.plots.widths import (
    changes_data,
    curves_data,
    plot_changes,
    plot_curves,
    plot_trials,
    trials_data,
)
from wua_mlflow.report.build import ReportInputs, report_of
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import description, html_report, markdown_report
from wua_mlflow.tracking.log import Files, write
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.registry import register
from wua_mlflow.tracking.store import Store
from wua_mlflow.tracking.ui_view import ensure_view, latest_view
from wua_mlflow.usage.results import ModelUsage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["nothing_to_register", "publish", "registered", "report_pictures"]


def registered(store: Store, result: Round, settings: Settings) -> str:
    """What became of the registration that ``register`` asks for, in a line; "" where it asks none.

    The line is a tag of the slim run too, and of its pipeline's.

    Raises:
        MlflowException: the registry refuses.
    """
    if settings.register is None:
        return ""
    run_id = result.variant.run_id
    found = register(store.client, settings.register, run_id=run_id,
                     verdict=result.comparison.artifact, comparison_run_id=run_id)
    for one in filter(None, (run_id, result.variant.tags.get(Tag.PIPELINE))):
        store.client.set_tag(one, Tag.REGISTERED, found.sentence)
    return found.sentence


def nothing_to_register(settings: Settings) -> str:
    """The line where slimming has no result; "" where ``register`` asks for nothing."""
    name = settings.register
    return "" if name is None else f"Not registered as {name!r}: there is no slim model."


def publish(  # noqa: PLR0913 - by name: what there is besides the two
    store: Store,
    run_id: str,
    variants: Sequence[ModelVariant],
    comparison: Comparison,
    *,
    usages: Mapping[str, ModelUsage] | None = None,
    slimmed: Slimmed | None = None,
    files: Files | None = None,
) -> Report:
    """Copy the verdict to the pipeline's run, with the report and ``files``, and set the views.

    Args:
        store: where the runs are.
        run_id: the pipeline's.
        variants: the original first, the result last, all others between. Where there are rounds
            the report is of the original, the result and its controls; all are in the picture of
            accuracy against FLOPs.
        comparison: of those two.
        usages: by variant's name; the report says where the original was little used.
        slimmed: the rounds; without, the report tells of the slim one alone.
        files: further ones to log.
    """
    original, slim = variants[0], variants[-1]
    told = ReportInputs(usages or {}, slimmed, _widths(store, slim, slimmed))
    shown = (original, *slimmed.result.controls, slim) if slimmed else variants
    report = report_of(shown, comparison, told)
    pictures = report_pictures(report, [_figures(one, comparison) for one in shown],
                               every=[_figures(one, comparison) for one in variants])
    write(store.client, run_id, metrics=comparison.metrics,
          tags={**comparison.tags, Tag.RESULT: slim.run_id,
                "mlflow.note.content": description(report), "mlflow.runName": report.title},
          files={
              ArtifactPath.REPORT_MARKDOWN: f"# {report.title}\n\n{markdown_report(report)}",
              ArtifactPath.REPORT_HTML: html_report(report, pictures),
              ArtifactPath.COMPARISON_PLOT:
                  lambda path: path.write_bytes(pictures["comparison"]),
              **(files or {}),
          })
    ensure_view(store.client, store.experiment_id)
    latest_view(store.client, store.experiment_id, run_id, report.title,
                classification=Metric.ACCURACY_TEST in original.metrics)
    return report


def report_pictures(
    report: Report, variants: Sequence[VariantFigures], *, every: Sequence[VariantFigures]
) -> dict[str, bytes]:
    """The report's pictures as PNG, by the key of their place; those that there are data for.

    Args:
        report: what they are of.
        variants: the original first, the slim one last.
        every: these and those of other rounds.
    """
    verdict, comparison = report.comparison.verdict, report.comparison
    verdicts = list(filter(None, (comparison.artifact, comparison.recipe)))
    drawn = {"comparison": plot_comparison(comparison_data(variants, verdicts))}
    if Metric.FLOPS_FORWARD in variants[0].metrics:
        drawn["pareto"] = plot_pareto(pareto_data(
            every, margin=verdict.margin, confidence=verdict.confidence, score=verdict.score))
    if 0 < len(report.layers) <= MOST_ROWS:
        drawn["changes"] = plot_changes(changes_data(report.layers))
    drawn |= _of_widths(report)
    usage = report.usages.get(report.names[0])
    if usage and 0 < len(usage.layers) <= MOST_ROWS:
        drawn["layers"] = plot_layers(layers_data(usage))
    return {key: _png(figure) for key, figure in drawn.items()}


def _of_widths(report: Report) -> dict[str, Figure]:
    found, drawn = report.widths, {}
    if found is None:
        return {}
    verdict = report.comparison.verdict
    if any(trial.outcome != "original" for trial in found.trials):
        drawn["trials"] = plot_trials(trials_data(
            found.trials, chosen=[one.after for one in found.chosen], margin=verdict.margin,
            score=verdict.score))
    if found.curves:
        drawn["curves"] = plot_curves(curves_data(found.curves,
                                                  method=found.start or found.method))
    return drawn


def _widths(store: Store, slim: ModelVariant, slimmed: Slimmed | None) -> str | None:
    """``widths.json`` of the slim variant; None of one that has none."""
    for one in slimmed.rounds if slimmed else ():
        if one.variant.run_id == slim.run_id and one.goal is not None:
            return one.goal.to_json()
    with contextlib.suppress(MlflowException, OSError), tempfile.TemporaryDirectory() as folder:
        path = store.client.download_artifacts(slim.run_id, ArtifactPath.WIDTHS, folder)
        return Path(path).read_text(encoding="utf-8")
    return None


def _figures(variant: ModelVariant, comparison: Comparison) -> VariantFigures:
    scores = [replicate.score for replicate in variant.replicates]
    return VariantFigures(variant.name, variant_colour(variant.variant),
                          comparison.with_latency(variant), scores if len(scores) > 1 else None)


def _png(figure: Figure) -> bytes:
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
