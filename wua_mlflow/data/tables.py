"""Rows of inputs and targets, read from files or given as arrays, and checked.

pandas and pyarrow are imported where a file needs them, not before. Every error is one line.
Tests: ``tests/data/test_tables.py``.
"""

from __future__ import annotations

import itertools
import re
import reprlib
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.config import TableSettings
from wua_mlflow.data.columns import Column, UnusableColumn, columns_of, read_column
from wua_mlflow.data.table_files import INDEX, TABLES, read_table
from wua_mlflow.errors import did_you_mean, listed, one_line
from wua_mlflow.imports import existing_file, local_path

if TYPE_CHECKING:
    import pandas as pd

    from wua_mlflow.data.encoding import TableEncoding

__all__ = ["ENDINGS", "INDEX", "Rows", "Table", "group_numbers", "input_frame", "listed",
           "read_columns", "read_rows", "rows_of", "rows_without_inputs", "table_of"]


ENDINGS = (*TABLES, ".npz")
_LITERAL = ("prediction", "target")
"""Columns of a file of predictions in which "NA" and "None" are labels."""
_INDEX_NAMES = re.compile(r"(unnamed: \d+(\.\d+)?|index|level_0|__index_level_0__|)", re.IGNORECASE)
"""Names of first columns that are an index where they hold distinct whole numbers, in any order;
pandas calls a column without a name ``Unnamed: 0``."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows.

    ``inputs`` are (n, *features), finite; ``targets`` (n,), numbers, bools or text; ``indices``
    says that the inputs are an embedding's whole numbers, which stay int64; ``columns`` are a
    table's names of the inputs; ``groups`` (n,) numbers of whose rows they are, if that is known.
    """

    inputs: np.ndarray
    targets: np.ndarray
    indices: bool = False
    columns: tuple[str, ...] = ()
    groups: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """A table whose columns are read, and not yet encoded.

    Attributes:
        columns: of inputs, n rows each.
        targets: (n,), numbers, bools or text.
        groups: (n,) numbers of whose rows they are, if that is known.
        target: name of the column to predict.
        left_out: columns that are no inputs, and why.
        rows: (n,) their numbers in what was read.
        notes: what was guessed, for the user.
    """

    columns: tuple[Column, ...]
    targets: np.ndarray
    groups: np.ndarray | None = None
    target: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.targets)

    def take(self, rows: np.ndarray) -> tuple[Column, ...]:
        """Some rows of all columns."""
        return tuple(column.take(rows) for column in self.columns)

    def digest_parts(self) -> list[np.ndarray | bytes]:
        """What identifies the table's rows: their numbers, the levels of text, the targets."""
        levels = "\0".join(sorted({str(value) for column in self.columns if column.kind == "text"
                                   for value in column.values}))
        return [self.codes(), self.targets, *([levels.encode()] if levels else [])]

    def codes(self) -> np.ndarray:
        """Float64 (n, columns): equal rows have equal ones; text as numbers of its levels."""
        return np.stack([np.unique(column.values.astype(str), return_inverse=True)[1].astype(float)
                         if column.kind == "text" else column.values
                         for column in self.columns], axis=1)


def read_rows(
    data: str, target: str | None, *, groups: str | None = None, targets_only: bool = False,
    settings: TableSettings | None = None, like: Sequence[TableEncoding] = (),
) -> Rows | Table:
    """The rows of a table's file (``TABLES``), or of an .npz archive.

    A first column without a name, or called index, of distinct whole numbers is left out.

    Args:
        data: the file's path, relative to the current folder or absolute.
        target: the column to predict; in an .npz file the array to predict (``y`` where not
            given) from the array ``X``, (n, *features).
        groups: the column (or array) that says whose rows they are; it is no input.
        targets_only: read no inputs, whatever the other columns hold; the rows have zeros instead.
        settings: which columns are no inputs, and whether rows with gaps are left out.
        like: encodings of the data that models were trained on: their columns alone are read, as
            those were written, and rows without a target are refused, not left out.

    Raises:
        ValueError: no such file, not to be read, no rows, no such target, or columns of which no
            inputs can be made.
    """
    path = local_path(data)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"data: expected a file ending in {', '.join(ENDINGS)}, but got {data!r}")
    path = existing_file(data, "data: expected a file")
    if path.stat().st_size == 0:
        raise ValueError(f"data: expected rows in {data}, but the file is empty")
    if ending == ".npz":
        return _npz_rows(path, target or "y", groups, targets_only)
    frame, notes = read_table(path, "data", literal=() if target is None else (target,))
    table = table_of(frame, target, where=str(path), groups=groups, settings=settings,
                     like=like, targets_only=targets_only)
    if targets_only:
        return replace(rows_without_inputs(table.targets, where=str(path)), groups=table.groups)
    return replace(table, notes=(*notes, *table.notes))


def input_frame(
    data: str, target: str | None, *, groups: str | None = None,
    settings: TableSettings | None = None, rows: np.ndarray | None = None,
) -> pd.DataFrame | np.ndarray:
    """The inputs of a file as they stand in it, for models that take columns by name.

    Args:
        data: the file's path.
        target: the column that is predicted; it is left out.
        groups: the column that says whose rows they are; left out, too.
        settings: further columns to leave out.
        rows: numbers of the rows to keep; all, if None.

    Returns:
        The frame, without an index in its first column; of an .npz archive the array ``X``.

    Raises:
        ValueError: as ``read_rows``.
    """
    path = existing_file(data, "data: expected a file")
    if path.suffix.lower() == ".npz":
        arrays, names = _read_npz(path, "data", only=("X",))
        if "X" not in arrays:
            raise ValueError(f"data: expected an array 'X' in {path}, but it has {listed(names)}")
        return arrays["X"] if rows is None else arrays["X"][rows]
    frame, _ = read_table(path, "data", literal=() if target is None else (target,))
    leading = itertools.takewhile(lambda name: _is_index(frame[name]), frame.columns)
    others = {target, groups, *leading, *(settings or TableSettings()).drop_columns}
    frame = frame[[name for name in frame.columns if name not in others]]
    return frame if rows is None else frame.iloc[rows]


def rows_without_inputs(targets: np.ndarray, *, where: str) -> Rows:
    """Checked targets (n,), with zeros as inputs."""
    return rows_of(np.zeros((len(targets), 1)), targets, where=where)


def rows_of(inputs: Any, targets: Any, *, where: str) -> Rows:
    """Arrays, tensors or lists as checked rows.

    Args:
        inputs: (n, *features), numbers; those of an int32 or int64 tensor are an embedding's.
        targets: (n,) or (n, 1), numbers, bools or text.
        where: what holds them, for the messages.

    Raises:
        ValueError: other shapes or lengths, no rows, NaN, infinity or text among the inputs, a
            target missing.
    """
    x, y = _array(inputs, where), _array(targets, where)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"data: expected inputs of shape (n, features, ...) in {where}, "
                         f"but got {x.shape}")
    if y.ndim != 1 and y.shape[1:] != (1,):
        raise ValueError(f"data: expected targets of shape (n,) or (n, 1) in {where}, "
                         f"but got {y.shape}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data: expected inputs and as many targets in {where}, "
                         f"but got {len(x)} inputs and {len(y)} targets")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers as the inputs of {where}, but got {x.dtype}, "
                         f"such as {reprlib.repr(x.reshape(-1).tolist()[0])}")
    _check_finite(x, f"the inputs of {where}")
    indices = isinstance(inputs, Tensor) and inputs.dtype in (torch.int32, torch.int64)
    return Rows(x, _targets(y.reshape(-1), f"the target of {where}"), indices)


def read_columns(path: Path, *, argument: str) -> dict[str, np.ndarray]:
    """The columns of a table's file, or the arrays of an .npz one, as they are.

    A table's index is a column too: under its name, or ``INDEX``.

    Raises:
        ValueError: one line that begins with ``argument``; the file cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path, argument)[0]
    frame, _ = read_table(path, argument, literal=_LITERAL, index=True)
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def group_numbers(labels: np.ndarray, name: str, where: str | Path) -> np.ndarray:
    """Groups (n,) as numbers 0, 1, ... in the order of their labels.

    Raises:
        ValueError: not one label a row, or one is missing.
    """
    import pandas as pd

    if labels.ndim != 1:
        raise ValueError(f"groups: expected one label a row in {where}, but {name!r} has the shape "
                         f"{labels.shape}")
    missing = int(pd.isna(labels).sum())
    if missing:
        raise ValueError(f"groups: expected a label in every row, but {name!r} of {where} has none "
                         f"in {missing} of {len(labels)} rows")
    labels = labels.astype(str) if labels.dtype.kind == "O" else labels
    return np.unique(labels, return_inverse=True)[1]


def _npz_rows(path: Path, target: str, groups: str | None, targets_only: bool) -> Rows | Table:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data: expected an archive as numpy.savez writes it, but {path} is none")
    arrays, names = _read_npz(path, "data", only=("X", target, groups or target))
    wanted = (("data", "X"), ("target", target), ("groups", groups or target))[targets_only:]
    for argument, name in wanted:
        if name not in arrays:
            raise ValueError(f"{argument}: expected an array {name!r} in {path}, but it has "
                             f"{listed(names)}{did_you_mean(name, names)}")
    x = arrays.get("X", np.empty(0))
    gaps = x.ndim == 2 and x.dtype.kind == "f" and bool(np.isnan(x).any())
    if targets_only:
        rows = rows_without_inputs(arrays[target], where=str(path))
    else:
        rows = rows_of(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf) if gaps else x,
                       arrays[target], where=str(path))
    if gaps and not targets_only:
        columns = tuple(Column(str(number), "number", values.astype(np.float64))
                        for number, values in enumerate(x.T))
        numbers = None if groups is None else _with_groups(rows, arrays[groups], groups, path)
        return Table(columns, rows.targets, None if numbers is None else numbers.groups, target)
    return rows if groups is None else _with_groups(rows, arrays[groups], groups, path)


def _with_groups(rows: Rows, labels: np.ndarray, name: str, path: Path) -> Rows:
    numbers = group_numbers(labels, name, path)
    if len(numbers) != len(rows.targets):
        raise ValueError(f"groups: expected a label for each of {len(rows.targets)} rows of "
                         f"{path}, but {name!r} has {len(numbers)}")
    return replace(rows, groups=numbers)


def _read_npz(
    path: Path, argument: str, only: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays (``only`` these, if given), and the names of all."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            return {name: archive[name] for name in names if only is None or name in only}, names
    except Exception as error:  # zip, pickle and header errors of many kinds: all are the file's
        raise ValueError(f"{argument}: could not read {path}: {one_line(error)}") from error


def table_of(  # noqa: PLR0913 - what is read of what, and how
    frame: pd.DataFrame, target: str | None, *, where: str, groups: str | None = None,
    settings: TableSettings | None = None, like: Sequence[TableEncoding] = (),
    targets_only: bool = False,
) -> Table:
    """A frame's columns, target and groups; arguments and errors as of ``read_rows``."""
    settings, columns = settings or TableSettings(), [str(name) for name in frame.columns]
    if not len(frame):
        raise ValueError(f"data: expected rows in {where}, but it has only a header")
    _check_target(target, columns, where)
    _check_others(columns, target, groups, settings, where)
    assert target is not None, "checked"
    rows, dropped = _rows_with_target(frame, target, where, every=bool(like) or targets_only)
    frame = frame.iloc[rows] if dropped else frame
    notes = [dropped] if dropped else []
    targets, note = _table_targets(frame[target], where)
    notes += [note] if note else []
    numbers = None if groups is None else group_numbers(frame[groups].to_numpy(), groups, where)
    names = [name for name in columns if name not in (target, groups, *settings.drop_columns)]
    if targets_only:
        return Table((), targets, numbers, target)
    if like:
        return Table(_columns_like(frame, names, like, where), targets, numbers, target)
    read, left_out = _inputs(frame, names, settings, where)
    table = Table(read, targets, numbers, target, left_out, rows, tuple(notes))
    return _without_gaps(table, settings)


def _columns_like(
    frame: pd.DataFrame, names: Sequence[str], like: Sequence[TableEncoding], where: str
) -> tuple[Column, ...]:
    written = {column.name: column.written for encoding in like for column in encoding.columns}
    return columns_of(frame[[name for name in names if name in written]], where=where,
                      levels=len(frame), written=written)


def _inputs(
    frame: pd.DataFrame, names: Sequence[str], settings: TableSettings, where: str
) -> tuple[tuple[Column, ...], dict[str, str]]:
    """The columns that inputs are made of, and the others with the reason."""
    left_out = dict.fromkeys(settings.drop_columns, "as drop_columns says")
    leading = list(itertools.takewhile(lambda name: _is_index(frame[name]), frame.columns))
    left_out |= dict.fromkeys(leading, "distinct whole numbers in the first column, an index")
    names = [name for name in names if name not in leading]
    if not names:
        raise ValueError(f"data: expected columns beside the target in {where}, but got none")
    read = columns_of(frame[list(names)], where=where, levels=settings.categories)
    useless = {column.name: reason for column in read
               if (reason := _useless(column, settings.categories))}
    read = tuple(column for column in read if column.name not in useless)
    if not read:
        raise ValueError(f"data: expected a column of numbers, dates or categories beside the "
                         f"target in {where}, but got none: " + "; ".join(
                             f"{name!r} has {why}" for name, why in list(useless.items())[:5]))
    return read, left_out | useless


def _check_target(target: str | None, columns: Sequence[str], where: str) -> None:
    if target in columns:
        return
    got = "none" if target is None else repr(target)
    close = did_you_mean(target, columns) if target and len(columns) > 1 else ""
    if sum(map(_is_number, columns)) > len(columns) / 2:
        close += "; its first line seems to be a row: put a line of names before it"
    raise ValueError(f"target: expected a column of {where}, which has {listed(columns)}, "
                     f"but got {got}{close}")


def _is_number(name: str) -> bool:
    """Whether a column is called by a number with a point, as no column is named.

    >>> _is_number("5.1"), _is_number("5"), _is_number("a")
    (True, False, False)
    """
    try:
        return "." in name and float(name) == float(name)
    except ValueError:
        return False


def _check_others(
    columns: Sequence[str], target: str | None, groups: str | None, settings: TableSettings,
    where: str,
) -> None:
    """Whether the groups' column is there, and those that are to be left out."""
    if groups is not None and (groups not in columns or groups == target):
        close = "" if groups == target else did_you_mean(groups, columns)
        raise ValueError(f"groups: expected a column of {where} beside the target, which has "
                         f"{listed(columns)}, but got {groups!r}{close}")
    for name in settings.drop_columns:
        if name in (target, groups):
            raise ValueError(f"drop_columns: expected columns of inputs, but {name!r} is the "
                             f"{'target' if name == target else 'column of groups'}")
        if name not in columns:
            raise ValueError(f"drop_columns: expected columns of {where}, which has "
                             f"{listed(columns)}, but got {name!r}{did_you_mean(name, columns)}")


def _rows_with_target(
    frame: pd.DataFrame, target: str, where: str, *, every: bool
) -> tuple[np.ndarray, str]:
    """Numbers of the rows whose target is known, and how many are left out."""
    import pandas as pd

    missing = np.asarray(pd.isna(frame[target]), dtype=bool)
    count = int(missing.sum())
    if not count:
        return np.arange(len(frame)), ""
    if every or count == len(frame):
        raise ValueError(f"target: expected a value in every row, but column {target!r} of {where} "
                         f"has none in {count} of {len(frame)} rows")
    return np.flatnonzero(~missing), (
        f"{target}: {count} of {len(frame)} rows have no target, and are left out")


def _is_index(column: pd.Series) -> bool:
    named = _INDEX_NAMES.fullmatch(str(column.name).strip())
    if named is None or column.dtype.kind not in "iuf":
        return False
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    whole = bool(np.isfinite(values).all()) and bool((values % 1 == 0).all())
    return whole and len(np.unique(values)) == len(values)


def _useless(column: Column, levels: int) -> str:
    """Why no input is made of a column, if so."""
    known = column.values[~column.gaps]
    if not len(known):
        return "no value in any row"
    if column.kind != "text":
        return ""
    distinct = len(set(known.tolist()))
    return f"{distinct} different texts in {len(known)} rows" \
        if distinct > max(levels, len(known) / 2) else ""


def _without_gaps(table: Table, settings: TableSettings) -> Table:
    """The table without the rows that have a gap where ``impute`` says ``drop``."""
    how = settings.impute
    dropping = [column for column in table.columns
                if (how.get(column.name) if isinstance(how, dict) else how) == "drop"]
    if not dropping:
        return table
    gaps = np.any([column.gaps for column in dropping], axis=0)
    if not gaps.any():
        return table
    rows = np.flatnonzero(~gaps)
    if not len(rows):
        raise ValueError("table: impute: expected rows without a gap, as drop leaves out those "
                         "that have one, but got none")
    note = f"{gaps.sum()} of {len(gaps)} rows have a gap, and are left out"
    return replace(table, columns=table.take(rows), targets=table.targets[rows],
                   groups=None if table.groups is None else table.groups[rows],
                   rows=table.rows[rows], notes=(*table.notes, note))


def _table_targets(column: pd.Series, where: str) -> tuple[np.ndarray, str]:
    """Targets of a table, none missing, and how they were written, if that was guessed."""
    place, values = f"column {str(column.name)!r} of {where}", column.to_numpy()
    if values.dtype.kind != "O" or not all(isinstance(value, str) for value in values.tolist()):
        return _targets(values, place, "target"), ""
    try:
        read = read_column(column)
    except UnusableColumn as problem:
        raise ValueError(f"target: expected numbers or labels, but {place} has {problem}") from None
    if read.kind == "number" and read.written:
        return read.values, f"{column.name}: {read.note}"
    return np.array([value.strip() for value in values.tolist()]), ""


def _array(values: Any, where: str) -> np.ndarray:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except Exception as error:  # a ragged list, a sparse tensor, or the user's own array type
        raise ValueError(f"data: expected arrays in {where}, but got {one_line(error)}") from error


def _targets(values: np.ndarray, where: str, argument: str = "data") -> np.ndarray:
    """Targets (n,) as numbers, bools or ``str``; Python objects as what they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        values = _from_objects(values, where, argument)
    if values.dtype.kind not in "biufU":
        raise ValueError(f"{argument}: expected numbers or text, but {where} is {values.dtype}")
    if values.dtype.kind == "f":
        _check_finite(values, where, argument)
    return values


def _from_objects(values: np.ndarray, where: str, argument: str) -> np.ndarray:
    import pandas as pd

    missing = int(pd.isna(values).sum())
    if missing:
        raise ValueError(f"{argument}: expected a value in every row, but {where} has none in "
                         f"{missing} of {len(values)} rows")
    plain = np.asarray(values.tolist())
    try:
        return plain if plain.dtype.kind != "O" else plain.astype(np.float64)  # decimals
    except (TypeError, ValueError):
        return plain


def _check_finite(values: np.ndarray, where: str, argument: str = "data") -> None:
    """Raise unless float32 holds every value: the models compute in it."""
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(axis=1)
    if bad.any():
        got = "NaN" if np.isnan(values[bad]).any() else "infinity, or more than float32 holds,"
        raise ValueError(f"{argument}: expected finite numbers, but {where} has {got} in "
                         f"{bad.sum()} of {len(values)} rows")
