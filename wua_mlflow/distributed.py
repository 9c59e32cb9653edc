"""Several processes over one data set: ranks, shards of the batches, sums over all processes.

Tests: ``tests/test_distributed.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "all_reduce", "alone", "gather_objects", "is_first", "is_sharded", "on_all_ranks",
    "process_group", "processes", "raise_first_error", "rank", "shard_batches", "started",
    "synchronized_batches",
]


T = TypeVar("T")
SMALL = 2**20
"""Tensors of up to so many numbers are added up in one message."""


def rank() -> int:
    """Of this process; 0 where there is only one.

    >>> rank()
    0
    """
    from torch import distributed as dist

    return dist.get_rank() if processes() > 1 else 0


def processes() -> int:
    """How many there are.

    >>> processes()
    1
    """
    from torch import distributed as dist

    if _alone.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """For the block this process waits for no other, and sums nothing with them.

    So one of several can measure its own copy of the model while the others train on.

    >>> with alone():
    ...     processes()
    1
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def shard_batches(batches: Iterable[T]) -> Iterable[T]:
    """Every n-th batch of n processes, beginning with this one's rank; all, where it is alone.

    >>> list(shard_batches([1, 2, 3]))
    [1, 2, 3]
    """
    return batches if processes() == 1 else _Shard(batches, rank(), processes())


class _Shard(Iterable[T]):
    def __init__(self, batches: Iterable[T], first: int, step: int) -> None:
        self._batches, self._first, self._step = batches, first, step

    def __iter__(self) -> Iterator[T]:
        for number, batch in enumerate(self._batches):
            if number % self._step == self._first:
                yield batch


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are spread over processes (FSDP2)."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def synchronized_batches(batches: Iterable[T], *, sharded: bool) -> Iterator[T]:
    """The batches; those of a sharded model only as long as every process has one.

    Raises:
        ValueError: some processes have more batches than others; on all of them.
    """
    if not sharded or processes() == 1:
        yield from batches
        return
    iterator, none = iter(batches), object()
    while True:
        batch = next(iterator, none)
        answers: list[Any] = gather_objects(batch is not none)
        failed = [text for text in answers if isinstance(text, str)]
        if failed:  # another process is in raise_first_error already
            raise _OtherProcessError(f"process {answers.index(failed[0])}: {failed[0]}")
        if not any(answers):
            return
        if not all(answers):
            raise ValueError("data: expected as many batches in every process, since the model is "
                             f"sharded, but process {answers.index(False)} has fewer")
        yield batch  # type: ignore[misc]


class _OtherProcessError(Exception):
    """What another process met, told in place of whether it has a batch."""


def raise_first_error(error: Exception | None) -> None:
    """Raise ``error``, or the first that another process met: none waits for one that stopped."""
    if isinstance(error, _OtherProcessError):
        raise RuntimeError(str(error)) from None
    errors = gather_objects(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, text in enumerate(errors):
        if text is not None:
            raise RuntimeError(f"process {number}: {text}")


def gather_objects(value: T) -> list[T]:
    """The value of every process, in the order of their ranks.

    >>> gather_objects("a")
    ['a']
    """
    if processes() == 1:
        return [value]
    from torch import distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce(tensors: list[Tensor]) -> None:
    """Add up each tensor over the processes, in place; large ones on their own, without a copy."""
    if processes() == 1:
        return
    import torch
    from torch import distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) \
        if dist.get_backend() == "nccl" else torch.device("cpu")
    small = [tensor for tensor in tensors if tensor.numel() <= SMALL]
    if small:
        flat = torch.cat([tensor.reshape(-1).to(device) for tensor in small])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in small])
        for tensor, part in zip(small, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
    for tensor in tensors:
        if tensor.numel() > SMALL:
            moved = tensor.to(device)
            dist.all_reduce(moved)
            tensor.copy_(moved)


VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torch.distributed`` needs to know; ``torchrun`` sets it."""
FIRST_IS_DONE = "wua: the first process is done"
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
    from torch.distributed.rendezvous import rendezvous

    from wua_mlflow.device import take_own_gpu

    backend = "nccl" if take_own_gpu(device, started()) else "gloo"
    try:
        store, rank, count = next(rendezvous("env://"))
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
                store.wait([FIRST_IS_DONE], timedelta(seconds=PATIENCE_S))
        raise
    finally:
        with suppress(Exception):  # where another is gone already
            if not rank:
                store.set(FIRST_IS_DONE, "")
        dist.destroy_process_group()


def on_all_ranks(work: Callable[[], T]) -> T:
    """Do ``work`` in every process; an error in one of them is an error in all.

    >>> on_all_ranks(lambda: 3)
    3

    Raises:
        Exception: this process's own error.
        RuntimeError: another process's, in one line.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    raise_first_error(error)
    return result
