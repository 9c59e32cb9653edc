"""Batches of a user's data as a model's arguments: device, dtype, targets and padding.

Tests: ``tests/usage/test_batches.py``.
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
    """Apply a function to every value of some types in nested tuples, lists and dicts.

    Args:
        value: one of ``kinds``, or a container of such: a tuple (named, too), a list, a dict (of
            any class) or another mapping, which becomes a dict. Anything else stays as it is.
        kinds: the types to change.
        change: is given a value of these types and returns the new one.

    >>> mapped({"a": [1, "x"], "b": (2, None)}, int, lambda number: number + 1)
    {'a': [2, 'x'], 'b': (3, None)}
    """
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [mapped(part, kinds, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        changed = copy.copy(value)
        for name, part in value.items():
            changed[name] = mapped(part, kinds, change)
        return changed
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

    def sample_dim(self, tensor: Tensor) -> int | None:
        """The dimension of the samples: 0, or 1 where time comes first; None without one."""
        return next((dim for dim in (0, 1) if tensor.shape[dim:dim + 1] == (self.samples,)), None)

    def other(self) -> Batch:
        """A batch of the same shapes with other values.

        The first half twice; a single sample is reversed and halved.
        """
        half = max(1, self.samples // 2)

        def changed(tensor: Tensor) -> Tensor:
            if not tensor.dim():
                return tensor
            if self.samples < 2:
                return tensor.flip(-1) / 2 if tensor.is_floating_point() else tensor.flip(-1)
            dim = self.sample_dim(tensor)
            return tensor if dim is None else tensor.index_select(
                dim, torch.arange(self.samples, device=tensor.device) % half)

        return replace(self, args=mapped(self.args, Tensor, changed),
                       kwargs=mapped(dict(self.kwargs), Tensor, changed))


class Batches:
    """A user's data as an iterable of ``Batch``; each iteration is a new pass over it.

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
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self._device, self._dtype = like.device, like.dtype
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._keywords = None if takes_any else frozenset(parameters)
        self._keys: frozenset[str] | None = None
        self._had_samples = False

    def __iter__(self) -> Iterator[Batch]:
        samples = 0
        for raw_batch in _iterate_batches(self.data):
            batch = self._convert(raw_batch)
            samples += batch.samples
            if batch.samples:
                yield batch
        if self._had_samples and not samples:
            raise ValueError("data: expected batches that can be gone over again, but got none in "
                             "a later pass; give a DataLoader or a list")
        self._had_samples = samples > 0

    @property
    def once(self) -> bool:
        """Whether the data can be gone over only once."""
        return isinstance(self.data, Iterator)

    def _convert(self, batch: Any) -> Batch:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if self._to_inputs is not None:
            inputs = self._to_inputs(batch)  # before the targets are read: it may add them
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else NO_TARGETS
        if isinstance(batch, Mapping):
            targets = batch.get("labels", NO_TARGETS)
        if self._to_inputs is not None and targets is NO_TARGETS \
                and not isinstance(batch, Tensor | np.ndarray | tuple | list):
            targets = batch  # an object of the user's own, from which the loss takes them
        if isinstance(targets, Tensor | np.ndarray):
            targets = self._as_tensor(targets).to(self._device)
        if isinstance(inputs, Mapping):
            return self._from_dict(inputs, targets)
        several = self._to_inputs is not None and isinstance(inputs, tuple) and inputs
        parts = inputs if several else (inputs,)
        _check_tensor(parts[0])
        args = tuple(mapped(part, NUMBERS, self._move) for part in parts)
        return Batch(args, {}, targets, _count_samples(args[0], targets))

    def _from_dict(self, batch: Mapping[str, Any], targets: Any) -> Batch:
        keys = frozenset(map(str, batch))
        shown = ", ".join(sorted(keys)) or "none"
        self._keys = keys if self._keys is None else self._keys
        if keys != self._keys:
            raise ValueError("data: expected batches with the same keys "
                             f"({', '.join(sorted(self._keys))}), but got {shown}")
        accepted = {name: value for name, value in batch.items()
                    if self._keywords is None or name in self._keywords}
        if not accepted:
            raise ValueError("data: expected keys that the model's forward takes "
                             f"({', '.join(sorted(self._keywords or ()))}), but got {shown}")
        lengths = [len(value) for value in accepted.values()
                   if isinstance(value, Tensor | np.ndarray) and np.ndim(value)]
        if not lengths:
            raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), "
                             f"but got {dict(batch)!r:.60}")
        attention = batch.get("attention_mask")
        mask = None if attention is None else mask_of(torch.as_tensor(attention))
        if mask is not None:  # counted before it is moved: to read from a GPU takes time
            mask = replace(mask, keep=mask.keep.to(self._device))
        return Batch((), mapped(accepted, NUMBERS, self._move), targets, lengths[0], mask)

    def _move(self, value: Tensor | np.ndarray) -> Tensor:
        """A copy on the model's device, floating-point numbers in the model's dtype."""
        tensor = self._as_tensor(value)
        keeps_dtype = self._to_inputs is not None and tensor.dtype != torch.float64
        dtype = self._dtype if tensor.is_floating_point() and not keeps_dtype else tensor.dtype
        # a copy to the CPU that does not block could be read before it is done
        return tensor.to(device=self._device, dtype=dtype, copy=tensor is value,
                         non_blocking=self._device.type == "cuda")

    def _as_tensor(self, value: Tensor | np.ndarray) -> Tensor:
        """A tensor that autograd accepts; an array is copied, since it may be read-only."""
        if not isinstance(value, Tensor):
            if value.dtype.kind not in "fiubc":
                raise ValueError("data: expected arrays of numbers, but got one of dtype "
                                 f"{value.dtype}")
            return torch.from_numpy(np.array(value))
        if value.is_meta and self._device.type != "meta":
            raise ValueError("data: expected tensors with values, but got one on the meta device; "
                             "make it on a real device")
        return value.clone() if value.is_inference() else value


def _count_samples(inputs: Tensor, targets: Any) -> int:
    """Number of samples: the first dimension's size, or the targets', if inputs are time-first."""
    shape = tuple(targets.shape) if isinstance(targets, Tensor | np.ndarray) else ()
    time_first = shape and inputs.dim() > 1 and len(inputs) != shape[0] == inputs.shape[1]
    return shape[0] if time_first else len(inputs)


def _iterate_batches(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray) and data.ndim:
        _check_tensor(data)
        step = rows_at_once(data.shape)
        return (data[start:start + step] for start in range(0, len(data), step))
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=_DATASET_BATCH)
    if isinstance(data, Iterable) and not isinstance(data, str | Mapping | Tensor | np.ndarray):
        return data
    raise ValueError("data: expected a tensor or array of shape (samples, ...), a Dataset, or an "
                     f"iterable of batches, but got {type(data).__name__}")


def _check_tensor(batch: Any) -> None:
    if not isinstance(batch, Tensor | np.ndarray) or not batch.ndim:
        raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), but "
                         f"got {batch!r:.60}")
    if isinstance(batch, Tensor) and batch.layout is not torch.strided:
        raise ValueError(f"data: expected dense tensors, but got {batch.layout}; call to_dense()")
