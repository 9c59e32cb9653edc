"""Turns, rounds and quantiles under a clock that the models themselves move."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from wua_mlflow.training.latency import Latency, _synchronizer, latency_ratio, measure_latency


class Clock:
    """Seconds that pass only where a model says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[str, int]] = []

    def counts(self, name: str) -> Counter[int]:
        """How often a model was called, by batch size."""
        return Counter(size for caller, size in self.calls if caller == name)

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """Takes ``seconds(call number, batch size)`` by the clock, and notes that it was called."""

    def __init__(self, name, clock, seconds) -> None:
        super().__init__()
        self.name, self.clock, self.seconds = name, clock, seconds
        self.drop = nn.Dropout()

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        size = len(x)
        number = self.clock.counts(self.name)[size]
        self.clock.calls.append((self.name, size))
        self.clock.now += self.seconds(number, size)
        return self.drop(x)


WARM_UP = 3
INPUTS = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))


def measured(clock, seconds, **options):
    models = {name: Timed(name, clock, of) for name, of in seconds.items()}
    return models, measure_latency(models, INPUTS, clock=clock, budget_s=1e9, **options)


def test_quantiles_are_numpys_and_the_warm_up_is_not_in_them():
    drawn = np.random.default_rng(1).exponential(0.01, 200)
    _, latencies = measured(Clock(), {
        "a": lambda number, size: 1000.0 if number < WARM_UP else drawn[number - WARM_UP],
        "slim": lambda number, size: 0.001 if size == 1 else 0.002,
    }, rounds=150)
    latency, constant = latencies["a"], latencies["slim"]
    assert latency.p50_ms == pytest.approx(np.quantile(drawn[:150], 0.5) * 1e3)
    assert latency.p95_ms == pytest.approx(np.quantile(drawn[:150], 0.95) * 1e3)
    assert latency.samples_per_s == pytest.approx(8 / np.quantile(drawn[:15], 0.5))
    assert latency.times_ms == pytest.approx(1e3 * drawn[:150])
    assert latency.rounds == constant.rounds == 150
    assert [constant.p50_ms, constant.p95_ms, constant.samples_per_s] == pytest.approx([1, 1, 4000])


def test_models_are_timed_in_turns():
    clock = Clock()
    measured(clock, {name: lambda number, size: 0.001 for name in "abc"}, rounds=4)
    single = "".join(name for name, size in clock.calls if size == 1)
    assert single == "aaabbbccc" + "abc" + "bca" + "cab" + "abc"  # the warm-up, then four rounds


def test_noise_that_comes_in_bursts_falls_on_both_alike():
    clock = Clock()

    def burst(number, size):
        return 0.010 if clock.now % 1.0 < 0.3 else 0.001

    _, latencies = measured(clock, {"a": burst, "b": burst}, rounds=300)
    assert latencies["a"].p50_ms == pytest.approx(latencies["b"].p50_ms)
    assert latencies["a"].p95_ms == pytest.approx(latencies["b"].p95_ms)
    assert clock.counts("a") == clock.counts("b") == {1: 303, 8: 33}


@pytest.mark.parametrize(("seconds", "rounds", "expected"), [
    (1.0, 300, 10), (0.01, 300, 50), (0.001, 2, 2)])
def test_the_budget_stops_but_not_before_ten_rounds(seconds, rounds, expected):
    clock = Clock()
    model = Timed("a", clock, lambda number, size: seconds)
    latency = measure_latency({"a": model}, INPUTS, rounds=rounds, budget_s=0.5, clock=clock)["a"]
    assert latency.rounds == pytest.approx(expected, abs=expected == 50)  # by rounding
    batched = {10: 10, 50: 30, 2: 10}[expected]
    assert clock.counts("a") == {1: WARM_UP + latency.rounds, 8: WARM_UP + batched}


def test_the_models_are_left_as_found_also_when_one_raises():
    clock = Clock()

    def refuse(number, size):
        raise RuntimeError("no")

    models = {"a": Timed("a", clock, lambda number, size: 0.001), "b": Timed("b", clock, refuse)}
    models["a"].drop.eval()
    stream = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        measure_latency(models, INPUTS, clock=clock)
    assert [module.training for module in models["a"].modules()] == [True, False]
    assert [module.training for module in models["b"].modules()] == [True, True]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize(("models", "inputs", "rounds", "message"), [
    ({}, INPUTS, 5, "at least one model and one sample, but got 0 and 8"),
    ({"a": nn.Linear(2, 2)}, INPUTS[:0], 5, "one model and one sample, but got 1 and 0"),
    ({"a": nn.Linear(2, 2)}, INPUTS, 0, "rounds: expected .* at least 1, but got 0"),
])
def test_nothing_to_time(models, inputs, rounds, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(models, inputs, rounds=rounds)


def timed_as(times: np.ndarray) -> Latency:
    return Latency(float(np.median(times)), 0.0, 0.0, len(times), tuple(times))


def test_the_ratio_of_medians_and_its_interval_hold_their_level():
    """Rounds that are independent, then rounds whose load drifts: near 95% of intervals."""
    for drift in (0.0, 0.3):
        draw, hit, trials = np.random.default_rng(0), 0, 60
        for trial in range(trials):
            load = np.cumsum(draw.normal(0, drift, 100)) * 0.05
            slim = np.exp(draw.normal(0, 0.2, 100) + load)
            big = 1.5 * np.exp(draw.normal(0, 0.2, 100) + load)
            ratio, low, high = latency_ratio(timed_as(big), timed_as(slim), seed=trial)
            assert low <= ratio <= high
            hit += low <= 1.5 <= high
        assert hit / trials > 0.88
    three, four = timed_as(np.ones(3)), timed_as(np.ones(4))
    with pytest.raises(ValueError, match="expected times of the same rounds, but got 3 and 4"):
        latency_ratio(three, four)
    assert latency_ratio(three, three) == (1.0, 1.0, 1.0)


def test_work_that_a_gpu_was_only_given_is_waited_for(monkeypatch):
    """A forward that returns at once, on a device that is done two milliseconds later."""
    clock = Clock()

    def wait():
        clock.now += 0.002

    monkeypatch.setattr("wua_mlflow.training.latency._synchronizer", lambda device: wait)
    _, latencies = measured(clock, {"a": lambda number, size: 0.0}, rounds=12)
    assert latencies["a"].p50_ms == pytest.approx(2.0)
    monkeypatch.undo()
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    _synchronizer(torch.device("cuda", 0))()
    assert waited == [torch.device("cuda", 0)]
    latency = measure_latency({"a": nn.Linear(2, 2)}, INPUTS, rounds=12)["a"]  # by the real clock
    assert latency.p50_ms <= latency.p95_ms
    assert 10 <= latency.rounds <= 12
