"""Makers: networks from scratch, and networks cut from a parent's and fine-tuned."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.pipeline.slimming_cases import recipe_of, same, weights_of
from tests.pruning.selection_cases import greedy
from wua_mlflow.pipeline import networks
from wua_mlflow.pipeline.networks import PruningPlan, cached, from_scratch, pruned_and_tuned
from wua_mlflow.pipeline.recipe import Recipe, Trained, train_made
from wua_mlflow.pruning.cut import cut, rebuild
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.training.fit import TrainingDiverged


def calls_of(
    recipe: Recipe, calls: list[int], widths: tuple[int, ...] = (8,)
) -> networks.NetworkFactory:
    """A maker that writes down whose networks it was asked for."""
    make = from_scratch(recipe, widths, 2)

    def counted(number: int, seed: int, label: str | None = None) -> Trained:
        calls.append(number)
        return make(number, seed, label)

    return counted


def two_layers(model: nn.Module) -> tuple[np.ndarray, ...]:
    """Weights and biases of an mlp of one hidden layer, as numpy."""
    state = model.state_dict()
    return tuple(state[name].numpy() for name in ("fc1.weight", "fc1.bias", "fc2.weight",
                                                  "fc2.bias"))


def most_important_by_hand(model: nn.Module, recipe: Recipe, count: int) -> list[int]:
    """By what each adds to the others, its activation times the norm of the reading weights."""
    first, bias, second, _ = (one.astype(np.float64) for one in two_layers(model))
    hidden = np.maximum(recipe.split.train.inputs.double().numpy() @ first.T + bias, 0)
    importance = greedy(hidden * np.linalg.norm(second, axis=0))
    return sorted(np.argsort(-importance)[:count].tolist())


def folded_by_hand(
    model: nn.Module, recipe: Recipe, kept: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The second layer, which reads the units that are cut by a ridge regression on the others."""
    first, bias, second, last = (one.astype(np.float64) for one in two_layers(model))
    hidden = np.maximum(recipe.split.train.inputs.double().numpy() @ first.T + bias, 0)
    gone = [unit for unit in range(hidden.shape[1]) if unit not in kept]
    mean = hidden.mean(0)
    x, y = (hidden - mean)[:, kept], (hidden - mean)[:, gone]
    ridge = 1e-3 * np.mean(np.sum(x * x, 0)) * np.eye(len(kept))
    fit = np.linalg.solve(x.T @ x + ridge, x.T @ y)
    return (second[:, kept] + second[:, gone] @ fit.T,
            last + second[:, gone] @ (mean[gone] - mean[kept] @ fit))


@pytest.mark.parametrize("fold", [False, True])
def test_what_is_cut_are_the_parents_least_important_units(fold: bool) -> None:
    """With no step of fine-tuning that counts: the weights are the parent's own, by hand."""
    recipe = recipe_of(lr=1e-30, optimizer="sgd")
    parent = from_scratch(recipe_of(), (8,), 3)
    trained = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 5}, 1, fold=fold))(0, 42)
    original = parent(0, 42).model
    kept = most_important_by_hand(original, recipe, 5)
    first, bias, second, last = two_layers(original)
    expected = first[kept], bias[kept], second[:, kept], last
    if fold:
        by_hand = folded_by_hand(original, recipe, kept)
        assert not any(np.allclose(a, b) for a, b in zip(by_hand, expected[2:], strict=True))
        expected = *expected[:2], *by_hand
    for found, one in zip(two_layers(trained.model), expected, strict=True):
        assert found == pytest.approx(one, rel=1e-4, abs=1e-5) if fold else \
            np.array_equal(found, one)
    assert trained.structure is not None
    assert trained.structure.rounds == ({"fc1": tuple(kept)},)
    assert kept != list(range(5)), "or the first ones would do"


@pytest.mark.parametrize("seed", [42, 43, 44])
def test_of_both_ways_the_better_one_on_validation_data(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "train_made", lambda *given, **named: replace(
        train_made(*given, **named), seconds=1.5))
    recipe = recipe_of(optimizer="sgd")
    parent = from_scratch(recipe, (8,), 3)
    both, dropped, fitted = (
        pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 2}, 2, fold=fold))(0, seed)
        for fold in (None, False, True))
    scores = [recipe.evaluate(one.model, recipe.split.validation, one.kind).scores
              for one in (dropped, fitted)]
    error = np.std(scores[1] - scores[0], ddof=1) / np.sqrt(len(scores[0]))
    ahead = np.mean(scores[1]) - np.mean(scores[0])
    expected = fitted if ahead > error else dropped
    assert (dropped.folded, fitted.folded) == (False, True)
    assert both.folded is expected.folded
    assert same(both, expected)
    assert not same(dropped, fitted)
    assert both.structure == dropped.structure
    assert (both.tries, dropped.tries) == (2, 1)
    assert (both.seconds, dropped.seconds, fitted.seconds) == (3.0, 1.5, 1.5)


@pytest.mark.parametrize("fails", [1, 2])
def test_where_one_way_fails_the_other_is_taken(
    fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    parent = from_scratch(recipe, (8,), 2)
    original, calls = parent(0, 42), []
    make = pruned_and_tuned(
        recipe, lambda *_: original, parent, PruningPlan({"fc1": 2}, 1, fold=None)
    )

    def failing(*given: object, **named: object) -> Trained:
        calls.append(given)
        if len(calls) == fails or fails == 3:
            raise TrainingDiverged("diverged")
        return train_made(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(networks, "train_made", failing)
    found = make(0, 42)
    assert (found.folded, found.tries, len(calls)) == (fails == 1, 1, 2)
    fails = 3
    with pytest.raises(TrainingDiverged, match="^diverged$"):
        make(0, 42)


def test_a_fit_that_fails_leaves_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(*_: object) -> nn.Module:
        raise torch.linalg.LinAlgError("singular")

    recipe = recipe_of()
    parent = from_scratch(recipe, (8,), 2)
    monkeypatch.setattr(networks, "compensated", singular)
    found = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 2}, 1, fold=None))(0, 42)
    assert (found.folded, found.tries) == (False, 1)
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 2}, 1, fold=True))(0, 42)


def test_what_cannot_be_fitted_is_not_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, trained = recipe_of(), []
    parent = from_scratch(recipe, (8,), 2)
    original = parent(0, 42)
    monkeypatch.setattr(networks, "compensated", lambda model, *_: copy.deepcopy(model))
    monkeypatch.setattr(networks, "train_made",
                        lambda *given, **_: trained.append(given) or original)
    pruned_and_tuned(recipe, lambda *_: original, parent, PruningPlan({"fc1": 2}, 2, fold=None))(
        0, 42
    )
    assert len(trained) == 1


def test_fine_tuning_is_the_loop_that_one_would_write() -> None:
    """From the cut network, in the loaders' order, as many epochs as asked for."""
    recipe = recipe_of(optimizer="sgd")
    parent = from_scratch(recipe, (8,), 3)
    trained = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 5}, 2))(0, 42)
    original = parent(0, 42).model
    kept = most_important_by_hand(original, recipe, 5)
    model = cut(original, recipe.split.train.inputs[:4], {"fc1": kept}).model.train()
    steps = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    x, y = recipe.split.train.inputs, recipe.split.train.targets
    order = torch_generator(42, Purpose.LOADER)
    for _ in range(2):
        for batch in torch.randperm(len(x), generator=order).split(32):
            steps.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            steps.step()
    assert len(trained.records) == 2
    for name, one in weights_of(model).items():
        assert torch.allclose(one, weights_of(trained)[name], atol=1e-6), name


def test_each_replicate_is_cut_from_its_own_parent() -> None:
    recipe = recipe_of(lr=1e-30, optimizer="sgd")
    parent, asked = from_scratch(recipe_of(), (8,), 2), []
    make = pruned_and_tuned(recipe, lambda *given: asked.append(given) or parent(*given), parent,
                  PruningPlan({"fc1": 3}, 1))
    for number, seed in ((0, 42), (3, 45)):
        original = parent(number, seed).model
        kept = most_important_by_hand(original, recipe, 3)
        assert np.array_equal(two_layers(make(number, seed).model)[0],
                              two_layers(original)[0][kept])
    assert asked == [(0, 42), (3, 45)]


def test_a_second_cut_is_told_after_the_first() -> None:
    """The specification of both makes the module again, whose weights then give the answers."""
    recipe = recipe_of()
    root = from_scratch(recipe, (8,), 2)
    once = pruned_and_tuned(recipe, root, root, PruningPlan({"fc1": 6}, 1))
    twice = pruned_and_tuned(recipe, once, root, PruningPlan({"fc1": 2}, 1))(0, 42)
    assert twice.structure is not None
    assert [len(units["fc1"]) for units in twice.structure.rounds] == [6, 2]
    again = rebuild(recipe.build((8,)), recipe.split.train.inputs[:2], twice.structure)
    again.load_state_dict(weights_of(twice))
    inputs = recipe.split.test.inputs
    assert torch.equal(again.eval()(inputs), twice.model(inputs))
    assert again[0].weight.shape == (2, 6)  # type: ignore[index]


def test_where_nothing_is_cut_the_parent_is_trained_on() -> None:
    """The search's first candidate: the original at the same budget of fine-tuning."""
    recipe = recipe_of()
    parent = from_scratch(recipe, (8,), 2)
    found = pruned_and_tuned(recipe, parent, parent, PruningPlan({"fc1": 8}, 2))(0, 42)
    start = parent(0, 42)
    expected = train_made(recipe, lambda: copy.deepcopy(start.model), 2, seed=42,
                          stream=start.stream)
    assert same(found, expected)
    assert not same(found, start)
    assert found.structure is None


@pytest.mark.parametrize("root_widths", [(8,), (5,)])
def test_a_distillation_aims_at_the_originals_outputs_too(root_widths: tuple[int, ...]) -> None:
    """The first step, worked out: half the cross entropy, half 4·KL of probabilities at 2."""
    recipe = recipe_of(optimizer="sgd", lr=0.5, batch_size="full")
    parent, root = from_scratch(recipe_of(), (8,), 3), from_scratch(recipe_of(), root_widths, 3)
    trained = pruned_and_tuned(recipe, parent, root, PruningPlan({"fc1": 4}, 1, distill=True))(
        0, 42
    )
    original = parent(0, 42).model
    student = cut(original, recipe.split.train.inputs[:4],
                  {"fc1": most_important_by_hand(original, recipe, 4)}).model
    x, y = recipe.split.train.inputs, recipe.split.train.targets
    teacher = root(0, 42).model(x).detach()
    outputs = student(x)
    taught = (teacher / 2).softmax(1)
    distance = (taught * (taught.log() - (outputs / 2).log_softmax(1))).sum(1).mean()
    loss = 0.5 * functional.cross_entropy(outputs, y) + 0.5 * 4 * distance
    assert trained.records[0].train_loss == pytest.approx(loss.item(), abs=1e-6)
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    for found, before, gradient in zip(trained.model.parameters(), student.parameters(), gradients,
                                       strict=True):
        assert torch.allclose(found, before - 0.5 * gradient, atol=1e-5)


def test_what_was_made_is_made_once() -> None:
    calls: list[int] = []
    make = cached(calls_of(recipe_of(), calls))
    first, second = make(0, 42), make(1, 43)
    assert make(0, 42) is first
    assert make(1, 43) is second
    assert calls == [0, 1]


def test_no_more_is_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 6-8-3 has 83 weights: two of them, and no third."""
    monkeypatch.setattr(networks, "MOST_WEIGHTS", 2 * 83)
    calls: list[int] = []
    make = cached(calls_of(recipe_of(), calls))
    for number in (0, 1, 2, 0, 1, 2):
        make(number, 42 + number)
    assert calls == [0, 1, 2, 2]


def test_the_network_that_is_there_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is."""
    monkeypatch.setattr(networks, "MOST_WEIGHTS", 10)
    calls: list[int] = []
    recipe = recipe_of()
    there = from_scratch(recipe, (8,), 1)(0, 42)
    make = cached(calls_of(recipe, calls), first=there)
    assert make(0, 42) is there
    make(1, 43)
    assert calls == [1]


def test_from_scratch_takes_the_replicates_stream() -> None:
    recipe = recipe_of()
    streams = [from_scratch(recipe, (8,), 1)(number, 42 + number).stream for number in (0, 1)]
    make = from_scratch(recipe, (4,), 1, streams)
    alike = partial(from_scratch(recipe, (4,), 1), 1, 43)
    assert same(make(1, 43), make(1, 43))
    assert not same(make(1, 43), alike())
    assert not same(from_scratch(recipe, (4,), 1, streams[::-1])(1, 43), make(1, 43))
