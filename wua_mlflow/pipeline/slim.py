"""What a round of slimming works with: the network to slim, and how those of other widths are made.

May import: everything but cli. Tests: ``tests/pipeline/test_slimming.py``,
``tests/pipeline/test_rounds.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

from wua_mlflow.config import Settings
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.analyze import analyze_variant
from wua_mlflow.pipeline.compare import compare_variants
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.networks import (
    NetworkFactory,
    PruningPlan,
    cached,
    from_scratch,
    pruned_and_tuned,
)
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.target_widths import (
    NoNarrowerError,
    SearchSetup,
    choose_widths,
    dimensions_of,
)
from wua_mlflow.pipeline.train import TrainingPlan, train_variant
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.pruning.cut import cut
from wua_mlflow.results import Round, Slimmed, TargetWidths, WidthParameter
from wua_mlflow.rng import isolated
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.registry import check_name
from wua_mlflow.tracking.runs import find_control
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage.results import ModelUsage

__all__ = ["SlimmingContext", "check_slimming", "slim_variant"]


PARENTS = ("data", "target", "task", "model", "state", "hidden", "seed", "seeds")
"""The settings that are the parent's own: its data, what builds it, its replicates."""


@dataclass(frozen=True)
class SlimmingContext:
    """The original, the network to slim, and what is asked for.

    Attributes:
        settings: what is asked for.
        original: what every verdict is against.
        parent: the network to slim: the original, or the slim one of the round before.
        make: makes the parent's replicates.
        root: makes the original's.
    """

    settings: Settings
    original: ModelVariant
    parent: ModelVariant
    make: NetworkFactory
    root: NetworkFactory

    @cached_property
    def dimensions(self) -> tuple[WidthParameter, ...]:
        """What can be chosen in the parent."""
        return dimensions_of(self.parent, self.settings.how)

    @cached_property
    def recipe(self) -> Recipe:
        """The parent's, with what is asked of the slim network: how it is trained and judged."""
        own = self.settings.model_copy(update={
            name: getattr(self.parent.settings, name) for name in PARENTS})
        return replace(self.parent.recipe, settings=own)

    @property
    def retraining(self) -> SearchSetup:
        """For a search."""
        return SearchSetup(self.recipe, partial(self.maker, fold=self.settings.fold is True),
                          self.cost, anew=self.settings.how == "rebuild")

    def maker(
        self, recipe: Recipe, widths: tuple[int, ...], *, fold: bool | None = None
    ) -> NetworkFactory:
        """What trains networks of these widths on the recipe's data; ``fold``: as set, if None."""
        epochs = self.epochs(recipe, widths)
        if self.settings.how == "rebuild":
            return from_scratch(recipe, widths, epochs)
        keep = {one.name: width for one, width in zip(self.dimensions, widths, strict=True)}
        return pruned_and_tuned(recipe, self.make, self.root,
                      PruningPlan(keep, epochs, distill=self.settings.distill,
                              fold=self._fold if fold is None else fold))

    @property
    def _fold(self) -> bool | None:
        """None for both ways, which the user's own trainer is spared."""
        if self.settings.fold != "auto":
            return self.settings.fold
        return False if self.recipe.trainer else None

    def epochs(self, recipe: Recipe, widths: tuple[int, ...]) -> int:
        """Of training, or of fine-tuning what was cut.

        At equal training FLOPs (Scratch-B, Liu et al. 2019) as many as the original's FLOPs allow.
        """
        settings, epochs = self.settings, self.original.settings.epochs
        if settings.slim_epochs is not None:
            return settings.slim_epochs
        if settings.budget == "epochs":
            return epochs
        whole = _training_flops(recipe, self.original.settings.hidden)
        return max(1, math.floor(epochs * whole / _training_flops(recipe, widths)))

    def cost(self, widths: tuple[int, ...]) -> float:
        """FLOPs of one sample's forward."""
        inputs = self.recipe.split.train.inputs[:2]
        if self.settings.how == "rebuild":
            with isolated():
                model = self.recipe.build(widths)
        elif widths == tuple(one.units for one in self.dimensions):
            model = self.parent.model
        else:
            keep = {one.name: range(width)
                    for one, width in zip(self.dimensions, widths, strict=True)}
            model = cut(self.parent.model, inputs.to(self.recipe.device), keep).model
        count = count_flops(model, inputs, backward=False)
        return count.forward_flops / count.samples

    def units(self, goal: TargetWidths) -> dict[str, int]:
        """By dimension of the original how many units stay, also of those with one unit left."""
        cuts = self.parent.trained.structure
        left = {one.name: one.units for one in dimensions_of(self.original, self.settings.how)}
        for kept in cuts.rounds if cuts else ():
            left.update({name: len(units) for name, units in kept.items()})
        return {**left, **goal.keep}

    def factory_widths(self, goal: TargetWidths) -> tuple[int, ...]:
        """What the factory is given for a network of these widths; none, if it takes none."""
        hidden = self.original.settings.hidden
        if self.settings.how == "rebuild" or not hidden:
            return goal.widths if hidden else ()
        whole, left = dimensions_of(self.original, self.settings.how), self.units(goal)
        layers = check_widths(self.original.recipe.build, hidden, "auto")
        found = []
        for old, names in zip(hidden, layers, strict=True):
            shares = [left[one.name] / one.units for one in whole if set(names) & set(one.layers)]
            found.append(max(1, math.ceil(max(shares, default=1.0) * old - 1e-9)))
        return tuple(found)


def _training_flops(recipe: Recipe, widths: tuple[int, ...]) -> float:
    """Of one sample, forward and backward."""
    inputs = recipe.split.train.inputs[:2]
    with isolated():
        count = count_flops(recipe.build(widths), inputs)
    return (count.forward_flops + count.backward_flops) / count.samples


@dataclass(frozen=True)
class _Done:
    """A round that has no verdict yet."""

    goal: TargetWidths
    variant: ModelVariant
    controls: tuple[ModelVariant, ...]


def check_slimming(settings: Settings) -> None:
    """Whether what is asked of the step fits together, before anything is trained.

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
    if settings.distill and settings.train:
        raise ValueError(f"distill: expected the built-in trainer, but got train={settings.train}")
    if settings.budget == "flops" and settings.how != "rebuild":
        raise ValueError("budget: expected epochs where the network is cut and fine-tuned, but "
                         "got flops; equal training FLOPs are for how=rebuild")
    if settings.budget == "flops" and settings.slim_epochs is not None:
        raise ValueError(f"budget: flops sets the epochs of the slim network, so expected no "
                         f"slim_epochs, but got {settings.slim_epochs}")
    if settings.rounds > 1 and settings.slim_hidden != "auto":
        raise ValueError(f"rounds: expected slim_hidden=auto, since each round needs widths of its "
                         f"own, but got {','.join(map(str, settings.slim_hidden))}")


def slim_variant(
    store: Store,
    original: ModelVariant,
    usage: ModelUsage | None,
    *,
    settings: Settings,
    pipeline: str | None,
) -> tuple[Slimmed, dict[str, ModelVariant]]:
    """Slim variants of the original until one is not as good, or the rounds are over.

    Args:
        store: where the runs are.
        original: the network to begin with.
        usage: of it; measured where a method needs it, if None.
        settings: what is asked for.
        pipeline: the pipeline's run.

    Returns:
        What was found, and by run all networks, the original included.

    Raises:
        ValueError: one line; as ``choose_widths``.
    """
    check_slimming(settings)
    root = cached(original.make, first=original.trained)
    bench = SlimmingContext(settings, original, original, root, root)
    usages = {} if usage is None else {original.name: usage}
    rounds: list[Round] = []
    networks = {original.run_id: original}
    ended: tuple[str, TargetWidths | None] = "", None
    for number in range(1, settings.rounds + 1):
        try:
            goal = choose_widths(settings, bench.parent, bench.dimensions, bench.retraining, usage)
        except NoNarrowerError as error:
            ended = str(error), error.goal
            break
        done = _round(store, bench, goal, number, pipeline)
        for one in (*done.controls, done.variant):
            if one.tags.get(step_tag("analyze")) != "done":
                usages[one.name] = analyze_variant(store, one).usage
            networks[one.run_id] = one
        rounds.append(_judged(store, bench, done))
        if not rounds[-1].as_good:
            break
        usage = usages[done.variant.name]
        bench = replace(bench, parent=done.variant,
                        make=cached(done.variant.make, first=done.variant.trained))
    return Slimmed(original.result(), tuple(rounds), usages, *ended), networks


def _round(
    store: Store, bench: SlimmingContext, goal: TargetWidths, number: int, pipeline: str | None
) -> _Done:
    """Train the slim variant of a round, after its controls."""
    settings, original, parent = bench.settings, bench.original, bench.parent
    name = VariantName.SLIM if number == 1 else f"{VariantName.SLIM}-{number}"
    epochs = bench.epochs(bench.recipe, goal.widths)
    before = parent.settings.epochs if settings.how == "prune" and not parent.adopted else 0
    streams = [one.stream for one in parent.replicates]
    make = cached(bench.maker(bench.recipe, goal.widths)) if settings.how == "prune" else \
        from_scratch(bench.recipe, goal.widths, epochs, streams)
    widths = tuple(bench.units(goal).values()) if settings.how == "prune" else goal.widths
    plan = TrainingPlan(name, widths, before + epochs, make,
                parent=parent if settings.how == "prune" else None,
                hidden=parent.settings.hidden if settings.how == "prune" else None,
                replicates=len(streams),
                baseline=original.run_id, pipeline=pipeline,
                origin=_origin(settings, parent, goal, epochs))
    controls = tuple(_controls(store, bench, plan, goal))
    variant = train_variant(store, bench.recipe, replace(plan, controls=tuple(
        one.run_id for one in controls)))
    write(store.client, variant.run_id, files={ArtifactPath.WIDTHS: goal.to_json()})
    return _Done(goal, variant, controls)


def _judged(store: Store, bench: SlimmingContext, done: _Done) -> Round:
    comparison = compare_variants(store, bench.original, done.variant, beside=done.controls)
    return Round(done.goal, done.variant.result(),
                 tuple(control.result() for control in done.controls), comparison)


def _controls(
    store: Store, bench: SlimmingContext, plan: TrainingPlan, goal: TargetWidths
) -> Iterator[ModelVariant]:
    """The original at the slim one's budget; beside a cut network one of its widths from scratch.

    Where nobody knows how the original was trained there is the first alone: it is trained on for
    as long as what was cut of it, or from scratch as long as what was rebuilt.
    """
    settings, original = bench.settings, bench.original
    if original.adopted:
        yield _same_budget(store, original, plan, bench)
        return
    if plan.epochs != original.settings.epochs:
        yield _same_budget(store, original, plan, bench)
    widths = bench.factory_widths(goal)
    if settings.how == "prune" and widths:
        epochs = original.settings.epochs
        yield train_variant(store, original.recipe, TrainingPlan(
            VariantName.FROM_SCRATCH, widths, epochs, from_scratch(original.recipe, widths, epochs),
            baseline=original.run_id, pipeline=plan.pipeline))


def _same_budget(
    store: Store, original: ModelVariant, plan: TrainingPlan, bench: SlimmingContext
) -> ModelVariant:
    """An earlier control of these epochs, or a new one."""
    settings, recipe = original.settings, original.recipe
    onwards = original.adopted and bench.settings.how == "prune"
    earlier = None if original.adopted else \
        find_control(store.client, store.experiment_id, original.run_id, plan.epochs)
    if earlier:
        return load_variant(store, earlier,
                            {"device": settings.device, "threads": settings.threads})
    if original.adopted:
        recipe = replace(recipe, settings=bench.recipe.settings.model_copy(
            update={"hidden": settings.hidden}))
    make = (
        pruned_and_tuned(recipe, original.make, original.make, PruningPlan({}, plan.epochs))
        if onwards
        else from_scratch(recipe, settings.hidden, plan.epochs)
    )
    return train_variant(store, recipe, TrainingPlan(
        VariantName.SAME_BUDGET, original.widths if onwards else settings.hidden, plan.epochs, make,
        parent=original if onwards else None, hidden=settings.hidden, pipeline=plan.pipeline,
        baseline=original.run_id))


def _origin(settings: Settings, parent: ModelVariant, goal: TargetWidths, epochs: int) -> str:
    """A comment for ``config.yaml``: what else it takes to make this variant again."""
    begin = "Cut from the network" if settings.how == "prune" else \
        "Trained from the random stream"
    budget = "trained elsewhere" if parent.adopted else f"{parent.settings.epochs} epochs"
    lines = f"# {begin} that run {parent.run_id} left ({parent.name}, {budget}).\n"
    if parent.variant != VariantName.OVERSIZED or parent.adopted:
        return lines
    slim = ",".join(map(str, goal.widths))
    return (f"{lines}# Both again: the original's config.yaml with how: {settings.how}, "
            f"slim_hidden: [{slim}], slim_epochs: {epochs}\n")
