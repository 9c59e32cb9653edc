"""Rows in three parts, 60/10/30, stratified by class, standardised by the training part.

May import: numpy, randomness, tables; scikit-learn where rows are split.
Tests: ``tests/pipeline/test_data.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wua_mlflow.data.scaling import Scaler, Scaling
from wua_mlflow.data.tables import Rows
from wua_mlflow.data.tasks import TaskSpec, infer_task
from wua_mlflow.rng import Purpose, numpy_generator

__all__ = ["SplitRows", "divide"]


_FEWEST_ROWS = 20
_FEWEST_OF_A_CLASS = 10
"""With so many, a stratified 60/10/30 split has the class in each part, whatever the rounding."""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """The three parts as rows, the task that they pose, and how they were scaled."""

    parts: Sequence[Rows]
    posed: TaskSpec
    scaling: Scaling | None = None


def divide(
    rows: Rows, seed: int, task: str | None, *, inputs: bool = True, targets: bool = True
) -> SplitRows:
    """The 60/10/30 split of ``rows``, and its task.

    Args:
        rows: all there are.
        seed: of the split.
        task: as ``load_data`` takes it.
        inputs: whether to standardise them, by the training part.
        targets: whether to standardise a regression's.

    Raises:
        ValueError: too few rows, or too few of a class, to make three parts of.
    """
    posed = infer_task(rows.targets, task=task)
    codes = posed.encoded(rows.targets, where="the data")
    _check_enough(posed, codes)
    indices = _indices(codes, seed, stratified=posed.task != "regression")
    first = indices[0]
    regression = posed.task == "regression"
    scaling = Scaling(
        Scaler.of(rows.inputs[first]) if inputs else None,
        Scaler.of(codes[first][:, None]) if regression and targets else None)
    parts = [scaling.applied(Rows(rows.inputs[i], (codes if regression else rows.targets)[i]))
             for i in indices]
    return SplitRows(parts, posed, scaling)


def _check_enough(posed: TaskSpec, codes: np.ndarray) -> None:
    if len(codes) < _FEWEST_ROWS:
        raise ValueError(f"data: expected at least {_FEWEST_ROWS} rows to make three parts of, "
                         f"but got {len(codes)}")
    counts = np.bincount(codes) if posed.classes else np.array([len(codes)])
    rarest = int(counts.argmin())
    if counts[rarest] < _FEWEST_OF_A_CLASS:
        hint = "" if isinstance(posed.values[0], str | bool) else "; amounts want task=regression"
        raise ValueError(f"target: expected at least {_FEWEST_OF_A_CLASS} rows of each class to "
                         f"have it in all three parts, but class {posed.classes[rarest]!r} has "
                         f"{counts[rarest]}{hint}")


def _indices(codes: np.ndarray, seed: int, *, stratified: bool) -> list[np.ndarray]:
    from sklearn.model_selection import train_test_split

    n, draw = len(codes), numpy_generator(seed, Purpose.SPLIT)
    rest, taken = np.arange(n), []
    for size in (-(-3 * n // 10), -(-n // 10)):
        rest, part = train_test_split(rest, test_size=size, random_state=int(draw.integers(2**32)),
                                      stratify=codes[rest] if stratified else None)
        taken.append(part)
    return [rest, taken[1], taken[0]]
