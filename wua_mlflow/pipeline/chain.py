"""The whole chain in one process: train, analyze, slim, analyze, compare, report.

And each step on its own, for its entry point. May import: everything but cli.
Tests: ``tests/pipeline/test_chain.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from wua_mlflow import __version__
from wua_mlflow.config import Settings, settings_yaml
from wua_mlflow.pipeline.comparison import Comparison, compare_variants
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.pictures import draw
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.report import Report, html_report, markdown_report
from wua_mlflow.pipeline.steps import Plan, analyze, derive_widths, opened, train
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.plots import (
    VariantFigures,
    VerdictInterval,
    comparison_data,
    plot_comparison,
    variant_colour,
)
from wua_mlflow.tracking.log import Files, write
from wua_mlflow.tracking.names import ArtifactPath, Kind, Metric, Tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store, inherited_run, new_run
from wua_mlflow.tracking.view import ensure_view, latest_view
from wua_mlflow.usage import ModelUsage
from wua_mlflow.verdict import Verdict

__all__ = ["Outcome", "analyze_run", "compare_run", "run_pipeline", "slim_run", "step_run",
           "train_run"]


@dataclass(frozen=True)
class Outcome:
    """What a pipeline ends with."""

    run_id: str
    report: Report
    variants: tuple[Variant, ...]

    @property
    def verdict(self) -> Verdict:
        """The slim variant's verdict against the original."""
        return self.report.comparison.verdict


def run_pipeline(store: Store, settings: Settings) -> Outcome:
    """The use case from the oversized model to the verdict, as one pipeline run."""
    with opened(store, lambda: _pipeline(store, settings)) as run_id:
        recipe = load_recipe(settings)
        check_widths(recipe.build, settings.hidden, settings.slim_hidden)
        original = train(store, recipe, Plan(VariantName.OVERSIZED, settings.hidden,
                                             settings.epochs, pipeline=run_id))
        usage = analyze(store, original)
        variants, usages = _slim(store, original, usage, pipeline=run_id)
        comparison = compare_variants(store, original, variants[-1], beside=variants[:-1])
        report = _report(settings, [original, *variants], comparison,
                         {original.name: usage, **usages})
        _finish(store, run_id, report, [original, *variants],
                {ArtifactPath.CONFIG: settings_yaml(settings)})
    return Outcome(run_id, report, (original, *variants))


def _pipeline(store: Store, settings: Settings) -> str:
    """The pipeline's run: a new one, or that of ``mlflow run``."""
    tags = {Tag.KIND: Kind.PIPELINE, Tag.VERSION: __version__}
    run_id = inherited_run()
    if not run_id:
        return new_run(store, f"{_data_name(settings)} {_dashed(settings.hidden)}", tags)
    write(store.client, run_id, tags=tags)
    return run_id


def train_run(store: Store, settings: Settings) -> Variant:
    """The step ``train`` on its own; its run is the variant's."""
    inherited = inherited_run()
    with opened(store, lambda: str(inherited), finish=False) if inherited else \
            contextlib.nullcontext():
        recipe = load_recipe(settings)
    return train(store, recipe, Plan(VariantName.OVERSIZED, settings.hidden, settings.epochs))


def analyze_run(
    store: Store, settings: Settings, given: frozenset[str] = frozenset()
) -> tuple[Variant, ModelUsage]:
    """The step ``analyze`` on its own: adds to the variant that ``run_id`` names.

    Args:
        store: where the runs are.
        settings: ``run_id``, and what is to differ from the run's own settings.
        given: names of the settings that were given explicitly and so differ.
    """
    with step_run(store, settings, "analyze"):
        variant = _named(store, settings, given)
        return variant, analyze(store, variant)


def slim_run(
    store: Store, settings: Settings, given: frozenset[str] = frozenset()
) -> tuple[Variant, ...]:
    """The step ``slim`` on its own: slim variants of the original that ``run_id`` names."""
    with step_run(store, settings, "slim"):
        original = _named(store, settings, given)
        variants, _ = _slim(store, original, None, pipeline=original.tags.get(Tag.PIPELINE))
        return variants


def compare_run(
    store: Store, settings: Settings, given: frozenset[str] = frozenset()
) -> tuple[Variant, Variant, Comparison]:
    """The step ``compare`` on its own: the slim variant ``run_id`` against its original."""
    with step_run(store, settings, "compare"):
        slim = _named(store, settings, given)
        baseline = settings.baseline or slim.tags.get(Tag.BASELINE)
        if baseline is None:
            raise ValueError(f"run_id: {slim.run_id} is {slim.name}, which has no original to be "
                             f"compared with; name one with baseline=RUN")
        original = load_variant(store, baseline, {"device": slim.settings.device})
        comparison = compare_variants(store, original, slim)
        pipeline = slim.tags.get(Tag.PIPELINE)
        if pipeline:
            report = _report(slim.settings, [original, slim], comparison, {})
            _finish(store, pipeline, report, [original, slim])
        return original, slim, comparison


def _slim(
    store: Store, original: Variant, usage: ModelUsage | None, *, pipeline: str | None
) -> tuple[tuple[Variant, ...], dict[str, ModelUsage]]:
    """The control at an equal budget where budgets differ, then the slim variant, analysed."""
    settings = original.settings
    widths = derive_widths(original, usage).widths
    control: tuple[Variant, ...] = ()
    if settings.slim_budget != settings.epochs:
        control = (train(store, original.recipe, Plan(
            VariantName.SAME_BUDGET, settings.hidden, settings.slim_budget, pipeline=pipeline,
            baseline=original.run_id)),)
    slim = train(store, original.recipe, Plan(
        VariantName.SLIM, widths, settings.slim_budget, pipeline=pipeline,
        baseline=original.run_id, streams=[one.stream for one in original.replicates]))
    usages = {one.name: analyze(store, one, pictures=one is slim) for one in (*control, slim)}
    return (*control, slim), usages


def _report(
    settings: Settings,
    variants: list[Variant],
    comparison: Comparison,
    usages: dict[str, ModelUsage],
) -> Report:
    original, slim = variants[0], variants[-1]
    title = f"{_data_name(settings)} {_dashed(original.widths)} → {_dashed(slim.widths)}"
    return Report(
        title, [v.name for v in variants], [v.metrics for v in variants], comparison,
        budget=_budget(variants), usages=usages,
        again="To run it again: `wua run --config config.yaml`, with this run's artifact of that "
              "name.")


def _budget(variants: list[Variant]) -> str:
    """The sentence on unequal budgets, with what the control of equal budget scored."""
    original, slim = variants[0], variants[-1]
    epochs = (original.settings.epochs, slim.settings.epochs)
    if epochs[0] == epochs[1]:
        return ""
    sentence = (f"Budgets differ: the original trained for {epochs[0]} epochs, the slim one for "
                f"{epochs[1]}.")
    for control in variants[1:-1]:
        mean = control.replicate_scores.mean()
        gap = slim.replicate_scores.mean() - mean
        count = len(control.replicates)
        seeds = f"on average over {count} seeds" if count > 1 else "with its one seed"
        sentence += (f" Trained for {epochs[1]} epochs too, the original scores {mean:.4f} "
                     f"{seeds}; the slim one is "
                     f"{gap:+.4f} beside that.").replace("-", "−")
    return sentence


def _finish(
    store: Store, run_id: str, report: Report, variants: list[Variant], files: Files | None = None
) -> None:
    """Copy the verdict to the pipeline's run, with the report and ``files``, and set the views."""
    comparison = report.comparison
    figure = plot_comparison(comparison_data(
        [VariantFigures(v.name, variant_colour(v.variant), v.metrics,
                        [one.score for one in v.replicates] if len(v.replicates) > 1 else None)
         for v in variants],
        [_interval(verdict) for verdict in (comparison.artifact, comparison.recipe) if verdict]))
    markdown = markdown_report(report)
    write(store.client, run_id, metrics=comparison.metrics,
          tags={**comparison.tags, "mlflow.note.content": markdown,
                "mlflow.runName": report.title},
          files={
              ArtifactPath.REPORT_MARKDOWN: f"# {report.title}\n\n{markdown}",
              ArtifactPath.REPORT_HTML: html_report(report, {"comparison": figure}),
              ArtifactPath.COMPARISON_PLOT: draw(lambda: figure),
              **(files or {}),
          })
    ensure_view(store.client, store.experiment_id)
    latest_view(store.client, store.experiment_id, run_id, report.title,
                classification=Metric.ACCURACY_TEST in variants[0].metrics)


def _interval(verdict: Verdict) -> VerdictInterval:
    return VerdictInterval(verdict.kind, verdict.delta, verdict.low, verdict.high, verdict.margin,
                           verdict.outcome, verdict.score)


@contextlib.contextmanager
def step_run(store: Store, settings: Settings, step: str) -> Iterator[None]:
    """The run that ``mlflow run -e STEP`` made: tagged as a step, pointing to its variant."""
    inherited = inherited_run()
    if inherited is None:
        yield
        return
    tags = {Tag.KIND: Kind.STEP, Tag.VERSION: __version__, "mlflow.runName": step}
    if settings.run_id:
        tags[Tag.TARGET_RUN] = settings.run_id
    with opened(store, lambda: str(inherited)):
        write(store.client, inherited, tags=tags)
        yield


def _named(store: Store, settings: Settings, given: frozenset[str]) -> Variant:
    """The variant of ``run_id``, with the settings that were given in place of its own."""
    if not settings.run_id:
        raise ValueError("run_id: expected the id of a variant's run, but got none; `wua runs` "
                         "lists them")
    machine = {name: getattr(settings, name) for name in given & {"device", "threads"}}
    variant = load_variant(store, settings.run_id, machine)
    own = variant.settings.model_copy(update={name: getattr(settings, name) for name in given})
    return replace(variant, recipe=replace(variant.recipe, settings=own))


def _data_name(settings: Settings) -> str:
    name = settings.data.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name and ":" not in name else name


def _dashed(widths: tuple[int, ...]) -> str:
    return "-".join(str(width) for width in widths)


