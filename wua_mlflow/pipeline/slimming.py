"""The step ``slim``: rebuild or prune, with its controls, in rounds, each against the original.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_slimming.py``,
``tests/pipeline/test_rounds.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.analysing import analyze
from wua_mlflow.pipeline.bench import Bench
from wua_mlflow.pipeline.comparison import Comparison, compare_variants
from wua_mlflow.pipeline.making import Cutting, pruned, remembered, scratch
from wua_mlflow.pipeline.planning import Goal, NoNarrowerError, goal_of
from wua_mlflow.pipeline.steps import Plan, train
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.tracking.lineage import find_control
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import ArtifactPath, Outcome, step_tag
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.registry import check_name
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage import ModelUsage

__all__ = ["Round", "Slimmed", "check_slimming", "slim"]


@dataclass(frozen=True)
class Round:
    """One slim variant, what it was to be (None: not known), and how it did against the original.

    ``controls`` were trained beside it: the original at an equal budget, and, where the network
    was cut, one of the slim widths from scratch.
    """

    goal: Goal | None
    variant: Variant
    controls: tuple[Variant, ...]
    comparison: Comparison

    @property
    def as_good(self) -> bool:
        """Whether the verdict is ``non_inferior``."""
        return self.comparison.verdict.outcome == Outcome.NON_INFERIOR


@dataclass(frozen=True)
class _Done:
    """A round that has no verdict yet."""

    goal: Goal
    variant: Variant
    controls: tuple[Variant, ...]


@dataclass(frozen=True)
class Slimmed:
    """All rounds, and the usage of every variant in them that was analysed, by its name.

    ``ended`` says why there is no further round, where more were asked for; there may be none.
    ``last`` is then what the method saw.
    """

    original: Variant
    rounds: tuple[Round, ...]
    usages: dict[str, ModelUsage] = field(repr=False)
    ended: str = ""
    last: Goal | None = field(default=None, repr=False)

    @property
    def result(self) -> Round:
        """The last round that is as good as the original; the first, where none is.

        Raises:
            IndexError: there are no rounds.
        """
        return next((one for one in reversed(self.rounds) if one.as_good), self.rounds[0])

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All that was trained, the result last."""
        if not self.rounds:
            return ()
        result = self.result
        found = [one for each in self.rounds for one in (*each.controls, each.variant)]
        others = {one.run_id: one for one in found if one.run_id != result.variant.run_id}
        return (*others.values(), result.variant)


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


def slim(
    store: Store,
    original: Variant,
    usage: ModelUsage | None,
    *,
    settings: Settings,
    pipeline: str | None,
) -> Slimmed:
    """Slim variants of the original until one is not as good, or the rounds are over.

    Args:
        store: where the runs are.
        original: the network to begin with.
        usage: of it; measured where a method needs it, if None.
        settings: what is asked for.
        pipeline: the pipeline's run.

    Raises:
        ValueError: one line; as ``goal_of``.
    """
    check_slimming(settings)
    root = remembered(original.make, first=original.trained)
    bench = Bench(settings, original, original, root, root)
    usages: dict[str, ModelUsage] = {}
    rounds: list[Round] = []
    for number in range(1, settings.rounds + 1):
        try:
            goal = goal_of(settings, bench.parent, bench.dimensions, bench.retraining, usage)
        except NoNarrowerError as error:
            return Slimmed(original, tuple(rounds), usages, str(error), error.goal)
        done = _round(store, bench, goal, number, pipeline)
        for one in (*done.controls, done.variant):
            if one.tags.get(step_tag("analyze")) != "done":
                usages[one.name] = analyze(store, one).usage
        rounds.append(_judged(store, bench, done))
        if not rounds[-1].as_good:
            break
        usage = usages[done.variant.name]
        bench = replace(bench, parent=done.variant,
                        make=remembered(done.variant.make, first=done.variant.trained))
    return Slimmed(original, tuple(rounds), usages)


def _round(
    store: Store, bench: Bench, goal: Goal, number: int, pipeline: str | None
) -> _Done:
    """Train the slim variant of a round, after its controls."""
    settings, original, parent = bench.settings, bench.original, bench.parent
    name = VariantName.SLIM if number == 1 else f"{VariantName.SLIM}-{number}"
    epochs = bench.epochs(bench.recipe, goal.widths)
    before = parent.settings.epochs if settings.how == "prune" and not parent.adopted else 0
    streams = [one.stream for one in parent.replicates]
    make = remembered(bench.maker(bench.recipe, goal.widths)) if settings.how == "prune" else \
        scratch(bench.recipe, goal.widths, epochs, streams)
    widths = tuple(bench.units(goal).values()) if settings.how == "prune" else goal.widths
    plan = Plan(name, widths, before + epochs, make,
                parent=parent if settings.how == "prune" else None,
                hidden=parent.settings.hidden if settings.how == "prune" else None,
                replicates=len(streams),
                baseline=original.run_id, pipeline=pipeline,
                origin=_origin(settings, parent, goal, epochs))
    controls = tuple(_controls(store, bench, plan, goal))
    variant = train(store, bench.recipe, replace(plan, controls=tuple(
        one.run_id for one in controls)))
    write(store.client, variant.run_id, files={ArtifactPath.WIDTHS: goal.to_json()})
    return _Done(goal, variant, controls)


def _judged(store: Store, bench: Bench, done: _Done) -> Round:
    comparison = compare_variants(store, bench.original, done.variant, beside=done.controls)
    return Round(done.goal, done.variant, done.controls, comparison)


def _controls(store: Store, bench: Bench, plan: Plan, goal: Goal) -> Iterator[Variant]:
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
        yield train(store, original.recipe, Plan(
            VariantName.FROM_SCRATCH, widths, epochs, scratch(original.recipe, widths, epochs),
            baseline=original.run_id, pipeline=plan.pipeline))


def _same_budget(store: Store, original: Variant, plan: Plan, bench: Bench) -> Variant:
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
    make = pruned(recipe, original.make, original.make, Cutting({}, plan.epochs)) if onwards else \
        scratch(recipe, settings.hidden, plan.epochs)
    return train(store, recipe, Plan(
        VariantName.SAME_BUDGET, original.widths if onwards else settings.hidden, plan.epochs, make,
        parent=original if onwards else None, hidden=settings.hidden, pipeline=plan.pipeline,
        baseline=original.run_id))


def _origin(settings: Settings, parent: Variant, goal: Goal, epochs: int) -> str:
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
