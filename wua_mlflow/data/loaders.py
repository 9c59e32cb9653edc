"""A progress bar over the passes of an analysis, when a person is watching.

May import: torch, tqdm, chunks, processes. Tests: ``tests/pipeline/test_progress.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import DataSplit, called, load_data, split_of
from wua_mlflow.device import rows_at_once
from wua_mlflow.distributed import rank, shard_batches
from wua_mlflow.errors import one_line
from wua_mlflow.pipeline.models import BUILT_IN
from wua_mlflow.rng import isolated
from wua_mlflow.usage.batches import Batch, Batches

__all__ = [
    "Feed", "Watched", "call_with_two", "example_of", "load_feed", "part_feed", "shared",
    "two_samples",
]


class Watched:
    """Inputs in chunks, to be gone over several times; a bar counts the chunks of all passes.

    With targets the chunks are pairs (inputs, targets). There is no bar where standard error is
    not a terminal, and in every process but the first.

    >>> len(list(Watched(__import__("torch").zeros(5000, 2), passes=1, label="demo")))
    5
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor | None = None, *, passes: int, label: str
    ) -> None:
        rows = rows_at_once(inputs.shape)
        chunks = inputs.split(rows)
        self.chunks: Sequence[Tensor | tuple[Tensor, Tensor]] = chunks if targets is None else \
            list(zip(chunks, targets.split(rows), strict=True))
        self.bar = tqdm(total=passes * len(self.chunks), desc=label, unit="batch", leave=False,
                        disable=True if rank() else None)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for chunk in self.chunks:
            yield chunk
            self.bar.update()
        if self.bar.n >= self.bar.total:
            self.bar.close()


Feed: TypeAlias = DataSplit | Iterable[Any] | Dataset[Any]
"""Data in three parts as everywhere, or the user's own batches, untouched."""
DATASET_BATCH = 64


def load_feed(settings: Settings) -> Feed:
    """The data that ``data`` names, for an analysis.

    What it names elsewhere gives a ``DataSplit``. A user's function may also return batches: a
    DataLoader, a list or any other iterable of them, a Dataset, a tensor; or a tuple (train,
    validation, test) of these, of which the first is taken. A list is always batches, a tuple is
    always parts.

    Raises:
        ValueError: one line; there are no such data, or what the function returned is none.
    """
    reference = settings.data
    if settings.model in BUILT_IN or ":" not in reference:
        return load_data(reference, target=settings.target, seed=settings.seed,
                         image=settings.model == "cnn", task=settings.task,
                         standardise=settings.state is None)
    if settings.target is not None:
        raise ValueError(f"target: expected none beside data {reference!r}, but got "
                         f"{settings.target!r}")
    with isolated():
        made = called(reference, settings.seed)
        if isinstance(made, tuple) and len(made) == 3 and all(map(_is_pair, made)):
            return split_of(made, reference, task=settings.task)
    return _batches(made, reference)


def _is_pair(part: object) -> bool:
    return isinstance(part, tuple) and len(part) == 2


def _batches(made: Any, reference: str) -> Iterable[Any] | Dataset[Any]:
    what = "batches (a DataLoader or a list of them) or a tuple (train, validation, test)"
    if isinstance(made, tuple):
        if len(made) != 3 or any(isinstance(part, Tensor | np.ndarray) for part in made):
            raise ValueError(f"data: expected {reference} to return {what}, but got a tuple of "
                             f"{len(made)} {type(made[0]).__name__ if made else 'things'}; give "
                             "batches as a list")
        made = made[0]
    single = isinstance(made, Tensor | np.ndarray) and not made.ndim
    if single or isinstance(made, str | bytes | Mapping) \
            or not isinstance(made, Iterable | Dataset):
        raise ValueError(f"data: expected {reference} to return {what}, but got "
                         f"{type(made).__name__}")
    return made


def example_of(feed: Feed) -> tuple[Any, Feed]:
    """The first batch (of ours and of a tensor two samples), and the data with it.

    Raises:
        ValueError: there is none.
    """
    if isinstance(feed, DataSplit):
        return (feed.train.inputs[:2], feed.train.targets[:2]), feed
    if isinstance(feed, Tensor | np.ndarray):
        return feed[:2], feed
    source = DataLoader(feed, batch_size=2) if isinstance(feed, Dataset) else feed
    with isolated():
        try:
            iterator = iter(source)
            first = next(iterator, None)
        except Exception as error:  # the user's own code may raise anything
            raise ValueError(f"data: expected batches, but got {one_line(error)}") from error
    if first is None:
        raise ValueError("data: expected at least one batch, but got none")
    if isinstance(feed, Iterator):
        return first, itertools.chain([first], feed)
    return first, feed


def two_samples(
    example: Any, model: nn.Module, to_inputs: Callable[[Any], Any] | None = None
) -> tuple[Any, ...] | Mapping[str, Any]:
    """The arguments of a call with the first two samples of a batch."""
    batch: Batch = next(iter(Batches([example], model, to_inputs)))

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == batch.samples:
            return value[:2]
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(map(cut, value))
        return value

    if batch.kwargs:
        return {name: cut(value) for name, value in batch.kwargs.items()}
    return tuple(map(cut, batch.args))


def call_with_two(
    model: nn.Module, example: Any, to_inputs: Callable[[Any], Any] | None = None
) -> object:
    """What a model makes of the first two samples of a batch."""
    arguments = two_samples(example, model, to_inputs)
    return model(**arguments) if isinstance(arguments, Mapping) else model(*arguments)


def part_feed(split: DataSplit, device: torch.device, *, passes: int, label: str) -> Iterable[Any]:
    """This process's share of our training part, in batches (inputs, targets), with a bar."""
    train = split.train
    return shard_batches(Watched(train.inputs.to(device), train.targets.to(device), passes=passes,
                            label=label))


def shared(batches: Iterable[Any] | Dataset[Any]) -> Iterable[Any] | Dataset[Any]:
    """This process's share of the user's batches; untouched, where it is alone.

    A tensor or a Dataset is cut into batches first, alike in every process. A DataLoader whose
    sampler is a ``DistributedSampler`` gives shares already.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return batches
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return batches
    if isinstance(batches, Tensor | np.ndarray):
        step = rows_at_once(batches.shape)
        batches = [batches[start:start + step] for start in range(0, len(batches), step)]
    elif isinstance(batches, Dataset):
        batches = DataLoader(batches, batch_size=DATASET_BATCH)
    return shard_batches(batches)
