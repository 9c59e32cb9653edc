"""The methods ``rank`` and ``projection``: how many directions a group's activations take.

May import: torch, concentration, hooks, slimming. Tests: ``tests/widths/test_spectrum.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.activations import (
    ConsumerInput,
    consumer_inputs,
    modified_inputs,
    moments,
    outgoing_norms,
)
from wua_mlflow.usage.statistics import effective_count
from wua_mlflow.widths.results import Curve, LayerWidth

if TYPE_CHECKING:
    from wua_mlflow.pruning.unit_groups import UnitGroup

__all__ = ["Spectrum", "projected", "rank_width", "spectra"]


_EPS = torch.finfo(torch.float64).eps
_ROUNDING = 1e-3
"""Relative slack before rounding up: three equal directions have a rank of 3.0000000000000004."""


@dataclass(frozen=True)
class Spectrum:
    """The directions that a group's activations take, the largest first.

    The activations are those that come to ``ports``, each port's about its own mean (``means``),
    each unit times ``scale``, the norm of the weights that read it: so a unit that is written
    twice as large and read half as strongly counts the same. Several ports share the directions.

    Attributes:
        group: the group.
        ports: where its units are read.
        means: one a port, shape (units,).
        scale: shape (units,).
        values: singular values of all rows, shape (units,), descending.
        directions: shape (units, units); a column each.
    """

    group: UnitGroup
    ports: tuple[ConsumerInput, ...]
    means: tuple[Tensor, ...]
    scale: Tensor
    values: Tensor
    directions: Tensor

    def project(self, rows: Tensor, mean: Tensor, kept: int) -> Tensor:
        """Rows of shape (rows, units) on the first ``kept`` directions about their mean.

        A unit that no weight reads becomes its mean.
        """
        directions = self.directions[:, :kept]
        scaled = (rows.double() - mean) * self.scale
        back = torch.where(self.scale > 0, 1 / self.scale, torch.zeros_like(self.scale))
        return mean + (scaled @ directions @ directions.T) * back


def spectra(
    model: nn.Module, groups: Mapping[str, UnitGroup], run: Callable[[], object]
) -> tuple[dict[str, Spectrum], dict[str, str]]:
    """The spectrum of each group, from one pass; and the groups that have none, with the reason.

    Args:
        model: unwrapped.
        groups: by name.
        run: runs the model over the data.
    """
    found = {name: consumer_inputs(model, group) for name, group in groups.items()}
    skipped = {name: own for name, own in found.items() if isinstance(own, str)}
    seen = {name: own for name, own in found.items() if not isinstance(own, str)}
    result = {}
    for name, own in moments(model, seen, run).items():
        if any(not one.count for one in own):
            skipped[name] = "a layer that reads it is not called as a module"
            continue
        scale = outgoing_norms(model, groups[name]).to(own[0].mean.device)
        scatter = sum((one.scatter for one in own), torch.zeros_like(own[0].scatter))
        squares, directions = torch.linalg.eigh(scatter * torch.outer(scale, scale))
        squares = squares.flip(0).clamp_min(0)
        squares = torch.where(squares > squares[0] * len(squares) * _EPS, squares, 0.0)
        result[name] = Spectrum(groups[name], tuple(seen[name]), tuple(one.mean for one in own),
                                scale, squares.sqrt(), directions.flip(1))
    return result, {name: skipped[name] for name in groups if name in skipped}


def rank_width(spectrum: Spectrum) -> LayerWidth:
    """The effective rank, rounded up, at least 1.

    exp of the entropy of the normalized singular values (Roy & Vetterli 2007, equation 3). The
    curve is the share of the sum of the singular values that the first k hold.
    """
    group = spectrum.group
    values = spectrum.values.cpu()
    rank = effective_count(values)
    width = min(group.units, max(1, math.ceil(rank * (1 - _ROUNDING))))
    total = float(values.sum())
    shares = (values.cumsum(0) / total if total else torch.ones_like(values)).tolist()
    curve = Curve(tuple(range(1, group.units + 1)), tuple(shares), 1.0, shares[width - 1],
                  f"share of the singular values (effective rank {rank:.2f})")
    return LayerWidth(group.name, group.units, width, curve, width, group.layers)


def projected(
    found: Mapping[str, Spectrum], widths: Mapping[str, int], score: Callable[[], float]
) -> float:
    """The score while each group named in ``widths`` is projected on so many directions."""
    changes = []
    for name, kept in widths.items():
        one = found[name]
        if kept < one.group.units:
            changes += [(port, _projection(one, mean, kept))
                        for port, mean in zip(one.ports, one.means, strict=True)]
    with modified_inputs(changes):
        return score()


def _projection(spectrum: Spectrum, mean: Tensor, kept: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: spectrum.project(rows, mean, kept)
