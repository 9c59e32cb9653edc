"""What rows go through by the training part: gaps filled, columns standardised.

Of arrays, and as a part of a saved model.

Tests: ``tests/data/test_tables.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wua_mlflow.data.encoding import Gaps
from wua_mlflow.data.tables import Rows

__all__ = ["Scaler", "Scaling", "WithInputScaling", "WithoutInputScaling", "raw_rows"]


@dataclass(frozen=True, eq=False)
class Scaler:
    """(value − ``mean``) ÷ ``deviation``, infinite where the training part is constant."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, train: np.ndarray) -> Scaler:
        """By column of (n, columns), by channel of (n, channels, ...), whole of (n, h, w)."""
        axes = tuple(axis for axis in range(train.ndim) if axis != 1 or train.ndim == 3)
        mean = train.mean(axes, dtype=np.float64, keepdims=True)
        deviation = train.std(axes, dtype=np.float64, keepdims=True)
        varies = (train.max(axes, keepdims=True) > train.min(axes, keepdims=True)) & (deviation > 0)
        return cls(mean, np.where(varies, deviation, np.inf))

    def scale(self, values: np.ndarray) -> np.ndarray:
        """The values standardised, float32; 0 where the training part is constant."""
        return np.asarray((values - self.mean) / self.deviation, dtype=np.float32)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Standardised values in their own unit, float64."""
        spread = np.where(np.isfinite(self.deviation), self.deviation, 0)
        return np.asarray(values.astype(np.float64) * spread + self.mean)


@dataclass(frozen=True, eq=False)
class Scaling:
    """How inputs were standardised, and a regression's targets; None where they were not.

    Of a table ``gaps`` are filled before; ``named`` says that its columns are encoded
    (``TableEncoding.named``), and a saved model takes them by name, in float32.
    """

    inputs: Scaler | None
    targets: Scaler | None
    gaps: Gaps | None = None
    named: bool = False

    def __bool__(self) -> bool:
        """Whether a row is not what the network takes, or its answer not the target."""
        return bool(self.inputs or self.targets or self.gaps or self.named)

    def scale(self, rows: Rows) -> Rows:
        """Rows with their gaps filled, standardised like the training part."""
        filled = self.gaps.fill_in(rows.inputs) if self.gaps else rows.inputs
        inputs = self.inputs.scale(filled) if self.inputs else filled
        targets = rows.targets
        if self.targets:
            targets = self.targets.scale(targets.astype(np.float64)[:, None])[:, 0]
        return Rows(inputs, targets, groups=rows.groups)

    def to_json(self, classes: Sequence[str] = ()) -> str:
        """What a row goes through before the model, and an answer after it.

        ``gaps``: what stands in each column's gaps, and which columns get an indicator behind all
        columns; null where there were none. ``inputs`` and ``targets``: (value − mean) ÷ scale, 0
        where scale is null; null where they are taken as they are. ``classes``: what the model's
        outputs stand for, in their order.
        """
        def content(scaler: Scaler | None) -> dict[str, object] | None:
            if scaler is None:
                return None
            scale = [float(value) if np.isfinite(value) else None
                     for value in scaler.deviation.ravel()]
            return {"mean": scaler.mean.ravel().tolist(), "scale": scale}

        gaps = None if self.gaps is None else {
            "fill": self.gaps.fill.tolist(), "indicators": self.gaps.indicators.tolist()}
        return json.dumps({"gaps": gaps, "inputs": content(self.inputs),
                           "targets": content(self.targets), "classes": list(classes)}, indent=1)


def raw_rows(rows: Tensor, scaling: Scaling) -> Tensor:
    """Rows as a saved model takes them: float64, NaN in gaps; float32, where they are encoded."""
    raw = scaling.inputs.unscale(rows.numpy()) if scaling.inputs else rows.double().numpy()
    raw = scaling.gaps.reopen(raw) if scaling.gaps else raw
    return torch.from_numpy(raw.astype(np.float32 if scaling.named else np.float64))


class _Gaps(nn.Module):
    """``Gaps`` within a network."""

    fill: Tensor
    indicators: Tensor

    def __init__(self, gaps: Gaps) -> None:
        super().__init__()
        self.register_buffer("fill", torch.from_numpy(gaps.fill))
        self.register_buffer("indicators", torch.from_numpy(gaps.indicators))

    def forward(self, values: Tensor) -> Tensor:
        missing = values.isnan()
        return torch.cat([torch.where(missing, self.fill, values),
                          missing[:, self.indicators].to(values.dtype)], dim=1)

    def reopen(self, values: Tensor) -> Tensor:
        columns = len(self.fill)
        opened = values[:, :columns].clone()
        marked = opened[:, self.indicators]
        opened[:, self.indicators] = torch.where(values[:, columns:] > 0.5, torch.nan, marked)
        return opened


class _Scale(nn.Module):
    """A ``Scaler`` within a network, computed in float64."""

    mean: Tensor
    scale: Tensor

    def __init__(self, scaler: Scaler) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("scale", torch.from_numpy(scaler.deviation))

    def forward(self, values: Tensor) -> Tensor:
        return ((values.double() - self.mean) / self.scale).float()

    def unscale(self, values: Tensor) -> Tensor:
        spread = torch.where(self.scale.isfinite(), self.scale, 0)
        return values.double() * spread + self.mean


class _Scaled(nn.Module):
    """A network between what rows and answers go through, any of which may be missing."""

    def __init__(self, network: nn.Module, scaling: Scaling | None) -> None:
        super().__init__()
        self.network = network
        self.gaps = _Gaps(scaling.gaps) if scaling and scaling.gaps else None
        self.inputs = _Scale(scaling.inputs) if scaling and scaling.inputs else None
        self.targets = _Scale(scaling.targets) if scaling and scaling.targets else None
        self.dtype = torch.float32 if scaling and scaling.named else torch.float64


class WithInputScaling(_Scaled):
    """A network that was trained on standardised rows, for rows as they were read, float64.

    Of a table with text or dates, for its encoded columns, float32; NaN stands for a gap. The
    scaling is computed in float64, as it was of the training data: a large column (a time in
    seconds) has no digits to lose.
    """

    def forward(self, rows: Tensor) -> Tensor:
        filled = self.gaps(rows.double()) if self.gaps else rows
        answers: Tensor = self.network(self.inputs(filled) if self.inputs else filled.float())
        return self.targets.unscale(answers).float() if self.targets else answers


class WithoutInputScaling(_Scaled):
    """A saved model that takes rows as they were read, for rows standardised by ``scaling``."""

    def forward(self, rows: Tensor) -> Tensor:
        raw = self.inputs.unscale(rows) if self.inputs else rows.double()
        raw = self.gaps.reopen(raw) if self.gaps else raw
        answers = self.network(raw.to(self.dtype))
        scaled: Tensor = self.targets(answers) if self.targets else answers
        return scaled
