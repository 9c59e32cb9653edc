"""What a test part can show at all, before anything is trained on its account.

May import: numpy, config, provable, the pipeline's data. Tests: ``tests/pipeline/test_claims.py``.
"""

from __future__ import annotations

import sys

import numpy as np

from wua_mlflow.config import Settings
from wua_mlflow.pipeline.data import DataSplit
from wua_mlflow.provable import too_small

__all__ = ["check_classes", "check_test_part"]


def check_test_part(split: DataSplit, settings: Settings) -> None:
    """Say in a line, on standard error, where the test part is too small for the margin.

    Raises:
        ValueError: all its examples are of one class.
    """
    if split.task == "regression":
        return
    check_classes(split.test.targets.numpy())
    said = too_small(len(split.test), settings.margin, settings.confidence)
    if said:
        print(f"wua: note: {said}", file=sys.stderr)


def check_classes(targets: np.ndarray) -> None:
    """Raise where all test examples are of one class."""
    labels = np.unique(targets)
    if len(labels) < 2:
        raise ValueError(f"test data: expected examples of at least two classes, but all "
                         f"{len(targets):,} are of class {labels[0]:g}; an accuracy on one class "
                         f"says nothing of the others")
