"""Batches of a user's data as a model's arguments: device, dtype, targets and padding.

Tests: ``tests/data/test_batches.py``.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.device import rows_at_once
from wua_mlflow.hooks import evaluating

__all__ = ["Batch", "Batches", "DATASET_BATCH", "GrowingArray", "Inputs", "LABELS", "NO_TARGETS",
           "PaddingMask", "inputs_and_targets", "leaves", "mapped", "mask_of", "needed_arguments"]


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


class GrowingArray:
    """Rows of many batches in one array.

    Thousands of small arrays that are kept while large batches come and go between them would leave
    the memory of the latter in holes, which the allocator does not give back: gigabytes of them.

    >>> array = GrowingArray()
    >>> for rows in ([1, 2], [3.5]):
    ...     array.add(np.array(rows))
    >>> array.rows
    array([1. , 2. , 3.5])
    """

    def __init__(self) -> None:
        self._buffer: np.ndarray | None = None
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Append rows of shape (rows, ...), all alike but for their number."""
        before, count = self._buffer, self._count + len(rows)
        kind = rows.dtype if before is None else np.result_type(before, rows)
        if before is None or count > len(before) or kind != before.dtype:
            self._buffer = np.empty((max(2 * count, 4096), *rows.shape[1:]), kind)
            if before is not None:
                self._buffer[:self._count] = before[:self._count]
        assert self._buffer is not None, "made above"
        self._buffer[self._count:count] = rows
        self._count = count

    @property
    def rows(self) -> np.ndarray:
        """All of them."""
        return np.empty(0) if self._buffer is None else self._buffer[:self._count].copy()


NO_TARGETS = object()
"""The targets of a batch that has none."""
LABELS = ("labels", "label", "targets", "target")
"""Keys of a dict batch that hold its targets; the first that is there."""
DATASET_BATCH = 64
"""Examples of a Dataset at a time, where nothing else is said."""
NUMBERS = (Tensor, np.ndarray)
Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments."""


@dataclass(frozen=True)
class PaddingMask:
    """Which positions of a padded batch are real.

    Attributes:
        keep: shape (samples, positions), True where a position is real.
        count: how many are.
    """

    keep: Tensor
    count: int

    def rows(self, lead: Sequence[int], *, time_first: bool) -> tuple[Tensor, int] | None:
        """For activations of shape (*lead, features): which of their rows are real, and how many.

        None where the leading dimensions are no samples and positions: all rows count then.

        Args:
            lead: the activations' shape but for the features.
            time_first: whether positions come before samples; tried also where it is False and
                the other order does not fit.

        >>> import torch
        >>> mask = mask_of(torch.tensor([[1, 1, 0]]))
        >>> mask.rows((1, 3), time_first=False)[0].tolist(), mask.rows((7,), time_first=False)
        ([True, True, False], None)
        """
        for keep in (self.keep.T, self.keep) if time_first else (self.keep, self.keep.T):
            if tuple(lead[:2]) == tuple(keep.shape):
                each = math.prod(lead[2:])
                flat = keep.reshape(-1)
                return (flat.repeat_interleave(each) if each > 1 else flat), self.count * each
            if tuple(lead) == (self.keep.numel(),):
                return keep.reshape(-1), self.count
        return None

    def columns(self, shape: Sequence[int]) -> Tensor | None:
        """For activations of shape (samples, channels, positions): shape (samples, 1, positions).

        None where they are others: all positions count then.
        """
        fits = (shape[0], *shape[2:]) == tuple(self.keep.shape)
        return self.keep.unsqueeze(1) if fits else None


def mask_of(attention_mask: Tensor) -> PaddingMask | None:
    """The mask of an ``attention_mask`` of shape (samples, positions), 0 where padded.

    None where nothing is padded, or where the mask has another shape and says who attends to whom.
    """
    if attention_mask.dim() != 2:
        return None
    keep = attention_mask != 0
    count = int(keep.sum())
    return None if count == keep.numel() else PaddingMask(keep, count)


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
        found: Tensor = next(value for value in leaves((*self.args, *self.kwargs.values()), Tensor)
                             if value.dim())
        return found

    def call(self, model: nn.Module) -> Any:
        """What the model makes of a copy of the batch, since it may write into its inputs."""
        args, kwargs = mapped((self.args, dict(self.kwargs)), Tensor, Tensor.clone)
        return model(*args, **kwargs)

    def example(self, count: int) -> Inputs:
        """The first ``count`` samples as the model takes them."""
        batch = self._first(count)
        if batch.kwargs:
            return dict(batch.kwargs)
        return batch.args[0] if len(batch.args) == 1 else batch.args

    def accepted_example(self, model: nn.Module, count: int) -> Inputs:
        """The first ``count`` samples, or all where the model does not take so few of them.

        As it is with the nodes of a graph, whose edges name all of them.
        """
        if count < self.samples:
            try:
                with evaluating(model):
                    self._first(count).call(model)
            except Exception:
                count = self.samples
        return self.example(count)

    def _first(self, count: int) -> Batch:
        """The first ``count`` samples without their targets."""
        def first(tensor: Tensor) -> Tensor:
            dim = self.sample_dim(tensor)
            return tensor if dim is None else tensor.narrow(dim, 0, min(count, self.samples))

        return Batch(mapped(self.args, Tensor, first), mapped(dict(self.kwargs), Tensor, first),
                     None, min(count, self.samples))

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
        data: a tensor or array, shape (samples, ...); a pair (inputs, targets) of such; a
            ``Dataset``; or an iterable of batches: of tensors or arrays, of tuples (the first entry
            is the input, the second the target; where the forward needs k > 1 arguments, the first
            k entries or the k parts of the first are the inputs), of dicts (keyword arguments,
            those that the forward takes; ``labels`` are the target and ``attention_mask`` says what
            is padding; a single input goes to a forward of one argument under any name), or of
            ``Batch``. Where samples differ in size the input is a list of them.
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
        self._needed = needed_arguments(model)
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
        if isinstance(batch, Batch):
            return batch
        inputs, targets = inputs_and_targets(batch, self._to_inputs, self._needed)
        if isinstance(targets, Tensor | np.ndarray):
            targets = self._as_tensor(targets).to(self._device)
        if isinstance(inputs, Mapping):
            return self._from_dict(inputs, targets)
        parts = inputs if isinstance(inputs, tuple) and inputs and (
            self._to_inputs is not None or _are_arguments(inputs, self._needed)) else (inputs,)
        for part in _samples_of(parts[0]):
            _check_tensor(part)
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
        others = [value for name, value in batch.items() if name not in (*LABELS, "attention_mask")
                  and isinstance(value, NUMBERS) and np.ndim(value)]
        if not set(accepted).difference(LABELS) and len(others) == self._needed == 1:
            only = self._move(others[0])
            return Batch((only,), {}, targets, len(only))
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


def _samples_of(inputs: Any) -> list[Any]:
    """The inputs, or each of a list of samples, as pictures of several sizes are given."""
    listed = isinstance(inputs, list) and inputs and all(isinstance(x, NUMBERS) for x in inputs)
    return inputs if listed else [inputs]


def _count_samples(inputs: Tensor | list[Tensor], targets: Any) -> int:
    """Number of samples: the first dimension's size, or the targets', if inputs are time-first."""
    if isinstance(inputs, list):
        return len(inputs)
    shape = tuple(targets.shape) if isinstance(targets, Tensor | np.ndarray) else ()
    time_first = shape and inputs.dim() > 1 and len(inputs) != shape[0] == inputs.shape[1]
    return shape[0] if time_first else len(inputs)


def _iterate_batches(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor | np.ndarray) and data.ndim:
        _check_tensor(data)
        step = rows_at_once(data.shape)
        return (data[start:start + step] for start in range(0, len(data), step))
    if isinstance(data, tuple) and len(data) == 2 and _are_whole(*data):
        return _pairs(*data)
    if isinstance(data, Dataset):
        return DataLoader(data, batch_size=DATASET_BATCH)
    if isinstance(data, Iterable) and not isinstance(data, str | Mapping | Tensor | np.ndarray):
        return data
    raise ValueError("data: expected a tensor or array of shape (samples, ...), a pair (inputs, "
                     "targets) of such, a Dataset, or an iterable of batches, but got "
                     f"{type(data).__name__}")


def _are_whole(inputs: Any, targets: Any) -> bool:
    """Whether a pair is inputs and targets of all samples, rather than two batches."""
    tensors = leaves(inputs, NUMBERS)
    return isinstance(targets, NUMBERS) and bool(tensors) and np.ndim(targets) > 0 and all(
        np.ndim(tensor) and len(tensor) == len(targets) for tensor in tensors)


def _pairs(inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
    for tensor in leaves(inputs, NUMBERS):
        _check_tensor(tensor)
    step = rows_at_once(leaves(inputs, NUMBERS)[0].shape)
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        yield mapped(inputs, NUMBERS, operator.itemgetter(rows)), targets[rows]


def _label_of(batch: Mapping[str, Any]) -> str | None:
    return next((name for name in LABELS if name in batch), None)


def needed_arguments(model: nn.Module) -> int:
    """How many arguments the model's forward needs.

    >>> needed_arguments(nn.Linear(1, 1)), needed_arguments(nn.Bilinear(1, 1, 1))
    (1, 2)
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
               for p in parameters)


def inputs_and_targets(
    batch: Any, batch_to_inputs: Callable[[Any], Any] | None = None, needed: int = 1
) -> tuple[Any, Any]:
    """A batch's inputs and targets, tensors as they are; ``NO_TARGETS`` where it has none.

    Args:
        batch: of a tuple the second entry is the targets; of more than two the last, where the
            forward needs all entries before it, or a function says what the inputs are. Of a dict
            they are under the first of ``LABELS``. A batch of another kind, from which a function
            takes the inputs, is its own target: the user's loss finds it there.
        batch_to_inputs: called before the targets are read: it may add them.
        needed: arguments that the forward needs.

    >>> pair, triple = [torch.zeros(2), torch.ones(2)], [torch.zeros(2), torch.zeros(2), 3]
    >>> inputs_and_targets(pair)[1], inputs_and_targets(triple, needed=2)[1]
    (tensor([1., 1.]), 3)
    """
    several = isinstance(batch, tuple | list)
    whole = several and _are_arguments(batch[:-1], needed)
    if batch_to_inputs is not None:
        inputs = batch_to_inputs(batch)
    elif not several or not batch:
        inputs = batch
    elif whole:
        inputs = tuple(batch[:-1])
    else:
        first = batch[0]
        nested = isinstance(first, tuple | list) and _are_arguments(first, needed)
        inputs = tuple(first) if nested else first
    if isinstance(batch, Mapping) and (label := _label_of(batch)) is not None:
        return inputs, batch[label]
    if several:
        last = whole or batch_to_inputs is not None
        return inputs, NO_TARGETS if len(batch) < 2 else batch[-1 if last else 1]
    own = batch_to_inputs is not None and not isinstance(batch, Tensor | np.ndarray)
    return inputs, batch if own else NO_TARGETS


def _are_arguments(parts: Sequence[Any], needed: int) -> bool:
    """Whether these are the several arguments that a forward needs."""
    return len(parts) == needed > 1 and all(isinstance(part, NUMBERS) for part in parts)


def leaves(value: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    """Every value of some types in nested tuples, lists and mappings, in their order.

    >>> leaves({"a": [1, "x"], "b": (2, None)}, int)
    [1, 2]
    """
    found: list[Any] = []
    mapped(value, kinds, found.append)
    return found


def _check_tensor(batch: Any) -> None:
    if not isinstance(batch, Tensor | np.ndarray) or not batch.ndim:
        raise ValueError("data: expected batches of tensors or arrays of shape (samples, ...), but "
                         f"got {batch!r:.60}")
    if isinstance(batch, Tensor) and batch.layout is not torch.strided:
        raise ValueError(f"data: expected dense tensors, but got {batch.layout}; call to_dense()")
