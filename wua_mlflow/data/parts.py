"""One part of the data: tensors in memory, or what the user gave, gone over in batches.

Tests: ``tests/data/test_parts.py``.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from wua_mlflow.data.batches import (
    DATASET_BATCH,
    NUMBERS,
    Batch,
    Batches,
    Inputs,
    inputs_and_targets,
    leaves,
    mapped,
)
from wua_mlflow.errors import one_line
from wua_mlflow.rng import isolated, seed_all

__all__ = ["DataPart", "Part", "RowsOfPair", "StreamedPart", "digest_of", "is_map_style",
           "streamed_part"]


KEPT_BYTES = 2**28
"""Batches to validate or to test on are kept in memory up to this size."""
SAMPLE_BYTES = 2**27
LARGE_BYTES, BETWEEN = 2**20, 16
"""A batch of more bytes is large; after so many of these free memory is given back."""
SAMPLE_EXAMPLES = 2048
"""What goes over training data many times takes a sample of at most this size."""


class DataPart(Protocol):
    """What every part can do; the batches are on the device of the model that they are for."""

    @property
    def groups(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def dataset(self) -> Any: ...

    def batches(self, model: nn.Module) -> Iterable[Batch]: ...

    def sample(self, model: nn.Module) -> Iterable[Batch]: ...

    def example(self, model: nn.Module, count: int) -> Inputs: ...


def digest_of(*parts: np.ndarray | bytes) -> str:
    """SHA-256, in hexadecimal, of arrays with their shapes and types, and of bytes."""
    sha = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        sha.update(part)
    return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Part:
    """A part in memory; ``part[i]`` is a pair, so that a torch DataLoader takes it.

    ``inputs`` are (n, *features) float32, or int64 where they are an embedding's; ``targets``
    (n, 1) float32 in binary tasks, (n, columns) in regressions and multi-label ones, (n,) int64 in
    multiclass ones, (n, *positions) int64 of tokens or pixels; ``groups`` (n,) numbers of whose
    examples they are, if that is known.
    """

    inputs: Tensor
    targets: Tensor
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets, on a device."""
        return self.inputs.to(device), self.targets.to(device)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the shapes, the types and the bytes of both tensors."""
        return digest_of(*(tensor.detach().cpu().contiguous().numpy()
                           for tensor in (self.inputs, self.targets)))

    @property
    def dataset(self) -> TensorDataset:
        """For a trainer of the user's own."""
        return TensorDataset(self.inputs, self.targets)

    def batches(self, model: nn.Module) -> Batches:
        """All examples in their order, in batches that fit into memory."""
        return Batches((self.inputs, self.targets), model)

    def sample(self, model: nn.Module) -> Batches:
        """All of it."""
        return self.batches(model)

    def example(self, model: nn.Module, count: int) -> Tensor:
        """The first ``count`` inputs, a copy."""
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        return self.inputs[:count].to(device, copy=True)


class StreamedPart:
    """A part that is what the user gave: gone over in batches, never stacked.

    Attributes:
        source: a map-style or iterable Dataset, a DataLoader, a list or another iterable of
            batches; as the user gave it.
        where: ``train``, ``validation`` or ``test``, for messages.
        batch_size: of a Dataset's batches.
        to_inputs: the user's function of a batch.
        ordered: whether its examples must come in the same order each time: checked by their
            digest, and kept in memory where they are small.
    """

    groups: np.ndarray | None = None

    def __init__(
        self, source: Any, where: str, *, batch_size: int = DATASET_BATCH,
        to_inputs: Callable[[Any], Any] | None = None, ordered: bool = True,
    ) -> None:
        self.source, self.where, self.to_inputs = source, where, to_inputs
        self.batch_size, self.ordered = batch_size, ordered
        self._kept: list[Any] | None = None
        self._digest = ""

    @property
    def dataset(self) -> Any:
        """For a trainer of the user's own: what the user's function returned."""
        return self.source

    @cached_property
    def _length(self) -> int:
        known = _known_length(self.source)
        if known is not None:
            return known
        counted = sum(_samples(batch) for batch in _as_batches(self.source, self.batch_size))
        if not counted:
            raise ValueError(f"data: expected at least one example in {self.where}, but got none")
        return counted

    def __len__(self) -> int:
        return self._length

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all tensors in their order, whatever the batches' size.

        Empty where the order is free.
        """
        if self.ordered and not self._digest:
            for _ in self._checked():
                pass
        return self._digest

    def first(self) -> Any:
        """The first batch, as the user's code made it.

        Raises:
            ValueError: there is none, or the user's code fails.
        """
        try:
            batch = next(iter(_as_batches(self.source, self.batch_size)), None)
        except Exception as error:  # the user's own code may raise anything
            raise ValueError(f"data: expected batches in {self.where}, but got {one_line(error)}"
                             f"{_collate_hint(self.source)}") from error
        if batch is None:
            raise ValueError(f"data: expected at least one batch in {self.where}, but got none")
        return batch

    def all_targets(self, needed: int = 1) -> Iterator[Any]:
        """The targets of each batch, for a forward that needs so many arguments."""
        for batch in self._checked():
            yield inputs_and_targets(batch, self.to_inputs, needed)[1]

    def batches(self, model: nn.Module) -> Batches:
        """All examples; in the same order each time, where that is asked for."""
        return Batches(_Passes(self._checked if self.ordered else self._raw), model, self.to_inputs)

    def epoch(
        self, model: nn.Module, size: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """The batches of one epoch of training.

        A Dataset's examples and a list's batches come in an order of the generator's; a DataLoader
        and any other iterable in the order of their own.
        """
        source = self.source
        if is_map_style(source):
            source = DataLoader(source, batch_size=size, shuffle=True, generator=generator)
        elif isinstance(source, list):
            source = [source[i] for i in torch.randperm(len(source), generator=generator)]
        return iter(Batches(_giving_back(_as_batches(source, size)), model, self.to_inputs))

    def sample(self, model: nn.Module) -> Batches:
        """The first examples, at most ``SAMPLE_EXAMPLES``, that fit into ``SAMPLE_BYTES``.

        They are the same each time: of a source that shuffles those of one seed.
        """
        return Batches(self._sampled, model, self.to_inputs)

    @cached_property
    def _sampled(self) -> list[Any]:
        sample: list[Any] = []
        examples = size = 0
        with isolated():
            seed_all(0)
            for batch in self._raw() if self._kept is None else self._kept:
                sample.append(batch if self._kept is not None else _copied(batch))
                examples, size = examples + _samples(batch), size + _bytes(batch)
                if examples >= SAMPLE_EXAMPLES or size >= SAMPLE_BYTES:
                    break
        return sample

    def example(self, model: nn.Module, count: int) -> Inputs:
        """The first ``count`` inputs of the first batch; all where the model refuses so few."""
        if not self._example:
            self._example.append(self.first())
        batch: Batch = next(iter(Batches(self._example, model, self.to_inputs)))
        return batch.accepted_example(model, count)

    @cached_property
    def _example(self) -> list[Any]:
        return []

    def _raw(self) -> Iterator[Any]:
        return _giving_back(_as_batches(self.source, self.batch_size))

    def _checked(self) -> Iterator[Any]:
        """The batches; at the end of each pass their digest is compared with the first one's."""
        if self._kept is not None:
            yield from self._kept
            return
        digest, size, keep = _StreamDigest(), 0, not self._digest
        kept: list[Any] = []
        for batch in self._raw():
            keep = keep and (size > 0 or self._fits(batch))
            digest.add(batch)
            size += _bytes(batch)
            keep = keep and size <= KEPT_BYTES
            if keep:
                kept.append(_copied(batch))  # the user may fill one and the same buffer again
            else:
                kept.clear()
            yield batch
        found = digest.hexdigest()
        if self._digest and found != self._digest:
            raise ValueError(f"data: expected the {self.where} part in the same order each time, "
                             f"but it came otherwise in a later pass; give a DataLoader with "
                             f"shuffle=False, or a Dataset that draws nothing at random")
        first, self._digest = not self._digest, found
        if first and keep:
            for _ in self._checked():  # a second pass, which costs little
                pass
            self._kept = kept


    def _fits(self, batch: Any) -> bool:
        """Whether batches like this one are small enough to be kept, where it is known how many."""
        length = _known_length(self.source) or 0
        return _bytes(batch) * length <= KEPT_BYTES * max(_samples(batch), 1)


class _Passes:
    """An iterable of which each iteration is a new pass."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Any]:
        return self._begin()


class _StreamDigest:
    """A digest of the tensors of batches, each place's by itself: the batches' size is all one."""

    def __init__(self) -> None:
        self._by_place: dict[int, Any] = {}
        self._forms: dict[int, str] = {}

    def add(self, batch: Any) -> None:
        for place, value in enumerate(leaves(batch, (*NUMBERS, str, int, float, bool))):
            sha = self._by_place.setdefault(place, hashlib.sha256())
            if isinstance(value, Tensor):
                value = value.detach().cpu()
                value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
            if isinstance(value, np.ndarray):
                form = f"{value.dtype.str}{value.shape[1:]}"
                if self._forms.get(place) != form:  # padded batches differ in length
                    sha.update(form.encode())
                    self._forms[place] = form
                sha.update(np.ascontiguousarray(value).data if value.size else b"")
            else:
                sha.update(repr(value).encode())

    def hexdigest(self) -> str:
        return digest_of(*(sha.digest() for sha in self._by_place.values()))


@dataclass(frozen=True, eq=False)
class RowsOfPair(Dataset[Any]):
    """Inputs of several tensors (a tuple or a dict) and targets, as a map-style Dataset."""

    inputs: Any
    targets: Any = field(repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return mapped(self.inputs, NUMBERS, lambda value: value[index]), self.targets[index]


def streamed_part(
    source: Any, where: str, *, batch_size: int = DATASET_BATCH,
    to_inputs: Callable[[Any], Any] | None = None,
) -> StreamedPart:
    """What the user gave as a part: of the training part the order is free.

    Raises:
        ValueError: it is nothing to go over, or can be gone over only once.
    """
    if isinstance(source, Iterator):
        raise ValueError(f"data: expected {where} as something that can be gone over again, but "
                         f"got {type(source).__name__}, which ends after one pass; give a list, a "
                         f"DataLoader, or an object whose __iter__ begins anew")
    streamed = isinstance(source, Iterable | Dataset) or is_map_style(source)
    if not streamed or isinstance(source, str | bytes | Mapping):
        raise ValueError(f"data: expected {where} as a pair (inputs, targets), a Dataset, a "
                         f"DataLoader or an iterable of batches, but got {type(source).__name__}")
    return StreamedPart(source, where, batch_size=batch_size, to_inputs=to_inputs,
                        ordered=where != "train")


def is_map_style(source: Any) -> bool:
    """Whether it gives single examples by number, as torch's Datasets and Hugging Face's do.

    >>> is_map_style(TensorDataset(torch.zeros(2))), is_map_style([torch.zeros(2)])
    (True, False)
    """
    if isinstance(source, IterableDataset | list | tuple | Tensor | np.ndarray | Mapping | str):
        return False
    return isinstance(source, Dataset) or (
        hasattr(source, "__getitem__") and hasattr(source, "__len__"))


def _as_batches(source: Any, size: int) -> Iterable[Any]:
    if is_map_style(source) or isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=size)
    batches: Iterable[Any] = source
    return batches


def _known_length(source: Any) -> int | None:
    """Of a Dataset, and of a DataLoader with a sampler; None where it must be counted."""
    counted = source
    if isinstance(source, DataLoader):
        plain = type(source.batch_sampler) is BatchSampler and not source.drop_last
        counted = source.sampler if plain else None
    elif not is_map_style(source):
        return None
    try:
        return None if counted is None else len(counted)
    except TypeError:  # a Dataset, or a sampler, without a length
        return None


def _giving_back(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; now and then, between large ones, free memory goes back to the system.

    What is small and stays lies between what is large and goes, and the C library keeps the holes:
    a pass over 28 GiB of images left up to a gigabyte of them.
    """
    large = 0
    for batch in batches:
        large += _bytes(batch) > LARGE_BYTES
        if large >= BETWEEN:
            large = 0
            _give_back()
        yield batch
    if large:
        _give_back()


def _give_back() -> None:
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _copied(batch: Any) -> Any:
    return mapped(batch, NUMBERS, lambda value: value.clone() if isinstance(value, Tensor)
                  else value.copy())


def _samples(batch: Any) -> int:
    return next((len(value) for value in leaves(batch, NUMBERS) if np.ndim(value)), 0)


def _bytes(batch: Any) -> int:
    return sum(value.nbytes for value in leaves(batch, NUMBERS))


def _collate_hint(source: Any) -> str:
    return "; examples of different lengths want a DataLoader with a collate_fn" \
        if is_map_style(source) else ""
