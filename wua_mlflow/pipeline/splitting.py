"""Rows in three parts, 60/10/30, stratified by class, standardised by the training part.

May import: numpy, randomness, tables; scikit-learn where rows are split.
Tests: ``tests/pipeline/test_data.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wua_mlflow.pipeline.tables import Rows, Target, pose
from wua_mlflow.randomness import Purpose, numpy_generator

__all__ = ["Divided", "Scaler", "Scaling", "divide"]

_FEWEST_ROWS = 20
_FEWEST_OF_A_CLASS = 10
"""With so many, a stratified 60/10/30 split has the class in each part, whatever the rounding."""


@dataclass(frozen=True, eq=False)
class Scaler:
    """Values less ``mean``, over ``scale`` (infinite where the training part is constant)."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, train: np.ndarray) -> Scaler:
        """By column of (n, columns), by channel of (n, channels, ...), whole of (n, h, w)."""
        axes = tuple(axis for axis in range(train.ndim) if axis != 1 or train.ndim == 3)
        mean = train.mean(axes, dtype=np.float64, keepdims=True)
        deviation = train.std(axes, dtype=np.float64, keepdims=True)
        varies = (train.max(axes, keepdims=True) > train.min(axes, keepdims=True)) & (deviation > 0)
        return cls(mean, np.where(varies, deviation, np.inf))

    def applied(self, values: np.ndarray) -> np.ndarray:
        """The values standardised, float32; 0 where the training part is constant."""
        return ((values - self.mean) / self.scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Scaling:
    """How inputs were standardised, and a regression's targets; None where they were not."""

    inputs: Scaler | None
    targets: Scaler | None

    def __bool__(self) -> bool:
        """Whether anything was standardised."""
        return self.inputs is not None or self.targets is not None

    def applied(self, rows: Rows) -> Rows:
        """Fresh rows, on the same footing."""
        x = self.inputs.applied(rows.inputs) if self.inputs else rows.inputs
        y = rows.targets
        if self.targets:
            y = self.targets.applied(y.astype(np.float64)[:, None])[:, 0]
        return Rows(x, y)


    def to_json(self, classes: Sequence[str] = ()) -> str:
        """What a row goes through before the model, and an answer after it.

        ``inputs`` and ``targets``: (value − mean) ÷ scale, 0 where scale is null; null where they
        are taken as they are. ``classes``: what the model's outputs stand for, in their order.
        """
        def shown(scaler: Scaler | None) -> dict[str, object] | None:
            if scaler is None:
                return None
            scales = [float(one) if np.isfinite(one) else None for one in scaler.scale.ravel()]
            return {"mean": scaler.mean.ravel().tolist(), "scale": scales}

        return json.dumps({"inputs": shown(self.inputs), "targets": shown(self.targets),
                           "classes": list(classes)}, indent=1)


@dataclass(frozen=True, eq=False)
class Divided:
    """The three parts as rows, the task that they pose, and how they were scaled."""

    parts: Sequence[Rows]
    posed: Target
    scaling: Scaling | None = None


def divide(
    rows: Rows, seed: int, task: str | None, *, inputs: bool = True, targets: bool = True
) -> Divided:
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
    posed = pose(rows.targets, task=task)
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
    return Divided(parts, posed, scaling)


def _check_enough(posed: Target, codes: np.ndarray) -> None:
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
