"""Labels of the positions along a tensor's dimensions: which unit each belongs to.

Tests: ``tests/pruning/test_labels.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = [
    "ANY", "FREE", "Labels", "Layout", "alike", "any_", "free", "is_free", "joined", "outer",
    "pattern", "pattern_of_slices", "ranks", "stacked", "view_blocks",
]


Labels = np.ndarray
"""Of one dimension, shape (positions, units that each belongs to): numbers of nodes, ``FREE`` where
a position belongs to none and keeps its place, ``ANY`` where it goes with whatever is asked."""

Layout = tuple[Labels, ...]
"""Of a tensor, by dimension."""

FREE, ANY = -1, -2


def is_free(labels: Labels) -> bool:
    """Whether no position belongs to a unit."""
    return labels.shape[1] == 0 or bool((labels == FREE).all())


def free(size: int) -> Labels:
    """A dimension that keeps its size."""
    return np.empty((size, 0), dtype=int)


def any_(size: int) -> Labels:
    """A dimension whose positions go with whatever they meet."""
    return np.full((size, 1), ANY)


def pattern(column: np.ndarray) -> np.ndarray:
    """Which positions are alike: numbers in the order in which they come."""
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    order = np.empty(len(first), int)
    order[np.argsort(first)] = np.arange(len(first))
    found: np.ndarray = order[inverse]
    return found


def alike(one: np.ndarray, other: np.ndarray, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two columns tie their positions alike; those that go with anything do not count."""
    counted = (left >= 0) & (right >= 0)
    if counted.all():
        return bool((one == other).all())
    return bool((pattern(left[counted]) == pattern(right[counted])).all())


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """By position one number for its numbers in all parts."""
    total = np.zeros(len(parts[0]), int)
    for part in parts:
        total = total * (int(part.max()) + 1) + part
    return total


def ranks(fine: np.ndarray, coarse: np.ndarray) -> np.ndarray | None:
    """By position the number of its fine unit within the coarse one; None where none is within."""
    if len(np.unique(joined([fine, coarse]))) != int(fine.max()) + 1:
        return None
    rank = np.zeros(int(fine.max()) + 1, int)
    seen: dict[int, int] = {}
    first = np.unique(fine, return_index=True)[1]
    for unit, place in enumerate(first):
        group = int(coarse[place])
        rank[unit] = seen.get(group, 0)
        seen[group] = rank[unit] + 1
    if len(set(seen.values())) != 1:
        return None
    found: np.ndarray = rank[fine]
    return found


def pattern_of_slices(block: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis, which slices are alike."""
    slices = np.moveaxis(block, axis, 0).reshape(block.shape[axis], -1)
    found: np.ndarray = np.unique(slices, axis=0, return_inverse=True)[1].ravel()
    return pattern(found)


def outer(dims: Sequence[Labels]) -> Labels:
    """Several dimensions as one, the last one fastest."""
    sizes = [len(labels) for labels in dims]
    columns = []
    for axis, labels in enumerate(dims):
        inner = int(np.prod(sizes[axis + 1:]))
        outer = int(np.prod(sizes[:axis]))
        columns.append(np.tile(np.repeat(labels, inner, 0), (outer, 1)))
    return np.concatenate(columns, 1) if columns else free(1)


def stacked(parts: Sequence[Labels]) -> Labels:
    """One dimension after the other; shorter rows are filled up."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])),
                                  constant_values=FREE) for part in parts])


def view_blocks(
    shape: Sequence[int], wanted: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions that a view turns into each other."""
    i = j = 0
    while i < len(shape) or j < len(wanted):
        before, after = [i] if i < len(shape) else [], [j] if j < len(wanted) else []
        i, j = i + len(before), j + len(after)

        def size(dims: list[int], of: Sequence[int]) -> int:
            return int(np.prod([of[dim] for dim in dims]))

        while size(before, shape) != size(after, wanted):
            if size(before, shape) < size(after, wanted):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        yield before, after
