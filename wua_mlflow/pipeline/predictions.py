"""Files of per-example predictions: reading them, and holding them against the truth.

May import: numpy, pandas, evaluation, the pipeline's test data.
Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wua_mlflow.dotted import nearest
from wua_mlflow.evaluation import Evaluation, example_scores
from wua_mlflow.pipeline.tables import Rows, rows_of
from wua_mlflow.pipeline.testdata import TestData, columns_of

__all__ = ["Predictions", "read_predictions"]

ROUNDING = 1e-5
"""Relative: a run keeps its targets in float32."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """A file's columns ``prediction`` and perhaps ``target``, each (n,)."""

    source: str
    prediction: np.ndarray
    target: np.ndarray | None

    @property
    def rows(self) -> Rows | None:
        """The file's own targets, with nothing as inputs."""
        if self.target is None:
            return None
        return rows_of(np.zeros((len(self.target), 1)), self.target, where=self.source)

    def against(self, test: TestData) -> Evaluation:
        """How the predictions do; a regression's in the data's own unit.

        Raises:
            ValueError: of another length than the test data, other targets than theirs, or
                predictions that are no classes (or amounts) like the targets.
        """
        expected = f"a prediction for each of the {len(test.truth)} test examples"
        if len(self.prediction) != len(test.truth):
            raise ValueError(f"compare: expected {expected} in {self.source}, but got "
                             f"{len(self.prediction)}")
        if self.target is not None:
            own = test.posed.encoded(self.target, where=self.source).astype(np.float64)
            other = ~np.isclose(own, test.truth, rtol=ROUNDING, atol=ROUNDING * test.truth.std())
            if other.any():
                raise ValueError(f"compare: expected the test data's targets in {self.source}, in "
                                 f"the same order, but {other.sum()} of {len(own)} are others")
        guesses = _classes(self, test) if test.posed.values else _amounts(self)
        scores = example_scores(guesses, test.truth, test.task)
        return Evaluation(test.task, guesses, test.truth, 1.0 - scores, scores, test.digest)


def read_predictions(data: str) -> Predictions:
    """The columns of a .csv, .parquet or .npz file of predictions, a row an example.

    Raises:
        ValueError: no such file, not to be read, no column ``prediction``, or a value missing.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"compare: expected a file of predictions, but '{data}' "
                         f"{'is a folder' if path.is_dir() else 'does not exist'}")
    columns = columns_of(path, argument="compare")
    if "prediction" not in columns:
        raise ValueError(f"compare: expected a column 'prediction' in {data}, but it has "
                         f"{', '.join(columns) or 'none'}{nearest('prediction', columns)}")
    found = {name: _complete(columns[name], name, data)
             for name in ("prediction", "target") if name in columns}
    if "target" in found and len(found["target"]) != len(found["prediction"]):
        raise ValueError(f"compare: expected a target for each prediction in {data}, but got "
                         f"{len(found['target'])} and {len(found['prediction'])}")
    return Predictions(data, found["prediction"], found.get("target"))


def _complete(values: np.ndarray, name: str, data: str) -> np.ndarray:
    """One value an example, none missing: numbers, bools or text."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not len(values):
        raise ValueError(f"compare: expected one {name} an example in {data}, but got an array of "
                         f"shape {values.shape}")
    missing = int(pd.isna(values).sum())
    if missing:
        raise ValueError(f"compare: expected a {name} in every row of {data}, but {missing} of "
                         f"{len(values)} are missing")
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind != "O":
        return values
    plain = np.asarray(values.tolist())
    return plain if plain.dtype.kind != "O" else values.astype(str)


def _classes(found: Predictions, test: TestData) -> np.ndarray:
    """Predicted classes as their numbers; a class that no target has is −1, and wrong."""
    predictions, classes = found.prediction, test.posed.values
    if predictions.dtype.kind == "f" and (odd := predictions[predictions % 1 != 0]).size:
        raise ValueError(f"compare: expected predicted classes in {found.source}, but got "
                         f"{odd[0]:g}; turn probabilities into classes first")
    numbers = {value: number for number, value in enumerate(classes)}
    codes = np.array([numbers.get(value, -1) for value in predictions.tolist()], dtype=float)
    if (codes < 0).all():
        raise ValueError(f"compare: expected predicted classes such as {classes[0]!r} in "
                         f"{found.source}, as the targets are, but got {predictions.tolist()[0]!r}")
    return codes


def _amounts(found: Predictions) -> np.ndarray:
    predictions = found.prediction
    if predictions.dtype.kind not in "biuf" or not np.isfinite(predictions).all():
        odd = next(value for value in predictions.tolist()
                   if not isinstance(value, int | float) or not np.isfinite(value))
        raise ValueError(f"compare: expected finite numbers as the predictions in {found.source}, "
                         f"as this is a regression, but got {odd!r}")
    return predictions.astype(np.float64)
