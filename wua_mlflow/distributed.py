"""Several processes over one data set: what they gathered is joined once, at the end.

May import: torch, gradients, sampling, watching. Tests: ``tests/test_processes.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from wua_mlflow.usage.activation_sample import ActivationSampler
from wua_mlflow.usage.gradients import Gradients
from wua_mlflow.usage.tracing.layer import FiredUnits, RunningSum, TracedLayer
from wua_mlflow.usage.tracing.tracer import WeightTracer

__all__ = [
    "all_reduce", "is_first", "is_sharded", "on_all_ranks", "process_group", "processes",
    "raise_first_error", "rank", "shard_batches", "started", "synchronized_batches",
]


T = TypeVar("T")


def rank() -> int:
    """Of this process; 0 where there is only one.

    >>> rank()
    0
    """
    return dist.get_rank() if _several() else 0


def processes() -> int:
    """How many there are.

    >>> processes()
    1
    """
    return dist.get_world_size() if _several() else 1


def shard_batches(batches: Iterable[T]) -> Iterable[T]:
    """Every n-th batch of n processes, beginning with this one's rank; all, where it is alone.

    >>> list(shard_batches([1, 2, 3]))
    [1, 2, 3]
    """
    if not _several():
        return batches
    return _Share(batches, dist.get_rank(), dist.get_world_size())


class _Share(Iterable[T]):
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
    if not sharded or not _several():
        yield from batches
        return
    iterator, none = iter(batches), object()
    while True:
        batch = next(iterator, none)
        left = _gathered(batch is not none)
        failed = [text for text in left if isinstance(text, str)]
        if failed:  # another process is in first_error already
            raise _OtherProcessError(f"process {left.index(failed[0])}: {failed[0]}")
        if not any(left):
            return
        if not all(left):
            raise ValueError("data: expected as many batches in every process, since the model is "
                             f"sharded, but process {left.index(False)} has fewer")
        yield batch  # type: ignore[misc]


class _OtherProcessError(Exception):
    """What another process met, told in place of whether it has a batch."""


def raise_first_error(error: Exception | None) -> None:
    """Raise ``error``, or the first that another process met: none waits for one that stopped."""
    if isinstance(error, _OtherProcessError):
        raise RuntimeError(str(error)) from None
    met = _gathered(None if error is None else f"{type(error).__name__}: {error}") \
        if _several() else []
    if error is not None:
        raise error
    for number, text in enumerate(met):
        if text is not None:
            raise RuntimeError(f"process {number}: {text}")


def all_reduce(
    watch: WeightTracer,
    calls: Counter[str],
    samples: int,
    gradients: Gradients | None,
    sampler: ActivationSampler | None,
) -> int:
    """Join what every process gathered, in place; gives the number of samples of all.

    A layer that a process never met (its share of the data took another path, or was empty) is
    made from another's description.
    """
    if not _several():
        return samples
    found: list[Mapping[str, Any]] = _gathered({
        "samples": samples,
        "calls": calls,
        "last": [layer.name for layer in watch.output_layers],
        "others": watch.other_uses,
        "refused": watch.unsupported,
        "layers": [_described(layer) for layer in watch.layers.values()],
        "gradients": None if gradients is None else gradients.described(),
        "rows": None if sampler is None else sampler.samples(),
    })
    calls.clear()
    for one in reversed(found):
        calls.update(one["calls"])
        watch.other_uses.update(one["others"])
        watch.unsupported.update(one["refused"])
    sums = _join_layers(watch, [one["layers"] for one in found])
    watch.output_layers = [watch.layers[name] for name in
                  next((one["last"] for one in found if one["samples"]), [])]
    if gradients is not None:
        sums += gradients.join([one["gradients"] for one in found])
    if sampler is not None:
        sampler.join([one["rows"] for one in found])
    _add_up(sums)
    return sum(one["samples"] for one in found)


def _join_layers(watch: WeightTracer, found: list[list[TracedLayer]]) -> list[Tensor]:
    """The layers of all processes in the order of the first; gives the sums to be added up."""
    sums: list[Tensor] = []
    by_name: dict[str, list[TracedLayer]] = {}
    for layers in found:
        for layer in layers:
            by_name.setdefault(layer.name, []).append(layer)
    mine = dict(watch.layers)
    watch.layers.clear()
    for name, others in by_name.items():
        watch.layers[name] = mine.get(name) or replace(others[0])
        _join(watch.layers[name], others, sums)
    return sums


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _described(layer: TracedLayer) -> TracedLayer:
    """A layer without its sums, but their shapes and counts: small enough to send."""
    def bare(total: RunningSum) -> RunningSum:
        shape = None if total.sums is None else torch.empty(total.sums.shape, device="meta")
        return RunningSum(shape, total.count)

    def kept(alive: FiredUnits | None) -> FiredUnits | None:
        return None if alive is None else alive.to(torch.device("cpu"))

    return replace(layer, computed=None, output=bare(layer.output),
                   inputs={power: bare(total) for power, total in layer.inputs.items()},
                   fired=kept(layer.fired), fired_in_relu=kept(layer.fired_in_relu))


def _join(layer: TracedLayer, others: list[TracedLayer], sums: list[Tensor]) -> None:
    """One layer's counts and flags from all processes; its sums are left to be added up."""
    layer.calls = sum(other.calls for other in others)
    layer.flops = sum(other.flops for other in others)
    layer.changes = any(other.changes for other in others)
    layer.fired = _either([other.fired for other in others])
    layer.fired_in_relu = _either([other.fired_in_relu for other in others])
    for read in (lambda one: one.output, lambda one: one.inputs[1], lambda one: one.inputs[2]):
        total, known = read(layer), [read(other) for other in others]
        like = next((one.sums for one in known if one.sums is not None), None)
        total.count = sum(one.count for one in known)
        if like is None:
            continue
        if total.sums is None or total.sums.is_meta:
            total.sums = torch.zeros(like.shape, dtype=torch.float64)
        sums.append(total.sums)


def _either(found: list[FiredUnits | None]) -> FiredUnits | None:
    known = [one for one in found if one is not None]
    if not known:
        return None
    joined = known[0].to(torch.device("cpu"))
    joined.flags = torch.stack([one.flags for one in known]).any(0)
    joined.calls = sum(one.calls for one in known)
    return joined


def _add_up(sums: list[Tensor]) -> None:
    """One sum over the processes for everything; large tensors on their own, without a copy."""
    device = torch.device("cuda", torch.cuda.current_device()) \
        if dist.get_backend() == "nccl" else torch.device("cpu")
    small = [one for one in sums if one.numel() <= 2**20]
    if small:
        flat = torch.cat([one.reshape(-1).to(device) for one in small])
        dist.all_reduce(flat)
        for one, part in zip(small, flat.split([one.numel() for one in small]), strict=True):
            one.copy_(part.view(one.shape))
    for one in sums:
        if one.numel() > 2**20:
            moved = one.to(device)
            dist.all_reduce(moved)
            one.copy_(moved)


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

    from wua_mlflow.device import device_of

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


def on_all_ranks(work: Callable[[], T]) -> T:
    """Do ``work`` in every process; an error in one of them is an error in all.

    >>> on_all_ranks(lambda: 3)
    3

    Raises:
        Exception: this process's own error.
        RuntimeError: another process's, in one line.
    """
    pass

    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    raise_first_error(error)
    return result
