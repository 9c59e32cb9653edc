"""Rows in three parts, 60/10/30, stratified by class, standardised by the training part.

May import: numpy, randomness, tables; scikit-learn where rows are split.
Tests: ``tests/pipeline/test_data.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.tables import Rows

__all__ = ["Scaler", "Scaling", "WithInputScaling", "WithoutInputScaling", "raw_rows"]


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


class WithInputScaling(nn.Module):
    """A network that was trained on standardised rows, for rows as they were read, float64.

    The scaling is computed in float64, as it was of the training data: a large column (a time in
    seconds) has no digits to lose.
    """

    def __init__(self, network: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.network = network
        self.inputs, self.targets = _Scale.of(scaling.inputs), _Scale.of(scaling.targets)

    def forward(self, rows: Tensor) -> Tensor:
        answers = self.network(self.inputs(rows) if self.inputs else rows.float())
        return self.targets.undone(answers).float() if self.targets else answers


class WithoutInputScaling(nn.Module):
    """The other way round: a model of ours as it was saved, for rows that were scaled, or not."""

    def __init__(self, saved: nn.Module, scaling: Scaling | None) -> None:
        super().__init__()
        self.saved = saved
        scaling = scaling or Scaling(None, None)
        self.inputs, self.targets = _Scale.of(scaling.inputs), _Scale.of(scaling.targets)

    def forward(self, rows: Tensor) -> Tensor:
        answers = self.saved(self.inputs.undone(rows) if self.inputs else rows.double())
        return self.targets(answers) if self.targets else answers


def raw_rows(rows: Tensor, scaling: Scaling) -> Tensor:
    """Standardised rows as they were read, float64."""
    scale = _Scale.of(scaling.inputs)
    return scale.undone(rows) if scale else rows.double()


class _Scale(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, scaler: Scaler) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("scale", torch.from_numpy(scaler.scale))

    @classmethod
    def of(cls, scaler: Scaler | None) -> _Scale | None:
        return None if scaler is None else cls(scaler)

    def forward(self, values: Tensor) -> Tensor:
        return ((values.double() - self.mean) / self.scale).float()

    def undone(self, values: Tensor) -> Tensor:
        spread = torch.where(self.scale.isfinite(), self.scale, 0)
        return values.double() * spread + self.mean
