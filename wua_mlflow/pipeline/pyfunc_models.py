"""Models of flavours other than PyTorch's, as ``mlflow.pyfunc`` loads them, and what they answer.

Tests: ``tests/pipeline/test_pyfunc_models.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, get_model_info
from mlflow.models.model import ModelInfo
from mlflow.types.schema import ColSpec, Schema
from torch import Tensor, nn

from wua_mlflow.data.tasks import TaskSpec
from wua_mlflow.errors import did_you_mean, listed, one_line
from wua_mlflow.pipeline.evaluation_sets import Predictions
from wua_mlflow.pipeline.example_ids import ExampleIds
from wua_mlflow.pipeline.models import naming
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.tracking.models import ALLOW_PICKLE, CODE_RISK

if TYPE_CHECKING:  # slow to import
    from mlflow.pyfunc import PyFuncModel

__all__ = ["AnswersOf", "Frame", "TimedAnswers", "check_batch", "flavour_of", "load_pyfunc",
           "model_info", "rows_like"]


Frame: TypeAlias = pd.DataFrame | np.ndarray
"""Rows as they were read, without the target: a table, or an array of shape (n, ...)."""
_PYFUNC = "python_function"
_PREDICTION = "prediction"
_PROBABILITY = "probability_"
_ROUNDING = 1e-3
"""So far the sum of probabilities may be from 1, and they from 0 and 1."""


def model_info(uri: str) -> ModelInfo:
    """What MLflow knows of a model; nothing of it is loaded.

    Raises:
        MlflowException: there is none.
        ValueError: one line; it cannot be had from the place that the URI names.
    """
    try:
        return get_model_info(uri)
    except MlflowException:
        raise
    except Exception as error:  # of the place that the URI names: of many kinds
        raise ValueError(f"model URI {uri}: cannot be had: {one_line(error)}") from error


def flavour_of(info: ModelInfo) -> str:
    """The name of the flavour: ``pytorch``, ``sklearn``, …; ``python_function`` where it has only
    that.
    """
    return next((name for name in info.flavors if name != _PYFUNC), _PYFUNC)


def load_pyfunc(uri: str, info: ModelInfo, trust: Trust) -> PyFuncModel:
    """The model behind a URI, whatever its flavour, where that is trusted.

    Raises:
        ValueError: one line; it is not trusted, or cannot be loaded.
    """
    if not trust.pickle:
        raise ValueError(f"model URI {uri}: cannot be loaded: it is a model of MLflow's flavour "
                         f"{flavour_of(info)}, and loading such a one runs what its author saved "
                         f"(a pickle, or a loader of its own); --trust pickle loads it all the "
                         f"same")
    if info.flavors.get(_PYFUNC, {}).get("code") and not trust.code:
        raise ValueError(f"model URI {uri}: cannot be loaded: {CODE_RISK}")
    try:
        with _unpickling():
            model: PyFuncModel = mlflow.pyfunc.load_model(uri)
        return model
    except Exception as error:  # of the model's own code: of many kinds
        raise ValueError(f"model URI {uri}: cannot be loaded: {one_line(error)}") from error


@contextlib.contextmanager
def _unpickling() -> Iterator[None]:
    """MLflow may unpickle, whatever its variable says: the user has trusted the model."""
    previous = os.environ.get(ALLOW_PICKLE)
    os.environ[ALLOW_PICKLE] = "true"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[ALLOW_PICKLE]
        else:
            os.environ[ALLOW_PICKLE] = previous


@dataclass(frozen=True, eq=False)
class AnswersOf:
    """A loaded model as one that is asked for predictions.

    ``reference`` names it in messages, ``column`` the column of its answers that is meant, where
    these are a table of several.
    """

    reference: str
    model: PyFuncModel
    column: str | None = None

    def answers(self, rows: Frame, spec: TaskSpec, *, probabilities: bool = False) -> Predictions:
        """The answers to rows, as a file of predictions holds them.

        Classes are taken by their label; one column of numbers between 0 and 1 that are not whole
        is the probability of the second of two classes; a column for each class is probabilities.

        Args:
            rows: as the model's signature names them.
            spec: the task.
            probabilities: whether they are needed: scikit-learn's ``predict_proba`` is asked then.

        Raises:
            ValueError: one line; the model does not take the rows, or answers in another form.
        """
        taken = self.taken(rows)
        answer = self._answer(taken)
        if isinstance(answer, pd.DataFrame):
            prediction, likely, names = self._of_frame(answer, spec)
        else:
            prediction, likely = self._of_array(_as_array(answer), spec)
            names = None
        if probabilities and likely is None and spec.task != "regression":
            likely, names = self._probabilities(taken)
        found = Predictions(self.reference, prediction, None, ExampleIds(self.reference, {}),
                            likely, names)
        if len(found) != len(rows):
            raise ValueError(f"model: expected an answer of {self.reference} to each of "
                             f"{len(rows):,} rows, but got {len(found):,}")
        return found

    def taken(self, rows: Frame) -> Frame:
        """The rows as the signature has them; errors as of ``rows_like``."""
        metadata = self.model.metadata
        return rows_like(metadata.signature if metadata else None, rows, self.reference)

    def _answer(self, rows: Frame) -> Any:
        shape = tuple(rows.shape)
        with naming(f"model: {self.reference} does not take the data's rows of shape {shape}",
                    ours=False):
            return self.model.predict(rows)

    def _of_array(
        self, answer: np.ndarray, spec: TaskSpec
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Predictions, or probabilities."""
        if answer.ndim == 2 and answer.shape[1] == 1:
            answer = answer[:, 0]
        if answer.ndim > 2 or answer.ndim == 2 and spec.task == "regression":
            raise ValueError(f"model: expected one answer of {self.reference} to each row, but got "
                             f"an array of shape {answer.shape}")
        if answer.ndim == 2:
            if _are_probabilities(answer):
                return None, answer.astype(np.float64)
            if answer.shape[1] != len(spec.values):
                raise ValueError(f"model: expected an answer of {self.reference} for each of "
                                 f"{len(spec.values)} classes, but got {answer.shape[1]}")
            return np.array(spec.values)[answer.argmax(axis=1)], None
        likely = len(spec.values) == 2 and answer.dtype.kind == "f" and \
            bool(((answer >= 0) & (answer <= 1)).all()) and bool((answer % 1 != 0).any())
        return (None, answer.astype(np.float64)) if likely else (answer, None)

    def _of_frame(
        self, answer: pd.DataFrame, spec: TaskSpec
    ) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...] | None]:
        """Of columns that say what they are, as ``wua predict`` writes them, or of classes' names.
        """
        answer = answer.rename(columns=str)
        if self.column is not None and self.column in answer:
            answer = answer[[self.column]]
        names = [name for name in answer if name.startswith(_PROBABILITY)]
        by_class = set(answer) == set(spec.classes) and len(spec.classes) > 1
        if names or by_class:
            columns = names or list(answer)
            likely = answer[columns].to_numpy(dtype=np.float64)
            classes = tuple(name.removeprefix(_PROBABILITY) for name in columns)
            prediction = answer[_PREDICTION].to_numpy() if _PREDICTION in answer else None
            return prediction, likely, classes
        if _PREDICTION in answer:
            return answer[_PREDICTION].to_numpy(), None, None
        return (*self._of_array(_as_array(answer.to_numpy()), spec), None)

    def _probabilities(self, rows: Frame) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """scikit-learn's ``predict_proba``, and the classes that its columns are of."""
        try:
            raw: Any = self.model.get_raw_model()  # type: ignore[no-untyped-call]
            ask = raw.predict_proba
        except (NotImplementedError, AttributeError):
            return None, None
        with naming(f"model: {self.reference} gives no probabilities", ours=False):
            likely = np.asarray(ask(rows), dtype=np.float64)
        classes = getattr(raw, "classes_", None)
        return likely, None if classes is None else tuple(
            str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)
            for name in np.asarray(classes).tolist())


def rows_like(signature: ModelSignature | None, rows: Frame, reference: str) -> Frame:
    """Rows as a model's signature has them: its columns by name, in its types and shape.

    Args:
        signature: the model's; None: the rows are as they should be.
        rows: of a table, or an array.
        reference: the model's name, for messages.

    Raises:
        ValueError: one line; columns are missing, or are no numbers where it takes an array.
    """
    schema = signature.inputs if signature else None
    if schema is None or not len(schema):
        return rows
    if not schema.is_tensor_spec() or schema.has_input_names():
        return _by_name(rows, schema, reference)
    spec = schema.inputs[0]
    with naming(f"model: {reference} takes an array of {spec.type} of shape {spec.shape}, and the "
                f"data's rows of shape {tuple(rows.shape)} are none", ours=False):
        return np.asarray(rows).astype(spec.type).reshape(len(rows), *spec.shape[1:])


def _by_name(rows: Frame, schema: Schema, reference: str) -> Frame:
    named = schema.has_input_names()
    names: list[Any] = schema.input_names() if named else list(range(len(schema)))
    if not isinstance(rows, pd.DataFrame):
        if rows.ndim != 2 or rows.shape[1] != len(names):
            raise ValueError(f"model: {reference} takes {len(names)} columns, but the data have "
                             f"the shape {rows.shape}")
        rows = pd.DataFrame(rows, columns=names)
    if not named:
        return rows
    missing = [name for name in schema.required_input_names() if name not in rows]
    if missing:
        raise ValueError(f"model: {reference} takes the columns {listed(names)}, but the data have "
                         f"no {missing[0]!r}"
                         f"{did_you_mean(str(missing[0]), map(str, rows.columns))}")
    frame = rows[[name for name in names if name in rows]]
    wanted = {spec.name: np.dtype(spec.type.to_numpy()) for spec in schema.inputs
              if isinstance(spec, ColSpec) and spec.name in frame
              and hasattr(spec.type, "to_numpy")}
    return frame.astype({name: dtype for name, dtype in wanted.items()
                         if dtype.kind in "iuf" and _holds(frame[name], dtype)})


class TimedAnswers(nn.Module):
    """A model's ``predict`` as a forward, to be timed: of as many of its rows as it is given."""

    def __init__(self, answers: AnswersOf, rows: Frame, counts: Sequence[int]) -> None:
        super().__init__()
        self.answers = answers
        taken = answers.taken(rows)
        self.rows = {count: taken[:count] for count in counts}

    def forward(self, inputs: Tensor) -> Tensor:
        self.answers.model.predict(self.rows[len(inputs)])
        return torch.empty(0)


def check_batch(module: nn.Module, reference: str) -> None:
    """Whether an exported graph takes batches of any size.

    Raises:
        ValueError: one line; it was exported with one row, and takes no more.
    """
    graph = getattr(module, "graph", None)
    first = next((node for node in getattr(graph, "nodes", ()) if node.op == "placeholder"), None)
    size = getattr(first.meta.get("val"), "shape", ())[:1] if first is not None else ()
    if size and isinstance(size[0], int):
        raise ValueError(f"model: expected one that takes batches of any size, but {reference} "
                         f"takes {size[0]} row at a time: torch.export makes the size of its input "
                         f"example a constant where that is one row; log it with two or more")


def _as_array(answer: Any) -> np.ndarray:
    array = np.asarray(answer)
    if array.dtype.kind != "O":
        return array
    plain = np.asarray(array.tolist())
    return plain if plain.dtype.kind != "O" else array.astype(str)


def _are_probabilities(answer: np.ndarray) -> bool:
    if answer.dtype.kind != "f" or answer.min(initial=0) < -_ROUNDING:
        return False
    return bool((np.abs(answer.sum(axis=1) - 1) < _ROUNDING).all())


def _holds(column: pd.Series, dtype: np.dtype[Any]) -> bool:
    """Whether a column of numbers is the same in a type; floats are taken to be."""
    if column.dtype.kind not in "biuf":
        return False
    if dtype.kind == "f":
        return True
    values = column.to_numpy(dtype=np.float64)
    return bool(np.isfinite(values).all()) and bool((values % 1 == 0).all())
