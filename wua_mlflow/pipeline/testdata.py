"""Test data for models that exist already, and files of per-example predictions.

May import: numpy, the pipeline's data and tables. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wua_mlflow.evaluation import Task
from wua_mlflow.pipeline.data import DataSplit, Part, is_file, load_data, part_of
from wua_mlflow.pipeline.tables import Target, frame_of, pose, read_rows

__all__ = ["TestData", "load_test", "read_predictions"]


@dataclass(frozen=True, eq=False)
class TestData:
    """One part to test on, its task, and the classes in the order of the model's outputs."""

    __test__ = False  # not a test class, whatever its name says to pytest

    part: Part
    posed: Target

    @property
    def task(self) -> Task:
        """The task."""
        return self.posed.task


def load_test(
    data: str, *, target: str | None, seed: int, task: str | None, like: DataSplit | None
) -> TestData:
    """The rows that two models are compared on.

    A file is taken whole, as it is; for a run of ours (``like``) it goes through the scaling and
    the classes of that run's data. Of a bundled set or the user's function it is the test part.

    Raises:
        ValueError: one line, as ``load_data``; classes or a shape that the run's data lack.
    """
    if not is_file(data):
        split = load_data(data, target=target, seed=seed, task=task,
                          image=like is not None and len(like.features) == 3)
        return TestData(split.test, split.posed)
    rows = read_rows(data, target)
    if like is None:
        posed = pose(rows.targets, task=task)
        return TestData(part_of(rows, posed, "the data"), posed)
    if rows.inputs.shape[1:] != like.features:
        raise ValueError(f"data: expected inputs of shape {like.features} in {data}, as the run's, "
                         f"but got {rows.inputs.shape[1:]}")
    scaled = like.scaling.applied(rows) if like.scaling else rows
    return TestData(part_of(scaled, like.posed, data), like.posed)


def read_predictions(data: str) -> dict[str, np.ndarray]:
    """The columns of a file of predictions: ``prediction`` and perhaps ``target``, each (n,).

    Raises:
        ValueError: no such file, not to be read, or no column ``prediction``.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"compare: expected a file of predictions, but {data!r} does not exist")
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    else:
        frame = frame_of(path)
        columns = {str(name): frame[name].to_numpy() for name in frame.columns}
    if "prediction" not in columns:
        raise ValueError(f"{data}: expected a column 'prediction', but got "
                         f"{', '.join(columns) or 'none'}")
    found = {name: values for name, values in columns.items() if name in ("prediction", "target")}
    for name, values in found.items():
        missing = values != values  # NaN alone differs from itself
        if values.ndim != 1 or not len(values) or bool(np.any(missing)):
            raise ValueError(f"{data}: expected a {name} in every row, but got an array of shape "
                             f"{values.shape} with {int(np.sum(missing))} missing")
    return found

