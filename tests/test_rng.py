"""Generators by purpose, and isolation of the global ones, against NumPy's and torch's own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from wua_mlflow.rng import Purpose, checked_seed, isolated, numpy_generator, torch_generator


def _global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _restored_globals():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def test_the_numbers_of_the_purposes_are_fixed():
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "SPLIT": 1, "VALIDATION_DATA": 2, "TEST_DATA": 3, "LOADER": 4, "LATENCY": 5, "NULL": 6,
        "RESAMPLING": 7, "NULL_UNITS": 8, "FOLDS": 9, "LATENCY_RATIO": 10,
    }


@pytest.mark.parametrize("purpose", list(Purpose))
def test_numpy_generator_is_the_one_of_the_seed_sequence(purpose):
    reference = np.random.Generator(np.random.PCG64(np.random.SeedSequence([42, purpose.value])))
    assert np.array_equal(numpy_generator(42, purpose).random(5), reference.random(5))


def test_torch_generator_is_seeded_by_the_same_sequence():
    seed = np.random.SeedSequence([42, 6]).generate_state(1, np.uint64)[0]
    reference = torch.Generator().manual_seed(int(seed))
    drawn = torch.rand(5, generator=torch_generator(42, Purpose.NULL))
    assert torch.equal(drawn, torch.rand(5, generator=reference))


def test_every_seed_and_purpose_has_a_stream_of_its_own():
    first = [numpy_generator(s, p).random() for s in range(50) for p in Purpose]
    own = [np.random.default_rng(s).random() for s in range(50)]
    torches = [torch_generator(s, p).initial_seed() for s in range(50) for p in Purpose]
    assert len({*first, *own}) == 50 * len(Purpose) + 50
    assert len(set(torches)) == 50 * len(Purpose)


def test_generators_leave_the_global_streams_alone():
    _seed_globals(3)
    expected = _global_draws()
    _seed_globals(3)
    numpy_generator(3, Purpose.SPLIT).random(10)
    torch.rand(10, generator=torch_generator(3, Purpose.SPLIT))
    assert _global_draws() == expected


def test_isolated_restores_every_global_stream():
    _seed_globals(5)
    expected = [_global_draws(), _global_draws()]
    _seed_globals(5)
    got = [_global_draws()]
    with isolated():
        _seed_globals(6)
        _global_draws()
    got.append(_global_draws())
    assert got == expected


def test_isolated_restores_after_an_exception_and_lets_it_pass():
    _seed_globals(5)
    expected = _global_draws()
    _seed_globals(5)
    with pytest.raises(KeyError), isolated():
        _global_draws()
        raise KeyError("x")
    assert _global_draws() == expected


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


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42", True, None])
def test_a_seed_outside_the_range_is_one_line(seed):
    with pytest.raises(ValueError, match=r"^seed: expected a whole number in \[0, 2\*\*32\), "):
        numpy_generator(seed, Purpose.SPLIT)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7)])
def test_a_seed_in_the_range_suits_the_legacy_generator_too(seed):
    assert np.random.RandomState(checked_seed(seed)).rand() < 1
    assert checked_seed(seed) == seed
