"""Data in any usual form, batch by batch: arguments of the model, targets, mask, samples.

May import: torch, numpy, chunks, watching. Tests: ``tests/test_batches.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.chunks import rows_at_once
from wua_mlflow.watching.masks import Mask, mask_of

__all__ = ["NO_TARGETS", "Batch", "Batches", "Guard"]

NO_TARGETS = object()
"""The targets of a batch that has none."""
_DATASET_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """One call of a model: its arguments, on its device; ``mask`` says what is padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any
    samples: int
    mask: Mask | None = None

    @property
    def first(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(value for value in (*self.args, *self.kwargs.values())
                    if isinstance(value, Tensor) and value.dim())

    def other(self) -> Batch:
        """One that says something else: half of its samples; a single one the other way round."""
        def changed(one: Tensor) -> Tensor:
            if self.samples < 2:
                return one.flip(-1)
            return one[:self.samples // 2] if len(one) == self.samples else one

        return self._of(changed)

    def copy(self) -> Batch:
        """One with tensors of its own."""
        return self._of(Tensor.clone)

    def tensors(self) -> list[Tensor]:
        """All of its arguments."""
        found: list[Tensor] = []

        def noted(one: Tensor) -> Tensor:
            found.append(one)
            return one

        self._of(noted)
        return found

    def _of(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def changed(value: Tensor | np.ndarray) -> Any:
            return change(value) if isinstance(value, Tensor) and value.dim() else value

        return replace(self, args=_each(self.args, changed),
                       kwargs=_each(dict(self.kwargs), changed))


class Guard:
    """Batches as they were, though a model may write into what it is given.

    The first one is copied; where the model wrote into it, each one is from then on.
    """

    def __init__(self) -> None:
        self._writes: bool | None = None

    @contextmanager
    def keeping(self, batch: Batch) -> Iterator[Batch]:
        """A block that gives the model the batch, or a copy; afterwards it is as it was.

        Raises:
            ValueError: a later batch was written into, but the first one was not.
        """
        if self._writes:
            yield batch.copy()
            return
        before = None if self._writes is False else batch.copy()
        tensors = batch.tensors()
        versions = [one._version for one in tensors]
        try:
            yield batch
        finally:
            written = [one._version for one in tensors] != versions
            if before is not None and written:
                with torch.no_grad():
                    for one, was in zip(tensors, before.tensors(), strict=True):
                        one.copy_(was)
            self._writes = bool(self._writes) or written
        if written and before is None:
            raise ValueError("model: expected one that leaves its inputs alone, or writes into "
                             "those of the first batch too, but a later batch was written into")


class Batches:
    """An iterable of ``Batch``, anew for each pass.

    Args:
        data: a tensor or array, shape (samples, ...), a ``Dataset``, or an iterable of batches: of
            tensors or arrays, of tuples (the first entry is the input, the second the target), of
            dicts (keyword arguments, those that the forward takes; ``labels`` are the target and
            ``attention_mask`` says what is padding).
        model: gives the device, the floating-point dtype, and the arguments that it takes.
        batch_to_inputs: from a batch of another kind to a tensor, a tuple of positional arguments
            or a dict of keyword arguments.
    """

    def __init__(
        self, data: Any, model: nn.Module, batch_to_inputs: Callable[[Any], Any] | None = None
    ) -> None:
        self.data, self._to_inputs = data, batch_to_inputs
        place = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self._device, self._dtype = place.device, place.dtype
        self._takes = _keywords(model)
        self._keys: frozenset[str] | None = None
        self._had_some = False

    def __iter__(self) -> Iterator[Batch]:
        samples = 0
        for batch in _split(self.data):
            read = self._read(batch)
            samples += read.samples
            if read.samples:
                yield read
        if self._had_some and not samples:
            raise ValueError("data: expected batches that can be gone over again, but got none in "
                             "a later pass; give a DataLoader or a list")
        self._had_some = samples > 0

    @property
    def once(self) -> bool:
        """Whether the data can be gone over only once."""
        return isinstance(self.data, Iterator)

    def _read(self, batch: Any) -> Batch:
        if self._to_inputs is not None:
            inputs, targets = self._to_inputs(batch), _target_of(batch)
            if targets is NO_TARGETS and not isinstance(batch, Tensor | np.ndarray | tuple | list):
                targets = batch  # an object of the user's own, from which the loss takes them
            if isinstance(inputs, Mapping):
                return self._of_dict(inputs, targets)
            parts = inputs if isinstance(inputs, tuple) and inputs else (inputs,)
            return self._of_args(parts, targets)
        if isinstance(batch, Mapping):
            return self._of_dict(batch, batch.get("labels", NO_TARGETS))
        if isinstance(batch, tuple | list):
            first = batch[0] if batch else batch
            if isinstance(first, Mapping):
                return self._of_dict(first, _target_of(batch))
            return self._of_args((first,), _target_of(batch))
        return self._of_args((batch,), NO_TARGETS)

    def _of_args(self, parts: tuple[Any, ...], targets: Any) -> Batch:
        args = tuple(self._placed(_tensor(part) if number == 0 else part)
                     for number, part in enumerate(parts))
        return Batch(args, {}, self._targets(targets), _samples(args[0], targets))

    def _of_dict(self, batch: Mapping[str, Any], targets: Any) -> Batch:
        keys = frozenset(map(str, batch))
        if self._keys is None:
            self._keys = keys
        elif keys != self._keys:
            raise ValueError(f"data: expected batches with the same keys "
                             f"({', '.join(sorted(self._keys))}), but got "
                             f"{', '.join(sorted(keys)) or 'none'}")
        kept = {name: value for name, value in batch.items()
                if self._takes is None or name in self._takes}
        tensors = [value for value in kept.values()
                   if isinstance(value, Tensor | np.ndarray) and np.ndim(value)]
        if not kept:
            raise ValueError("data: expected keys that the model's forward takes "
                             f"({', '.join(sorted(self._takes or ()))}), but got "
                             f"{', '.join(sorted(keys)) or 'none'}")
        if not tensors:
            raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), "
                             f"but got {dict(batch)!r:.60}")
        mask = batch.get("attention_mask")
        found = mask_of(torch.as_tensor(mask)) if mask is not None else None
        if found is not None:
            found = Mask(found.keep.to(self._device), found.kept)
        kwargs = {name: self._placed(value) for name, value in kept.items()}
        return Batch((), kwargs, self._targets(targets), len(tensors[0]), found)

    def _placed(self, value: Any) -> Any:
        """On the model's device; floating-point numbers in its dtype."""
        return _each(value, self._moved)

    def _moved(self, value: Tensor | np.ndarray) -> Tensor:
        plain = self._valued(value)
        kept = self._to_inputs is not None and plain.dtype != torch.float64
        dtype = self._dtype if plain.is_floating_point() and not kept else plain.dtype
        # a copy to the CPU that does not block could be read before it is done
        return plain.to(device=self._device, dtype=dtype,
                        non_blocking=self._device.type == "cuda")

    def _valued(self, value: Tensor | np.ndarray) -> Tensor:
        plain = _plain(value)
        if plain.is_meta and self._device.type != "meta":
            raise ValueError("data: expected tensors with values, but got one on the meta device; "
                             "make it on a real device")
        return plain

    def _targets(self, targets: Any) -> Any:
        if isinstance(targets, Tensor | np.ndarray):
            return self._valued(targets).to(self._device)
        return targets


def _each(value: Any, change: Callable[[Tensor | np.ndarray], Any]) -> Any:
    """A value with its tensors and arrays changed, also those in tuples, lists and dicts."""
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, tuple | list):
        parts = (_each(part, change) for part in value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: _each(part, change) for name, part in value.items()}
    return value


def _keywords(model: nn.Module) -> frozenset[str] | None:
    """The keyword arguments of a model's forward; None where it takes any."""
    found = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    return frozenset(found)


def _samples(inputs: Tensor, targets: Any) -> int:
    """As many as the first dimension has; as targets, where these tell of time-first inputs."""
    shape = tuple(targets.shape) if isinstance(targets, Tensor | np.ndarray) else ()
    time_first = shape and inputs.dim() > 1 and len(inputs) != shape[0] == inputs.shape[1]
    return shape[0] if time_first else len(inputs)


def _target_of(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return batch.get("labels", batch)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else NO_TARGETS


def _split(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray) and data.ndim:
        _tensor(data)
        step = rows_at_once(data.shape)
        return (data[start:start + step] for start in range(0, len(data), step))
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=_DATASET_BATCH)
    if isinstance(data, Iterable) and not isinstance(data, str | Mapping | Tensor | np.ndarray):
        return data
    raise ValueError("data: expected a tensor or array of shape (samples, ...), a Dataset, or an "
                     f"iterable of batches, but got {type(data).__name__}")


def _plain(value: Tensor | np.ndarray) -> Tensor:
    """A tensor that gradients can be taken through; a copy of an array, which may be read-only."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if value.dtype.kind not in "fiubc":
        raise ValueError(f"data: expected arrays of numbers, but got one of dtype {value.dtype}")
    return torch.from_numpy(np.array(value))


def _tensor(batch: Any) -> Tensor | np.ndarray:
    if not isinstance(batch, Tensor | np.ndarray) or not batch.ndim:
        raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), but "
                         f"got {batch!r:.60}")
    if isinstance(batch, Tensor) and batch.layout is not torch.strided:
        raise ValueError(f"data: expected dense tensors, but got {batch.layout}; call to_dense()")
    return batch
