"""Usage while a model trains: what is logged when, what it may cost, and that nothing notices it.

Time is a clock that the tests set; what it costs really is measured in ``benchmarks/monitor.py``.
"""

from __future__ import annotations

import math
import random

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.networks import mlp
from wua_mlflow.tracking import UsageMonitor, log_usage, monitor
from wua_mlflow.usage.analyze import analyze

ALWAYS = 1e9
"""A budget without a limit, since the tests train for no time at all."""
FOLLOWED = {"usage/effective_weights", "usage/entropy", "usage/dead_units", "usage/effective_rank"}


def model_and_data(features: int = 4, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return mlp(features, 8, 2), torch.rand(40, features)


class Clock:
    """Seconds that pass only when somebody says so; an analysis costs ``cost``."""

    def __init__(self, patch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.cost = 100.0, cost

        def analyze_slowly(*args, **options):
            self.now += self.cost
            return analyze(*args, **options)

        patch.setattr(monitor, "analyze", analyze_slowly)

    def __call__(self) -> float:
        return self.now

    def slowed(self, function, by: float):
        def call(*args):
            self.now += by
            return function(*args)
        return call


@pytest.fixture
def run(store_uri):
    with mlflow.start_run() as active:
        yield active.info.run_id


def history(run_id: str, metric: str = "usage/entropy") -> dict[int, float]:
    points = MlflowClient().get_metric_history(run_id, metric)
    return {point.step: point.value for point in points}


def test_points_are_what_an_analysis_gives_at_that_epoch(run):
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=2, budget=ALWAYS)
    expected = {0: analyze(model, data, effective_rank=True)}
    for epoch in range(1, 6):
        with torch.no_grad():
            model[0].weight.mul_(torch.rand(8, 4) * epoch)
            model[0].bias[epoch] = -99
        watch.step(epoch)
        expected[epoch] = analyze(model, data, effective_rank=True)
    for metric in FOLLOWED:
        field = metric.removeprefix("usage/")
        assert history(run, metric) == pytest.approx({
            epoch: getattr(expected[epoch], field) for epoch in (0, 2, 4)})
    assert set(MlflowClient().get_run(run).data.metrics) == FOLLOWED
    assert history(run, "usage/dead_units")[4] >= 4
    assert watch.skipped == 0


def test_what_is_logged_at_the_end_is_the_last_point(run):
    """Beside the sampled ones; MLflow shows a metric's value of the last step."""
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=1, samples=3, budget=ALWAYS)
    watch(1)
    watch(2)
    whole = analyze(model, data)
    log_usage(whole)
    assert MlflowClient().get_run(run).data.metrics["usage/entropy"] == whole.entropy
    assert history(run)[1] != whole.entropy


def test_it_costs_less_than_its_budget_and_says_so_once(run, monkeypatch, capsys):
    """1 s an analysis, 4 s an epoch, a budget of 10%: a second of it each 10 s of training.

    There is room where there would be some for 1.25 s.
    """
    clock = Clock(monkeypatch, cost=1.0)
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=1, budget=0.1, clock=clock)
    shares = []
    for epoch in range(1, 31):
        clock.now += 4
        watch.step(epoch)
        if watch.trained_s >= 10:
            shares.append(watch.spent_s / watch.trained_s)
    assert max(shares) <= 0.1
    assert watch.trained_s == 120 and watch.spent_s == 11
    assert sorted(history(run)) == [0, 6, 9, 11, 14, 16, 19, 21, 24, 26, 29]
    assert watch.skipped == 30 - 10
    assert capsys.readouterr().err == (
        "wua: note: usage of epoch 1 not measured: by then it would have cost 2.2 s, more than "
        "10.00% of 4 s of training (budget=0.1); it is as soon as there is room for it\n")


def test_a_slow_server_and_dear_points_make_points_rare(run, monkeypatch):
    """What a point costs is what the last one did, MLflow's part included."""
    clock = Clock(monkeypatch, cost=0.01)
    for place, name in ((monitor, "write_history"), (MlflowClient, "get_run")):
        monkeypatch.setattr(place, name, clock.slowed(getattr(place, name), by=5))
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=1, budget=0.1, clock=clock)
    for epoch in range(1, 201):
        clock.now += 1
        watch.step(epoch)
    assert sorted(history(run)) == [0, 113, 163]
    assert watch.spent_s == pytest.approx(3 * 5.01)


def test_a_point_that_was_due_comes_as_soon_as_there_is_room(run, monkeypatch):
    clock = Clock(monkeypatch, cost=1.0)
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=10, budget=0.1, clock=clock)
    for epoch in range(1, 31):
        clock.now += 1.6
        watch.step(epoch)
    assert sorted(history(run)) == [0, 15, 21, 30]


@pytest.mark.parametrize("kind", ["tensor", "loader", "loader with a generator"])
def test_training_gives_the_same_weights_with_and_without(run, kind):
    """Dropout, batch norm, shuffled data: modes, buffers, gradients and random streams are left."""
    def train(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(),
                              nn.Linear(8, 1))
        x = torch.rand(60, 4)
        own = torch.Generator().manual_seed(3) if kind.endswith("generator") else None
        loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 20, shuffle=True,
                            generator=own)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model[1].eval()
        data = x if kind == "tensor" else loader
        watch = UsageMonitor(model, data, every=1, budget=ALWAYS) if watched else lambda _: None
        for epoch in range(1, 4):
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(inputs), targets).backward()
                optimizer.step()
            watch(epoch)
        assert [module.training for module in model] == [True, False, True, True, True]
        assert not any(module._forward_hooks or module._forward_pre_hooks
                       for module in model.modules())
        return [*model.state_dict().values(), *(p.grad for p in model.parameters()),
                torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])]

    for without, with_it in zip(train(False), train(True), strict=True):
        assert torch.equal(without, with_it)
    assert sorted(history(run)) == [0, 1, 2, 3]


class Stream(IterableDataset):
    """Batches of 7, without a length."""

    def __iter__(self):
        return iter([torch.full((7, 2), float(number)) for number in range(100)])


@pytest.mark.parametrize(("data", "first_column"), [
    (torch.arange(20.0).reshape(10, 2), [0, 4, 10, 14]),
    (np.arange(20.0, dtype=np.float32).reshape(10, 2), [0, 4, 10, 14]),
    (TensorDataset(torch.arange(20.0).reshape(10, 2)), [0, 4, 10, 14]),
    (DataLoader(TensorDataset(torch.arange(20.0).reshape(10, 2)), 3, shuffle=True),
     [0, 4, 10, 14]),
    ([torch.zeros(3, 2), torch.ones(5, 2)], [0, 0, 0, 1]),
    (DataLoader(Stream(), batch_size=None), [0, 0, 0, 0]),
    ((torch.arange(20.0).reshape(10, 2), torch.zeros(10)), [0, 4, 10, 14]),
], ids=["tensor", "array", "dataset", "loader", "batches", "stream", "pair"])
def test_the_sample_is_spread_where_the_data_have_a_length(data, first_column):
    sample = monitor.fixed_sample(data, 4)
    batches = sample if isinstance(sample, list) else [sample]
    inputs = [each[0] if isinstance(each, list | tuple) else each for each in batches]
    assert np.concatenate([np.asarray(each)[:, 0] for each in inputs]).tolist() == first_column


def test_the_sample_stays_though_the_data_are_written_over(run):
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=1, budget=ALWAYS)
    data.zero_()
    watch(1)
    points = history(run)
    assert points[0] == points[1]


def test_what_fails_while_training_is_one_warning(run, monkeypatch):
    model, data = model_and_data()
    watch = UsageMonitor(model, data, every=1, budget=ALWAYS)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.warns(UserWarning, match="^wua: usage of epoch 1 not logged: .*0.*NaN") as warned:
        watch.step(1)
        watch.step(2)
    assert len(warned) == 1
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    watch.step(3)
    assert sorted(history(run)) == [0, 3]


def test_what_cannot_be_watched_is_said_before_training(store_uri):
    model, data = model_and_data()
    with pytest.raises(ValueError, match="^run_id: expected a run's id or an active run"):
        UsageMonitor(model, data)
    for options, message in [({"every": 0}, "every: expected a whole number of at least 1"),
                             ({"samples": 0}, "samples: expected a whole number of at least 1"),
                             ({"budget": 0.0}, "budget: expected a share above 0, but got 0.0")]:
        with pytest.raises(ValueError, match=f"^{message}"):
            UsageMonitor(model, data, **options)
    with mlflow.start_run():
        with pytest.raises(ValueError, match="^data: expected batches that can be gone over again"):
            UsageMonitor(model, iter([data]))
        with pytest.raises(ValueError, match="^run_id: expected one that can be read, but got 'x'"):
            UsageMonitor(model, data, run_id="x")
        with pytest.raises(ValueError, match="^criterion: "):
            UsageMonitor(model, data, criterion="no_such")


def test_of_several_processes_the_first_watches_and_waits_for_none(run, monkeypatch):
    """As a process group of two would say; the others are told nothing."""
    from torch import distributed as dist

    from wua_mlflow.distributed import processes

    model, data = model_and_data()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for own_rank, points in ((1, []), (0, [0, 1])):
        monkeypatch.setattr(dist, "get_rank", lambda: own_rank)  # noqa: B023
        watch = UsageMonitor(model, data, every=1, budget=ALWAYS)
        watch.step(1)
        assert sorted(history(run)) == points
        assert processes() == 2
