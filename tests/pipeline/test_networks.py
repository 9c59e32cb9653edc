"""Makers: networks from scratch, and networks cut from a parent's and fine-tuned."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.pipeline.slimming_cases import recipe_of, same, weights_of
from wua_mlflow.pipeline import networks
from wua_mlflow.pipeline.networks import PruningPlan, cached, from_scratch, pruned_and_tuned
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import Trained, train_made
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.training.fit import TrainingDiverged


def pruned_by_hand(model: nn.Module, recipe: Recipe, count: int, *, fold: bool = False):
    """A network of one hidden layer with its most important units alone, and which these are."""
    train = recipe.split.train
    structure = unit_groups(model, train.inputs[:4])
    importance = unit_importance(model, structure, (train.inputs, train.targets),
                                 functional.cross_entropy, criterion="spanning")
    keep = {"fc1": most_important(importance["fc1"], count)}
    if fold:
        model = compensated(model, structure, keep, train.inputs)
    return cut(model, train.inputs[:4], keep).model, keep["fc1"]


@pytest.mark.parametrize("fold", [False, True])
def test_what_is_cut_are_the_parents_least_important_units(fold):
    """With no step of fine-tuning that counts: the weights are those of the parent, cut."""
    recipe = recipe_of(lr=1e-30, optimizer="sgd")
    parent = from_scratch(recipe_of(), (8,), 3)
    trained = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 5}, 1, fold=fold))(0, 42)
    original = parent(0, 42).model
    expected, keep = pruned_by_hand(original, recipe, 5, fold=fold)
    assert same(trained, expected)
    assert same(trained, pruned_by_hand(original, recipe, 5)[0]) is not fold
    assert trained.structure.rounds == ({"fc1": tuple(keep)},)
    assert keep != list(range(5)), "or the first ones would do"


@pytest.mark.parametrize("seed", [42, 43, 44])
def test_of_both_ways_the_better_one_on_validation_data(seed, monkeypatch):
    monkeypatch.setattr(networks, "train_made", lambda *args, **options: replace(
        train_made(*args, **options), seconds=1.5))
    recipe = recipe_of(optimizer="sgd")
    parent = from_scratch(recipe, (8,), 3)
    both, dropped, fitted = (
        pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 2}, 2, fold=fold))(0, seed)
        for fold in (None, False, True))
    scores = [recipe.evaluate(each.model, recipe.split.validation, each.kind).scores
              for each in (dropped, fitted)]
    error = np.std(scores[1] - scores[0], ddof=1) / np.sqrt(len(scores[0]))
    expected = fitted if np.mean(scores[1]) - np.mean(scores[0]) > error else dropped
    assert (dropped.folded, fitted.folded, both.folded) == (False, True, expected.folded)
    assert same(both, expected) and not same(dropped, fitted)
    assert both.structure == dropped.structure
    assert (both.tries, dropped.tries) == (2, 1)
    assert (both.seconds, dropped.seconds, fitted.seconds) == (3.0, 1.5, 1.5)


@pytest.mark.parametrize("fails", [1, 2])
def test_where_one_way_fails_the_other_is_taken(fails, monkeypatch):
    failing, calls = {fails}, []
    original = from_scratch(recipe_of(), (8,), 2)(0, 42)

    def train(*args, **options):
        calls.append(args)
        if len(calls) in failing:
            raise TrainingDiverged("diverged")
        return train_made(*args, **options)

    monkeypatch.setattr(networks, "train_made", train)
    trained = cut_to_two(original, fold=None)
    assert (trained.folded, trained.tries, len(calls)) == (fails == 1, 1, 2)
    failing |= {3, 4}
    with pytest.raises(TrainingDiverged, match="^diverged$"):
        cut_to_two(original, fold=None)


def cut_to_two(original: Trained, *, fold: bool | None) -> Trained:
    return pruned_and_tuned(recipe_of(), lambda *_: original, lambda *_: original,
                            PruningPlan({"fc1": 2}, 1, fold=fold))(0, 42)


def test_a_fit_that_fails_or_changes_nothing_leaves_the_other_way(monkeypatch):
    def singular(*_):
        raise torch.linalg.LinAlgError("singular")

    original = from_scratch(recipe_of(), (8,), 2)(0, 42)
    monkeypatch.setattr(networks, "compensated", singular)
    trained = cut_to_two(original, fold=None)
    assert (trained.folded, trained.tries) == (False, 1)
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        cut_to_two(original, fold=True)
    monkeypatch.setattr(networks, "compensated", lambda model, *_: copy.deepcopy(model))
    trained = cut_to_two(original, fold=None)
    assert (trained.folded, trained.tries) == (False, 1)


def test_each_replicate_is_cut_from_its_own_parent():
    recipe = recipe_of(lr=1e-30, optimizer="sgd")
    parent, calls = from_scratch(recipe_of(), (8,), 2), []
    make = pruned_and_tuned(recipe, lambda *args: calls.append(args) or parent(*args), parent,
                            PruningPlan({"fc1": 3}, 1))
    for number, seed in ((0, 42), (3, 45)):
        assert same(make(number, seed), pruned_by_hand(parent(number, seed).model, recipe, 3)[0])
    assert calls == [(0, 42), (3, 45)]


def test_where_a_cut_is_not_verified_that_is_said(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(networks, "say", said.append)
    monkeypatch.setattr(networks, "cut", lambda *args: replace(
        cut(*args), unverified=("a batch of 1", "a batch of 5")))
    parent = from_scratch(recipe_of(), (8,), 2)
    pruned_and_tuned(recipe_of(), parent, parent, PruningPlan({"fc1": 3}, 1))(0, 42)
    assert said == ["the cut is not verified on a batch of 1, a batch of 5: the original itself "
                    "does not take them"]


def test_a_second_cut_is_told_after_the_first():
    """The specification of both makes the module again, whose weights then give the answers."""
    recipe = recipe_of()
    root = from_scratch(recipe, (8,), 2)
    once = pruned_and_tuned(recipe, root, root, PruningPlan({"fc1": 6}, 1))
    twice = pruned_and_tuned(recipe, once, root, PruningPlan({"fc1": 2}, 1))(0, 42)
    assert [len(units["fc1"]) for units in twice.structure.rounds] == [6, 2]
    again = rebuild(recipe.build((8,)), recipe.split.train.inputs[:2], twice.structure)
    again.load_state_dict(weights_of(twice))
    inputs = recipe.split.test.inputs
    assert torch.equal(again.eval()(inputs), twice.model(inputs))
    assert again[0].weight.shape == (2, 6)  # type: ignore[index]


def test_where_nothing_is_cut_the_parent_is_trained_on():
    """With its random stream; the search's first candidate, at the same budget of fine-tuning."""
    recipe = recipe_of()
    parent = from_scratch(recipe, (8,), 2)
    trained = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 8}, 2))(0, 42)
    start = parent(0, 42)
    expected = train_made(recipe, lambda: copy.deepcopy(start.model), 2, seed=42,
                          stream=start.stream)
    assert same(trained, expected)
    assert torch.equal(trained.stream["cpu"], expected.stream["cpu"])
    assert not same(trained, start)
    assert trained.structure is None


def test_a_distillation_aims_at_the_originals_outputs_too():
    """The first step, worked out: half the cross entropy, half 4·KL of probabilities at 2."""
    recipe = recipe_of(optimizer="sgd", lr=0.5, batch_size="full")
    parent, root = from_scratch(recipe_of(), (8,), 3), from_scratch(recipe_of(), (5,), 3)
    plan = PruningPlan({"fc1": 4}, 1, distill=True)
    trained = pruned_and_tuned(recipe, parent, root, plan)(0, 42)
    student = pruned_by_hand(parent(0, 42).model, recipe, 4)[0]
    x, y = recipe.split.train.inputs, recipe.split.train.targets
    teacher = root(0, 42).model(x).detach()
    outputs = student(x)
    taught = (teacher / 2).softmax(1)
    distance = (taught * (taught.log() - (outputs / 2).log_softmax(1))).sum(1).mean()
    loss = 0.5 * functional.cross_entropy(outputs, y) + 0.5 * 4 * distance
    assert trained.records[0].train_loss == pytest.approx(loss.item(), abs=1e-6)
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    for after, before, gradient in zip(
            trained.model.parameters(), student.parameters(), gradients, strict=True):
        assert torch.allclose(after, before - 0.5 * gradient, atol=1e-5)


def test_networks_are_made_once_within_a_limit_of_memory(monkeypatch):
    """A network of 6-8-3 has 83 weights: the limit is two of them. What is there stays."""
    calls: list[int] = []
    there = from_scratch(recipe_of(), (8,), 1)(0, 42)

    def counted(number, seed, label=None):
        calls.append(number)
        return replace(there)

    monkeypatch.setattr(networks, "MOST_WEIGHTS", 2 * 83)
    make = cached(counted)
    first, second = make(0, 42), make(1, 43)
    assert (make(0, 42) is first, make(1, 43) is second, calls) == (True, True, [0, 1])
    assert make(2, 44) is not make(2, 44)
    assert (make(0, 42) is first, calls) == (True, [0, 1, 2, 2])
    monkeypatch.setattr(networks, "MOST_WEIGHTS", 10)
    make = cached(counted, first=there)
    assert make(0, 42) is there
    make(1, 43)
    assert calls == [0, 1, 2, 2, 1]


def test_from_scratch_takes_the_replicates_stream():
    recipe = recipe_of()
    streams = [from_scratch(recipe, (8,), 1)(number, 42 + number).stream for number in (0, 1)]
    seeded, first, again, other = (from_scratch(recipe, (4,), 1, each)(1, 43)
                                   for each in (None, *(
                                       lambda number, seed, those=those: those[number]
                                       for those in (streams, streams, streams[::-1]))))
    assert [same(first, each) for each in (again, seeded, other)] == [True, False, False]
