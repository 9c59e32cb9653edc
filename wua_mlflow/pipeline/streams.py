"""torch's global random stream: seeding it, keeping its state, going on from a kept one.

May import: torch, numpy. Tests: ``tests/pipeline/test_recipe.py``.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

__all__ = ["Stream", "restore", "seed_all", "stream_of"]

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


def restore(stream: Stream, device: torch.device) -> None:
    """Go on from ``stream``; on another kind of device its own stream stays as it was seeded."""
    torch.set_rng_state(stream["cpu"])
    if device.type == "cuda" and "cuda" in stream:
        torch.cuda.set_rng_state(stream["cuda"], device)
    if device.type == "mps" and "mps" in stream:
        torch.mps.set_rng_state(stream["mps"])
