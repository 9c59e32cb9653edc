"""Which rows of two files are the same example: by a column that names the examples.

Tests: ``tests/pipeline/test_example_ids.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wua_mlflow.data.leaks import INDEX, is_id_name
from wua_mlflow.errors import listed

__all__ = ["ExampleIds", "column_words", "example_ids", "matching_rows",
           "named_alike"]


@dataclass(frozen=True, eq=False)
class ExampleIds:
    """The columns of a file that may name its examples: text, shape (n,), by the column's name.

    ``amounts`` are those of numbers that are not whole: inputs, mostly, but perhaps a model's own
    answers.
    """

    source: str
    columns: Mapping[str, np.ndarray]
    amounts: frozenset[str] = frozenset()


def example_ids(
    source: str, columns: Mapping[str, np.ndarray], *, besides: tuple[str, ...] = ()
) -> ExampleIds:
    """What names the examples: text, numbers and dates, one a row; no bools.

    Args:
        source: the file.
        columns: its columns by name, or an archive's arrays.
        besides: columns that are something else.
    """
    texts = {name: _texts(values) for name, values in columns.items() if name not in besides}
    return ExampleIds(source, {name: text for name, text in texts.items() if text is not None},
                      frozenset(name for name, text in texts.items() if text is not None
                                and _are_amounts(columns[name])))


def matching_rows(first: ExampleIds, second: ExampleIds) -> tuple[str, np.ndarray] | None:
    """The column that says so, and where in the second's rows each example of the first is.

    Of the columns in both, those that say by their name that they hold ids come first. The first
    that is alike in both, row by row, shows that the order is the same; the first that holds the
    same values in another order, each once, gives the order. An index without a name that merely
    counts the rows says nothing beside other values, nor do amounts that differ: they may be the
    models' own.

    Args:
        first: of one file.
        second: of the other.

    Returns:
        None where the order is the same, or the files have no such column in common.

    Raises:
        ValueError: one line; values of ids that are only in one of the files, or occur more often.

    >>> a = example_ids("a.csv", {"id": np.array([7, 8, 9])})
    >>> b = example_ids("b.csv", {"id": np.array([9, 7, 8])})
    >>> matching_rows(a, b)
    ('id', array([1, 2, 0]))
    """
    shared = [name for name in first.columns if name in second.columns]
    odd: list[str] = []
    amounts = first.amounts | second.amounts
    for name in sorted(shared, key=lambda name: (not is_id_name(name), name in amounts)):
        a, b = first.columns[name], second.columns[name]
        if np.array_equal(a, b):
            if _distinct(a) and not _counts(a):
                return None
        elif _distinct(a) and _distinct(b) and set(a) == set(b):
            places = pd.Index(b).get_indexer(pd.Index(a))
            return name, np.asarray(places)
        elif (is_id_name(name) or (_distinct(a) and _distinct(b))) and name not in amounts and \
                not (name == INDEX and (_counts(a) or _counts(b))):
            odd.append(name)
    if odd:
        raise ValueError(_what_differs(odd[0], first, second))
    return None


def column_words(name: str) -> str:
    """A column for a message.

    >>> column_words("id")
    "the column 'id'"
    """
    return "the index" if name == INDEX else f"the column {name!r}"


def _texts(values: np.ndarray) -> np.ndarray | None:
    """The values as text, whole numbers alike of any type; None of what names no examples."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind in "bc":
        return None
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace").astype(object)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            return None
        values = values if _are_amounts(values) else values.astype(np.int64)
    if values.dtype.kind == "O" and pd.isna(values).any():
        return None
    return np.array([str(value) for value in values.tolist()], dtype=object)


def _are_amounts(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool((values % 1 != 0).any())


def named_alike(first: ExampleIds, second: ExampleIds) -> bool:
    """Whether a column of both shows, row by row, that they hold the same examples."""
    return any(np.array_equal(values, second.columns[name]) and _distinct(values)
               and not (name == INDEX and _counts(values))
               for name, values in first.columns.items() if name in second.columns)


def _distinct(values: np.ndarray) -> bool:
    return len(set(values)) == len(values)


def _counts(values: np.ndarray) -> bool:
    """Whether they are 0, 1, 2, … or 1, 2, 3, …: places, which any file of as many rows has."""
    start = values[0] if len(values) else ""
    return start in ("0", "1") and values.tolist() == [
        str(number) for number in range(int(start), int(start) + len(values))]


def _what_differs(name: str, first: ExampleIds, second: ExampleIds) -> str:
    named = column_words(name)
    for side in (first, second):
        often = pd.Series(side.columns[name])
        often = often[often.duplicated()].unique()
        if len(often):
            return (f"compare: expected each value of {named} once in {side.source}, since its "
                    f"order is not the same in {first.source} and {second.source}, but "
                    f"{listed(often, most=3)} occur more often")
    sets = set(first.columns[name]), set(second.columns[name])
    only = [f"{listed(sorted(values), most=3)} only in {source}" for values, source in (
        (sets[0] - sets[1], first.source), (sets[1] - sets[0], second.source)) if values]
    return (f"compare: expected the same examples in {first.source} and {second.source}, by "
            f"{named}, but got {' and '.join(only)}")
