"""Several processes of one command, as ``torchrun`` starts them: who they are, and one group.

torch is imported only where a group is made. May import: torch, processes, machine.
Tests: ``tests/pipeline/test_launch.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

__all__ = ["is_first", "process_group", "started", "together"]

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torch.distributed`` needs to know; ``torchrun`` sets it."""
SAID = "wua: the first process is done"
PATIENCE_S = 10
"""A process that failed waits so long for the first one, which may be in a collective call."""


def started() -> int:
    """How many processes the environment says there are; 1, unless it says all that is needed.

    >>> started()
    1
    """
    values = [os.environ.get(name, "") for name in VARIABLES]
    if not all(values) or not (values[0].isdigit() and values[1].isdigit()):
        return 1
    return max(1, int(values[1]))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks.

    >>> is_first()
    True
    """
    return started() == 1 or int(os.environ["RANK"]) == 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A block in which the processes that were started are one group; nothing, for one alone.

    Args:
        device: the setting. On CUDA each process takes the GPU of its ``LOCAL_RANK``, which
            ``cuda`` then means; anywhere else they speak through gloo.

    Raises:
        ValueError: the device cannot be had here, or the processes do not find each other.
    """
    from torch import distributed as dist

    if started() == 1 or dist.is_initialized():
        yield
        return
    backend = _backend(device)
    try:
        store, rank, count = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"torchrun: expected {started()} processes that find each other, but "
                         f"got: {reason}") from error
    try:
        yield
    except BaseException:
        if rank:  # torchrun ends the others as soon as one ends: the first has yet to say why
            with suppress(Exception):
                store.wait([SAID], timedelta(seconds=PATIENCE_S))
        raise
    finally:
        with suppress(Exception):  # where another is gone already
            if not rank:
                store.set(SAID, "")
        dist.destroy_process_group()


def _backend(device: str) -> str:
    import torch

    from wua_mlflow.pipeline.machine import device_of

    if device_of(device).type != "cuda":
        return "gloo"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise ValueError(f"device: expected cuda, cpu or auto for {started()} processes, each of "
                         f"which takes a GPU of its own, but got {device}")
    if local >= torch.cuda.device_count():
        raise ValueError(f"device: expected a GPU for each process, but process {local} of this "
                         f"machine has none: there are {torch.cuda.device_count()}")
    torch.cuda.set_device(local)
    return "nccl"


def together(work: Callable[[], T]) -> T:
    """Do ``work`` in every process; an error in one of them is an error in all.

    >>> together(lambda: 3)
    3

    Raises:
        Exception: this process's own error.
        RuntimeError: another process's, in one line.
    """
    from wua_mlflow.processes import first_error

    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    first_error(error)
    return result
