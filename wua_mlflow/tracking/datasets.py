"""The parts of a data set as MLflow's run inputs.

May import: mlflow, numpy. Tests: ``tests/tracking/test_datasets.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag

__all__ = ["dataset_inputs"]

CONTEXT = "mlflow.data.context"


def dataset_inputs(
    name: str, source: str, parts: Iterable[tuple[str, np.ndarray, np.ndarray, str]]
) -> list[DatasetInput]:
    """What ``client.log_inputs`` takes.

    Args:
        name: of the data set.
        source: a file's path, or words for what made the data (shown as the code's name).
        parts: context (``train``, ``validation``, ``test``), inputs, targets, digest; MLflow keeps
            12 characters of the digest.
    """
    origin = _origin(source)
    return [
        DatasetInput(
            from_numpy(inputs, targets=targets, source=origin, digest=digest[:12],
                       name=f"{name} {context}")._to_mlflow_entity(),
            tags=[InputTag(CONTEXT, context)],
        )
        for context, inputs, targets, digest in parts
    ]


def _origin(source: str) -> DatasetSource:
    try:
        is_file = Path(source).is_file()
    except OSError:  # too long for a path
        is_file = False
    if not is_file:
        return CodeDatasetSource({"mlflow.source.name": source})
    with warnings.catch_warnings():  # MLflow has two sources of the same name for a file
        warnings.simplefilter("ignore")
        return resolve_dataset_source(source)
