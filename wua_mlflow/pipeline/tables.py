"""Rows of inputs and targets: reading them from files, checking them, and the task they pose.

pandas and pyarrow are imported where a file needs them, not before. Every error is one line.
May import: numpy, torch, dotted, evaluation. Tests: ``tests/pipeline/test_tables.py``.
"""

from __future__ import annotations

import reprlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from wua_mlflow.dotted import nearest, one_line
from wua_mlflow.evaluation import Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ENDINGS", "Rows", "Target", "frame_of", "pose", "read_rows", "rows_of"]

ENDINGS = (".csv", ".parquet", ".npz")

_FEW = 20  # up to so many different whole numbers are classes; more are amounts


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked rows: ``inputs`` (n, *features), finite; ``targets`` (n,), numbers, bools or text."""

    inputs: np.ndarray
    targets: np.ndarray
    places: bool = False  # whole numbers that an embedding looks up: they stay int64


@dataclass(frozen=True)
class Target:
    """The task that targets pose; ``values``: the classes in order, none in a regression."""

    task: Task
    values: tuple[Any, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names."""
        return tuple(_class_name(value) for value in self.values)

    def encoded(self, targets: np.ndarray, *, where: str) -> np.ndarray:
        """Targets (n,) as the class's place in ``values``, int64; in a regression as float64.

        Raises:
            ValueError: a class that is not in ``values``, or text in a regression.

        >>> Target("multiclass", ("a", "b", "c")).encoded(np.array(["b", "a"]), where="test")
        array([1, 0])
        """
        if self.task == "regression":
            return _amounts(targets, where)
        place = {value: number for number, value in enumerate(self.values)}
        distinct, inverse = np.unique(targets, return_inverse=True)
        unseen = [_class_name(value) for value in distinct.tolist() if value not in place]
        if unseen:
            raise ValueError(f"data: expected only the classes {_listed(self.classes)}, but "
                             f"{where} has {_listed(unseen)}")
        return np.array([place[value] for value in distinct.tolist()], dtype=np.int64)[inverse]


def pose(
    targets: np.ndarray, *, task: str | None = None, whole_are_classes: bool = False
) -> Target:
    """The task that ``targets`` (n,) pose: their own, or ``task`` where it is given.

    Text, bools and whole numbers of at most 20 different values are classes, in sorted order: two
    are a binary task, more a multiclass one. Other numbers are amounts, a regression.

    Args:
        targets: as ``Rows`` holds them.
        task: binary, multiclass or regression.
        whole_are_classes: integers are classes however many different values they have.

    Raises:
        ValueError: no such task, the targets do not fit it, or they are all alike.

    >>> pose(np.array(["no", "yes", "no"])).classes, pose(np.array([0.5, 1.0, 2.0])).task
    (('no', 'yes'), 'regression')
    """
    if task is not None and task not in get_args(Task):
        raise ValueError(f"task: expected {', '.join(get_args(Task))}, but got {task!r}")
    values = np.unique(targets)
    if len(values) < 2:
        raise ValueError("target: expected at least two different values, but all are "
                         f"{_class_name(values.tolist()[0])!r}")
    if task == "regression" or (task is None and not _are_classes(values, whole_are_classes)):
        _amounts(values, "the target")
        return Target("regression")
    if task == "binary" and len(values) > 2:
        raise ValueError(f"task: binary expected two classes, but the target has {len(values)}")
    binary = len(values) == 2 and task != "multiclass"
    return Target("binary" if binary else "multiclass", tuple(values.tolist()))


def read_rows(data: str, target: str | None) -> Rows:
    """The rows of a .csv, .parquet or .npz file.

    A first .csv column without a name that counts 0, 1, 2, … is a row number, and is left out.

    Args:
        data: the file's path, relative to the current folder or absolute.
        target: the column to predict; in an .npz file the array to predict (``y`` where not
            given) from the array ``X``, (n, *features).

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
    return _npz_rows(path, target or "y") if ending == ".npz" else _table_rows(path, target)


def rows_of(inputs: Any, targets: Any, *, where: str) -> Rows:
    """Arrays, tensors or lists as checked rows.

    Args:
        inputs: (n, *features), numbers; those of an int32 or int64 tensor are places.
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
    places = isinstance(inputs, Tensor) and inputs.dtype in (torch.int32, torch.int64)
    return Rows(x, _labels(y.reshape(-1), f"the target of {where}"), places)


def _npz_rows(path: Path, target: str) -> Rows:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data: expected an archive as numpy.savez writes it, but {path} is none")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: archive[name] for name in names if name in ("X", target)}
    except Exception as error:  # zip, pickle and header errors of many kinds: all are the file's
        raise ValueError(f"data: could not read {path}: {one_line(error)}") from error
    for argument, name in (("data", "X"), ("target", target)):
        if name not in arrays:
            raise ValueError(f"{argument}: expected an array {name!r} in {path}, but it has "
                             f"{_listed(names)}{nearest(name, names)}")
    return rows_of(arrays["X"], arrays[target], where=str(path))


def _table_rows(path: Path, target: str | None) -> Rows:
    frame = frame_of(path)
    columns = list(frame.columns)
    if not len(frame):
        raise ValueError(f"data: expected rows in {path}, but it has only a header")
    if target not in columns:
        got = "none" if target is None else repr(target)
        close = nearest(target, columns) if target and len(columns) > 1 else ""
        raise ValueError(f"target: expected a column of {path}, which has {_listed(columns)}, "
                         f"but got {got}{close}")
    features = [name for name in columns if name != target]
    if not features:
        raise ValueError(f"data: expected columns beside the target {target!r} in {path}, "
                         "but got none")
    inputs = np.column_stack([_feature(frame[name], path) for name in features])
    where = f"column {target!r} of {path}"
    return Rows(inputs, _labels(frame[target].to_numpy(), where, "target"))


def frame_of(path: Path) -> pd.DataFrame:
    """The rows of a .csv or .parquet file, without pandas' own row numbers."""
    import pandas as pd

    csv = path.suffix.lower() == ".csv"
    try:
        frame = pd.read_csv(path, low_memory=False) if csv else pd.read_parquet(path)
    except Exception as error:  # each reader has kinds of its own: all are the file's
        raise ValueError(f"data: could not read {path}: {one_line(error)}") from error
    if csv and len(frame) and str(frame.columns[0]) == "Unnamed: 0":
        numbered = frame.iloc[:, 0].tolist() == list(range(len(frame)))
        frame = frame.iloc[:, 1:] if numbered else frame  # the index that pandas' to_csv wrote
    return frame.rename(columns=str)


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
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    _check_finite(values, where)
    return values


def _array(values: Any, where: str) -> np.ndarray:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except Exception as error:  # a ragged list, a sparse tensor, or the user's own array type
        raise ValueError(f"data: expected arrays in {where}, but got {one_line(error)}") from error


def _labels(values: np.ndarray, where: str, argument: str = "data") -> np.ndarray:
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
    """float32 must hold every value: the models compute in it."""
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(axis=1)
    if bad.any():
        got = "NaN" if np.isnan(values[bad]).any() else "infinity, or more than float32 holds,"
        raise ValueError(f"{argument}: expected finite numbers, but {where} has {got} in "
                         f"{bad.sum()} of {len(values)} rows")


def _are_classes(values: np.ndarray, whole_are_classes: bool) -> bool:
    whole = whole_are_classes and values.dtype.kind in "iu"
    return whole or values.dtype.kind not in "iuf" or (
        len(values) <= _FEW and bool((values == np.round(values)).all()))


def _amounts(targets: np.ndarray, where: str) -> np.ndarray:
    if targets.dtype.kind not in "biuf":
        raise ValueError(f"target: expected numbers in a regression, but {where} has text, such "
                         f"as {reprlib.repr(targets.tolist()[0])}")
    return targets.astype(np.float64)


def _class_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
