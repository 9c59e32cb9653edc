"""The training loop, against plain torch loops bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from wua_mlflow.training.fit import Budget, EpochRecord, TrainingDiverged, fit


def network(seed: int = 0, *, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))


def data(samples: int = 90, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(samples, 3, generator=torch.Generator().manual_seed(seed))
    return x, (x.sum(1, keepdim=True) > 1.5).float()


def generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOSS = functional.binary_cross_entropy_with_logits


def same_state(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize(("optimizer", "make"), [
    ("adam", lambda p: torch.optim.Adam(p, lr=0.01)),
    ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
])
def test_full_batches_are_the_plain_loop(optimizer, make):
    x, y = data()
    reference = network()
    steps = make(reference.parameters())
    losses = []
    for _ in range(12):
        steps.zero_grad()
        loss = LOSS(reference(x), y)
        loss.backward()
        steps.step()
        losses.append(loss.item())
    model = network()
    budget = Budget(12, lr=0.01, optimizer=optimizer)
    training = fit(model, (x, y), LOSS, budget, generator=generator())
    assert same_state(model, network()), "nothing happens before the first record is asked for"
    records = list(training)
    assert same_state(model, reference)
    assert records == [EpochRecord(epoch, loss) for epoch, loss in enumerate(losses, 1)]


@pytest.mark.parametrize("size", [30, 89])
def test_mini_batches_are_the_plain_loop_in_the_generators_order(size):
    x, y = data()
    reference, order = network(dropout=0.3), generator()
    reference.train()
    steps = torch.optim.Adam(reference.parameters(), lr=0.02)
    losses = []
    torch.manual_seed(3)
    for _ in range(5):
        total = 0.0
        rows = torch.randperm(90, generator=order)
        for start in range(0, 90, size):
            chosen = rows[start:start + size]
            steps.zero_grad()
            loss = LOSS(reference(x[chosen]), y[chosen])
            loss.backward()
            steps.step()
            total += loss.item() * len(chosen)
        losses.append(total / 90)
    model = network(dropout=0.3)
    torch.manual_seed(3)
    records = list(fit(model, (x, y), LOSS, Budget(5, lr=0.02, batch_size=size),
                       generator=generator()))
    assert same_state(model, reference)
    assert [record.train_loss for record in records] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize("size", [90, 1000])
def test_a_batch_as_large_as_the_data_is_a_full_one_and_draws_nothing(size):
    whole, batched, order = network(), network(), generator()
    list(fit(whole, data(), LOSS, Budget(4), generator=generator()))
    list(fit(batched, data(), LOSS, Budget(4, batch_size=size), generator=order))
    assert same_state(batched, whole)
    assert torch.equal(order.get_state(), generator().get_state())


def test_watching_validation_data_does_not_change_the_training():
    class Noisy(nn.Dropout):
        """Draws in eval mode too."""

        def forward(self, x):
            return functional.dropout(x, self.p, training=True)

    def noisy():
        model = network()
        model[2] = Noisy(0.3)
        torch.manual_seed(4)
        return model

    budget = Budget(6, batch_size=40)
    plain = noisy()
    list(fit(plain, data(), LOSS, budget, generator=generator()))
    stream = torch.get_rng_state()
    watched = noisy()
    list(fit(watched, data(), LOSS, budget, generator=generator(), validation=data(20, 9)))
    assert same_state(watched, plain)
    assert torch.equal(torch.get_rng_state(), stream)


def test_the_validation_loss_is_that_of_eval_mode_and_training_goes_on_in_train_mode():
    modes, model, validation = [], network(dropout=0.5), data(20, 9)
    model.register_forward_hook(lambda *_: modes.append(model.training))
    before = torch.get_rng_state()
    for record in fit(model, data(), LOSS, Budget(2), generator=generator(),
                      validation=validation):
        assert modes[-2:] == [True, False]
        assert not model.training
        assert record.validation_loss == LOSS(model(validation[0]), validation[1]).item()
    assert not torch.equal(torch.get_rng_state(), before), "dropout draws"


def overfitting():
    """Random targets: the validation loss falls, then rises."""
    x, _ = data(24)
    targets = torch.rand(24, 1, generator=generator(5)).round()
    return (x, targets), data(40, 9)


def test_early_stopping_restores_the_best_weights():
    train, validation = overfitting()
    reference = network()
    losses, states = [], []
    for record in fit(reference, train, LOSS, Budget(60, lr=0.05), generator=generator(),
                      validation=validation):
        losses.append(record.validation_loss)
        states.append(copy.deepcopy(reference))
    waits = [min(losses[:epoch]) < min(losses[epoch:epoch + 3]) for epoch in range(1, 58)]
    stop = waits.index(True) + 1  # the best one before three worse in a row
    assert stop + 3 < 60, "the example must stop early"
    model = network()
    records = list(fit(model, train, LOSS, Budget(60, lr=0.05, patience=3), generator=generator(),
                       validation=validation))
    best = min(range(len(records)), key=lambda i: records[i].validation_loss)
    assert len(records) == best + 1 + 3
    assert [record.validation_loss for record in records] == losses[:len(records)]
    assert same_state(model, states[best])
    assert not model.training


def test_the_best_weights_and_buffers_are_restored_also_when_the_epochs_run_out():
    torch.manual_seed(6)
    train, validation = overfitting()
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    records = list(fit(model, train, LOSS, Budget(60, lr=0.05, patience=100),
                       generator=generator(), validation=validation))
    best = min(records, key=lambda record: record.validation_loss)
    assert best.epoch < len(records) == 60
    assert int(model[1].num_batches_tracked) == best.epoch
    assert LOSS(model(validation[0]), validation[1]).item() == best.validation_loss


def test_divergence_raises():
    model = network()
    with pytest.raises(TrainingDiverged, match=r"the loss became (nan|inf) in epoch \d+; a smaller "
                                               r"learning rate than lr=1e\+20 may help"):
        list(fit(model, data(), functional.mse_loss, Budget(50, lr=1e20, optimizer="sgd"),
                 generator=generator()))
    assert not model.training
    x, y = data(20, 9)
    with pytest.raises(TrainingDiverged, match="the validation loss became nan in epoch 1"):
        list(fit(network(), data(), LOSS, Budget(5), generator=generator(),
                 validation=(x * math.nan, y)))


@pytest.mark.parametrize(("options", "message"), [
    ({"epochs": 0}, "epochs: expected a whole number of at least 1, but got 0"),
    ({"epochs": 1.5}, "epochs: expected a whole number of at least 1, but got 1.5"),
    ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, but got 0"),
    ({"batch_size": "all"}, "batch_size: expected a whole number of at least 1, but got all"),
    ({"patience": 0}, "patience: expected a whole number of at least 1, but got 0"),
    ({"lr": 0.0}, "lr: expected a finite number above 0, but got 0.0"),
    ({"lr": math.nan}, "lr: expected a finite number above 0, but got nan"),
    ({"lr": math.inf}, "lr: expected a finite number above 0, but got inf"),
    ({"optimizer": "adamw"}, "optimizer: expected one of adam, sgd, but got 'adamw'"),
])
def test_budgets_and_data_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Budget(**{"epochs": 3, **options})
    with pytest.raises(ValueError, match="patience: expected validation data to watch"):
        list(fit(network(), data(), LOSS, Budget(3, patience=2), generator=generator()))
    with pytest.raises(ValueError, match="train: expected at least one sample, but got none"):
        list(fit(network(), data(0), LOSS, Budget(3), generator=generator()))
