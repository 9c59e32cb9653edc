"""What models that exist already are tested on, and files of their predictions.

Tests: ``tests/pipeline/test_predictions.py``, ``tests/pipeline/test_compare_external.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from wua_mlflow.config import Settings
from wua_mlflow.data.batches import GrowingArray
from wua_mlflow.data.columns import problems_line
from wua_mlflow.data.datasets import DataSplit, load_data, part_of
from wua_mlflow.data.parts import DataPart, Part, StreamedPart, digest_of
from wua_mlflow.data.scaling import Scaling, raw_rows
from wua_mlflow.data.tables import (
    INDEX,
    Rows,
    Table,
    group_numbers,
    listed,
    read_columns,
    rows_without_inputs,
)
from wua_mlflow.data.tasks import PLAIN, Task, TaskSpec, example_scores, infer_task
from wua_mlflow.errors import did_you_mean
from wua_mlflow.imports import existing_file, local_path
from wua_mlflow.pipeline.example_ids import ExampleIds, example_ids
from wua_mlflow.training.evaluation import Evaluation

__all__ = [
    "EvaluationSet", "Predictions", "file_evaluation_set", "named_evaluation_set",
    "own_evaluation_set", "read_predictions",
]


_ANSWERS = ("prediction", "target")
"""Columns of a file of predictions; others may name its rows."""

_ROUNDING = 1e-5
"""Relative: a run keeps its targets in float32."""


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """One part to test on, and its task with the classes in the order of the model's outputs.

    ``digest`` is of the rows as they were read, whatever scaling a model's own data then asked for;
    ``known`` (n,) are its targets, None of a streamed part before anybody asks for them;
    ``scaling`` is how the part's rows were scaled, if they were; ``groups``
    (n,) whose rows they are, if that is known; ``rows`` are those of the part as they were read,
    where a model takes columns by name.
    """

    part: DataPart
    spec: TaskSpec
    known: np.ndarray | None
    digest: str
    scaling: Scaling | None = None
    groups: np.ndarray | None = None
    rows: pd.DataFrame | np.ndarray | None = None

    @property
    def task(self) -> Task:
        """Binary, multiclass or regression."""
        return self.spec.task

    @cached_property
    def truth(self) -> np.ndarray:
        """The classes' numbers, or a regression's targets in the data's own unit, shape (n,).

        Raises:
            ValueError: an example has several targets: no file has a prediction for each.
        """
        if self.known is not None:
            return self.known
        assert isinstance(self.part, StreamedPart), "others have their targets"
        if self.task not in PLAIN:
            raise ValueError(f"compare: expected models, as an example has several targets "
                             f"({self.task}), but got a file of predictions")
        found = GrowingArray()
        for targets in self.part.all_targets():
            found.add(np.asarray(targets).reshape(-1))
        return found.rows.astype(np.float64)

    def for_outputs(self, count: int) -> EvaluationSet:
        """With the classes numbered as a classifier of ``count`` outputs has them.

        Raises:
            ValueError: the classes cannot be those of the outputs.
        """
        spec = self.spec.for_outputs(count)
        values = np.array(self.spec.values)[self.truth.astype(int)]
        codes = spec.encode(values, where="the test data")
        part = Part(self.part.inputs, torch.from_numpy(codes)) \
            if isinstance(self.part, Part) else self.part
        return replace(self, spec=spec, known=codes.astype(np.float64), part=part)


def own_evaluation_set(split: DataSplit, *, as_read: bool = False) -> EvaluationSet:
    """The test part of a run's own data; ``as_read``: with its rows as they were read, too.

    Raises:
        ValueError: one line; these are not known any more.
    """
    if as_read:
        return _with_rows(own_evaluation_set(split), split)
    if not isinstance(split.test, Part):
        return EvaluationSet(split.test, split.spec, None, split.test.digest)
    truth = split.test.targets.numpy().reshape(-1).astype(np.float64)
    if split.scaling and split.scaling.targets:
        truth = split.scaling.targets.unscale(truth[:, None])[:, 0]
    return EvaluationSet(split.test, split.spec, truth, split.test.digest, split.scaling,
                         split.test.groups)


def _with_rows(test: EvaluationSet, split: DataSplit) -> EvaluationSet:
    """The test part of a split with its rows as they were before they were standardised.

    Raises:
        ValueError: one line; they are not known any more.
    """
    part = test.part
    if not isinstance(part, Part) or split.encoding is not None and split.encoding.named:
        raise ValueError(f"data: expected a file (--data), as models of other flavours than "
                         f"PyTorch's take its columns as they stand there, but got {split.name}, "
                         f"which is {'encoded' if isinstance(part, Part) else 'streamed'} already")
    array = (raw_rows(part.inputs, test.scaling) if test.scaling else part.inputs).numpy()
    columns = list(split.columns)
    frame = pd.DataFrame(array, columns=columns) if len(columns) == array.shape[-1] == array[
        0].size else array
    return replace(test, rows=frame)


def named_evaluation_set(
    settings: Settings, trained_on: DataSplit | None, *, as_read: bool = False
) -> EvaluationSet:
    """The test part of a bundled set or of the user's function, which ``settings.data`` names.

    It is the model's own test part where the model was trained on that; ``as_read``: with its rows
    as they were read, too.

    Raises:
        ValueError: one line, as ``load_data``; or the rows as they were read are not known.
    """
    data = settings.data
    if settings.target and ":" not in data:
        raise ValueError(f"target: expected none beside data {data!r}, but got {settings.target!r}")
    split = trained_on
    if split is None or split.source not in (data, f"sklearn.datasets.load_{data}"):
        image = split is not None and len(split.features) == 3
        split = load_data(data, target=settings.target, seed=settings.seed, task=settings.task,
                          image=image, table=settings.table_settings)
    test = own_evaluation_set(split, as_read=as_read)
    rows = test.digest.encode() if test.known is None else test.known
    return replace(test, digest=digest_of(data.encode(), rows))


def file_evaluation_set(
    rows: Rows | Table, data: str, task: str | None, trained_on: DataSplit | None
) -> EvaluationSet:
    """All rows of a file, with the scaling and the classes of the model's own data.

    Args:
        rows: of the file.
        data: its path.
        task: the task, where the targets leave it open.
        trained_on: the data of the model, where they are known.

    Raises:
        ValueError: one line; the model was trained on this very file, or its data lack a class or
            have other columns or another shape.
    """
    digest = digest_of(*rows.digest_parts()) if isinstance(rows, Table) else \
        digest_of(rows.inputs, rows.targets)
    as_read = _as_numbers(rows, data, trained_on)
    if trained_on is None:
        spec, scaling, scaled = infer_task(rows.targets, task=task), None, as_read
    else:
        spec, scaling = trained_on.spec, trained_on.scaling
        scaled = _rows_like(as_read, data, trained_on)
    truth = spec.encode(as_read.targets, where=data).astype(np.float64)
    return EvaluationSet(part_of(scaled, spec, data), spec, truth, digest, scaling, as_read.groups)


def _as_numbers(rows: Rows | Table, data: str, trained_on: DataSplit | None) -> Rows:
    """A table's columns as the model's own data were encoded, or as they are.

    Raises:
        ValueError: one line; columns are missing, or are no numbers, or have gaps that the model
            cannot fill.
    """
    if not isinstance(rows, Table):
        return rows
    if trained_on is not None and trained_on.encoding is not None:
        inputs = trained_on.encoding.encode(rows.columns, where=data)
        names = trained_on.encoding.names
        fills = bool(trained_on.scaling and trained_on.scaling.gaps)
    else:
        others = {column.name: {"text": "text", "date": "dates"}[column.kind]
                  for column in rows.columns if column.kind != "number"}
        if others:
            raise ValueError(problems_line(others, data, expected="numbers, as nothing is known "
                                           "of what the models were trained on"))
        inputs, names = rows.codes(), tuple(column.name for column in rows.columns)
        fills = False
    gaps = np.isnan(inputs).sum(axis=0)
    if gaps.any() and not fills:
        raise ValueError(problems_line(
            {name: f"gaps in {count} of {len(rows)} rows"
             for name, count in zip(names, gaps.tolist(), strict=True) if count},
            data, expected="numbers without gaps, as the models were trained on"))
    return Rows(inputs, rows.targets, columns=names, groups=rows.groups)


def _rows_like(rows: Rows, data: str, trained_on: DataSplit) -> Rows:
    """Fresh rows in the shape and the scale of the data that a model was trained on."""
    if local_path(data).absolute() == Path(trained_on.source):
        raise ValueError(f"data: expected rows that training never saw, but {data} is what the "
                         f"model was trained on; without --data its own test part is taken")
    if rows.columns and trained_on.encoding is not None:
        assert trained_on.scaling is not None, "a table has one"
        return trained_on.scaling.scale(rows)
    features = trained_on.features
    channel = len(features) == rows.inputs.ndim == 3 and features[0] == 1
    if rows.inputs.shape[1:] != (features[1:] if channel else features):
        raise ValueError(f"data: expected inputs of shape {features} in {data}, as the model's own "
                         f"data have, but got {rows.inputs.shape[1:]}")
    scaled = trained_on.scaling.scale(rows) if trained_on.scaling else rows
    return replace(scaled, inputs=scaled.inputs[:, None]) if channel else scaled


@dataclass(frozen=True, eq=False)
class Predictions:
    """A file's columns ``prediction`` and perhaps ``target``, each (n,); ``ids`` name its rows.

    ``probabilities`` are (n,) of the second of two classes, or (n, classes) with ``columns`` the
    classes' names, None where they are in the classes' order; ``groups`` (n,) whose rows they are.
    """

    source: str
    prediction: np.ndarray | None
    target: np.ndarray | None
    ids: ExampleIds
    probabilities: np.ndarray | None = None
    columns: tuple[str, ...] | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of examples."""
        of = self.probabilities if self.prediction is None else self.prediction
        assert of is not None, "one of the two is there"
        return len(of)

    @property
    def rows(self) -> Rows | None:
        """The file's own targets, with zeros as inputs."""
        if self.target is None:
            return None
        return replace(rows_without_inputs(self.target, where=self.source), groups=self.groups)

    def reordered(self, rows: np.ndarray) -> Predictions:
        """With its rows in this order."""
        columns = {name: values[rows] for name, values in self.ids.columns.items()}
        arrays = {"prediction": self.prediction, "target": self.target,
                  "probabilities": self.probabilities, "groups": self.groups}
        of_rows: dict[str, Any] = {
            name: None if values is None else values[rows] for name, values in arrays.items()}
        return replace(self, ids=replace(self.ids, columns=columns), **of_rows)

    def evaluate(self, test: EvaluationSet, score: str | None = None) -> Evaluation:
        """How the predictions do; a regression's in the data's own unit.

        Args:
            test: what they are of.
            score: what they are judged by; accuracy or R², if None.

        Raises:
            ValueError: of another length than the test data, other targets than theirs, or
                predictions that are no classes (or amounts) like the targets.
        """
        count = len(test.truth)
        if len(self) != count:
            raise ValueError(f"compare: expected a prediction for each of the {count} test "
                             f"examples in {self.source}, but got {len(self)}")
        if self.target is not None:
            targets = test.spec.encode(self.target, where=self.source).astype(np.float64)
            same = np.isclose(targets, test.truth, rtol=_ROUNDING,
                              atol=_ROUNDING * test.truth.std())
            if not same.all():
                raise ValueError(f"compare: expected the test data's targets in {self.source}, in "
                                 f"the same order, but {(~same).sum()} of {count} are others")
        values = test.spec.values
        probabilities = self._probabilities(test.spec) if self.probabilities is not None else None
        if not values:
            predictions = self._amounts()
        elif self.prediction is not None:
            predictions = self._classes(self.prediction, values)
        else:
            assert probabilities is not None, "one of the two is there"
            predictions = probabilities.argmax(axis=1) if probabilities.ndim > 1 else \
                (probabilities > 0.5).astype(float)
        losses = 1.0 - example_scores(predictions, test.truth, test.task)
        return Evaluation(test.task, predictions, test.truth, losses, test.digest, score or "",
                          probabilities)

    def _probabilities(self, spec: TaskSpec) -> np.ndarray:
        """Of the second of two classes (n,), or (n, classes) in the classes' order."""
        found = self.probabilities
        assert found is not None, "asked for where there are some"
        if spec.task == "regression":
            raise ValueError(f"compare: expected amounts in a column 'prediction' of "
                             f"{self.source}, as this is a regression, but got probabilities")
        if found.ndim == 1:
            if len(spec.values) != 2:
                raise ValueError(f"compare: expected a column of probabilities for each of "
                                 f"{len(spec.values)} classes in {self.source}, named "
                                 f"probability_{spec.classes[0]} and so on, but got one")
            return found
        if self.columns is None:
            order = list(range(found.shape[1]))
        else:
            unknown = sorted(set(self.columns) ^ set(spec.classes))
            if unknown:
                raise ValueError(f"compare: expected the columns "
                                 f"{listed([f'probability_{name}' for name in spec.classes])} in "
                                 f"{self.source}, a class each, but 'probability_{unknown[0]}' is "
                                 f"{'no class' if unknown[0] in self.columns else 'missing'}")
            order = [self.columns.index(name) for name in spec.classes]
        if len(order) != len(spec.values):
            raise ValueError(f"compare: expected probabilities of {len(spec.values)} classes in "
                             f"{self.source}, but got {len(order)}")
        return found[:, order][:, 1] if spec.task == "binary" else found[:, order]

    def _classes(self, predictions: np.ndarray, values: tuple[object, ...]) -> np.ndarray:
        """Predicted classes as their numbers; a class that no target has is −1, and wrong."""
        if predictions.dtype.kind == "f" and (odd := predictions[predictions % 1 != 0]).size:
            raise ValueError(f"compare: expected predicted classes in {self.source}, but got "
                             f"{odd[0]:g}; turn probabilities into classes first")
        numbers = {value: number for number, value in enumerate(values)}
        codes = np.array([numbers.get(value, -1) for value in predictions.tolist()], dtype=float)
        if (codes < 0).all():
            raise ValueError(f"compare: expected predicted classes such as {values[0]!r} in "
                             f"{self.source}, as the targets are, but got "
                             f"{predictions.tolist()[0]!r}")
        return codes

    def _amounts(self) -> np.ndarray:
        predictions = self.prediction
        assert predictions is not None, "probabilities alone were refused"
        numbers = predictions.dtype.kind in "biuf"
        if not numbers or not np.isfinite(predictions).all():
            odd = predictions[~np.isfinite(predictions) if numbers else slice(None)]
            raise ValueError(f"compare: expected finite numbers as the predictions in "
                             f"{self.source}, as this is a regression, but got {odd.tolist()[0]!r}")
        return predictions.astype(np.float64)


_PROBABILITY = "probability_"


def read_predictions(data: str, groups: str | None = None) -> Predictions:
    """The columns of a .csv, .parquet or .npz file of predictions, a row an example.

    ``prediction`` (classes or amounts), ``probability`` of the second of two classes,
    ``probability_CLASS`` of each class, ``target``; in an .npz file also ``probability`` of shape
    (n, classes).

    Args:
        data: the file's path.
        groups: the column that says whose rows they are.

    Raises:
        ValueError: no such file, not to be read, no column of predictions, or a value missing.
    """
    path = existing_file(data, "compare: expected a file of predictions")
    columns = read_columns(path, argument="compare")
    probabilities, names = _probability_columns(columns, data)
    if "prediction" not in columns and probabilities is None:
        found_names = [name for name in columns if name != INDEX]
        raise ValueError(f"compare: expected a column 'prediction' in {data}, but it has "
                         f"{', '.join(found_names) or 'none'}"
                         f"{did_you_mean('prediction', found_names)}")
    prediction = _complete(columns["prediction"], "prediction", data) \
        if "prediction" in columns else None
    target = _complete(columns["target"], "target", data) if "target" in columns else None
    if groups is not None and groups in columns:
        numbers = group_numbers(_complete(columns[groups], groups, data), groups, data)
    else:
        numbers = None
    answers = {name for name in columns if name.startswith("probability")} | {groups, *_ANSWERS}
    ids = example_ids(data, columns, besides=tuple(name for name in answers if name))
    found = Predictions(data, prediction, target, ids, probabilities, names, numbers)
    for what, column in (("target", target), ("prediction", prediction), (groups, numbers),
                         ("probability", probabilities)):
        if column is not None and len(column) != len(found):
            raise ValueError(f"compare: expected a {what} for each prediction in {data}, but got "
                             f"{len(column)} and {len(found)}")
    return found


def _probability_columns(
    columns: Mapping[str, np.ndarray], data: str
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Probabilities (n,) or (n, classes), and the classes' names where the columns say them."""
    names = tuple(name.removeprefix(_PROBABILITY) for name in columns
                  if name.startswith(_PROBABILITY))
    if names:
        found = np.stack([_complete(columns[_PROBABILITY + name], _PROBABILITY + name, data)
                          for name in names], axis=1)
    elif "probability" in columns:
        found = columns["probability"]
    else:
        return None, None
    found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if found.dtype.kind not in "biuf" or found.ndim > 2:
        raise ValueError(f"compare: expected probabilities as numbers in {data}, but got "
                         f"{found.dtype} of the shape {found.shape}")
    return found.astype(np.float64), names or None


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
    if values.dtype.kind == "O":
        plain = np.asarray(values.tolist())
        return plain if plain.dtype.kind != "O" else values.astype(str)
    return values
