"""What a round of slimming works with: the network to slim, and how those of other widths are made.

May import: everything but cli. Tests: ``tests/pipeline/test_slimming.py``,
``tests/pipeline/test_rounds.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial

from wua_mlflow.config import Settings
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.making import Cutting, Maker, pruned, scratch
from wua_mlflow.pipeline.models import check_widths
from wua_mlflow.pipeline.planning import Dimension, Goal, dimensions_of
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.searching import Retraining
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.randomness import isolated
from wua_mlflow.slimming import cut

__all__ = ["Bench"]

PARENTS = ("data", "target", "task", "model", "state", "hidden", "seed", "seeds")
"""The settings that are the parent's own: its data, what builds it, its replicates."""


@dataclass(frozen=True)
class Bench:
    """The original, the network to slim, and what is asked for.

    Attributes:
        settings: what is asked for.
        original: what every verdict is against.
        parent: the network to slim: the original, or the slim one of the round before.
        make: makes the parent's replicates.
        root: makes the original's.
    """

    settings: Settings
    original: Variant
    parent: Variant
    make: Maker
    root: Maker

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What can be chosen in the parent."""
        return dimensions_of(self.parent, self.settings.how)

    @cached_property
    def recipe(self) -> Recipe:
        """The parent's, with what is asked of the slim network: how it is trained and judged."""
        own = self.settings.model_copy(update={
            name: getattr(self.parent.settings, name) for name in PARENTS})
        return replace(self.parent.recipe, settings=own)

    @property
    def retraining(self) -> Retraining:
        """For a search."""
        return Retraining(self.recipe, partial(self.maker, fold=self.settings.fold is True),
                          self.cost, anew=self.settings.how == "rebuild")

    def maker(
        self, recipe: Recipe, widths: tuple[int, ...], *, fold: bool | None = None
    ) -> Maker:
        """What trains networks of these widths on the recipe's data; ``fold``: as set, if None."""
        epochs = self.epochs(recipe, widths)
        if self.settings.how == "rebuild":
            return scratch(recipe, widths, epochs)
        keep = {one.name: width for one, width in zip(self.dimensions, widths, strict=True)}
        return pruned(recipe, self.make, self.root,
                      Cutting(keep, epochs, distill=self.settings.distill,
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

    def units(self, goal: Goal) -> dict[str, int]:
        """By dimension of the original how many units stay, also of those with one unit left."""
        cuts = self.parent.trained.structure
        left = {one.name: one.units for one in dimensions_of(self.original, self.settings.how)}
        for kept in cuts.rounds if cuts else ():
            left.update({name: len(units) for name, units in kept.items()})
        return {**left, **goal.keep}

    def factory_widths(self, goal: Goal) -> tuple[int, ...]:
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
