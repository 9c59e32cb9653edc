"""How a variant's networks are made: trained from scratch, or cut from a parent's and fine-tuned.

A maker trains the network of one replicate; number 0 is the variant itself.
May import: the leaves, slimming, the recipe. Tests: ``tests/pipeline/test_making.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import nn

from wua_mlflow.data.tasks import loss_for
from wua_mlflow.pipeline.recipe import Recipe, Trained, train_made, train_one
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups
from wua_mlflow.rng import Stream

__all__ = ["NetworkFactory", "PruningPlan", "cached", "from_scratch", "pruned_and_tuned"]


MOST_WEIGHTS = 2**26
"""Networks of replicates are kept for a later cut as long as they have fewer weights together."""


class NetworkFactory(Protocol):
    """Trains the network of replicate ``number``, with ``seed``."""

    def __call__(self, number: int, seed: int, label: str | None = None) -> Trained: ...


@dataclass(frozen=True)
class PruningPlan:
    """What is cut from every replicate, and how it is trained on.

    Attributes:
        keep: by group of units how many stay; the most important ones.
        epochs: of fine-tuning.
        importance: what makes a unit important.
        fold: whether the next layers compensate for removed units (``pruning.compensation``);
            None for both, of which the first stays unless the second is ahead on validation data
            by more than a standard error.
        distill: whether the fine-tuning aims at the original's outputs too.
    """

    keep: Mapping[str, int]
    epochs: int
    importance: str = "spanning"
    fold: bool | None = False
    distill: bool = False


def from_scratch(
    recipe: Recipe, widths: Sequence[int], epochs: int, streams: Sequence[Stream] | None = None
) -> NetworkFactory:
    """From scratch: each from its own seed, or from the stream that it goes on from."""
    def make(number: int, seed: int, label: str | None = None) -> Trained:
        return train_one(recipe, widths, epochs, seed=seed, label=label,
                         stream=None if streams is None else streams[number])

    return make


def pruned_and_tuned(
    recipe: Recipe, parent: NetworkFactory, root: NetworkFactory, cutting: PruningPlan
) -> NetworkFactory:
    """The parent's network of the same replicate, cut, then fine-tuned from its random stream.

    Where all units stay it is trained on as it is: what a search compares cut networks with.

    Args:
        recipe: what it is trained on.
        parent: makes the networks to cut.
        root: makes the oversized ones, the teachers of a distillation.
        cutting: what is cut.
    """
    def make(number: int, seed: int, label: str | None = None) -> Trained:
        source = parent(number, seed)
        teacher = root(number, seed).model if cutting.distill else None
        tried: list[Trained] = []
        failed: list[Exception] = []
        for begin in _beginnings(recipe, source, cutting):
            try:
                cut_one = begin()
                if cut_one is None:
                    continue
                trained = train_made(
                    recipe, partial(copy.deepcopy, cut_one.model), cutting.epochs, seed=seed,
                    stream=source.stream, label=label, teacher=teacher)
                tried.append(replace(trained, structure=cut_one.structure, uncut=cut_one.uncut,
                                     folded=cut_one.folded))
            except (ValueError, torch.linalg.LinAlgError) as error:  # the other way may do
                failed.append(error)
        if not tried:
            raise failed[0]
        best = tried[0]
        for other in tried[1:]:
            best = other if _is_better(recipe, other, best) else best
        return replace(best, seconds=sum(one.seconds for one in tried), tries=len(tried))

    return make


def _is_better(recipe: Recipe, one: Trained, other: Trained) -> bool:
    """Whether a network is ahead on validation data by more than a standard error.

    The rule of one standard error: of two that data hardly tell apart the plainer one (Breiman et
    al. 1984, Classification and Regression Trees, section 3.4.3).
    """
    first, second = (recipe.evaluate(each.model, recipe.split.validation, each.kind).scores
                     for each in (one, other))
    ahead = first - second
    return bool(ahead.mean() > ahead.std(ddof=1) / len(ahead) ** 0.5) if len(ahead) > 1 else False


def cached(maker: NetworkFactory, *, first: Trained | None = None) -> NetworkFactory:
    """The same maker; what it made is kept for the next time, as long as that is not much.

    Args:
        maker: trains the networks.
        first: the network of replicate 0, if there is one already; it is not made again.
    """
    kept: dict[int, Trained] = {}

    def make(number: int, seed: int, label: str | None = None) -> Trained:
        if number == 0 and first is not None:
            return first
        if number in kept:
            return kept[number]
        made = maker(number, seed, label)
        if sum(map(_weights, [*kept.values(), made])) <= MOST_WEIGHTS:
            kept[number] = made
        return made

    return make


def _weights(trained: Trained) -> int:
    return sum(one.numel() for one in trained.model.parameters())


def _example(recipe: Recipe) -> torch.Tensor:
    return recipe.split.train.inputs[:4].to(recipe.device, copy=True)


def _beginnings(
    recipe: Recipe, source: Trained, cutting: PruningPlan
) -> list[Callable[[], Trained | None]]:
    """What fine-tuning may begin with: the network cut, not folded and folded where both are asked.

    Where all units stay there is one beginning; where folding changes nothing the second is None.
    """
    structure = unit_groups(source.model, _example(recipe))
    if all(count >= structure.group(name).units for name, count in cutting.keep.items()):
        return [lambda: replace(source, uncut=structure.not_prunable)]
    keep = _kept(recipe, source, structure, cutting)

    def cut_from(model: nn.Module, *, fold: bool) -> Trained:
        made = cut(model, _example(recipe), keep, structure)
        history = made.specification if source.structure is None else \
            source.structure.then(made.specification)
        return replace(source, model=made.model, structure=history, uncut=made.fixed, folded=fold)

    def fitted() -> Trained | None:
        inputs = recipe.split.train.inputs.to(recipe.device)
        model = compensated(source.model, structure, keep, inputs)
        if cutting.fold is None and _same(model, source.model):
            return None
        return cut_from(model, fold=True)

    both: list[Callable[[], Trained | None]] = [
        partial(cut_from, source.model, fold=False), fitted]
    return both if cutting.fold is None else both[1:] if cutting.fold else both[:1]


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def _kept(
    recipe: Recipe, source: Trained, structure: UnitGroups, cutting: PruningPlan
) -> dict[str, list[int]]:
    """By group the units that stay: the most important on the training data."""
    train = recipe.split.train
    found = unit_importance(
        source.model, structure, (train.inputs.to(recipe.device), train.targets.to(recipe.device)),
        loss_for(recipe.split.task, source.kind), criterion=cutting.importance)
    return {name: most_important(found[name], count) for name, count in cutting.keep.items()}
