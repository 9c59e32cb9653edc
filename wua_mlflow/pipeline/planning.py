"""How narrow the slim network is to be: the widths given, or those that a method finds.

A dimension is what one number sets: an entry of the factory's widths where the network is rebuilt,
a group of units where it is cut.
May import: everything but cli. Tests: ``tests/pipeline/test_planning.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wua_mlflow.config import Settings
from wua_mlflow.dotted import by_reason
from wua_mlflow.evaluation import loss_for
from wua_mlflow.pipeline.measuring import first_criterion, loss_of, measured
from wua_mlflow.pipeline.models import check_slim_widths, check_widths
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.searching import Retraining, search
from wua_mlflow.pipeline.streaming import part_feed
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.provable import too_small
from wua_mlflow.slimming import unit_groups
from wua_mlflow.slimming.grouping import OUTPUTS
from wua_mlflow.usage import ModelUsage
from wua_mlflow.widths import WidthRecommendation, effective_widths, recommend_widths
from wua_mlflow.widths.effective import effective_width
from wua_mlflow.widths.searched import SearchResult

__all__ = ["Dimension", "Goal", "NoNarrowerError", "dimensions_of", "goal_of"]

SEARCH_FROM = "rank"
"""The method whose widths the search sets out for."""


class NoNarrowerError(ValueError):
    """The method found nothing below the widths that the network has; ``goal``: what it saw."""

    def __init__(self, message: str, goal: Goal | None = None) -> None:
        super().__init__(message)
        self.goal = goal


@dataclass(frozen=True)
class Dimension:
    """One number to choose: ``units`` is what it is now, ``layers`` those that have these units."""

    name: str
    units: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Goal:
    """The widths of the slim network, by dimension, and what they were read from.

    ``recommendation`` is None where the widths were given; ``searched`` is what a search tried.
    """

    dimensions: tuple[Dimension, ...]
    widths: tuple[int, ...]
    method: str
    recommendation: WidthRecommendation | None = None
    searched: SearchResult | None = None

    @property
    def keep(self) -> dict[str, int]:
        """The widths by the dimension's name."""
        return {one.name: width for one, width in zip(self.dimensions, self.widths, strict=True)}

    def to_json(self) -> str:
        """All of it, for an artifact."""
        return json.dumps({
            "method": self.method,
            "widths": [{"name": one.name, "layers": one.layers, "units": one.units, "width": width}
                       for one, width in zip(self.dimensions, self.widths, strict=True)],
            "recommendation": self.recommendation and json.loads(self.recommendation.to_json()),
            "search": self.searched and json.loads(self.searched.to_json()),
        }, indent=1)


def dimensions_of(variant: Variant, how: str) -> tuple[Dimension, ...]:
    """What can be chosen in the variant's network.

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
        layers = check_widths(variant.recipe.build, hidden, "auto")
        return tuple(Dimension(names[0] if names else f"width {number}", units, names)
                     for number, (units, names) in enumerate(zip(hidden, layers, strict=True), 1))
    structure = unit_groups(variant.model, _example(variant))
    if not structure.groups:
        reasons = "; ".join(f"{names}: {why}" for names, why in by_reason(structure.fixed))
        if variant.trained.structure is not None:
            raise NoNarrowerError(f"Nothing is left to cut: {reasons}.")
        raise ValueError(f"how: prune found nothing to cut in {variant.settings.model}"
                         f"{': ' if reasons else ''}{reasons}")
    return tuple(Dimension(group.name, group.units, group.layers) for group in structure.groups)


def goal_of(
    settings: Settings,
    parent: Variant,
    dimensions: tuple[Dimension, ...],
    retraining: Retraining,
    usage: ModelUsage | None = None,
) -> Goal:
    """The widths given, or the method's.

    Args:
        settings: what was asked for.
        parent: the network to be slimmed.
        dimensions: of it.
        retraining: how a search trains networks of other widths.
        usage: of the parent, for the method ``effective``; measured here, if None.

    Raises:
        NoNarrowerError: the method found no width below the parent's.
        ValueError: one line; the widths given do not fit, or a method fails.
    """
    units = tuple(one.units for one in dimensions)
    if settings.slim_hidden != "auto":
        return Goal(dimensions, _given(settings, parent, dimensions), "given")
    if max(units) == 1:
        raise NoNarrowerError("The network has one unit in every layer; no width is below that.")
    method, recommendation, searched = _method(settings, parent.recipe), None, None
    if method == "effective":
        usage = usage or _usage_of(settings, parent)
        widths = effective_widths(usage, units, [one.layers for one in dimensions])
        curves = (effective_width(usage, one.layers) for one in dimensions)
        recommendation = WidthRecommendation(
            method, settings.margin, tuple(filter(None, curves)), None, {})
    else:
        recommendation = _recommended(settings, parent,
                                      SEARCH_FROM if method == "search" else method)
        widths = _by_dimension(recommendation, dimensions)
    if method == "search":
        searched = search(settings, retraining, units, widths)
        widths = searched.widths
    goal = Goal(dimensions, tuple(widths), method, recommendation, searched)
    if widths == units:
        raise NoNarrowerError(
            f"The method {method} finds no width below those that the network has "
            f"({','.join(map(str, units))}){_note(goal)}. Another method may "
            f"(--width-method), or name the widths (--slim-hidden).", goal)
    return goal


def _method(settings: Settings, recipe: Recipe) -> str:
    """The best one (``benchmarks/knee.py``, ``cut_knee.py``).

    A search calls no trainer of the user's unasked, and needs data that can show something.
    """
    if settings.width_method != "auto":
        return settings.width_method
    split = recipe.split
    examples = len(split.validation) + (settings.how == "rebuild") * len(split.train)
    shows = split.task == "regression" or \
        too_small(examples, settings.margin, settings.confidence) is None
    return "search" if settings.train is None and shows else "rank"


def _note(goal: Goal) -> str:
    """What the search says, or why a method saw nothing of some layers."""
    if goal.searched:
        return f": {goal.searched.note}" if goal.searched.note else ""
    skipped = goal.recommendation.skipped if goal.recommendation else {}
    return "".join(f"; {names}: {why}" for names, why in by_reason(skipped) if why != OUTPUTS)


def _given(
    settings: Settings, parent: Variant, dimensions: Sequence[Dimension]
) -> tuple[int, ...]:
    """The widths given: one a dimension; or, of a network that is cut, one a factory's width."""
    slim = settings.slim_hidden
    assert slim != "auto"
    units = tuple(one.units for one in dimensions)
    hidden = parent.settings.hidden
    if settings.how == "prune" and len(hidden) == len(slim) != len(dimensions):
        check_slim_widths(hidden, slim)
        return _spread(parent, dimensions, slim)
    check_slim_widths(units, slim)
    return slim


def _spread(
    parent: Variant, dimensions: Sequence[Dimension], slim: Sequence[int]
) -> tuple[int, ...]:
    """By group the share that its entry of the factory's widths keeps."""
    hidden = parent.settings.hidden
    layers = check_widths(parent.recipe.build, hidden, "auto")

    def kept(dimension: Dimension) -> int:
        shares = [new / old for old, new, names in zip(hidden, slim, layers, strict=True)
                  if set(names) & set(dimension.layers)]
        return max(1, math.ceil(max(shares, default=1.0) * dimension.units - 1e-9))

    return tuple(map(kept, dimensions))


def _recommended(settings: Settings, parent: Variant, method: str) -> WidthRecommendation:
    split, device = parent.recipe.split, parent.recipe.device
    data = split.validation.inputs.to(device), split.validation.targets.to(device)
    fit = split.train.inputs.to(device) if method in ("rank", "projection") else None
    return recommend_widths(
        parent.model, data, method=method, margin=settings.margin, fit_data=fit,
        loss=loss_for(split.task, parent.kind), task=split.task, seed=settings.seed)


def _by_dimension(
    found: WidthRecommendation, dimensions: Sequence[Dimension]
) -> tuple[int, ...]:
    """By dimension the largest share that a group of its layers keeps; all, where there is none."""
    def width(dimension: Dimension) -> int:
        shares = [one.width / one.units for one in found.layers
                  if {one.layer, *one.layers} & set(dimension.layers)]
        return min(dimension.units, math.ceil(max(shares, default=1.0) * dimension.units - 1e-9))

    return tuple(map(width, dimensions))


def _usage_of(settings: Settings, variant: Variant) -> ModelUsage:
    """The usage by the first criterion alone, for the widths: no null, nothing logged."""
    settings = settings.model_copy(update={
        "criterion": first_criterion(settings), "null_draws": 0, "effective_rank": False})
    split, device = variant.recipe.split, variant.recipe.device
    loss = loss_of(settings, variant.model, split, device, kind=variant.kind)
    usage, = measured(variant.model, part_feed(split, device, passes=1, label="widths"), settings,
                      loss).values()
    return usage


def _example(variant: Variant) -> object:
    return variant.recipe.split.train.inputs[:4].to(variant.recipe.device)
