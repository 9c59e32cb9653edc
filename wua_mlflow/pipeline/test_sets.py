"""Test data for models that exist already.

May import: numpy, the pipeline's data and tables. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wua_mlflow.data.datasets import DataSplit, Part, is_file, load_data, part_of
from wua_mlflow.data.scaling import Scaling
from wua_mlflow.data.tables import ENDINGS, Rows, read_columns, read_rows, rows_of
from wua_mlflow.data.tasks import Task, TaskSpec, infer_task
from wua_mlflow.errors import did_you_mean

__all__ = [
    "TestData", "check_columns", "own_test", "prepared", "rows_in", "targets_of",
]


@dataclass(frozen=True, eq=False)
class TestData:
    """One part to test on, its task, and the classes in the order of the model's outputs.

    ``digest`` is of the rows as they were read, whatever scaling a model's own data then asked for;
    ``truth`` (n,) are the classes' numbers, or a regression's targets in the data's own unit;
    ``scaling`` is how the part's rows were scaled, if they were.
    """

    __test__ = False  # not a test class, whatever its name says to pytest

    part: Part
    posed: TaskSpec
    truth: np.ndarray
    digest: str
    scaling: Scaling | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.posed.task


def own_test(split: DataSplit) -> TestData:
    """The test part of a run's own data."""
    truth = split.test.targets.numpy().reshape(-1).astype(np.float64)
    if split.scaling and split.scaling.targets:
        truth = split.scaling.targets.unscale(truth[:, None])[:, 0]
    return TestData(split.test, split.spec, truth, split.test.digest, split.scaling)


def rows_in(data: str, target: str | None) -> Rows | None:
    """The rows of a file, whole and as they are; None for what is no file.

    Raises:
        ValueError: one line, as ``load_data``.
    """
    if is_file(data):
        return read_rows(data, target)
    if target:
        raise ValueError(f"target: expected none beside data {data!r}, but got {target!r}")
    return None


def targets_of(data: str, target: str | None) -> Rows | None:
    """As ``rows_in``, the target alone: what predictions need, whatever the other columns hold.

    Raises:
        ValueError: one line; no such file or column, or a value is missing.
    """
    path = Path(data).expanduser()
    if not is_file(data) or path.suffix.lower() not in ENDINGS or not path.is_file():
        return rows_in(data, target)
    columns = read_columns(path, argument="data")
    name = target or ("y" if path.suffix.lower() == ".npz" else "")
    if name not in columns:
        raise ValueError(f"target: expected a column of {data}, which has {', '.join(columns)}, "
                         f"but got {name or 'none'}{did_you_mean(name, columns)}")
    return rows_of(np.zeros((len(columns[name]), 1)), columns[name], where=data)


def prepared(
    rows: Rows | None, data: str, *, seed: int, task: str | None, like: DataSplit | None
) -> TestData:
    """What one model is tested on.

    Rows of a file go through the scaling and the classes of the model's own data (``like``), where
    those are known. Of a bundled set or the user's function it is the test part: the model's own,
    where it was trained on that.

    Args:
        rows: those of a file.
        data: its path; or a bundled set or the user's function.
        seed: of the split.
        task: the task, where the targets leave it open.
        like: the data that the model was trained on.

    Raises:
        ValueError: one line, as ``load_data``; the model was trained on this very file, or its data
            lack a class or have another shape.
    """
    if rows is None:
        if like is not None and like.source in (data, f"sklearn.datasets.load_{data}"):
            found = own_test(like)
        else:
            found = own_test(load_data(data, seed=seed, task=task,
                                       image=like is not None and len(like.features) == 3))
        return replace(found, digest=_digest(data.encode(), found.truth))
    scaling = None
    if like is None:
        posed = infer_task(rows.targets, task=task)
        part = part_of(rows, posed, data)
    elif Path(data).expanduser().absolute() == Path(like.source):
        raise ValueError(f"data: expected rows that training never saw, but {data} is what the "
                         f"model was trained on; without --data its own test part is taken")
    else:
        posed, part, scaling = like.spec, _scaled(rows, data, like), like.scaling
    truth = posed.encode(rows.targets, where=data).astype(np.float64)
    return TestData(part, posed, truth, _digest(rows.inputs, rows.targets), scaling)


def check_columns(data: str, target: str | None, own: str, own_target: str | None) -> None:
    """Whether a table has the columns, in their order, of the one that a model was trained on.

    Args:
        data: the fresh rows' file.
        target: its target.
        own: what the model was trained on; nothing is checked where that is no table.
        own_target: the target there.

    Raises:
        ValueError: it has not; the network would take one column for another.
    """
    fresh, trained = _features(data, target), _features(own, own_target)
    if fresh is None or trained is None or fresh == trained:
        return
    there = "them in another order" if sorted(fresh) == sorted(trained) else ", ".join(fresh)
    raise ValueError(f"data: expected the columns {', '.join(trained)} in {data}, as in {own}, "
                     f"which the model was trained on, but got {there}")


def _features(data: str, target: str | None) -> list[str] | None:
    """The names of a table's columns but the target; None of what is no table."""
    path = Path(data).expanduser()
    if not is_file(data) or path.suffix.lower() not in (".csv", ".parquet") or not path.is_file():
        return None
    return [name for name in read_columns(path, argument="data") if name != target]


def _scaled(rows: Rows, data: str, like: DataSplit) -> Part:
    features = like.features
    channel = len(features) == rows.inputs.ndim == 3 and features[0] == 1
    if rows.inputs.shape[1:] != (features[1:] if channel else features):
        raise ValueError(f"data: expected inputs of shape {features} in {data}, as the model's own "
                         f"data have, but got {rows.inputs.shape[1:]}")
    scaled = like.scaling.scale(rows) if like.scaling else rows
    if channel:
        scaled = replace(scaled, inputs=scaled.inputs[:, None])
    return part_of(scaled, like.spec, data)


def _digest(*parts: np.ndarray | bytes) -> str:
    """SHA-256 of arrays with their shapes and types, and of bytes."""
    sha = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        sha.update(part)
    return sha.hexdigest()
