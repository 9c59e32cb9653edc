"""Tensors in tuples, lists and dicts, as models take and give them.

Tests: ``tests/usage/test_batches.py``, ``tests/usage/test_mapped.py``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.device import rows_at_once
from wua_mlflow.usage.tracing.sums import PaddingMask, mask_of

__all__ = ["Batch", "Batches", "NO_TARGETS", "mapped"]


def mapped(value: Any, kinds: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """The value with everything of these kinds changed, in containers of the same kinds.

    Args:
        value: one of ``kinds``, a tuple (named, too), list or dict (of any class) of such, another
            mapping, which becomes a dict, or something else, which stays as it is.
        kinds: what is changed.
        change: of one of them.

    >>> mapped({"a": [1, "x"], "b": (2, None)}, int, lambda one: one + 1)
    {'a': [2, 'x'], 'b': (3, None)}
    """
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [mapped(part, kinds, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        found = copy.copy(value)
        for name, part in value.items():
            found[name] = mapped(part, kinds, change)
        return found
    if isinstance(value, Mapping):  # a tokenizer's batch, which is no dict
        return {name: mapped(part, kinds, change) for name, part in value.items()}
    return value


NO_TARGETS = object()
"""The targets of a batch that has none."""
_DATASET_BATCH = 64
NUMBERS = (Tensor, np.ndarray)


@dataclass(frozen=True)
class Batch:
    """One call of a model: its arguments, on its device; ``mask`` says what is padding."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    targets: Any
    samples: int
    mask: PaddingMask | None = None

    @property
    def first(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(value for value in (*self.args, *self.kwargs.values())
                    if isinstance(value, Tensor) and value.dim())

    def other(self) -> Batch:
        """One of the same shape that says something else.

        Its first half twice; of a single sample the numbers the other way round, and halved.
        """
        few, half = self.samples, max(1, self.samples // 2)

        def changed(one: Tensor) -> Tensor:
            if not one.dim():
                return one
            if few < 2:
                return one.flip(-1) / 2 if one.is_floating_point() else one.flip(-1)
            place = next((dim for dim in (0, 1) if one.shape[dim:dim + 1] == (few,)), None)
            if place is None:
                return one
            return one.index_select(place, torch.arange(few, device=one.device) % half)

        return replace(self, args=mapped(self.args, Tensor, changed),
                       kwargs=mapped(dict(self.kwargs), Tensor, changed))


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
        args = tuple(mapped(_tensor(part) if number == 0 else part, NUMBERS, self._moved)
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
            found = PaddingMask(found.keep.to(self._device), found.count)
        kwargs = {name: mapped(value, NUMBERS, self._moved) for name, value in kept.items()}
        return Batch((), kwargs, self._targets(targets), len(tensors[0]), found)

    def _moved(self, value: Tensor | np.ndarray) -> Tensor:
        """On the model's device, floating-point numbers in its dtype; the model's own to write."""
        tensor = self._tensor_of(value)
        keeps_dtype = self._to_inputs is not None and tensor.dtype != torch.float64
        dtype = self._dtype if tensor.is_floating_point() and not keeps_dtype else tensor.dtype
        # a copy to the CPU that does not block could be read before it is done
        return tensor.to(device=self._device, dtype=dtype, copy=tensor is value,
                         non_blocking=self._device.type == "cuda")

    def _tensor_of(self, value: Tensor | np.ndarray) -> Tensor:
        """Gradients can be taken through it; an array is copied, which may be read-only."""
        if not isinstance(value, Tensor):
            if value.dtype.kind not in "fiubc":
                raise ValueError("data: expected arrays of numbers, but got one of dtype "
                                 f"{value.dtype}")
            return torch.from_numpy(np.array(value))
        if value.is_meta and self._device.type != "meta":
            raise ValueError("data: expected tensors with values, but got one on the meta device; "
                             "make it on a real device")
        return value.clone() if value.is_inference() else value

    def _targets(self, targets: Any) -> Any:
        if isinstance(targets, Tensor | np.ndarray):
            return self._tensor_of(targets).to(self._device)
        return targets


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


def _tensor(batch: Any) -> Tensor | np.ndarray:
    if not isinstance(batch, Tensor | np.ndarray) or not batch.ndim:
        raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), but "
                         f"got {batch!r:.60}")
    if isinstance(batch, Tensor) and batch.layout is not torch.strided:
        raise ValueError(f"data: expected dense tensors, but got {batch.layout}; call to_dense()")
    return batch
