"""One forward, followed operation by operation: what each does to the units of its tensors.

Tests: ``tests/pruning/test_axes.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wua_mlflow.flops import tensors_in
from wua_mlflow.hooks import running
from wua_mlflow.pruning.labels import (
    ANY,
    FREE,
    Labels,
    Layout,
    alike,
    free,
    is_free,
    joined,
    outer,
    pattern,
    pattern_of_slices,
    ranks,
    view_blocks,
)
from wua_mlflow.pruning.layers import RECURRENT, hidden_slices, main_outputs
from wua_mlflow.pruning.operations import FACTORIES, MADE, PARTS, POINTWISE, RULES, VIEWS

__all__ = ["OUTPUTS", "Division", "Tracer"]


OUTPUTS = "its units are the network's outputs"

_ATTRIBUTE, _SOURCE, _PENDING = "_wua_layout", "_wua_source", "_wua_pending"
"""What a tensor carries: its layout; by dimension of which parameters it is made, if of nothing
else; and what is to be noted once it is used."""
Notes = list[tuple[np.ndarray, str]]
"""Nodes, and what is said of them."""


@dataclass
class Division:
    """Nodes that belong to several units at once: by axis the number of the unit."""

    nodes: np.ndarray
    parts: tuple[np.ndarray, ...]


class Tracer(TorchDispatchMode):
    """One forward, whose tensors carry the labels of their dimensions."""

    def __init__(self, count: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.divisions: list[Division] = []
        self.frozen: Notes = []
        self.reduced: Notes = []
        self.heads: list[np.ndarray] = []
        self.read: set[tuple[str, int]] = set()
        self.stated: dict[tuple[str, int], Labels] = {}
        self._modules: dict[str, nn.Module] = {}
        self._inside: list[str] = []
        self._unused: list[tuple[Notes, tuple[np.ndarray, str]]] = []

    def note_reduced(self, labels: Labels) -> None:
        """A norm or a mean goes over them; it counts once its result is used."""
        nodes = labels[labels >= 0]
        if len(nodes):
            name = self._inside[-1]
            where = f"{name or 'the model'} ({type(self._modules[name]).__name__})"
            self._unused.append((self.reduced, (np.unique(nodes), where)))

    def freeze_if_used(self, labels: Labels, reason: str) -> None:
        """Freeze them once the result is used: some are computed for their shape alone."""
        nodes = labels[labels >= 0]
        if len(nodes):
            self._unused.append((self.frozen, (np.unique(nodes), reason)))

    def note_stated(self, attribute: str, *labels: Labels) -> None:
        """The module at work has no weights for these units, and states how many they are."""
        name = self._inside[-1] if self._inside else ""
        if hasattr(self._modules.get(name), attribute):
            for dim, of_dim in enumerate(labels):
                if isinstance(self._modules[name], nn.modules.batchnorm._NormBase):
                    of_dim = of_dim[:self._modules[name].num_features]  # instances side by side
                self.stated[f"{name}.{attribute}".lstrip("."), dim] = of_dim

    def run(
        self, model: nn.Module, labels: Mapping[tuple[str, int], Labels], run: Callable[[], Any]
    ) -> Any:
        """Run a forward whose parameters have these labels; gives what it returns."""
        tensors = tensors_of(model)
        self._tie_recurrent(model, labels)
        for name, tensor in tensors:
            layout = tuple(labels.get((name, dim), free(size))
                           for dim, size in enumerate(tensor.shape))
            setattr(tensor, _ATTRIBUTE, layout)
            setattr(tensor, _SOURCE, tuple(frozenset({(name, dim)})
                                           for dim in range(tensor.dim())))
        try:
            self._modules = dict(model.named_modules())
            names = {module: name for name, module in self._modules.items()}
            with torch.no_grad(), running(model, names) as state, self:
                self._inside = state.stack
                outputs = run()
        finally:
            for _, tensor in tensors:
                delattr(tensor, _ATTRIBUTE)
                delattr(tensor, _SOURCE)
        for tensor in tensors_in(main_outputs(outputs), objects=True):
            self._used(tensor)
            for labels_ in self.layout(tensor):
                self.freeze(labels_, OUTPUTS)
        return outputs

    def compute(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The operation itself."""
        return func(*args, **kwargs)

    def _tie_recurrent(
        self, model: nn.Module, labels: Mapping[tuple[str, int], Labels]
    ) -> None:
        """All layers and directions of a recurrent module of torch have as many hidden units."""
        for prefix, module in model.named_modules():
            if not isinstance(module, RECURRENT):
                continue
            first: np.ndarray | None = None
            for name, dim, columns in hidden_slices(module):
                of_parameter = labels.get((f"{prefix}.{name}".lstrip("."), dim))
                if of_parameter is None or of_parameter.shape[1] != 1:
                    continue
                for positions in zip(*columns, strict=False):
                    nodes = of_parameter[list(positions), 0]
                    first = nodes if first is None else first
                    self.pairs.append((first, nodes))
            if getattr(module, "proj_size", 0):
                for name, _ in module.named_parameters(recurse=False):
                    for dim in (0,) if name.startswith("weight_ih_l0") else (0, 1):
                        self.freeze(labels.get((f"{prefix}.{name}".lstrip("."), dim), free(0)),
                                    "the LSTM projects its hidden units")

    def layout(self, tensor: Tensor) -> Layout:
        found: Layout | None = getattr(tensor, _ATTRIBUTE, None)
        if found is None or len(found) != tensor.dim():
            return tuple(free(size) for size in tensor.shape)
        return found

    def freeze(self, labels: Labels, reason: str) -> None:
        nodes = labels[labels >= 0]
        if len(nodes):
            self.frozen.append((np.unique(nodes), reason))

    def classes(self) -> np.ndarray:
        """By node the number of its class."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        left, right = (np.concatenate([pair[side] for pair in self.pairs] or [np.empty(0, int)])
                       for side in (0, 1))
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), (self.count, self.count))
        found: np.ndarray = connected_components(graph, directed=False)[1]
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        layouts = [self.layout(tensor) for tensor in inputs]
        for tensor in inputs:
            self._used(tensor)
        name = func.overloadpacket.__name__
        outputs = self.compute(func, name, args, kwargs)
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        if name in FACTORIES:
            result: Any = tuple(self.constant(size) for size in outputs.shape)
        elif name in MADE:
            result = tuple(free(size) for size in outputs.shape)
        elif rule is not None:
            result = rule(self, args, kwargs, outputs)
        elif torch.Tag.pointwise in func.tags or name.rstrip("_") in POINTWISE:
            result = self.together(layouts, inputs, outputs)
        else:
            for layout in layouts:
                for labels in layout:
                    self.freeze(labels, f"what {name} does with them is not known")
            result = None
        self._attach(outputs, result)
        results = tensors_in(outputs)
        self._pass_source(name, args, inputs, results)
        if self._unused:
            for output in results:
                setattr(output, _PENDING, self._unused)
            self._unused = []
        return outputs

    def constant(self, size: int) -> Labels:
        """Labels of a tensor that the forward makes: what it meets has its size, all of them."""
        if size == 1:
            return free(1)
        self.count += size
        return np.arange(self.count - size, self.count)[:, None]

    def _used(self, tensor: Tensor) -> None:
        pending = getattr(tensor, _PENDING, None)
        if pending:
            for notes, note in pending:
                notes.append(note)
            setattr(tensor, _PENDING, None)

    def note_read(self, tensor: Tensor, dim: int) -> None:
        """A dimension of parameters, or of what is computed from them alone, is summed over."""
        sources: Sources | None = getattr(tensor, _SOURCE, None)
        if sources is not None:
            self.read |= sources[dim]

    def _pass_source(self, name: str, args: Sequence[Any], inputs: Sequence[Tensor],
                     outputs: Sequence[Tensor]) -> None:
        """What is made of parameters alone knows of which."""
        inputs = [tensor for tensor in inputs if tensor.numel() > 1]
        known: list[Sources] = [getattr(tensor, _SOURCE) for tensor in inputs
                                if hasattr(tensor, _SOURCE)]
        if not known or len(known) < len(inputs):
            return
        for output in outputs:
            if name in PARTS:
                sources = _sources(name, args, output, known[0])
            elif name in ("mm", "bmm") and len(known) == 2:
                sources = (*known[0][:-1], known[1][-1])
            else:
                sources = _aligned(known, inputs, output)
            if output.dim() == len(sources):
                setattr(output, _SOURCE, sources)

    def _attach(self, outputs: Any, result: Any) -> None:
        if isinstance(outputs, Tensor):
            if result is None:
                result = tuple(free(size) for size in outputs.shape)
            setattr(outputs, _ATTRIBUTE, result)
        elif isinstance(outputs, (tuple, list)):
            results = result if isinstance(result, list) else [result] * len(outputs)
            for output, each in zip(outputs, results, strict=False):
                if isinstance(output, Tensor):
                    fits = each is not None and tuple(map(len, each)) == tuple(output.shape)
                    self._attach(output, each if fits else None)

    def together(self, layouts: Sequence[Layout], inputs: Sequence[Tensor], output: Any) -> Layout:
        """Of tensors that are broadcast against each other."""
        shape = (output if isinstance(output, Tensor) else output[0]).shape
        result = []
        for back in range(len(shape), 0, -1):
            size, found = shape[-back], None
            for layout, tensor in zip(layouts, inputs, strict=True):
                if tensor.dim() < back or tensor.shape[-back] != size:
                    continue
                labels = layout[-back]
                found = labels if found is None else self.tie(found, labels)
            result.append(free(size) if found is None or size == 1 else found)
        return tuple(result)

    def tie(self, one: Labels, other: Labels) -> Labels:
        """The positions of both belong together, one by one; gives labels of the result."""
        if one is other:
            return one
        if (one == ANY).all() and one.shape[1]:
            return other
        if (other == ANY).all() and other.shape[1]:
            return one
        if is_free(one) or is_free(other):
            for labels in (one, other):
                self.freeze(labels, "they meet something that keeps its size")
            return one if is_free(other) else other
        if one.shape == other.shape and (one == other).all():
            return one
        return self._matched(one, other)

    def _matched(self, one: Labels, other: Labels) -> Labels:
        """Tie column by column those of the same pattern; divide what is finer on one side."""
        left, right = ([column for column in side.T if (column != ANY).any()]
                       for side in (one, other))
        patterns = [[pattern(column) for column in side] for side in (left, right)]
        open_left, open_right = list(range(len(left))), list(range(len(right)))
        for i in list(open_left):
            for j in list(open_right):
                if alike(patterns[0][i], patterns[1][j], left[i], right[j]):
                    self._pair(left[i], right[j])
                    open_left.remove(i)
                    open_right.remove(j)
                    break
        mine, theirs = [left[i] for i in open_left], [right[j] for j in open_right]
        divided = [self._divide_along(column, theirs) for column in mine]
        divided += [self._divide_along(column, mine) for column in theirs if not any(divided)]
        if any(divided):  # it will be known how in the next pass
            return one if one.shape[1] >= other.shape[1] else other
        for columns, against in ((mine, other), (theirs, one)):
            if not (against == ANY).all(0).any():
                for column in columns:
                    self.freeze(column, "they meet units that are divided otherwise")
        return one if one.shape[1] >= other.shape[1] else other

    def _pair(self, one: np.ndarray, other: np.ndarray) -> None:
        known = (one >= 0) & (other >= 0)
        self.pairs.append((one[known], other[known]))
        for nodes, against in ((one, other), (other, one)):
            lost = nodes[(nodes >= 0) & (against == FREE)]
            if len(lost):
                self.frozen.append((lost, "they meet something that keeps its size"))

    def _divide_along(self, column: np.ndarray, others: Sequence[np.ndarray]) -> bool:
        """Divide the units of a column as those that it meets are; False where it is not finer."""
        mine = pattern(column)
        parts = [part for part in (pattern(other) for other in others if (other >= 0).all())
                 if len(np.unique(joined([mine, part]))) == int(mine.max()) + 1]
        if (column < 0).any() or not parts:
            return False
        joint = pattern(joined(parts))
        rest = ranks(mine, joint)
        if rest is None:
            return False
        self.divisions.append(Division(column, (*parts, rest) if rest.any() else tuple(parts)))
        return True

    def product(self, one: Labels, other: Labels) -> None:
        """Positions that are summed over in a product of both."""
        for nodes, against in ((one, other), (other, one)):
            if not (nodes.size and (nodes == ANY).all()) and is_free(against):
                self.freeze(nodes, "they read what keeps its size")
        if not (is_free(one) or is_free(other)):
            self.tie(one, other)

    def view(self, layout: Layout, shape: Sequence[int], wanted: Sequence[int]) -> Layout:
        """Of a tensor of this shape as one of the wanted shape, in the same order."""
        result: list[Labels] = [free(size) for size in wanted]
        for before, after in view_blocks(shape, wanted):
            joined = outer([layout[dim] for dim in before])
            if len(after) == 1:
                result[after[0]] = joined if wanted[after[0]] > 1 else free(1)
            elif joined.shape[1]:
                for dim, labels in zip(after, self._split(
                        joined, [wanted[dim] for dim in after]), strict=True):
                    result[dim] = labels
        return tuple(result)

    def _split(self, labels: Labels, sizes: Sequence[int]) -> list[Labels]:
        """One dimension as several."""
        columns: list[list[np.ndarray]] = [[] for _ in sizes]
        for column in labels.T:
            block = column.reshape(tuple(sizes))
            varying = [axis for axis in range(len(sizes)) if sizes[axis] > 1 and
                       (block != block.take([0], axis)).any()]
            if len(varying) <= 1:
                axis = varying[0] if varying else int(np.argmax(sizes))
                columns[axis].append(np.moveaxis(block, axis, 0).reshape(sizes[axis], -1)[:, 0])
                continue
            parts = [pattern_of_slices(block, axis) for axis in varying]
            spread = [np.broadcast_to(part.reshape([-1 if each == axis else 1 for each in
                                                    range(len(sizes))]), block.shape).ravel()
                      for part, axis in zip(parts, varying, strict=True)]
            if (column < 0).any() or len(np.unique(column)) != len(np.unique(joined(spread))):
                self.freeze(column[:, None], "a view divides them unevenly")
                continue
            self.divisions.append(Division(column, tuple(spread)))
            for axis in varying:
                columns[axis].append(np.full(sizes[axis], ANY))
        return [np.stack(each, 1) if each else free(size)
                for each, size in zip(columns, sizes, strict=True)]


Sources = tuple[frozenset[tuple[str, int]], ...]
"""By dimension of what is made of parameters, from which dimensions of which it comes."""
NOTHING: frozenset[tuple[str, int]] = frozenset()


def _sources(name: str, args: Sequence[Any], output: Tensor, dims: Sources) -> Sources:
    """Where the dimensions of a part, or of a turned parameter, come from."""
    kept = list(dims)
    if name in ("t", "transpose", "permute"):
        marks = tuple(np.full((size, 1), dim) for dim, size in enumerate(args[0].shape))
        order = RULES["permute"](_Marked(marks), args, {}, output)  # type: ignore[arg-type]
        kept = [dims[int(mark[0, 0])] if len(mark) else NOTHING for mark in order]
    elif name in ("select", "unbind"):
        kept.pop((args[1] if len(args) > 1 else 0) % len(kept))
    elif name in VIEWS:
        kept = [NOTHING] * output.dim()
        for before, after in view_blocks(args[0].shape, output.shape):
            joint = NOTHING.union(*(dims[dim] for dim in before))
            for dim in after:
                kept[dim] = joint if output.shape[dim] > 1 else NOTHING
    elif name == "expand":
        kept = [NOTHING] * (output.dim() - len(kept)) + kept
    return tuple(kept)


def _aligned(known: Sequence[Sources], inputs: Sequence[Tensor], output: Tensor) -> Sources:
    """Where the dimensions come from of what is computed number by number, or normalised."""
    return tuple(
        NOTHING.union(*(sources[-back] for sources, tensor in zip(known, inputs, strict=True)
                        if tensor.dim() >= back and tensor.shape[-back] == output.shape[-back] > 1))
        if max(tensor.dim() for tensor in inputs) == output.dim() else NOTHING
        for back in range(output.dim(), 0, -1))


class _Marked:
    """Stands in for a tracer where a rule is asked where dimensions go."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def layout(self, tensor: Tensor) -> Layout:
        return self._layout


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
