"""The tutorial's rule: as many units as the share of effective weights says.

May import: usage, the result types. Tests: ``tests/widths/test_effective.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wua_mlflow.usage import LayerUsage, ModelUsage
from wua_mlflow.widths.recommendation import Curve, LayerWidth

__all__ = ["effective_width", "effective_widths", "largest_share", "width_of_share"]

_ROUNDING = 1e-9
"""Relative slack before rounding down: of 20 equal weights exp(entropy) is 19.999999999999996."""


def effective_widths(
    usage: ModelUsage, original: Sequence[int], layers: Sequence[Sequence[str]]
) -> tuple[int, ...]:
    """Widths by the tutorial's rule: floor(effective weights ÷ weights × units), at least 1.

    An entry that sets several layers takes the largest of theirs. The rule describes how
    concentrated the importance is; whether the narrower network is as good is for the verdict.

    Args:
        usage: of the original network.
        original: its widths.
        layers: for each entry the layers that it sets, from ``layers_by_width``.

    Raises:
        ValueError: ``layers`` of another length than ``original``, or an entry none of whose layers
            was analysed.

    >>> import torch
    >>> from torch import nn
    >>> from wua_mlflow.analysis import analyze
    >>> model = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> usage = analyze(model, torch.rand(100, 2), criterion="magnitude")
    >>> 1 <= effective_widths(usage, [10], [["0"]])[0] <= 10
    True
    """
    if len(layers) != len(original):
        raise ValueError(f"layers: expected {len(original)} entries, one a width, "
                         f"but got {len(layers)}")
    widths = []
    for index, names in enumerate(layers):
        share = largest_share(usage, names)
        if share is None:
            raise ValueError(f"slim_hidden: no width can be derived for entry {index + 1}, since "
                             f"none of its layers was analysed; give the widths, e.g. "
                             f"slim_hidden={','.join(str(w) for w in original)}")
        widths.append(width_of_share(share, original[index]))
    return tuple(widths)


def effective_width(usage: ModelUsage, layers: Sequence[str]) -> LayerWidth | None:
    """The width of layers that share their units, with a curve; None, if none was analysed.

    The rule looks at one number, the effective share. The curve says what importance the k most
    important units hold, of the layer that is read.

    Args:
        usage: of the network.
        layers: those that make the units; the one of the largest share is read.
    """
    known = _analysed(usage, layers)
    if not known:
        return None
    read = max(known, key=lambda layer: layer.effective_share)
    width = width_of_share(read.effective_share, read.units)
    held = np.cumsum(np.sort(read.unit_importance.astype(np.float64))[::-1])
    shares = (held / held[-1] if held[-1] else np.ones_like(held)).tolist()
    axis = f"share of the importance (effective weights ÷ weights {read.effective_share:.4f})"
    curve = Curve(tuple(range(1, read.units + 1)), tuple(shares), 1.0, shares[width - 1], axis)
    return LayerWidth(read.name, read.units, width, curve, width, tuple(layers))


def largest_share(usage: ModelUsage, layers: Sequence[str]) -> float | None:
    """The largest effective share among those layers that were analysed; None, if none was."""
    return max((one.effective_share for one in _analysed(usage, layers)), default=None)


def _analysed(usage: ModelUsage, layers: Sequence[str]) -> list[LayerUsage]:
    """The layers of these names, and those within: the weights of an LSTM go by its parameters'."""
    return [one for name, one in usage.layers.items()
            if any(name == layer or name.startswith(f"{layer}.") for layer in layers)]


def width_of_share(share: float, units: int) -> int:
    """floor(share × units), at least 1 and at most ``units``.

    >>> width_of_share(15.7751 / 20, 10)
    7
    """
    return max(1, min(units, math.floor(share * units * (1 + _ROUNDING))))
