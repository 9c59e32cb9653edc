"""A network that takes rows as they were read, and answers in the targets' own unit.

What is served: whoever has the saved model alone needs to know of no scaling.
May import: torch, splitting. Tests: ``tests/pipeline/test_scaling.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wua_mlflow.pipeline.splitting import Scaler, Scaling

__all__ = ["OnRawRows", "OnScaledRows", "raw_rows"]


class OnRawRows(nn.Module):
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


class OnScaledRows(nn.Module):
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
