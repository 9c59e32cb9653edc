"""Rows of inputs and targets, read from files or given as arrays, and checked.

pandas and pyarrow are imported where a file needs them, not before. Every error is one line.
Tests: ``tests/data/test_tables.py``.
"""

from __future__ import annotations

import reprlib
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.errors import did_you_mean, one_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ENDINGS", "INDEX", "Rows", "group_numbers", "listed", "read_columns", "read_rows",
           "rows_of", "rows_without_inputs"]


ENDINGS = (".csv", ".parquet", ".npz")

INDEX = "Unnamed: 0"
"""What pandas calls the first column of a .csv file that has no name: mostly an index."""


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


def read_rows(
    data: str, target: str | None, *, groups: str | None = None, targets_only: bool = False
) -> Rows:
    """The rows of a .csv, .parquet or .npz file.

    A first .csv column without a name that counts 0, 1, 2, … is a row number, and is left out.

    Args:
        data: the file's path, relative to the current folder or absolute.
        target: the column to predict; in an .npz file the array to predict (``y`` where not
            given) from the array ``X``, (n, *features).
        groups: the column (or array) that says whose rows they are; it is no input.
        targets_only: read no inputs, whatever the other columns hold; the rows have zeros instead.

    Raises:
        ValueError: no such file, not to be read, no rows, no such target, or a column that is not
            finite numbers throughout.
    """
    path = Path(data).expanduser()
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"data: expected a file ending in {', '.join(ENDINGS)}, but got {data!r}")
    if not path.is_file():
        raise ValueError(f"data: expected a file, but {data!r} "
                         f"{'is a folder' if path.is_dir() else 'does not exist'}")
    if path.stat().st_size == 0:
        raise ValueError(f"data: expected rows in {data}, but the file is empty")
    if ending == ".npz":
        return _npz_rows(path, target or "y", groups, targets_only)
    return _table_rows(path, target, groups, targets_only)


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
    """The columns of a .csv or .parquet file, or the arrays of an .npz one, as they are.

    A table's index is a column too: under its name, or ``INDEX``.

    Raises:
        ValueError: one line that begins with ``argument``; the file cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path, argument)[0]
    frame = _read_table(path, argument, index=True)
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotes for a message, the first few of many.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


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


def _npz_rows(path: Path, target: str, groups: str | None, targets_only: bool) -> Rows:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data: expected an archive as numpy.savez writes it, but {path} is none")
    arrays, names = _read_npz(path, "data", only=("X", target, groups or target))
    wanted = (("data", "X"), ("target", target), ("groups", groups or target))[targets_only:]
    for argument, name in wanted:
        if name not in arrays:
            raise ValueError(f"{argument}: expected an array {name!r} in {path}, but it has "
                             f"{listed(names)}{did_you_mean(name, names)}")
    if targets_only:
        rows = rows_without_inputs(arrays[target], where=str(path))
    else:
        rows = rows_of(arrays["X"], arrays[target], where=str(path))
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


def _table_rows(path: Path, target: str | None, groups: str | None, targets_only: bool) -> Rows:
    frame = _read_table(path, "data")
    columns = list(frame.columns)
    if not len(frame):
        raise ValueError(f"data: expected rows in {path}, but it has only a header")
    if target not in columns:
        got = "none" if target is None else repr(target)
        close = did_you_mean(target, columns) if target and len(columns) > 1 else ""
        raise ValueError(f"target: expected a column of {path}, which has {listed(columns)}, "
                         f"but got {got}{close}")
    if groups is not None and (groups not in columns or groups == target):
        close = "" if groups == target else did_you_mean(groups, columns)
        raise ValueError(f"groups: expected a column of {path} beside the target, which has "
                         f"{listed(columns)}, but got {groups!r}{close}")
    if targets_only:
        rows = rows_without_inputs(frame[target].to_numpy(), where=str(path))
        return rows if groups is None else \
            _with_groups(rows, frame[groups].to_numpy(), groups, path)
    features = [name for name in columns if name not in (target, groups)]
    if not features:
        raise ValueError(f"data: expected columns beside the target {target!r} in {path}, "
                         "but got none")
    inputs = np.column_stack([_feature(frame[name], path) for name in features])
    where = f"column {target!r} of {path}"
    targets = _targets(frame[target].to_numpy(), where, "target")
    rows = Rows(inputs, targets, columns=tuple(features))
    return rows if groups is None else _with_groups(rows, frame[groups].to_numpy(), groups, path)


def _read_table(path: Path, argument: str, *, index: bool = False) -> pd.DataFrame:
    """The rows of a .csv or .parquet file, without pandas' own row numbers unless ``index``."""
    import pandas as pd

    csv = path.suffix.lower() == ".csv"
    try:
        frame = pd.read_csv(path, low_memory=False) if csv else pd.read_parquet(path)
    except Exception as error:  # each reader has kinds of its own: all are the file's
        raise ValueError(f"{argument}: could not read {path}: {one_line(error)}") from error
    frame = frame.rename(columns=str)
    if index and not csv:
        for level, name in enumerate(frame.index.names):
            if (label := INDEX if name is None else str(name)) not in frame.columns:
                frame.insert(0, label, frame.index.get_level_values(level))
    if csv and not index and len(frame) and frame.columns[0] == INDEX:
        numbered = frame.iloc[:, 0].tolist() == list(range(len(frame)))
        frame = frame.iloc[:, 1:] if numbered else frame  # the index that pandas' to_csv wrote
    return frame


def _feature(column: pd.Series, path: Path) -> np.ndarray:
    import pandas as pd

    where = f"column {column.name!r} of {path}"
    numbers = column
    if column.dtype.kind == "O":
        numbers = pd.to_numeric(column.astype(object), errors="coerce")
        text = column[numbers.isna() & column.notna()]
        if len(text):
            raise ValueError(f"data: expected numbers, but {where} has text in {len(text)} of "
                             f"{len(column)} rows, such as {reprlib.repr(text.iloc[0])}")
    elif column.dtype.kind not in "biuf":
        raise ValueError(f"data: expected numbers, but {where} is {column.dtype}")
    values: np.ndarray = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    _check_finite(values, where)
    return values


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
