"""The whole pipeline in one process: train, analyze, slim, analyze, compare, report.

And each of its steps on its own. Tests: ``tests/pipeline/test_workflow.py``,
``tests/pipeline/test_workflow_steps.py``.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from wua_mlflow import __version__
from wua_mlflow.config import NAMED_BESIDE_RUN, Settings, settings_yaml
from wua_mlflow.distributed import on_all_ranks, rank
from wua_mlflow.markdown import markdown_text
from wua_mlflow.pipeline.allowance import null_seconds
from wua_mlflow.pipeline.analyze import Analysis, analyze_model, analyze_variant
from wua_mlflow.pipeline.cautions import cautions
from wua_mlflow.pipeline.compare import check_test_part, compare_variants
from wua_mlflow.pipeline.logged_models import LoggedModel, logged_source
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.networks import cached, from_scratch
from wua_mlflow.pipeline.pretrained import import_pretrained, pretrained_recipe, source_of
from wua_mlflow.pipeline.price import Price, cheap_plan, price_of
from wua_mlflow.pipeline.publish import describe_slim, link_models, publish, registered
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.slim import check_slimming, slim_variant
from wua_mlflow.pipeline.target_widths import logged_widths, say_what_validation_shows
from wua_mlflow.pipeline.train import TrainingPlan, datasets_of, run_scope, train_variant
from wua_mlflow.pipeline.trust import Ask, Trust
from wua_mlflow.pipeline.variant import MACHINE, ModelVariant, load_variant
from wua_mlflow.plots.style import MUTED
from wua_mlflow.progress import stage
from wua_mlflow.report.build import title_of
from wua_mlflow.report.content import Report
from wua_mlflow.results import Comparison, Round, Slimmed
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath, Kind, Metric, Tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.runs import controls_of, is_slim, result_of
from wua_mlflow.tracking.store import Store, inherited_run
from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "SlimmingResult", "analyze_run", "compare_run", "run_pipeline", "slim_run", "step_run",
    "train_run",
]


OR_A_MODEL = "; or name a model: --model package.module:factory --data DATA"


@dataclass(frozen=True)
class SlimmingResult:
    """What slimming ends with.

    Attributes:
        slimmed: what was found.
        networks: all that were trained, by run.
        run_id: the pipeline's run, if there is one.
        report: of the pipeline.
        registered: what became of the registration that was asked for, in a line.
    """

    slimmed: Slimmed
    networks: Mapping[str, ModelVariant] = field(repr=False)
    run_id: str | None = None
    report: Report | None = None
    registered: str = ""

    @property
    def variants(self) -> tuple[ModelVariant, ...]:
        """The networks, the original first, the result last."""
        return tuple(self.networks[variant.run_id] for variant in self.slimmed.variants)

    @property
    def comparison(self) -> Comparison:
        """The result against the original."""
        return self.slimmed.result.comparison

    @property
    def verdict(self) -> Verdict:
        """The result's."""
        return self.comparison.verdict


def run_pipeline(
    store: Store, settings: Settings, *, pretrained: bool = False, ask: Ask | None = None
) -> SlimmingResult:
    """From the oversized model to the verdict, as one pipeline run.

    Args:
        store: where the runs are.
        settings: of the pipeline.
        pretrained: whether the oversized model is one that was trained elsewhere (``model``,
            ``state``, ``data``).
        ask: asked once where it would take longer than it may; nobody is, if None.
    """
    limit = _Limit(ask)
    asked, settings = settings, _resolved(settings, "prune" if pretrained else "rebuild")
    tags = {Tag.KIND: Kind.PIPELINE, Tag.VERSION: __version__, "mlflow.runColor": MUTED}
    with run_scope(store, title_of(settings, settings.hidden), tags) as run_id:
        check_slimming(settings)
        with stage("reading the data"):
            recipe = (pretrained_recipe if pretrained else load_recipe)(settings)
        recipe.split.say_notes()
        check_test_part(recipe.split, settings)
        say_what_validation_shows(recipe.split, settings)
        if pretrained:
            settings = recipe.settings
            original = import_pretrained(store, recipe, pipeline=run_id)
        else:
            if settings.how == "rebuild":
                check_widths(recipe.build, settings.hidden, settings.slim_widths)
            original = _trained_original(store, recipe, settings, pipeline=run_id,
                                         affords=lambda seconds: limit.affords(settings, seconds))
        settings, no_recipe = limit.within(settings, asked, original)
        analysis, original = analyze_variant(
            store, original, null_seconds=null_seconds(settings) if pretrained else math.inf)
        slimmed = slim_variant(store, original, analysis.usage, settings=settings,
                               pipeline=run_id, no_recipe=no_recipe)
        return _finished(store, *slimmed, settings, run_id)


@dataclass
class _Limit:
    """What a pipeline may take unasked, and whether the user agreed to more."""

    ask: Ask | None
    agreed: bool | None = None

    def affords(self, settings: Settings, seconds: float) -> bool:
        """Whether the plan is carried out, said in a line once one training was timed."""
        if not settings.until_settled:
            return True
        price = price_of(settings, seconds)
        print(f"wua: plan: {price.line}", file=sys.stderr)
        return price.affordable or self._agreed(price)

    def within(
        self, settings: Settings, asked: Settings, original: ModelVariant
    ) -> tuple[Settings, str]:
        """The settings, or the cheap plan's, and why there will be no recipe verdict then.

        Args:
            settings: of the pipeline.
            asked: the same, before ``how`` was decided.
            original: with the time that its training took, unless it was trained elsewhere.
        """
        seconds = original.metrics.get(Metric.TRAINING_SECONDS)
        if not settings.until_settled or original.adopted or seconds is None:
            return settings, ""
        price = price_of(settings, seconds, trained=len(original.replicates))
        if price.affordable:
            return settings, ""
        if self._agreed(price):
            return settings.within(2 * price.total_seconds), ""
        cheap = cheap_plan(settings, asked)
        instead = price.instead(original.run_id, settings, cheap)
        print(f"wua: plan: {instead}", file=sys.stderr)
        return cheap, f"No recipe verdict: {instead}."

    def _agreed(self, price: Price) -> bool:
        if self.agreed is None:
            self.agreed = self.ask is not None and self.ask(price.question)
        return self.agreed


def _trained_original(
    store: Store, recipe: Recipe, settings: Settings, *, pipeline: str | None = None,
    affords: Callable[[float], bool] | None = None,
) -> ModelVariant:
    """The oversized model; where it will be cut, its networks are kept."""
    make = from_scratch(recipe, settings.hidden, settings.epochs)
    variant = train_variant(store, recipe, TrainingPlan(
        VariantName.OVERSIZED, settings.hidden, settings.epochs,
        cached(make) if settings.how == "prune" else make, pipeline=pipeline, affords=affords))
    trained = variant.metrics[Metric.SCORE_TRAIN]
    for line in cautions(variant.test, trained, variant.settings):
        print(f"wua: note: {line}", file=sys.stderr)
    return variant


def _finished(
    store: Store, slimmed: Slimmed, networks: Mapping[str, ModelVariant], settings: Settings,
    run_id: str | None, *, new: bool = True,
) -> SlimmingResult:
    """Register the result where that is asked for, and publish it where there is a pipeline.

    Where no width below the original's was found there is no result, and the pipeline says so.

    Args:
        store: where the runs are.
        slimmed: what was found.
        networks: by run.
        settings: of the step.
        run_id: the pipeline's run, if there is one.
        new: whether the pipeline is this one, whose settings are a file of it.
    """
    files = {ArtifactPath.CONFIG: settings_yaml(settings)} if new else {}
    registration = registered(store, slimmed, settings)
    describe_slim(store, slimmed)
    report = None
    if run_id is not None:
        if new:
            split = networks[slimmed.original.run_id].recipe.split
            store.client.log_inputs(
                run_id, datasets=datasets_of(split, "train", "validation", "test"))
        link_models(store, run_id, (variant.model_id for variant in networks.values()),
                    new=new)
    if run_id is not None and slimmed.rounds:
        with stage("writing the report"):
            report = publish(store, run_id, slimmed, files=files)
    elif run_id is not None:
        widths = {ArtifactPath.WIDTHS: slimmed.last.to_json()} if slimmed.last else {}
        write(store.client, run_id, files={**files, **widths}, tags={
            "mlflow.note.content": f"**No narrower network.** {markdown_text(slimmed.ended)}",
            "mlflow.runName": title_of(settings, slimmed.original.widths)})
    return SlimmingResult(slimmed, networks, run_id, report, registration)


def _resolved(settings: Settings, how: str) -> Settings:
    """The settings, with ``how`` where they leave it open."""
    return settings.model_copy(update={"how": how}) if settings.how == "auto" else settings


def train_run(store: Store, settings: Settings) -> ModelVariant:
    """The step ``train`` on its own; its run is the variant's."""
    recipe = load_recipe(settings)
    recipe.split.say_notes()
    return _trained_original(store, recipe, settings)


def analyze_run(
    store: Store, settings: Settings, *, ask: Ask | None = None, model_id: str | None = None
) -> Analysis:
    """The step ``analyze`` on its own: adds to the variant that ``run_id`` names, or is of the
    logged model that it is the URI of.

    Of several processes each reads the run, and the first writes to it.

    Args:
        store: where the runs are.
        settings: ``run_id``, and those given, which are to differ from the run's own.
        ask: asked where the run names code that the user has not; nobody is, if None.
        model_id: the LoggedModel that the figures are of as well.

    Raises:
        ValueError: one line; there is no such run, or it does not fit.
    """
    if settings.is_logged_model:
        return _analyze_logged(store, settings, ask)
    with contextlib.ExitStack() as stack:
        on_all_ranks(lambda: None if rank() else
                 stack.enter_context(step_run(store, "analyze")))
        store, variant, settings = on_all_ranks(
            lambda: _variant_and_settings(store, settings, Trust.by(settings, ask),
                                          hint=OR_A_MODEL))
        return analyze_variant(store, variant.with_settings(settings), model_id=model_id)[0]


def _analyze_logged(store: Store, settings: Settings, ask: Ask | None) -> Analysis:
    """The step ``analyze`` of a logged model; its figures are the LoggedModel's, too.

    On the data that are named; else, of a model that a run of ours logged, of that run's network on
    its own data, where it adds to that run.
    """
    uri = str(settings.run_id)
    source = on_all_ranks(lambda: logged_source(store, uri))
    if "data" not in settings.given:
        if source.variant_run is None:
            raise ValueError(f"data: expected the data that {uri} is analysed on (--data), as no "
                             f"run of wua logged it, but got none")
        settings = settings.model_copy(update={"run_id": source.variant_run})
        return analyze_run(store, settings, ask=ask, model_id=source.model_id)
    trust = Trust.by(settings, ask)
    machine = {name: getattr(settings, name) for name in MACHINE}
    variant = on_all_ranks(lambda: load_variant(store, source.variant_run, machine, trust)
                           if source.variant_run else None)
    return analyze_model(None if rank() else store, settings,
                         logged=LoggedModel(source, trust, variant))


def slim_run(store: Store, settings: Settings, *, ask: Ask | None = None) -> SlimmingResult:
    """The step ``slim`` on its own, to the verdict: of the original that ``run_id`` names.

    Or of a model that was trained elsewhere (``model``, ``state``, ``data``), which becomes an
    original of its own in a pipeline of its own.

    Raises:
        ValueError: the run is not an original: a slim variant of a slim one would be judged
            against that, and margins would add up.
    """
    if settings.run_id is not None and ":/" in settings.run_id:  # a URI
        settings = settings.model_copy(update={"run_id": source_of(store, settings.run_id)})
    if settings.run_id is None and settings.given & {"model", "state"}:
        return run_pipeline(store, settings, pretrained=True, ask=ask)
    with step_run(store, "slim"):
        store, original, settings = _variant_and_settings(
            store, settings, Trust.by(settings, ask), hint=OR_A_MODEL)
        if original.variant != VariantName.OVERSIZED:
            raise ValueError(f"run_id: expected the run of an original (oversized), but "
                             f"{original.run_id} is {original.name}")
        # the tag that it has: a store that refuses to write does so before anything is computed
        store.client.set_tag(original.run_id, Tag.KIND, Kind.VARIANT)
        asked, settings = settings, _resolved(
            settings, "prune" if original.adopted else "rebuild")
        check_test_part(original.recipe.split, settings)
        say_what_validation_shows(original.recipe.split, settings)
        pipeline = original.tags.get(Tag.PIPELINE)
        settings, no_recipe = _Limit(ask).within(settings, asked, original)
        slimmed = slim_variant(store, original, None, settings=settings, pipeline=pipeline,
                               no_recipe=no_recipe)
        return _finished(store, *slimmed, settings, pipeline, new=False)


def compare_run(
    store: Store, settings: Settings, *, ask: Ask | None = None
) -> tuple[ModelVariant, ModelVariant, Comparison]:
    """The step ``compare`` on its own: the slim variant ``run_id`` against its original.

    The pipeline's run follows where this is its last slim variant.

    Raises:
        ValueError: the run is not a slim variant's.
    """
    with step_run(store, "compare"):
        trust = Trust.by(settings, ask)
        store, slim, settings = _variant_and_settings(store, settings, trust)
        slim = slim.with_settings(settings)
        if not is_slim(slim.variant) or Tag.BASELINE not in slim.tags:
            raise ValueError(f"run_id: expected the run of a slim variant, but {slim.run_id} is "
                             f"{slim.name}; any two runs: wua compare A B")
        machine = {name: getattr(settings, name) for name in MACHINE}
        original, *controls = (load_variant(store, run_id, machine, trust) for run_id in (
            slim.tags[Tag.BASELINE], *controls_of(store.client, store.experiment_id, slim.run_id)))
        widths = logged_widths(store, slim.run_id)
        comparison, (original, *controls, slim) = compare_variants(
            store, original, slim, beside=controls, goal=widths)
        judged = Slimmed(original.result(), (Round(
            widths, slim.result(), tuple(control.result() for control in controls), comparison),))
        describe_slim(store, judged)
        pipeline = slim.tags.get(Tag.PIPELINE)
        if pipeline and result_of(store.client, pipeline) == slim.run_id:
            publish(store, pipeline, judged)
        return original, slim, comparison


def step_run(store: Store, step: str) -> contextlib.AbstractContextManager[object]:
    """The run that ``mlflow run -e STEP`` made, tagged as a step's; nothing, without one."""
    tags = {Tag.KIND: Kind.STEP, Tag.VERSION: __version__, "mlflow.runName": step}
    return run_scope(store, step, tags) if inherited_run() else contextlib.nullcontext()


def _variant_and_settings(
    store: Store, settings: Settings, trust: Trust, *, hint: str = ""
) -> tuple[Store, ModelVariant, Settings]:
    """The variant of ``run_id``, and the settings in force: its own but for those given.

    And the store in that run's experiment, where no other experiment was given.
    """
    if not settings.run_id:
        raise ValueError("run_id: expected the id of a variant's run, but got none; `wua runs` "
                         f"lists them{hint}")
    machine = {name: getattr(settings, name) for name in settings.given.intersection(MACHINE)}
    variant = load_variant(store, settings.run_id, machine, trust)
    for name in settings.given.intersection(NAMED_BESIDE_RUN):  # what may run, and nothing else
        if getattr(settings, name) != getattr(variant.settings, name):
            raise ValueError(f"run_id: expected nothing but the variant's own {name} "
                             f"({getattr(variant.settings, name)}) beside it, but got "
                             f"{getattr(settings, name)}")
    inherited = inherited_run()
    if inherited and not rank():
        store.client.set_tag(inherited, Tag.TARGET_RUN, variant.run_id)
    if "experiment" not in settings.given:
        store = replace(store, experiment_id=variant.experiment_id)
    # the last two are never inherited
    changed = settings.given - {"trust"} | {"register", "gate"}
    return store, variant, variant.settings.model_copy(
        update={name: getattr(settings, name) for name in changed})
