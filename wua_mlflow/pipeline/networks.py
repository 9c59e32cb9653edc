"""How a variant's networks are made: trained from scratch, or cut from a parent's and fine-tuned.

A network factory trains the network of one replicate of the recipe; number 0 is the variant itself.
Tests: ``tests/pipeline/test_networks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from wua_mlflow.hooks import unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import Trained, train_made, train_one
from wua_mlflow.progress import say
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups
from wua_mlflow.rng import Stream, seeded_stream
from wua_mlflow.what_to_cut import WhatToCut

__all__ = [
    "NetworkFactory", "PruningPlan", "cached", "from_scratch", "one_network", "pruned_and_tuned",
]


MOST_WEIGHTS = 2**26
"""The networks of replicates are kept for a later cut while they have fewer weights together."""


class NetworkFactory(Protocol):
    """Trains the network of replicate ``number``, with ``seed``."""

    def __call__(self, number: int, seed: int, label: str | None = None) -> Trained: ...


@dataclass(frozen=True)
class PruningPlan:
    """What is cut from every replicate, and how it is fine-tuned.

    Attributes:
        keep: by group of units how many stay; the most important ones.
        epochs: of fine-tuning.
        importance: the criterion of a unit's importance.
        fold: whether the next layer's weights compensate for the removed units by least squares;
            None for both ways, of which the one without compensation stays unless the other is
            ahead on validation data by more than a standard error.
        distill: whether fine-tuning also aims at the original's outputs.
        kinds: of units that may be cut.
    """

    keep: Mapping[str, int]
    epochs: int
    importance: str = "spanning"
    fold: bool | None = False
    distill: bool = False
    kinds: tuple[str, ...] = WhatToCut().kinds

    @property
    def ways(self) -> tuple[bool, ...]:
        """The values of ``fold`` to try."""
        return (False, True) if self.fold is None else (self.fold,)


def from_scratch(
    recipe: Recipe, widths: Sequence[int], epochs: int,
    stream_of: Callable[[int, int], Stream] | None = None,
) -> NetworkFactory:
    """Networks trained from scratch, each from its own seed or from a saved random stream.

    Args:
        recipe: what is trained on what.
        widths: of the networks.
        epochs: of training.
        stream_of: of a replicate's number and seed the state of the random stream to begin with;
            seeded, if None.
    """
    def make(number: int, seed: int, label: str | None = None) -> Trained:
        return train_one(recipe, widths, epochs, seed=seed, label=label,
                         stream=stream_of and stream_of(number, seed))

    return make


def pruned_and_tuned(
    recipe: Recipe, parent: NetworkFactory, root: NetworkFactory, plan: PruningPlan
) -> NetworkFactory:
    """The parent's network of the same replicate, cut, then fine-tuned from its random stream.

    Where all units stay, the network is trained on as it is: a search compares with that.

    Args:
        recipe: what it is trained on.
        parent: makes the networks to cut.
        root: makes the oversized networks, the teachers of a distillation.
        plan: what is cut.
    """
    def make(number: int, seed: int, label: str | None = None) -> Trained:
        source = parent(number, seed)
        source = replace(source, model=plain_weights(unwrapped(source.model)))
        teacher = root(number, seed).model if plan.distill else None
        structure = unit_groups(source.model, recipe.example(source.model), plan.kinds)
        keep = _units_to_keep(recipe, source, structure, plan)
        candidates: list[Trained] = []
        errors: list[Exception] = []
        for fold in plan.ways if keep else plan.ways[:1]:
            try:
                start = _pruned(recipe, source, structure, keep, plan, fold=fold)
                if start is None:
                    continue
                trained = train_made(
                    recipe, partial(copied, start.model), plan.epochs, seed=seed,
                    stream=source.stream, label=label, teacher=teacher,
                    widths=tuple(plan.keep[group.name] for group in structure.groups
                                 if group.name in plan.keep))
                candidates.append(replace(trained, structure=start.structure, uncut=start.uncut,
                                          folded=start.folded))
            except (  # the other way may work
                ValueError, torch.linalg.LinAlgError,  # type: ignore[attr-defined]
            ) as error:
                errors.append(error)
        if not candidates:
            raise errors[0]
        first, last = candidates[0], candidates[-1]
        best = last if last is not first and _is_better(recipe, last, first) else first
        return replace(best, seconds=sum(each.seconds for each in candidates),
                       tries=len(candidates))

    return make


def _is_better(recipe: Recipe, candidate: Trained, other: Trained) -> bool:
    """Whether a network is ahead on validation data by more than a standard error.

    The rule of one standard error: of two that the data hardly tell apart, take the plainer one
    (Breiman et al. 1984, Classification and Regression Trees, section 3.4.3).
    """
    scores, other_scores = (
        recipe.evaluate(each.model, recipe.split.validation, each.kind).scores
        for each in (candidate, other))
    ahead = scores - other_scores
    return bool(ahead.mean() > ahead.std(ddof=1) / len(ahead) ** 0.5) if len(ahead) > 1 else False


def one_network(trained: Trained, device: torch.device) -> NetworkFactory:
    """A network that was trained elsewhere: the same for every replicate, which goes on by itself.

    Number 0 goes on from the network's own random stream, every other one from its seed's.
    """
    def make(number: int, seed: int, label: str | None = None) -> Trained:
        return replace(trained, stream=seeded_stream(seed, device)) if number else trained

    return make


def cached(factory: NetworkFactory, *, first: Trained | None = None) -> NetworkFactory:
    """The same factory, which keeps its networks for the next time, within a limit of memory.

    Args:
        factory: trains the networks.
        first: the network of replicate 0, if there is one already; it is not made again.
    """
    networks: dict[int, Trained] = {}

    def make(number: int, seed: int, label: str | None = None) -> Trained:
        if number == 0 and first is not None:
            return first
        if number in networks:
            return networks[number]
        network = factory(number, seed, label)
        weights = sum(weight.numel() for each in (*networks.values(), network)
                      for weight in each.model.parameters())
        if weights <= MOST_WEIGHTS:
            networks[number] = network
        return network

    return make


def _units_to_keep(
    recipe: Recipe, source: Trained, structure: UnitGroups, plan: PruningPlan
) -> dict[str, list[int]]:
    """By group the most important units on the training data; nothing where all units stay."""
    if all(count >= structure.group(name).units for name, count in plan.keep.items()):
        return {}
    importance = unit_importance(
        source.model, structure, recipe.split.train.sample(source.model),
        recipe.objective(source.kind).loss, criterion=plan.importance)
    return {name: most_important(importance[name], count) for name, count in plan.keep.items()}


def _pruned(
    recipe: Recipe, source: Trained, structure: UnitGroups, keep: Mapping[str, list[int]],
    plan: PruningPlan, *, fold: bool,
) -> Trained | None:
    """The network that fine-tuning begins with; None where compensation would change nothing."""
    if not keep:
        return replace(source, uncut=structure.not_prunable)
    model = source.model
    if fold:
        model = compensated(model, structure, keep, recipe.split.train.sample(model))
        unchanged = all(map(torch.equal, model.parameters(), source.model.parameters()))
        if unchanged and plan.fold is None:
            return None
    pruned = cut(model, recipe.example(model), keep, structure)
    for caveat in pruned.caveats:
        say(f"the cut is {caveat}")
    history = pruned.specification if source.structure is None else \
        source.structure.then(pruned.specification)
    return replace(source, model=pruned.model, structure=history, uncut=pruned.fixed, folded=fold)
