"""Choosing the widths of the slim network: those given, a method's, or a search's.

A search trains networks of other widths, on seeds that no variant has, and validates them. It never
sees the test part.
Tests: ``tests/pipeline/test_target_widths.py``.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import le
from pathlib import Path

import numpy as np
from mlflow.exceptions import MlflowException

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.loaders import training_batches
from wua_mlflow.data.tasks import PLAIN, score_name
from wua_mlflow.errors import group_by_reason
from wua_mlflow.pipeline import allowance as allowances
from wua_mlflow.pipeline.allowance import HOUR_S, SEARCH, Allowance
from wua_mlflow.pipeline.analyze import criteria_of, first_criterion, loss_of
from wua_mlflow.pipeline.models import check_slim_widths, check_widths
from wua_mlflow.pipeline.networks import NetworkFactory
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import train_replicate
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.progress import Bar, duration, say
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.find_groups import OUTPUTS
from wua_mlflow.results import TargetWidths, WidthParameter
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict.inputs import FEWEST_SEEDS
from wua_mlflow.verdict.sample_size import too_few_examples
from wua_mlflow.what_to_cut import WhatToCut, alike
from wua_mlflow.widths.recommend import effective_width, effective_widths, recommend_widths
from wua_mlflow.widths.results import (
    SearchResult,
    Trial,
    WidthRecommendation,
    comma_separated,
    widths_name,
)
from wua_mlflow.widths.retrain_search import MOST_SEEDS, FinalVerdict, search_widths

__all__ = [
    "FIRST_NUMBER", "NoNarrowerError", "SearchSetup", "choose_widths", "chosen_method",
    "dimensions_of", "logged_widths", "say_what_validation_shows", "scaled_widths", "search",
    "wider", "with_same_widths",
]


FIRST_NUMBER = 1000
"""Replicates of candidates are numbered from here, those of a variant from 0: whatever helped to
choose the widths is none of the networks that are judged."""
WIDER = 1.5
"""So many times wider is what is tried where widths fail."""

FactoryOfWidths = Callable[[Recipe, tuple[int, ...]], NetworkFactory]
"""What trains networks of the given widths on the recipe's data."""


@dataclass(frozen=True)
class SearchSetup:
    """How a search trains networks of other widths, and what it compares them with.

    Attributes:
        recipe: what is trained on what.
        make: gives the factory of networks of some widths.
        cost: FLOPs of a forward, by widths.
        baseline: gives the scores of the original's networks on the validation part, shape
            (networks, examples).
        allowance: what search and seeds may take together.
        multiples: what each width is a multiple of above 64 units; any, if None.
    """

    recipe: Recipe
    make: FactoryOfWidths
    cost: Callable[[tuple[int, ...]], float]
    baseline: Callable[[], np.ndarray]
    allowance: Allowance = field(default_factory=Allowance)
    multiples: Sequence[int] | None = None


def search(
    settings: Settings, setup: SearchSetup, units: Sequence[int], suggestion: Sequence[int], *,
    widen: bool = False,
) -> SearchResult:
    """The cheapest widths whose networks hold on validation data, of those below ``units``.

    One network a width is trained where there will be no recipe verdict.

    Args:
        settings: of the step.
        setup: how networks are trained.
        units: the original's widths.
        suggestion: where to begin.
        widen: only widths from the suggestion up are tried, each time half as wide again.
    """
    recipes = settings.first_seeds >= FEWEST_SEEDS
    most = MOST_SEEDS if recipes else 1
    split = setup.recipe.split
    final = FinalVerdict(settings.most_seeds, len(split.test))
    baseline = setup.baseline()
    seconds = _most_seconds(settings, setup.allowance)
    began, widths_at_most = allowances.clock(), settings.search_runs - 1
    name = settings.score or score_name(split.task)
    with Bar(total=widths_at_most, desc="searching widths", unit="width", at_most=seconds) as bar:
        makers: dict[tuple[int, ...], NetworkFactory] = {}

        def tried(trial: Trial) -> None:
            bar.update()
            taken = allowances.clock() - began
            each = taken / bar.n if bar.n else 0.0
            ahead = min(each * (widths_at_most - bar.n), (seconds or math.inf) - taken)
            say(f"widths {widths_name(trial.widths)}: {trial.outcome}, {name} "
                f"{trial.score:.4f} ({trial.delta:+.4f}; networks: {trial.seeds}); "
                f"{bar.n} of at most {widths_at_most}, the search may go on for "
                f"{duration(max(0.0, ahead))}")

        def score(widths: tuple[int, ...], number: int) -> np.ndarray:
            if widths not in makers:
                makers[widths] = setup.make(setup.recipe, widths)
            bar.set_postfix(widths=widths_name(widths), network=number + 1)
            start = allowances.clock()
            found = train_replicate(setup.recipe, makers[widths], FIRST_NUMBER + number)
            setup.allowance.timed(allowances.clock() - start)
            return found.validation_scores

        result = search_widths(
            score, units, suggestion, baseline=baseline if recipes else baseline[:1],
            margin=settings.margin, confidence=settings.confidence, final=final, most_seeds=most,
            runs=settings.search_runs, seconds=seconds, cost=setup.cost,
            widen=WIDER if widen else None, multiples=setup.multiples, tried=tried,
            clock=allowances.clock)
    if setup.allowance.limited and result.stopped == "budget" and result.looks < widths_at_most:
        result = replace(result, note=f"{result.note} (a longer --limit tries more)")
    if result.stopped == "interrupted":
        say(f"interrupted: going on with the best so far, {comma_separated(result.widths)}; once "
            f"more ends it")
    return result


def _most_seconds(settings: Settings, allowance: Allowance) -> float | None:
    """What the search may take: its share of an allowance, else the time of ``limit``."""
    if allowance.limited:
        return max(SEARCH * allowance.left, 1e-9)
    return settings.search_seconds or (HOUR_S if settings.until_settled else None)


SEARCH_FROM = "rank"
"""The method whose widths a search tries first."""


class NoNarrowerError(ValueError):
    """No width below the network's own was found; ``goal`` is what the method found instead."""

    def __init__(self, message: str, goal: TargetWidths | None = None) -> None:
        super().__init__(message)
        self.goal = goal


def logged_widths(store: Store, run_id: str) -> TargetWidths | None:
    """The widths that a slim variant's run keeps; None of one that has none."""
    with contextlib.suppress(MlflowException, OSError), tempfile.TemporaryDirectory() as folder:
        path = store.client.download_artifacts(run_id, ArtifactPath.WIDTHS, folder)
        return TargetWidths.from_json(Path(path).read_text(encoding="utf-8"))
    return None


def dimensions_of(
    variant: ModelVariant, how: str, what: WhatToCut | None = None
) -> tuple[WidthParameter, ...]:
    """The widths that can be chosen: the factory's, or the groups of units that can be cut.

    Args:
        variant: the network.
        how: ``rebuild`` or ``prune``.
        what: which units may be cut; the default, if None.

    Raises:
        ValueError: one line; the factory takes no widths or ignores them, or nothing can be cut.
        NoNarrowerError: nothing can be cut any more.
    """
    hidden = variant.settings.hidden
    if how == "rebuild":
        if not hidden:
            raise ValueError(f"how: rebuild expected a factory of widths, but "
                             f"{variant.settings.model} takes none; cut the trained network: "
                             f"--how prune")
        layers = check_widths(variant.recipe.build, hidden, None)
        return tuple(WidthParameter(names[0] if names else f"width {number}", units, names)
                     for number, (units, names) in enumerate(zip(hidden, layers, strict=True), 1))
    what = what or WhatToCut()
    structure = unit_groups(variant.model, variant.recipe.example(variant.model), what.kinds)
    if not structure.groups:
        reasons = "; ".join(f"{names}: {why}" for names, why
                            in group_by_reason(structure.not_prunable))
        if variant.trained.structure is not None:
            raise NoNarrowerError(f"Nothing is left to cut: {reasons}.")
        raise ValueError(f"how: prune found nothing to cut in {variant.settings.model}"
                         f"{': ' if reasons else ''}{reasons}")
    return tuple(WidthParameter(group.name, group.units, group.layers,
                                multiple_of=what.multiple_for(group.kind), kind=group.kind)
                 for group in structure.groups)


def with_same_widths(groups: Sequence[WidthParameter]) -> tuple[WidthParameter, ...]:
    """Groups that are alike as one width: names equal but for numbers, units and kind the same.

    >>> names = "h.0.up", "h.1.up", "head"
    >>> [(each.name, each.groups) for each in with_same_widths(
    ...     [WidthParameter(name, 8, (name,)) for name in names])]
    [('h.*.up', ('h.0.up', 'h.1.up')), ('head', ())]
    """
    return tuple(
        groups[places[0]] if len(places) == 1 else replace(
            groups[places[0]], name=_shared_name([groups[place].name for place in places]),
            layers=tuple(layer for place in places for layer in groups[place].layers),
            groups=tuple(groups[place].name for place in places))
        for places in alike((group.name, (group.units, group.kind)) for group in groups))


def _shared_name(names: Sequence[str]) -> str:
    """Of names that are equal but for numbers: the numbers that differ are stars."""
    parts = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(same[0] if len(set(same)) == 1 else "*" for same in parts)


def choose_widths(
    settings: Settings,
    parent: ModelVariant,
    dimensions: tuple[WidthParameter, ...],
    setup: SearchSetup,
    usage: ModelUsage | None = None,
) -> TargetWidths:
    """The widths of the slim network: those given, or the method's.

    Args:
        settings: of the step.
        parent: the network to be slimmed.
        dimensions: of it.
        setup: how a search trains networks of other widths.
        usage: of the parent, for the method ``effective``; measured here, if None.

    Raises:
        NoNarrowerError: the method found no width below the parent's.
        ValueError: one line; the widths given do not fit, or a method fails.
    """
    units = tuple(dimension.units for dimension in dimensions)
    if settings.slim_widths is not None:
        return TargetWidths(dimensions, _given(settings, parent, dimensions), "given")
    if max(units) == 1:
        raise NoNarrowerError("The network has one unit in every layer; no width is below that.")
    method, recommendation, searched = chosen_method(settings), None, None
    if method == "effective":
        usage = usage or _usage_of(settings, parent)
        widths = effective_widths(usage, units, [dimension.layers for dimension in dimensions])
        curves = (effective_width(usage, dimension.layers) for dimension in dimensions)
        recommendation = WidthRecommendation(
            method, settings.margin, tuple(filter(None, curves)), None, {})
    else:
        recommendation = _recommended(settings, parent,
                                      SEARCH_FROM if method == "search" else method)
        widths = scaled_widths(dimensions, [
            ({layer.layer, *layer.layers}, layer.width / layer.units)
            for layer in recommendation.layers])
    widths = rounded(dimensions, widths)
    if method == "search" or _is_a_start(method, settings, widths, units):
        searched = search(settings, setup, units, widths, widen=method != "search")
        if searched.widths == units and _shows_nothing(setup.recipe.split, settings):
            searched = _best_unshown(searched)
        widths = searched.widths
    goal = TargetWidths(dimensions, tuple(widths), method, recommendation, searched)
    if widths == units:
        raise NoNarrowerError(
            f"The method {method} finds no width below those that the network has "
            f"({','.join(map(str, units))}){_note(goal)}. Another method may, "
            f"or name the widths (--slim-hidden).", goal)
    return goal


def rounded(dimensions: Sequence[WidthParameter], widths: Sequence[int]) -> tuple[int, ...]:
    """The widths that a method found, as they may be chosen."""
    return tuple(dimension.rounded(width)
                 for dimension, width in zip(dimensions, widths, strict=True))


def _shows_nothing(split: DataSplit, settings: Settings) -> bool:
    """Whether the validation part is too small to show even that equal networks are as good."""
    return split.task in ("binary", "multiclass") and settings.margin > 0 and too_few_examples(
        len(split.validation), settings.margin, settings.confidence) is not None


def say_what_validation_shows(split: DataSplit, settings: Settings) -> None:
    """Say in a line, before anything is trained, where the search will see too little."""
    if chosen_method(settings) in ("search", SEARCH_FROM) and _shows_nothing(split, settings):
        print(f"wua: note: validation data: {len(split.validation):,} examples can show nothing at "
              f"a margin of {settings.margin:g}: where no narrower network holds there, the best "
              f"that was tried is taken, and judged on the test data", file=sys.stderr)


def _best_unshown(searched: SearchResult) -> SearchResult:
    """The cheapest widths that were tried and are no worse on validation data, else the nearest.

    Of those that are not shown to be worse than the margin there. What they are worth is for the
    test part to say.
    """
    tried = [trial for trial in searched.trials if trial.outcome != "original"
             and trial.high > -searched.margin]
    if not tried:
        return searched
    level = [trial for trial in tried if trial.delta >= 0]
    best = min(level, key=lambda trial: trial.cost) if level else \
        max(tried, key=lambda trial: trial.delta)
    return replace(searched, widths=best.widths, note="the validation part can show nothing at "
                   "this margin: of what was tried the best there was taken")


def chosen_method(settings: Settings) -> str:
    """The method of the settings; for ``auto`` a search, the best one by ``benchmarks/search.py``.

    A search does not call the user's trainer unasked, and finds nothing at a margin of 0; else it
    is ``rank``. ``given``, where the widths are.
    """
    if settings.width_method != "auto":
        return settings.width_method
    return "search" if settings.train is None and settings.margin > 0 else SEARCH_FROM


def _is_a_start(
    method: str, settings: Settings, widths: Sequence[int], units: Sequence[int]
) -> bool:
    """Whether networks of the suggestion are trained, and of wider ones until they hold.

    So it is with ``rank``, where there will be a recipe verdict.
    """
    return method == SEARCH_FROM and settings.margin > 0 and tuple(widths) != tuple(units) \
        and settings.first_seeds >= FEWEST_SEEDS


def wider(
    widths: Sequence[int], dimensions: Sequence[WidthParameter],
    searched: SearchResult | None = None,
) -> tuple[int, ...]:
    """The next widths to try where these fail: half as wide again, or the next that held.

    >>> wider((4, 1), [WidthParameter("a", 64, ()), WidthParameter("b", 32, ())])
    (6, 2)
    """
    next_widths = rounded(dimensions, [min(each.units, math.ceil(WIDER * width))
                                       for width, each in zip(widths, dimensions, strict=True)])
    held = [trial.widths for trial in searched.trials if trial.holds
            and trial.widths != tuple(widths) and all(map(le, widths, trial.widths))
            and all(map(le, trial.widths, next_widths))] if searched else []
    return min(held, key=sum, default=next_widths)


def _note(goal: TargetWidths) -> str:
    """The search's note, or why a method has nothing on some layers."""
    if goal.searched:
        return f": {goal.searched.note}" if goal.searched.note else ""
    skipped = goal.recommendation.skipped if goal.recommendation else {}
    return "".join(f"; {names}: {why}" for names, why in group_by_reason(skipped) if why != OUTPUTS)


def _given(
    settings: Settings, parent: ModelVariant, dimensions: Sequence[WidthParameter]
) -> tuple[int, ...]:
    """The widths given: one a dimension; or, of a network that is cut, one a factory's width."""
    slim = settings.slim_widths
    assert slim is not None, "asked before"
    hidden = parent.settings.hidden
    if settings.how != "prune" or not len(hidden) == len(slim) != len(dimensions):
        check_slim_widths([dimension.units for dimension in dimensions], slim)
        return slim
    check_slim_widths(hidden, slim)
    return scaled_widths(dimensions, [
        (width.layers, units / width.units)
        for width, units in zip(dimensions_of(parent, "rebuild"), slim, strict=True)])


def scaled_widths(
    dimensions: Sequence[WidthParameter], shares: Sequence[tuple[Collection[str], float]]
) -> tuple[int, ...]:
    """By dimension the largest share of any of its layers, times its units, rounded up.

    Args:
        dimensions: all units stay of one whose layers have no share.
        shares: names of layers, and the share of their units that stays.
    """
    def width(dimension: WidthParameter) -> int:
        share = max((share for layers, share in shares if set(layers) & set(dimension.layers)),
                    default=1.0)
        return max(1, math.ceil(share * dimension.units - 1e-9))

    return tuple(map(width, dimensions))


def _recommended(settings: Settings, parent: ModelVariant, method: str) -> WidthRecommendation:
    split, model = parent.recipe.split, parent.model
    fit = split.train.sample(model) if method in ("rank", "projection") else None
    objective = parent.recipe.objective(parent.kind)
    plain = settings.score and split.task in PLAIN
    return recommend_widths(
        model, split.validation.sample(model), method=method, margin=settings.margin,
        what=settings.what_to_cut if settings.how == "prune" else None, fit_data=fit,
        loss=objective.loss, task=split.task, seed=settings.seed,
        score=partial(parent.recipe.example_scores, kind=parent.kind) if plain
        else settings.score)


def _usage_of(settings: Settings, variant: ModelVariant) -> ModelUsage:
    """The usage by the first criterion alone, for the method ``effective``: nothing is logged."""
    settings = settings.model_copy(update={"criterion": first_criterion(settings)})
    split, device = variant.recipe.split, variant.recipe.device
    loss = loss_of(settings, variant.model, split, device, kind=variant.kind)
    batches = training_batches(split, variant.model, passes=1, label="widths")
    criterion, = criteria_of(settings)
    return analyze(variant.model, batches, criterion=criterion, seed=settings.seed, loss=loss)
