"""Who may draw random numbers: a generator for each purpose, and blocks that disturb no other.

torch's global stream serves initialisation and training only; all else draws from generators here.
Tests: ``tests/test_rng.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Purpose", "Stream", "checked_seed", "isolated", "numpy_generator", "restore", "seed_all",
    "seeded_stream", "stream_of", "torch_generator",
]


class Purpose(IntEnum):
    """What random numbers are drawn for. A stored result depends on the number: never renumber.

    0 is left out: NumPy's ``SeedSequence([seed, 0])`` is the stream of ``SeedSequence(seed)``,
    which a user's own ``np.random.default_rng(seed)`` draws from.
    """

    SPLIT = 1
    VALIDATION_DATA = 2
    TEST_DATA = 3
    LOADER = 4
    LATENCY = 5
    NULL = 6
    RESAMPLING = 7
    NULL_UNITS = 8
    LATENCY_RATIO = 10


def numpy_generator(seed: int, purpose: Purpose) -> np.random.Generator:
    """A NumPy generator of its own for ``purpose``, from ``SeedSequence([seed, purpose])``.

    Raises:
        ValueError: ``seed`` lies outside [0, 2**32).

    >>> a, b = numpy_generator(42, Purpose.SPLIT), numpy_generator(42, Purpose.SPLIT)
    >>> a.random() == b.random(), a.random() == numpy_generator(42, Purpose.NULL).random()
    (True, False)
    """
    return np.random.default_rng(_sequence(seed, purpose))


def torch_generator(seed: int, purpose: Purpose) -> torch.Generator:
    """A torch generator on the CPU for ``purpose``, seeded from ``SeedSequence([seed, purpose])``.

    Raises:
        ValueError: ``seed`` lies outside [0, 2**32).

    >>> a, b = torch_generator(42, Purpose.LOADER), torch_generator(42, Purpose.LOADER)
    >>> torch.equal(torch.randperm(9, generator=a), torch.randperm(9, generator=b))
    True
    """
    state = _sequence(seed, purpose).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def isolated() -> Iterator[None]:
    """A block after which the global generators are as before it, also when it raises.

    Covers Python's ``random``, NumPy's global generator, torch's on the CPU and on CUDA devices.
    Where CUDA was not in use before the block, its generators have no state to go back to: they
    are seeded afterwards with the CPU generator's seed, as ``torch.manual_seed`` would have done.

    >>> _ = torch.manual_seed(0)
    >>> before = torch.get_rng_state()
    >>> with isolated():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    python, numpy_global, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_global)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_available():
            torch.cuda.manual_seed_all(torch.initial_seed())


def checked_seed(seed: int) -> int:
    """``seed`` itself, where NumPy's and torch's generators all take it: in [0, 2**32).

    Raises:
        ValueError: it lies outside, or is no whole number.

    >>> checked_seed(42)
    42
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a whole number in [0, 2**32), but got {seed!r}")
    return int(seed)


def _sequence(seed: int, purpose: Purpose) -> np.random.SeedSequence:
    return np.random.SeedSequence([checked_seed(seed), int(purpose)])


Stream = dict[str, Tensor]
"""The state of torch's global random stream: ``cpu``, and ``cuda`` where training used it."""


def seed_all(seed: int) -> None:
    """Seed the global generators: torch's, NumPy's, Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def stream_of(device: torch.device) -> Stream:
    """The streams as they are now: the CPU's, and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def seeded_stream(seed: int, device: torch.device) -> Stream:
    """The streams as ``seed_all`` sets them; the global ones are left alone."""
    with isolated():
        seed_all(seed)
        return stream_of(device)


def restore(stream: Stream, device: torch.device) -> None:
    """Go on from ``stream``; on another kind of device its own stream stays as it was seeded."""
    torch.set_rng_state(stream["cpu"])
    if device.type == "cuda" and "cuda" in stream:
        torch.cuda.set_rng_state(stream["cuda"], device)
    if device.type == "mps" and "mps" in stream:
        torch.mps.set_rng_state(stream["mps"])
