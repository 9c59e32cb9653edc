"""The data of an analysis in batches, with a progress bar: ours, or the user's own batches.

Tests: ``tests/data/test_loaders.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from wua_mlflow.config import Settings
from wua_mlflow.data.batches import DATASET_BATCH
from wua_mlflow.data.datasets import DataSplit, call_data_function, load_data
from wua_mlflow.data.frames import are_frames
from wua_mlflow.data.parts import Part
from wua_mlflow.device import rows_at_once
from wua_mlflow.distributed import shard_batches
from wua_mlflow.progress import Bar
from wua_mlflow.rng import isolated

__all__ = [
    "AnalysisData", "BatchesWithBar", "load_analysis_data", "load_split", "local_share",
    "null_sample",
    "training_batches",
]


class BatchesWithBar:
    """Batches for several passes, with a progress bar over all of them.


    Args:
        batches: can be gone over again.
        count: how many there are, if that is known.
        passes: how often they are gone over.
        label: of the bar.

    >>> len(list(BatchesWithBar([1, 2, 3], 3, passes=1, label="demo")))
    3
    """

    def __init__(
        self, batches: Iterable[Any], count: int | None, *, passes: int, label: str
    ) -> None:
        self.batches = batches
        self.bar = Bar(total=count and passes * count, desc=label, unit="batch")

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.bar.update()
        if self.bar.total is None or self.bar.n >= self.bar.total:
            self.bar.close()


AnalysisData: TypeAlias = DataSplit | Iterable[Any] | Dataset[Any]
"""Data in three parts as everywhere, or the user's own batches, untouched."""


def load_analysis_data(
    settings: Settings, to_inputs: Callable[[Any], Any] | None = None
) -> AnalysisData:
    """The data that ``data`` names, for an analysis.

    What it names elsewhere gives a ``DataSplit``. A user's function may also return batches: a
    DataLoader, a list or any other iterable of them, a Dataset, a tensor; or a tuple (train,
    validation, test) of these, of which the first is taken. A list is always batches, unless it is
    of three Datasets or DataLoaders, and a tuple is always parts.

    Raises:
        ValueError: one line; there are no such data, or what the function returned is none.
    """
    reference = settings.data
    if ":" not in settings.model or ":" not in reference:  # a built-in model takes a split alone
        return load_split(settings, to_inputs)
    with isolated():
        made = call_data_function(reference, settings.seed)
        if are_frames(made, settings.target):
            return load_split(settings, returned=made)
        if settings.target is not None:
            raise ValueError(f"target: expected none beside data {reference!r}, but got "
                             f"{settings.target!r}")
        if isinstance(made, tuple) and len(made) == 3 and all(map(_is_pair, made)):
            return load_split(settings, to_inputs, returned=made)
        if isinstance(made, list) and len(made) == 3 and all(
                isinstance(part, Dataset | DataLoader) for part in made):
            made = tuple(made)  # three parts: no batch is one of these
    return _batches(made, reference)


def load_split(
    settings: Settings, to_inputs: Callable[[Any], Any] | None = None, *,
    arguments: Callable[[], int] | None = None, returned: Any = None,
) -> DataSplit:
    """The data that the settings name, in three parts; arguments and errors as of ``load_data``."""
    size = DATASET_BATCH if settings.batch_size == "full" else settings.batch_size
    table = settings.table_settings
    return load_data(
        settings.data, target=settings.target, groups=table.groups, seed=settings.seed,
        image=settings.model == "cnn", task=settings.task, standardise=settings.state is None,
        table=table, batch_size=size, to_inputs=to_inputs, arguments=arguments, returned=returned)


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


def training_batches(
    split: DataSplit, model: nn.Module, *, passes: int, label: str
) -> Iterable[Any]:
    """This process's share of the training part, in batches, with a bar."""
    train = split.train
    if not isinstance(train, Part):
        return shard_batches(BatchesWithBar(train.batches(model), None, passes=1, label=label))
    count = -(-len(train) // rows_at_once(train.inputs.shape))
    return shard_batches(BatchesWithBar(train.batches(model), count, passes=passes, label=label))


def null_sample(split: DataSplit, model: nn.Module) -> Iterable[Any] | None:
    """What nulls go over where the training part is streamed: a sample, shared by the processes."""
    train = split.train
    return None if isinstance(train, Part) else shard_batches(train.sample(model))


def local_share(batches: Iterable[Any] | Dataset[Any]) -> Iterable[Any] | Dataset[Any]:
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
