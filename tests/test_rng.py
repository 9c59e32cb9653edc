"""Generators by purpose, and isolation of the global ones, against NumPy's and torch's own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.networks import kept_streams
from wua_mlflow import rng
from wua_mlflow.rng import Purpose, isolated, numpy_generator, seed_all, torch_generator


def _global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


@pytest.fixture(autouse=True)
def _restored_globals():
    with kept_streams():
        yield


def test_the_numbers_of_the_purposes_are_fixed_and_the_generators_those_of_the_seed_sequence():
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "SPLIT": 1, "VALIDATION_DATA": 2, "TEST_DATA": 3, "LOADER": 4, "LATENCY": 5, "NULL": 6,
        "RESAMPLING": 7, "NULL_UNITS": 8, "LATENCY_RATIO": 10}
    for purpose in Purpose:
        sequence = np.random.SeedSequence([42, purpose.value])
        expected = np.random.Generator(np.random.PCG64(sequence)).random(5)
        assert np.array_equal(numpy_generator(42, purpose).random(5), expected)
        seed = int(sequence.generate_state(1, np.uint64)[0])
        assert torch.equal(torch.rand(5, generator=torch_generator(42, purpose)),
                           torch.rand(5, generator=torch.Generator().manual_seed(seed)))


def test_every_seed_and_purpose_has_a_stream_of_its_own():
    streams = [numpy_generator(s, p).random() for s in range(50) for p in Purpose]
    users = [np.random.default_rng(s).random() for s in range(50)]
    torches = [torch_generator(s, p).initial_seed() for s in range(50) for p in Purpose]
    assert len({*streams, *users}) == 50 * len(Purpose) + 50
    assert len(set(torches)) == 50 * len(Purpose)


def test_global_streams_go_on_after_generators_and_isolated_blocks():
    seed_all(3)
    expected = [_global_draws() for _ in range(3)]
    seed_all(3)
    numpy_generator(3, Purpose.SPLIT).random(10)
    torch.rand(10, generator=torch_generator(3, Purpose.SPLIT))
    drawn = [_global_draws()]
    with isolated():
        seed_all(6)
        _global_draws()
    drawn.append(_global_draws())
    with pytest.raises(KeyError), isolated():
        _global_draws()
        raise KeyError("x")
    assert [*drawn, _global_draws()] == expected


def test_isolated_restores_the_seed_of_a_device_that_was_not_in_use(monkeypatch):
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(11)
    with isolated():
        torch.manual_seed(12)
    assert seeded[-1] == 11


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_isolated_restores_cuda():
    torch.cuda.manual_seed_all(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed_all(5)
    with isolated():
        torch.rand(7, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_seeds_that_numpy_and_torch_take_alike():
    for seed in (0, 2**32 - 1, np.int64(7)):
        assert np.random.RandomState(rng.checked_seed(seed)).rand() < 1
        assert rng.checked_seed(seed) == seed
    for seed in (-1, 2**32, 1.5, "42", True, None):
        with pytest.raises(ValueError, match=r"^seed: expected a whole number in \[0, 2\*\*32\), "):
            numpy_generator(seed, Purpose.SPLIT)
