"""Publishing the result of a pipeline: its report, pictures and views, its model in the registry.

Tests: ``tests/pipeline/test_workflow.py``, ``tests/pipeline/test_publish_registry.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from mlflow.entities import LoggedModelOutput
from PIL import Image

from wua_mlflow.config import Settings
from wua_mlflow.markdown import markdown_text
from wua_mlflow.plots.comparison import (
    ComparisonData,
    comparison_data,
    plot_answer,
    plot_comparison,
)
from wua_mlflow.plots.interactive import explore_pareto, explore_trials, html_page
from wua_mlflow.plots.pareto import pareto_data, plot_pareto
from wua_mlflow.plots.usage import layers_data, plot_layers
from wua_mlflow.plots.widths import (
    TrialsData,
    changes_data,
    curves_data,
    plot_changes,
    plot_curves,
    plot_trials,
    trials_data,
)
from wua_mlflow.report.build import report_of
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import (
    description,
    html_report,
    markdown_report,
    short_description,
)
from wua_mlflow.results import Slimmed, VariantResult
from wua_mlflow.tracking.log import DESCRIPTION, Files, write
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.pictures import MOST_ROWS
from wua_mlflow.tracking.registry import register
from wua_mlflow.tracking.store import Store
from wua_mlflow.tracking.ui_view import ANSWER_IMAGE, ensure_view, latest_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["describe_slim", "link_models", "publish", "registered", "report_pictures"]


def registered(store: Store, slimmed: Slimmed, settings: Settings) -> str:
    """Register the slim model where ``register`` names one; gives a line on what became of it.

    The line is also a tag of the slim run and of its pipeline's. It is empty where nothing was
    to be registered.

    Args:
        store: where the runs are.
        slimmed: what was found; without a round there is no slim model.
        settings: of the step.

    Raises:
        MlflowException: the registry refuses.
    """
    name = settings.register
    if name is None:
        return ""
    if not slimmed.rounds:
        return f"Not registered as {name!r}: there is no slim model."
    result = slimmed.result
    run_id = result.variant.run_id
    registration = register(store.client, name, run_id=run_id,
                            verdict=result.comparison.artifact, comparison_run_id=run_id,
                            description=short_description(report_of(slimmed)))
    for tagged in filter(None, (run_id, result.variant.tags.get(Tag.PIPELINE))):
        store.client.set_tag(tagged, Tag.REGISTERED, registration.sentence)
    return registration.sentence


def describe_slim(store: Store, slimmed: Slimmed) -> None:
    """Give each slim variant's run and model its verdict and savings as MLflow's description.

    Args:
        store: where the runs are.
        slimmed: each round is judged against the original.
    """
    for result in slimmed.rounds:
        alone = replace(slimmed, rounds=(result,))
        words = {DESCRIPTION: short_description(report_of(alone))}
        write(store.client, result.variant.run_id, tags=words)
        if result.variant.model_id:
            store.client.set_logged_model_tags(result.variant.model_id, words)


def link_models(store: Store, run_id: str, models: Iterable[str], *, new: bool = False) -> None:
    """Make saved models outputs of the pipeline's run, each once.

    Args:
        store: where they are.
        run_id: the pipeline's.
        models: their ids; '' of a variant that has none.
        new: whether the run has no outputs yet.
    """
    outputs = None if new else store.client.get_run(run_id).outputs
    there = {"", *(each.model_id for each in outputs.model_outputs)} if outputs else {""}
    missing = [model for model in dict.fromkeys(models) if model not in there]
    if missing:
        store.client.log_outputs(run_id, [LoggedModelOutput(model, step=0) for model in missing])


def publish(store: Store, run_id: str, slimmed: Slimmed, *, files: Files | None = None) -> Report:
    """Copy the verdict to the pipeline's run, with the report and ``files``, and set the views.

    The report is of the original, the result and the result's controls; the variants of all rounds
    are in the picture of accuracy against FLOPs.

    Args:
        store: where the runs are.
        run_id: the pipeline's.
        slimmed: at least one round.
        files: further ones to log.
    """
    result, comparison = slimmed.result, slimmed.result.comparison
    report = report_of(slimmed)
    shown = (slimmed.original, *result.controls, result.variant)
    pictures = report_pictures(report, shown, every=slimmed.variants)
    write(store.client, run_id, metrics=comparison.metrics,
          tags={**comparison.tags, Tag.RESULT: result.variant.run_id,
                DESCRIPTION: description(report), "mlflow.runName": report.title},
          files={
              ArtifactPath.REPORT_MARKDOWN:
                  f"# {markdown_text(report.title)}\n\n{markdown_report(report)}",
              ArtifactPath.REPORT_HTML: html_report(report, pictures),
              ArtifactPath.COMPARISON_PLOT:
                  lambda path: path.write_bytes(pictures["comparison"]),
              **_pages(report, slimmed.variants),
              **(files or {}),
          })
    answer = _png(plot_answer(_compared(report, shown)))
    store.client.log_image(run_id, Image.open(BytesIO(answer)), key=ANSWER_IMAGE)
    ensure_view(store.client, store.experiment_id)
    latest_view(store.client, store.experiment_id, run_id, report.title,
                classification=Metric.ACCURACY_TEST in slimmed.original.metrics)
    return report


def report_pictures(
    report: Report, variants: Sequence[VariantResult], *, every: Sequence[VariantResult]
) -> dict[str, bytes]:
    """The report's pictures as PNG, by the key of their place; those that there are data for.

    Args:
        report: what they are of.
        variants: the original first, the slim one last.
        every: these and those of other rounds.
    """
    verdict = report.comparison.verdict
    drawn = {"comparison": plot_comparison(_compared(report, variants))}
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


def _compared(report: Report, variants: Sequence[VariantResult]) -> ComparisonData:
    comparison = report.comparison
    timed = [replace(variant, metrics=comparison.metrics_of(variant)) for variant in variants]
    return comparison_data(timed, list(filter(None, (comparison.artifact, comparison.recipe))),
                           comparison.latency_ratio)


def _pages(report: Report, variants: Sequence[VariantResult]) -> Files:
    """Figures to explore: score against FLOPs, and what the search tried."""
    verdict, pages = report.comparison.verdict, {}
    if Metric.FLOPS_FORWARD in variants[0].metrics:
        pages[ArtifactPath.PARETO_PAGE] = html_page(explore_pareto(pareto_data(
            variants, margin=verdict.margin, confidence=verdict.confidence, score=verdict.score)))
    trials = _trials_of(report)
    if trials:
        pages[ArtifactPath.TRIALS_PAGE] = html_page(explore_trials(trials))
    return pages


def _trials_of(report: Report) -> TrialsData | None:
    """What the search tried, besides the original; None where there was none."""
    widths, verdict = report.widths, report.comparison.verdict
    trials = widths.searched.trials if widths and widths.searched else ()
    if widths is None or all(trial.outcome == "original" for trial in trials):
        return None
    return trials_data(trials, chosen=widths.widths, margin=verdict.margin, score=verdict.score)


def _of_widths(report: Report) -> dict[str, Figure]:
    widths, figures = report.widths, {}
    if widths is None:
        return {}
    trials = _trials_of(report)
    if trials:
        figures["trials"] = plot_trials(trials)
    recommendation = widths.recommendation
    if recommendation:
        curves = [layer for layer in recommendation.layers if layer.curve.widths
                  and all(map(math.isfinite, (*layer.curve.scores, layer.curve.threshold)))]
        if curves:
            figures["curves"] = plot_curves(curves_data(curves, method=recommendation.method))
    return figures


def _png(figure: Figure) -> bytes:
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
