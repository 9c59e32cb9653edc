"""Training one network of a recipe and its replicates: against loops written out by hand."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.pipeline.slimming_cases import same
from wua_mlflow.config import load_settings
from wua_mlflow.device import device_of
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import _warm_up, train_one, train_replicates
from wua_mlflow.rng import Purpose, torch_generator
from wua_mlflow.training.fit import TrainingDiverged

SMALL = {"data": "wine", "hidden": 5, "epochs": 3, "seeds": 1}


def recipe_of(**settings: object) -> Recipe:
    return load_recipe(load_settings(None, {**SMALL, **settings}))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(13, 5), nn.ReLU(), nn.Linear(5, 3))


def by_hand(recipe: Recipe, seed: int, optimizer: Callable, batch_size: int | None):
    """The parameters after training, in a loop of a few lines."""
    x, y = recipe.split.train.inputs, recipe.split.train.targets
    order = torch_generator(seed, Purpose.LOADER)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network()
        steps = optimizer(model.parameters())
        for _ in range(3):
            rows = torch.randperm(len(x), generator=order) if batch_size else torch.arange(len(x))
            for batch in rows.split(batch_size or len(x)):
                steps.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                steps.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(("name", "optimizer"), [
    ("adam", lambda p: torch.optim.Adam(p, 0.02)),
    ("sgd", lambda p: torch.optim.SGD(p, 0.02, momentum=0.9))])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_training_is_the_loop_that_one_would_write(name, optimizer, batch_size):
    recipe = recipe_of(optimizer=name, lr=0.02, batch_size=batch_size or "full")
    trained = train_one(recipe, (5,), 3, seed=7)
    expected = by_hand(recipe, 7, optimizer, batch_size)
    for parameter, by_loop in zip(trained.model.parameters(), expected, strict=True):
        assert torch.allclose(parameter, by_loop, atol=1e-6)
    assert [record.epoch for record in trained.records] == [1, 2, 3]
    assert not trained.model.training
    assert trained.kind == "logits"


def test_the_callers_streams_are_left_alone_and_do_not_matter():
    recipe = recipe_of()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        results.append(train_one(recipe, (5,), 2, seed=7))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
    first, second = results
    assert same(first, second)
    assert torch.equal(first.stream["cpu"], second.stream["cpu"])


def test_what_torch_loads_first_is_nobodys_training_time(monkeypatch):
    """An optimizer's first step loads much; it is taken before the clock, and draws nothing."""
    state, order = torch.get_rng_state(), []
    step, clock = torch.optim.Adam.step, time.perf_counter
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *a, **k: (order.append("step"),
                                                                   step(*a, **k))[1])
    monkeypatch.setattr("wua_mlflow.pipeline.replicates.time.perf_counter",
                        lambda: (order.append("clock"), clock())[1])
    _warm_up(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    recipe = recipe_of(epochs=1)
    order.clear()
    train_one(recipe, (5,), 1, seed=7)
    assert order[:2] == ["step", "clock"]


def test_replicates_repeat_the_recipe_with_the_next_seeds():
    recipe = recipe_of(seeds=3, seed=2**32 - 2, batch_size="full", lr=0.02)
    main = train_one(recipe, (5,), 3, seed=2**32 - 2)
    test = recipe.evaluate(main.model, recipe.split.test, main.kind)
    replicates = train_replicates(recipe, from_scratch(recipe, (5,), 3), (main, test), count=3)
    assert [replicate.seed for replicate in replicates] == [2**32 - 2, 2**32 - 1, 0]
    x, y = recipe.split.test.inputs, recipe.split.test.targets
    for replicate in replicates:
        first, bias, second, last = by_hand(
            recipe, replicate.seed, lambda p: torch.optim.Adam(p, 0.02), None)
        outputs = torch.relu(x @ first.T + bias) @ second.T + last
        assert np.array_equal(replicate.scores, (outputs.argmax(1) == y).double().numpy())
        loss = nn.functional.cross_entropy(outputs, y).item()
        assert replicate.loss == pytest.approx(loss, abs=1e-5)
        assert replicate.score == pytest.approx(replicate.scores.mean())

    def diverging(number, seed):
        raise TrainingDiverged("training: the loss became nan in epoch 9")

    with pytest.raises(TrainingDiverged, match=r"^training: the loss became nan in epoch 9 "
                       r"\(in replicate 1, seed 4294967295\)$"):
        train_replicates(recipe, diverging, (main, test), count=3)


def test_early_stopping_watches_the_validation_part_and_keeps_the_best():
    recipe = recipe_of(epochs=200, patience=2, lr=0.1, hidden=30)
    trained = train_one(recipe, (30,), 200, seed=1)
    losses = [record.validation_loss for record in trained.records]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 2 < 200
    with torch.no_grad():
        loss = nn.functional.cross_entropy(trained.model(recipe.split.validation.inputs),
                                           recipe.split.validation.targets).item()
    assert loss == pytest.approx(losses[best], abs=1e-6)
    assert train_one(recipe_of(), (5,), 1, seed=1).records[0].validation_loss is None


def test_device_and_threads():
    before = torch.get_num_threads()
    try:
        recipe_of(threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="^threads: expected at most 1024, but got 4096$"):
        recipe_of(threads=4096)
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="^device: cuda:77 cannot be used here: "):
        device_of("cuda:77")


def test_divergence_says_the_epoch():
    """Where the loss itself turns NaN, and where binary cross-entropy refuses a NaN before."""
    with pytest.raises(TrainingDiverged, match="^training: the loss became (nan|inf) in epoch 2"):
        train_one(recipe_of(lr=1e30, batch_size="full"), (5,), 9, seed=1)
    with pytest.raises(TrainingDiverged, match="^training: the outputs became NaN or infinite in "
                       "epoch 2; a smaller learning rate than lr=1e\\+30 may help$"):
        train_one(recipe_of(data="usecase", lr=1e30), (5,), 9, seed=1)


@pytest.fixture
def parts(monkeypatch):
    """A module ``recipe_parts`` with a factory for wine; tests put their trainers into it."""
    module = ModuleType("recipe_parts")
    module.model = lambda widths: nn.Sequential(  # type: ignore[attr-defined]
        nn.Linear(13, widths[0]), nn.Tanh(), nn.Linear(widths[0], 3))
    monkeypatch.setitem(sys.modules, "recipe_parts", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return module


def trained_by(parts: ModuleType, trainer: Callable, epochs: int = 1):
    parts.trainer = trainer  # type: ignore[attr-defined]
    recipe = recipe_of(model="recipe_parts:model", train="recipe_parts:trainer")
    return train_one(recipe, (4,), epochs, seed=7)


def test_the_users_trainer_is_given_what_the_contract_says(parts):
    calls = []

    def trainer(model, data, budget, seed):
        calls.append((model, data, budget, seed))
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 13))  # the stream is the recipe's
        return model.train()

    trained, again = (trained_by(parts, trainer, 9) for _ in range(2))
    ((model, data, budget, seed), _) = calls
    assert trained.model is model and not model.training
    assert (budget, seed, type(data)) == (9, 7, tuple)
    split = recipe_of().split
    for given, part in zip(data, (split.train, split.validation), strict=True):
        assert isinstance(given, TensorDataset)
        assert torch.equal(given.tensors[0], part.inputs)
        assert torch.equal(given.tensors[1], part.targets)
    assert torch.equal(trained.model[0].weight, again.model[0].weight)
    assert trained.records == []


def test_a_trainer_may_return_a_copy_or_a_compiled_network(parts):
    def copied(model, *_):
        twin = parts.model((4,))
        twin.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
        return twin

    for trainer in (copied, lambda model, *_: torch.compile(model, backend="eager"),
                    lambda *_: None):
        assert isinstance(trained_by(parts, trainer).model, nn.Sequential)


def test_a_trainer_that_breaks_the_contract(parts):
    for trainer, message in (
        (lambda *_: 5, "train: expected recipe_parts:trainer to return the trained "
                       "torch.nn.Module, but it returned int"),
        (lambda model: model, "train: recipe_parts:trainer failed: TypeError: "),
        (lambda *_: nn.Linear(13, 3), "train: expected recipe_parts:trainer to return the network "
         "it was given, trained, but it returned one of other parameters: "),
        (lambda model, *_: nn.Sequential(model[0], nn.Sigmoid(), model[2]),
         "train: expected .* but it returned one that computes something else"),
        (lambda *_: sys.exit(0), "train: recipe_parts:trainer failed: SystemExit: 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            trained_by(parts, trainer)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained_by(parts, interrupted)


def test_an_error_in_evaluation_names_the_model(parts):
    class Picky(nn.Linear):
        def forward(self, x):
            if len(x) > 3:
                raise KeyError("too many")
            return super().forward(x)

    recipe = recipe_of(model="recipe_parts:model")
    with pytest.raises(ValueError, match="^model: recipe_parts:model cannot be evaluated: "
                       "KeyError: 'too many'$"):
        recipe.evaluate(Picky(13, 3), recipe.split.test, "logits")
    with pytest.raises(ValueError, match="^model: recipe_parts:model cannot be trained with "
                       "batch_size=64: KeyError: 'too many'$"):
        train_one(replace(recipe, build=lambda _: Picky(13, 3)), (4,), 1, seed=7)
