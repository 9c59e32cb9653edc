"""``wua predict MODEL FILE``: a saved model's answers to the rows of a file, as they were read.

What it needs lies beside the model, in ``state/encoding.json``: how a table's columns become what
the model takes, and what its answers are. Tests: ``tests/pipeline/test_predict.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor

from wua_mlflow.data.columns import columns_of, problems_line
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.encoding import TableEncoding
from wua_mlflow.data.leaks import INDEX, is_id_name
from wua_mlflow.data.parts import Part
from wua_mlflow.data.table_files import read_table
from wua_mlflow.data.tables import ENDINGS, read_columns
from wua_mlflow.data.tasks import PLAIN, OutputKind, predictions_of, probabilities_of
from wua_mlflow.device import rows_at_once
from wua_mlflow.errors import printable
from wua_mlflow.imports import existing_file
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import ArtifactPath, Tag
from wua_mlflow.tracking.runs import find_run

__all__ = ["encoding_json", "named_columns", "predict"]


def encoding_json(split: DataSplit, kind: OutputKind, target: str | None) -> str:
    """What a saved model takes of a row, and what its answers are.

    ``columns``: of a table, how each becomes columns of the model, null of other data;
    ``model_columns``: their names, in the model's order; ``named``: whether the model takes them by
    name (float32), since they are not the table's own; ``dtype`` and ``shape`` of a row;
    ``fills_gaps``: whether NaN may stand for a gap; ``outputs``: logits, probabilities or values,
    of ``classes`` in their order.
    """
    scaling, encoding = split.scaling, split.encoding
    named = encoding is not None and encoding.named
    train = split.train
    dtype = str(train.inputs.dtype).removeprefix("torch.") if isinstance(train, Part) else "float32"
    table = encoding.content() if encoding is not None else {
        "columns": None, "model_columns": None, "left_out": {}}
    return json.dumps({
        "target": target, "task": split.task, "outputs": kind, "classes": list(split.classes),
        "named": named, "dtype": dtype if named or not scaling else "float64",
        "shape": list(split.features) if encoding is None else [len(encoding.names)],
        "fills_gaps": bool(scaling and scaling.gaps), **table}, indent=1, ensure_ascii=False)


def predict(model: str, data: str) -> pd.DataFrame:
    """A model's answers, a row a row of the file.

    Args:
        model: a run of ours, or the URI of a model that one logged.
        data: a file's path; its columns by name, whatever others there are.

    Returns:
        The columns that name rows, ``prediction`` (a class's name, or an amount),
        ``probability_CLASS`` of each class, and ``target`` where the file has the column that the
        model predicts: what ``wua compare`` takes.

    Raises:
        ValueError: one line; there is no such model or file, or the two do not fit.
    """
    folder = _downloaded(model)
    content = _content(folder, model)
    if Path(data).suffix.lower() not in ENDINGS:
        raise ValueError(f"data: expected a file of rows, but {data!r} does not end in "
                         f"{', '.join(ENDINGS)}")
    path = existing_file(data, "data: expected a file of rows")
    inputs, beside = _inputs(path, content)
    outputs = _outputs(folder, model, inputs, data)
    task, kind, classes = content["task"], content["outputs"], content["classes"]
    if task not in PLAIN or outputs.dim() > 1 and task == "regression" and outputs.shape[1] > 1:
        raise ValueError(f"model: expected one with one answer a row, but {model} is of a "
                         f"{task} task with several; call the model that mlflow.pyfunc loads")
    predictions = predictions_of(outputs, task, kind)
    table = pd.DataFrame(beside)
    table.insert(len(beside) - ("target" in beside), "prediction",
                 [classes[code] for code in predictions] if classes else predictions)
    probabilities = probabilities_of(outputs, task, kind)
    if probabilities is not None:
        columns = probabilities if probabilities.ndim > 1 else \
            np.stack([1 - probabilities, probabilities], axis=1)
        for name, column in zip(classes, columns.T, strict=True):
            table[f"probability_{name}"] = column
    return table


def _downloaded(model: str) -> Path:
    """The folder of a model, by its run's id or its URI."""
    uri = model
    if ":/" not in model:
        run = find_run(model)
        outputs = run.outputs.model_outputs if run.outputs else []
        if not outputs:
            reason = run.data.tags.get(Tag.UNEXPORTED) or "no model was saved in it"
            raise ValueError(f"model: expected a run with a saved model, but {run.info.run_id} has "
                             f"none: {reason}")
        uri = f"models:/{outputs[-1].model_id}"
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise ValueError(f"model: expected a run's id or a model's URI such as models:/name/1, but "
                         f"{model} cannot be had: {' '.join(str(error).split())[:200]}") from error


def _content(folder: Path, model: str) -> dict[str, Any]:
    path = folder / ArtifactPath.ENCODING
    if not path.is_file():
        raise ValueError(f"model: expected one that this version of wua saved, with "
                         f"{ArtifactPath.ENCODING} beside it, but {model} has none; MLflow itself "
                         f"serves it: mlflow.pyfunc.load_model")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _inputs(path: Path, content: Mapping[str, Any]) -> tuple[Tensor, dict[str, np.ndarray]]:
    """What the model takes of each row, and the columns that are shown beside its answers."""
    dtype = getattr(torch, content["dtype"])
    if path.suffix.lower() == ".npz" or content["columns"] is None:
        return _array(path, content).to(dtype), {}
    encoding = TableEncoding.from_content(content)
    target = content["target"]
    frame, _ = read_table(path, "data", literal=[target] if target else [])
    if not len(frame):
        raise ValueError(f"data: expected rows in {path}, but it has only a header")
    written = {column.name: column.written for column in encoding.columns}
    columns = columns_of(frame[[name for name in frame.columns if name in written]],
                         where=str(path), levels=len(frame), written=written)
    values = encoding.encode(columns, where=str(path))
    gaps = np.isnan(values).sum(axis=0)
    if gaps.any() and not content["fills_gaps"]:
        raise ValueError(problems_line(
            {name: f"gaps in {count} of {len(frame)} rows" for name, count in zip(
                encoding.names, gaps.tolist(), strict=True) if count}, str(path), remedy="",
            expected="no gaps, as the data that the model was trained on had none"))
    filled = [f"{name!r} ({count:,})" for name, count in zip(encoding.names, gaps.tolist(),
                                                            strict=True) if count]
    lines = [f"gaps are filled as in training: {', '.join(filled[:20])}"] if filled else []
    for line in (*lines, *encoding.unknown_lines(columns)):
        print(f"wua: note: {printable(line)}", file=sys.stderr)
    beside = {name: frame[name].to_numpy() for name in frame.columns
              if name not in written and name != target
              and (name == INDEX or is_id_name(name)
                   or _names_rows(frame[name]))}
    if target in frame.columns:
        beside["target"] = frame[target].to_numpy()
    return torch.from_numpy(values).to(dtype), beside


def _names_rows(column: pd.Series[Any]) -> bool:
    """Whether a column that the model does not take differs in each of several rows."""
    try:
        return len(column) > 1 and column.dtype.kind != "f" and bool(column.is_unique) and \
            not str(column.name).startswith(("prediction", "target", "probability"))
    except TypeError:  # of lists, say
        return False


def _array(path: Path, content: Mapping[str, Any]) -> Tensor:
    """The array ``X`` of an .npz file, or a table's columns, in the order of the model's inputs."""
    columns = read_columns(path, argument="data")
    if path.suffix.lower() == ".npz":
        if "X" not in columns:
            raise ValueError(f"data: expected an array 'X' in {path}, but it has "
                             f"{', '.join(columns)}")
        values = columns["X"]
    else:
        values = np.column_stack([values for name, values in columns.items()
                                  if name not in (INDEX, content["target"])])
    shape = tuple(content["shape"])
    fits = values.shape[1:] in (shape, shape[1:]) and values.dtype.kind in "biuf"
    if not fits:
        raise ValueError(f"data: expected rows of numbers of shape {shape} in {path}, but got "
                         f"{values.dtype} of shape {values.shape[1:]}")
    return torch.from_numpy(np.ascontiguousarray(values).reshape(-1, *shape))


def _outputs(folder: Path, model: str, inputs: Tensor, data: str) -> Tensor:
    module = load_exported(str(folder))
    with torch.no_grad():
        outputs = torch.cat([module(part) for part in inputs.split(rows_at_once(inputs.shape))])
    odd = int((~torch.isfinite(outputs)).reshape(len(outputs), -1).any(dim=1).sum())
    if odd:
        raise ValueError(f"model: expected finite outputs of {model} for {data}, but got NaN or "
                         f"infinity in {odd} of {len(outputs)} rows")
    return outputs


def named_columns(split: DataSplit) -> Sequence[str]:
    """Names of the columns that a saved model takes, where they are not a table's own."""
    return split.encoding.names if split.encoding and split.encoding.named else ()
