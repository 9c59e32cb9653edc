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
from wua_mlflow.pipeline.analysing import Analysis, analyze
from wua_mlflow.pipeline.comparison import Comparison, compare_variants
from wua_mlflow.pipeline.launch import together
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.publishing import publish, title_of
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.report import Report
from wua_mlflow.pipeline.steps import Plan, derive_widths, opened, train
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.plots.palette import MUTED
from wua_mlflow.processes import rank
from wua_mlflow.tracking.lineage import find_control, is_slim, newest_slim
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath, Kind, Tag, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store, inherited_run, new_run
from wua_mlflow.usage import ModelUsage
from wua_mlflow.verdict import Verdict

__all__ = ["Outcome", "analyze_run", "compare_run", "run_pipeline", "slim_run", "step_run",
           "train_run"]

OR_A_MODEL = "; or name a model: --model package.module:factory --data DATA"


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
        usage = analyze(store, original).usage
        variants, usages = _slim(store, original, usage, pipeline=run_id)
        comparison = compare_variants(store, original, variants[-1], beside=variants[:-1])
        report = publish(store, run_id, (original, *variants), comparison,
                         usages={original.name: usage, **usages},
                         files={ArtifactPath.CONFIG: settings_yaml(settings)})
    return Outcome(run_id, report, (original, *variants))


def _pipeline(store: Store, settings: Settings) -> str:
    """The pipeline's run: a new one, or that of ``mlflow run``."""
    tags = {Tag.KIND: Kind.PIPELINE, Tag.VERSION: __version__, "mlflow.runColor": MUTED}
    run_id = inherited_run()
    if not run_id:
        return new_run(store, title_of(settings, settings.hidden), tags)
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
) -> Analysis:
    """The step ``analyze`` on its own: adds to the variant that ``run_id`` names.

    Of several processes each reads the run, and the first writes to it.

    Args:
        store: where the runs are.
        settings: ``run_id``, and what is to differ from the run's own settings.
        given: names of the settings that were given explicitly and so differ.
    """
    with contextlib.ExitStack() as stack:
        together(lambda: None if rank() else
                 stack.enter_context(step_run(store, settings, "analyze")))
        store, variant = together(lambda: _named(store, settings, given, or_else=OR_A_MODEL))
        return analyze(store, variant)


def slim_run(
    store: Store, settings: Settings, given: frozenset[str] = frozenset()
) -> tuple[Variant, ...]:
    """The step ``slim`` on its own: a slim variant of the original that ``run_id`` names.

    Raises:
        ValueError: the run is not an original: a slim variant of a slim one would be judged
            against that, and margins would add up.
    """
    with step_run(store, settings, "slim"):
        store, original = _named(store, settings, given)
        if original.variant != VariantName.OVERSIZED:
            raise ValueError(f"run_id: expected the run of an original (oversized), but "
                             f"{original.run_id} is {original.name}")
        variants, _ = _slim(store, original, None, pipeline=original.tags.get(Tag.PIPELINE))
        return variants


def compare_run(
    store: Store, settings: Settings, given: frozenset[str] = frozenset()
) -> tuple[Variant, Variant, Comparison]:
    """The step ``compare`` on its own: the slim variant ``run_id`` against its original.

    The pipeline's run follows where this is its last slim variant.

    Raises:
        ValueError: the run is not a slim variant's.
    """
    with step_run(store, settings, "compare"):
        store, slim = _named(store, settings, given)
        if not is_slim(slim.variant) or Tag.BASELINE not in slim.tags:
            raise ValueError(f"run_id: expected the run of a slim variant, but {slim.run_id} is "
                             f"{slim.name}; any two runs: wua compare A B")
        machine = {name: getattr(slim.settings, name) for name in ("device", "threads")}
        original = load_variant(store, slim.tags[Tag.BASELINE], machine)
        control = find_control(store.client, store.experiment_id, original.run_id,
                               slim.settings.epochs)
        beside = [load_variant(store, control, machine)] if control else []
        comparison = compare_variants(store, original, slim, beside=beside)
        pipeline = slim.tags.get(Tag.PIPELINE)
        if pipeline and newest_slim(store.client, store.experiment_id, pipeline) == slim.run_id:
            publish(store, pipeline, (original, *beside, slim), comparison)
        return original, slim, comparison


def _slim(
    store: Store, original: Variant, usage: ModelUsage | None, *, pipeline: str | None
) -> tuple[tuple[Variant, ...], dict[str, ModelUsage]]:
    """The control at an equal budget where budgets differ, then the slim variant, analysed."""
    settings = original.settings
    widths = derive_widths(original, usage).widths
    control: tuple[Variant, ...] = ()
    if settings.slim_budget != settings.epochs:
        control = (_control(store, original, pipeline),)
    slim = train(store, original.recipe, Plan(
        VariantName.SLIM, widths, settings.slim_budget, pipeline=pipeline,
        baseline=original.run_id, streams=[one.stream for one in original.replicates]))
    usages = {one.name: analyze(store, one).usage for one in (*control, slim)
              if one.tags.get(step_tag("analyze")) != "done"}
    return (*control, slim), usages


def _control(store: Store, original: Variant, pipeline: str | None) -> Variant:
    """The original trained for the slim one's epochs: an earlier one, or a new one."""
    settings = original.settings
    earlier = find_control(store.client, store.experiment_id, original.run_id,
                           settings.slim_budget)
    if earlier:
        return load_variant(store, earlier,
                            {"device": settings.device, "threads": settings.threads})
    return train(store, original.recipe, Plan(
        VariantName.SAME_BUDGET, settings.hidden, settings.slim_budget, pipeline=pipeline,
        baseline=original.run_id))


@contextlib.contextmanager
def step_run(store: Store, settings: Settings, step: str) -> Iterator[None]:
    """The run that ``mlflow run -e STEP`` made: tagged as a step, pointing to its variant."""
    inherited = inherited_run()
    if inherited is None:
        yield
        return
    tags = {Tag.KIND: Kind.STEP, Tag.VERSION: __version__, "mlflow.runName": step}
    with opened(store, lambda: str(inherited)):
        write(store.client, inherited, tags=tags)
        yield


def _named(
    store: Store, settings: Settings, given: frozenset[str], *, or_else: str = ""
) -> tuple[Store, Variant]:
    """The variant of ``run_id`` with the settings that were given in place of its own.

    And the store in that run's experiment, where no other was given.
    """
    if not settings.run_id:
        raise ValueError("run_id: expected the id of a variant's run, but got none; `wua runs` "
                         f"lists them{or_else}")
    machine = {name: getattr(settings, name) for name in given & {"device", "threads"}}
    variant = load_variant(store, settings.run_id, machine)
    inherited = inherited_run()
    if inherited and not rank():
        store.client.set_tag(inherited, Tag.TARGET_RUN, variant.run_id)
    if "experiment" not in given:
        store = replace(store, experiment_id=variant.experiment_id)
    own = variant.settings.model_copy(update={name: getattr(settings, name) for name in given})
    return store, replace(variant, recipe=replace(variant.recipe, settings=own))
