"""The step ``slim``: rounds of choosing widths, training a slim variant and its controls, judging.

Tests: ``tests/pipeline/test_slim.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from wua_mlflow.config import Settings
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.allowance import Allowance, null_seconds, seconds_elsewhere
from wua_mlflow.pipeline.analyze import analyze_variant
from wua_mlflow.pipeline.compare import compare_variants
from wua_mlflow.pipeline.networks import (
    NetworkFactory,
    PruningPlan,
    cached,
    from_scratch,
    pruned_and_tuned,
)
from wua_mlflow.pipeline.price import price_of_cuts
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import train_replicate
from wua_mlflow.pipeline.screen import Screen, screen
from wua_mlflow.pipeline.seeds import with_seeds_to_settle
from wua_mlflow.pipeline.target_widths import (
    FIRST_NUMBER,
    NoNarrowerError,
    SearchSetup,
    choose_widths,
    dimensions_of,
    scaled_widths,
    wider,
    with_same_widths,
)
from wua_mlflow.pipeline.train import TrainingPlan, train_variant
from wua_mlflow.pipeline.trainer_runs import trainer_logs_to
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.pipeline.variant import MACHINE, ModelVariant, load_variant
from wua_mlflow.progress import say, stage
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.unit_groups import UnitGroups
from wua_mlflow.results import Round, Slimmed, TargetWidths, WidthParameter
from wua_mlflow.rng import Stream, isolated, seeded_stream
from wua_mlflow.signals import goes_on
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.registry import check_name
from wua_mlflow.tracking.runs import find_control
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.what_to_cut import WhatToCut
from wua_mlflow.widths.results import comma_separated

__all__ = ["SlimmingContext", "check_slimming", "slim_variant"]


PARENTS = ("data", "target", "task", "model", "state", "hidden", "seed")
"""The settings that a slim variant takes from its parent: data, factory."""
INTERRUPTED = "it was interrupted."
BEFORE_SLIM = 1 / 2
"""The share of the time that is left for a control that is trained before the slim networks."""
NO_TIME = "the time of `limit` was spent."


@dataclass(frozen=True)
class SlimmingContext:
    """What a round of slimming works with.

    Attributes:
        settings: of the step.
        original: what every verdict is against.
        parent: the network to slim: the original, or the slim one of the round before.
        make: makes the parent's replicates.
        root: makes the original's.
        controls: whether networks are trained to compare with.
        allowance: what search and seeds may take together.
    """

    settings: Settings
    original: ModelVariant
    parent: ModelVariant
    make: NetworkFactory
    root: NetworkFactory
    controls: bool = True
    allowance: Allowance = field(default_factory=Allowance)

    @cached_property
    def dimensions(self) -> tuple[WidthParameter, ...]:
        """What can be chosen in the parent: groups that get the same width are one.

        Where a width is given for each group they are not.
        """
        settings = self.settings
        groups = dimensions_of(self.parent, settings.how, settings.what_to_cut)
        if settings.how != "prune" or not settings.what_to_cut.are_same(self.parent.model) \
                or len(settings.slim_widths or ()) == len(groups):
            return groups
        return with_same_widths(groups)

    @cached_property
    def recipe(self) -> Recipe:
        """Of the slim networks: the parent's data, trained and judged as the settings say."""
        settings = self.settings.model_copy(update={
            name: getattr(self.parent.settings, name) for name in PARENTS})
        return replace(self.parent.recipe, settings=settings)

    @property
    def search_setup(self) -> SearchSetup:
        """How a search of widths trains its candidates."""
        return SearchSetup(self.recipe, partial(self.factory, fold=self.settings.fold is True),
                           self.cost, lambda: self._scores, self.allowance,
                           [dimension.multiple_of for dimension in self.dimensions])

    def slim_factory(
        self, widths: tuple[int, ...], *, screened: bool = False
    ) -> NetworkFactory:
        """Trains the slim variant's networks: cut, or from the stream that the parent's left.

        Args:
            widths: of the networks.
            screened: whether there may be more of them than of the parent's, which then begin from
                streams of their own.
        """
        if self.settings.how == "prune":
            return cached(self.factory(self.recipe, widths, fold=self.fold))
        replicates = self.parent.replicates

        def stream_of(number: int, seed: int) -> Stream:
            if number < len(replicates):
                return replicates[number].stream
            if screened:
                return seeded_stream((seed + 2 * FIRST_NUMBER) % 2**32, self.recipe.device)
            return self.make(number, seed).stream

        return from_scratch(self.recipe, widths, self.epochs(self.recipe, widths), stream_of)

    def screened(self, goal: TargetWidths) -> tuple[TargetWidths, Screen | None]:
        """The widths that a search found, or wider ones, of which no more networks collapse.

        As many new networks are trained as the recipe verdict may need; where a cut needs further
        networks of the original, as many as there are of it. Nothing is screened where there will
        be no recipe verdict.

        Raises:
            NoNarrowerError: networks of all widths below the parent's collapse.
        """
        settings, searched = self.settings, goal.searched
        if searched is None or settings.first_seeds < FEWEST_SEEDS:
            return goal, None
        cheap = settings.how == "rebuild" or self.original.adopted
        seeds = settings.most_seeds if cheap else settings.first_seeds
        units = tuple(dimension.units for dimension in self.dimensions)
        widths, notes = goal.widths, [searched.note] if searched.note else []
        tried = 0
        while True:
            tried += 1
            found = screen(self.recipe, self.slim_factory(widths, screened=True), self._scores,
                           seeds=seeds, label=comma_separated(widths), allowance=self.allowance)
            if found.passed:
                break
            notes.append(f"{found.collapsed} of {len(found.replicates)} new networks of "
                         f"{comma_separated(widths)} collapsed")
            widths = wider(widths, self.dimensions, searched)
            if widths == units:
                raise NoNarrowerError(
                    f"The search found widths that hold, but of new networks some collapsed where "
                    f"the original's do not: {'; '.join(notes)}. Another learning rate or more "
                    f"epochs may help (--lr, --epochs), or name the widths (--slim-hidden).", goal)
        searched = replace(searched, widths=widths, note="; ".join(notes), screened=tried,
                           screened_seeds=len(found.replicates))
        return replace(goal, widths=widths, searched=searched), found

    def judged_with(self, found: Screen | None) -> SlimmingContext:
        """With no more seeds planned than were screened, where there was no time for more."""
        if found is None or not found.cut_short or len(found.replicates) < FEWEST_SEEDS:
            return self
        seeds = f"{FEWEST_SEEDS}-{len(found.replicates)}"
        return replace(self, settings=self.settings.model_copy(update={"seeds": seeds}))

    @cached_property
    def _scores(self) -> np.ndarray:
        """Of the original's replicates, shape (replicates, examples).

        They are trained again where a run of an earlier version kept none.
        """
        original = self.original
        return np.stack([
            replicate.validation_scores if len(replicate.validation_scores)
            else train_replicate(original.recipe, self.root, number).validation_scores
            for number, replicate in enumerate(original.replicates)])

    def factory(
        self, recipe: Recipe, widths: tuple[int, ...], *, fold: bool | None = None
    ) -> NetworkFactory:
        """Trains networks of these widths on the recipe's data.

        ``fold`` None tries both ways, as ``PruningPlan`` says.
        """
        epochs = self.epochs(recipe, widths)
        if self.settings.how == "rebuild":
            return from_scratch(recipe, widths, epochs)
        return pruned_and_tuned(recipe, self.make, self.root, PruningPlan(
            self._keep(widths), epochs, distill=self.settings.distill, fold=fold,
            kinds=self.settings.what_to_cut.kinds))

    def _keep(self, widths: tuple[int, ...]) -> dict[str, int]:
        return TargetWidths(self.dimensions, widths, "given").keep

    @property
    def fold(self) -> bool | None:
        """Whether removed units are compensated; None for both ways.

        The user's own trainer is not called for both.
        """
        if self.settings.fold != "auto":
            return self.settings.fold
        return False if self.recipe.trainer else None

    def epochs(self, recipe: Recipe, widths: tuple[int, ...]) -> int:
        """Epochs of training, or of fine-tuning after a cut.

        At equal training FLOPs (Scratch-B, Liu et al. 2019) as many as the original's FLOPs allow.
        """
        settings, epochs = self.settings, self.original.settings.epochs
        if settings.slim_epochs != "flops":
            return settings.slim_epochs or epochs
        whole = _training_flops(recipe, self.original.settings.hidden)
        return max(1, math.floor(epochs * whole / _training_flops(recipe, widths)))

    def cost(self, widths: tuple[int, ...]) -> float:
        """FLOPs of one sample's forward."""
        if self.settings.how == "rebuild":
            with isolated():
                model = self.recipe.build(widths)
        elif widths == tuple(parameter.units for parameter in self.dimensions):
            model = self.parent.model
        else:
            keep = {name: range(width) for name, width in self._keep(widths).items()}
            model = cut(self.parent.model, self.recipe.example(self.parent.model), keep,
                        self._structure).model
        count = count_flops(model, self.recipe.example(model, 2), backward=False)
        return count.forward_flops / count.samples

    @cached_property
    def _structure(self) -> UnitGroups:
        """The parent's groups."""
        model = self.parent.model
        return unit_groups(model, self.recipe.example(model), self.settings.what_to_cut.kinds)

    @cached_property
    def _original_groups(self) -> tuple[WidthParameter, ...]:
        """Of the original all that can be chosen, each group by itself."""
        return dimensions_of(self.original, self.settings.how, self.settings.what_to_cut)

    def units(self, goal: TargetWidths) -> dict[str, int]:
        """By group of the original how many units stay, also of groups with one unit left."""
        units = {parameter.name: parameter.units for parameter in self._original_groups}
        structure = self.parent.trained.structure
        for cut_groups in structure.rounds if structure else ():
            units.update({name: len(remaining) for name, remaining in cut_groups.items()})
        return {**units, **goal.keep}

    def factory_widths(self, goal: TargetWidths) -> tuple[int, ...]:
        """What the factory is given for a network of these widths; none, if it takes none."""
        if self.settings.how == "rebuild" or not self.original.settings.hidden:
            return goal.widths if self.original.settings.hidden else ()
        units = self.units(goal)
        return scaled_widths(dimensions_of(self.original, "rebuild"), [
            (group.layers, units[group.name] / group.units)
            for group in self._original_groups])


def _training_flops(recipe: Recipe, widths: tuple[int, ...]) -> float:
    """FLOPs of training on one sample: forward and backward."""
    with isolated():
        model = recipe.build(widths)
        count = count_flops(model, recipe.example(model, 2))
    return (count.forward_flops + count.backward_flops) / count.samples


def check_slimming(settings: Settings) -> None:
    """Whether the settings of the step fit together, before anything is trained.

    Raises:
        ValueError: one line.
    """
    if settings.register is not None:
        check_name(settings.register)
    if settings.distill and settings.how != "prune":
        raise ValueError("distill: expected how=prune beside it, since a rebuilt network is the "
                         "control that learns from the data alone, but got how=rebuild")
    if settings.fold is True and settings.how != "prune":
        raise ValueError("fold: expected how=prune beside it, since in a rebuilt network there is "
                         "nothing to fold, but got how=rebuild")
    if settings.what != str(WhatToCut()) and settings.how != "prune":
        raise ValueError(f"what: expected how=prune beside it, since the widths of a rebuilt "
                         f"network are the factory's own, but got how=rebuild and "
                         f"what={settings.what}")
    if settings.distill and settings.train:
        raise ValueError(f"distill: expected the built-in trainer, but got train={settings.train}")
    if settings.slim_epochs == "flops" and settings.how != "rebuild":
        raise ValueError("slim_epochs: expected a number where the network is cut and fine-tuned, "
                         "but got flops; equal training FLOPs are for how=rebuild")
    if settings.rounds > 1 and settings.slim_widths is not None:
        raise ValueError(f"rounds: expected slim_hidden=auto or a method, since each round needs "
                         f"widths of its own, but got {','.join(map(str, settings.slim_widths))}")


def slim_variant(
    store: Store,
    original: ModelVariant,
    usage: ModelUsage | None,
    *,
    settings: Settings,
    pipeline: str | None,
    no_recipe: str = "",
) -> tuple[Slimmed, dict[str, ModelVariant]]:
    """Slim variants of the original until one is not as good, or the rounds are over.

    Args:
        store: where the runs are.
        original: the network to begin with.
        usage: of it; measured where a method needs it, if None.
        settings: what is asked for.
        pipeline: the pipeline's run.
        no_recipe: why there will be no recipe verdict, where that was decided before.

    Returns:
        What was found, and by run all networks, the original included.

    Raises:
        ValueError: one line; as ``choose_widths``.
    """
    check_slimming(settings)
    root = cached(original.make, first=original.trained)
    context = _with_allowance(
        SlimmingContext(settings, original, original, root, root, controls=not no_recipe))
    within = null_seconds(settings) if original.adopted else math.inf
    usages = {} if usage is None else {original.name: usage}
    networks = {original.run_id: original}
    rounds: list[Round] = []
    ended: tuple[str, TargetWidths | None] = "", None
    while len(rounds) < settings.rounds and all(each.as_good for each in rounds):
        try:
            with trainer_logs_to(store, parent=pipeline or original.run_id):
                goal, found = _widths_of_round(context, usages.get(context.parent.name))
            trained = []
            for variant in _trained(store, context.judged_with(found), goal, found,
                                    len(rounds) + 1, pipeline):
                if variant.tags.get(step_tag("analyze")) != "done":
                    analysis, variant = analyze_variant(store, variant, null_seconds=within)
                    usages[variant.name] = analysis.usage
                trained.append(variant)
            *controls, slim = trained
            with stage(f"seeds of {slim.name} until its verdict is settled"):
                original, slim = with_seeds_to_settle(
                    store, context.original, slim, root, goal, context.allowance)
            comparison, (original, *controls, slim) = compare_variants(
                store, original, slim, beside=controls, goal=goal, no_recipe=no_recipe)
        except NoNarrowerError as error:
            ended = str(error), error.goal
            break
        except KeyboardInterrupt as signal:
            if not rounds or not goes_on(signal):
                raise
            say("interrupted: going on with the rounds so far; once more ends it")
            ended = INTERRUPTED, None
            break
        networks |= {variant.run_id: variant for variant in (original, *controls, slim)}
        rounds.append(Round(goal, slim.result(), tuple(each.result() for each in controls),
                            comparison))
        if slim.interrupted:
            ended = INTERRUPTED if len(rounds) < settings.rounds else "", None
            break
        if context.allowance.left <= 0 and len(rounds) < settings.rounds:
            ended = NO_TIME, None
            break
        context = replace(context, original=original, parent=slim,
                          make=cached(slim.make, first=slim.trained))
    original = context.original
    return Slimmed(original.result(), tuple(rounds), usages, *ended), networks


def _with_allowance(context: SlimmingContext) -> SlimmingContext:
    """What search and seeds may take, where nobody knows how long the original's training took."""
    settings = context.settings
    if not context.original.adopted:
        return context
    seconds = seconds_elsewhere(settings)
    ways = 2 if settings.how == "prune" and context.fold is None else 1

    def plan(each: float) -> str:
        price = price_of_cuts(settings, each, ways=ways, limit=seconds)
        return f"{price.line}{price.ends(settings)}"

    return replace(context, allowance=Allowance(seconds, plan))


def _widths_of_round(
    context: SlimmingContext, usage: ModelUsage | None
) -> tuple[TargetWidths, Screen | None]:
    """The widths below the parent's, and the screen of new networks of them, if there was one."""
    with stage(f"looking for widths below those of {context.parent.name}"):
        return context.screened(choose_widths(
            context.settings, context.parent, context.dimensions, context.search_setup, usage))


def _trained(
    store: Store, context: SlimmingContext, goal: TargetWidths, found: Screen | None, number: int,
    pipeline: str | None,
) -> list[ModelVariant]:
    """The controls of a round, then its slim variant."""
    settings, original, parent = context.settings, context.original, context.parent
    epochs = context.epochs(context.recipe, goal.widths)
    make = context.slim_factory(goal.widths) if found is None else found.make
    plan_of = partial(
        TrainingPlan, VariantName.SLIM if number == 1 else f"{VariantName.SLIM}-{number}",
        replicates=None if parent.adopted else len(parent.replicates),
        known={} if found is None else found.replicates,
        affords=partial(context.allowance.affords, trainings=settings.first_seeds - 1)
        if original.adopted else None,
        baseline=original.run_id, pipeline=pipeline,
        origin=_origin(settings, parent, goal, epochs))
    if settings.how == "prune":
        plan = plan_of(
            tuple(context.units(goal).values()),
            epochs + (0 if parent.adopted else parent.settings.epochs), make,
            parent=parent, hidden=parent.settings.hidden)
    else:
        plan = plan_of(goal.widths, epochs, make)
    controls = []
    for recipe, control in _control_plans(context, plan, goal) if context.controls else ():
        earlier = None if original.adopted or control.variant != VariantName.SAME_BUDGET else \
            find_control(store.client, store.experiment_id, original.run_id, control.epochs)
        controls.append(train_variant(store, recipe, control) if earlier is None else load_variant(
            store, earlier, {name: getattr(original.settings, name) for name in MACHINE},
            Trust.by(original.settings)))
    slim = train_variant(store, context.recipe, replace(
        plan, controls=tuple(control.run_id for control in controls)))
    write(store.client, slim.run_id, files={ArtifactPath.WIDTHS: goal.to_json()})
    return [*controls, slim]


def _control_plans(
    context: SlimmingContext, plan: TrainingPlan, goal: TargetWidths
) -> Iterator[tuple[Recipe, TrainingPlan]]:
    """What to train beside a slim variant, to tell the effect of its budget and of its weights.

    The original at the slim variant's budget; beside a cut network also one of its widths from
    scratch. Of an original that was trained elsewhere nobody knows how, so there is the first
    control alone: the original trained on for as long as the cut network was fine-tuned, or from
    scratch for as long as the rebuilt one.
    """
    original = context.original
    settings, recipe = original.settings, original.recipe
    affords = plan.affords and partial(
        context.allowance.affords, trainings=context.settings.first_seeds - 1,
        share=1.0 if plan.known else BEFORE_SLIM)
    control = partial(TrainingPlan, baseline=original.run_id, pipeline=plan.pipeline,
                      hidden=settings.hidden, affords=affords,
                      replicates=len(plan.known) if original.adopted and plan.known else None)
    pruning = context.settings.how == "prune"
    if original.adopted:
        recipe = replace(recipe, settings=context.recipe.settings.model_copy(
            update={"hidden": settings.hidden}))
    if original.adopted and pruning:
        yield recipe, control(
            VariantName.SAME_BUDGET, original.widths, plan.epochs, parent=original,
            make=pruned_and_tuned(recipe, original.make, original.make,
                                  PruningPlan({}, plan.epochs)))
    elif original.adopted or plan.epochs != settings.epochs:
        yield recipe, control(
            VariantName.SAME_BUDGET, settings.hidden, plan.epochs,
            make=from_scratch(recipe, settings.hidden, plan.epochs))
    widths = () if original.adopted else context.factory_widths(goal)
    if pruning and widths:
        yield recipe, control(
            VariantName.FROM_SCRATCH, widths, settings.epochs, hidden=widths,
            make=from_scratch(recipe, widths, settings.epochs))


def _origin(settings: Settings, parent: ModelVariant, goal: TargetWidths, epochs: int) -> str:
    """A comment for ``config.yaml``: what else it takes to make this variant again."""
    begin = "Cut from the network" if settings.how == "prune" else \
        "Trained from the random stream"
    budget = "trained elsewhere" if parent.adopted else f"{parent.settings.epochs} epochs"
    comment = f"# {begin} that run {parent.run_id} left ({parent.name}, {budget}).\n"
    if parent.variant != VariantName.OVERSIZED or parent.adopted:
        return comment
    slim = ",".join(map(str, goal.widths))
    what = "" if settings.what == str(WhatToCut()) else f"what: '{settings.what}', "
    return (f"{comment}# Both again: the original's config.yaml with how: {settings.how}, {what}"
            f"slim_hidden: [{slim}], slim_epochs: {epochs}\n")
