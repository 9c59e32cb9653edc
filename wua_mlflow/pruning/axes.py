"""Which positions of a model's parameters belong together: one forward, followed operation by
operation.

Each position along a dimension of a parameter or buffer is a node. What a forward does to tensors
says which nodes are one unit: a sum ties positions of both its terms, a product with a matrix ties
what is read to what reads it, a view divides or joins dimensions. A position may belong to several
units: the rows of a query's projection belong to a head and to a place within it, and go with
either. How a dimension divides is found by repeating the forward until nothing new is learnt.
Tests: ``tests/pruning/test_axes.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from wua_mlflow.pruning.labels import FREE, Labels
from wua_mlflow.pruning.tracer import OUTPUTS, Division, Tracer, tensors_of

__all__ = ["Axes", "ParameterAxis", "plain_operations", "trace_axes"]


MOST_PASSES = 8


@dataclass(frozen=True)
class ParameterAxis:
    """A dimension of a parameter or buffer, and the units that its positions belong to.

    Attributes:
        name: of the parameter or buffer in the model, or of a number of a module without weights
            that states how many units there are, as ``norm.normalized_shape``.
        dim: the dimension.
        units: shape (positions, at least 1): numbers of units; -1 where there is none.
    """

    name: str
    dim: int
    units: np.ndarray


@dataclass(frozen=True)
class Axes:
    """The units of a model.

    Attributes:
        axes: of each dimension of a parameter or buffer that has units.
        frozen: by unit why it cannot be cut, where it cannot.
        reduced: by unit what normalises over it or takes a mean: without it the others change.
        heads: units along which matrices are multiplied one by one, as heads of attention are.
        read: axes that are read by a product with what the model computes, by name and dimension.
        passes: how many forwards it took.
    """

    axes: tuple[ParameterAxis, ...]
    frozen: Mapping[int, str]
    reduced: Mapping[int, str]
    heads: frozenset[int]
    read: frozenset[tuple[str, int]]
    passes: int = field(compare=False)


def trace_axes(model: nn.Module, run: Callable[[], Any]) -> Axes:
    """Follow a forward of a model.

    Args:
        model: in eval mode; left as found.
        run: runs its forward on a batch, and returns what that returns.
    """
    origins = dict(_origins(model))
    labels = {place: _fresh(size, start) for place, (size, start) in origins.items()}
    count = sum(size for size, _ in origins.values())
    for number in range(1, MOST_PASSES + 1):
        tracer = Tracer(count)
        tracer.run(model, labels, run)
        classes = tracer.classes()
        if not tracer.divisions or number == MOST_PASSES:
            break
        labels, count = _divided(labels, tracer.divisions, classes)
    return _axes(labels, tracer, classes, number)


@contextmanager
def plain_operations() -> Iterator[None]:
    """In the block forwards are made of the operations that ``trace_axes`` knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _origins(model: nn.Module) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
    """Each dimension of more than one position, with its size and its first node."""
    start = 0
    for name, tensor in tensors_of(model):
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                yield (name, dim), (size, start)
                start += size


def _fresh(size: int, start: int) -> Labels:
    return np.arange(start, start + size)[:, None]


def _divided(
    labels: Mapping[tuple[str, int], Labels], divisions: Sequence[Division], classes: np.ndarray
) -> tuple[dict[tuple[str, int], Labels], int]:
    """The nodes of the next pass: those of a class that divides are several units each."""
    parts_of: dict[int, tuple[int, tuple[int, ...]]] = {}
    for number, division in enumerate(divisions):
        for row, unit in enumerate(classes[division.nodes]):
            parts = tuple(int(part[row]) for part in division.parts)
            parts_of.setdefault(int(unit), (number, parts))
    keys: dict[tuple[int, ...], int] = {}
    divided = np.isin(classes, list(parts_of))

    def nodes(value: int) -> list[int]:
        if value < 0 or not divided[value]:
            return [value]
        number, parts = parts_of[int(classes[value])]
        return [len(classes) + keys.setdefault((number, axis, part), len(keys))
                for axis, part in enumerate(parts)]

    result = {}
    for place, old in labels.items():
        columns = [column[:, None] if not divided[column[column >= 0]].any() else
                   _padded([nodes(value) for value in column.tolist()]) for column in old.T]
        result[place] = np.concatenate(columns, 1) if columns else old
    return result, len(classes) + len(keys)


def _padded(rows: Sequence[Sequence[int]]) -> Labels:
    width = max(map(len, rows))
    return np.array([[*row, *[FREE] * (width - len(row))] for row in rows])


def _axes(
    labels: Mapping[tuple[str, int], Labels], tracer: Tracer, classes: np.ndarray, passes: int
) -> Axes:
    def units(nodes: np.ndarray) -> np.ndarray:
        return np.where(nodes >= 0, classes[np.maximum(nodes, 0)], FREE)

    frozen: dict[int, str] = {}
    for nodes, reason in sorted(tracer.frozen, key=lambda each: each[1] != OUTPUTS):
        for unit in np.unique(classes[nodes]):
            frozen.setdefault(int(unit), reason)
    for division in tracer.divisions:
        for unit in np.unique(classes[division.nodes]):
            frozen.setdefault(int(unit), "it is divided in ways that do not end")
    reduced: dict[int, str] = {}
    for nodes, where in tracer.reduced:
        for unit in np.unique(classes[nodes]):
            reduced.setdefault(int(unit), where)
    places = {**labels, **{place: nodes for place, nodes in tracer.stated.items()
                           if nodes.shape[1]}}
    return Axes(
        tuple(ParameterAxis(name, dim, units(nodes)) for (name, dim), nodes in places.items()),
        frozen, reduced,
        frozenset(int(unit) for nodes in tracer.heads for unit in classes[nodes]),
        frozenset(tracer.read), passes)
