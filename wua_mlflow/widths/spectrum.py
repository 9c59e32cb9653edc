"""The methods ``rank`` and ``projection``: how many directions a group's activations take.

Tests: ``tests/widths/test_spectrum.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.activations import (
    Change,
    ConsumerInput,
    measure_moments,
    modified_inputs,
    outgoing_norms,
)
from wua_mlflow.pruning.unit_groups import UnitGroup
from wua_mlflow.usage.statistics import effective_count
from wua_mlflow.widths.results import Curve, LayerWidth

__all__ = ["Spectrum", "rank_width", "score_projected", "spectra"]


_EPS = torch.finfo(torch.float64).eps
_ROUNDING = 1e-3
"""Relative slack before rounding up: three equal directions have a rank of 3.0000000000000004."""


@dataclass(frozen=True)
class Spectrum:
    """The principal directions of a group's activations, the largest singular value first.

    The activations are those that come to ``consumers``, each one's about its own mean (``means``),
    each unit times ``scale``, the norm of the weights that read it: so a unit that is written
    twice as large and read half as strongly counts the same. Several consumers share the
    directions.

    Attributes:
        group: the group.
        consumers: where its units are read.
        means: one a consumer, shape (units,).
        scale: shape (units,).
        values: singular values of all rows, shape (units,), descending.
        directions: shape (units, units); a column each.
    """

    group: UnitGroup
    consumers: tuple[ConsumerInput, ...]
    means: tuple[Tensor, ...]
    scale: Tensor
    values: Tensor
    directions: Tensor

    def project(self, rows: Tensor, *, mean: Tensor, kept: int) -> Tensor:
        """Project rows of shape (rows, units) on the first ``kept`` directions about their mean.

        A unit that no weight reads becomes its mean.
        """
        directions = self.directions[:, :kept]
        scaled = (rows.double() - mean) * self.scale
        back = torch.where(self.scale > 0, 1 / self.scale, torch.zeros_like(self.scale))
        return mean + (scaled @ directions @ directions.T) * back


def spectra(
    model: nn.Module, groups: Sequence[UnitGroup], run: Callable[[], object]
) -> tuple[dict[str, Spectrum], dict[str, str]]:
    """The spectrum of each group, from one pass; and the groups that have none, with the reason.

    Args:
        model: unwrapped.
        groups: the units.
        run: runs the model over the data.
    """
    measured, skipped = measure_moments(model, groups, run)
    by_group = {}
    for group in groups:
        if group.name in skipped:
            continue
        consumers, moments = zip(*measured[group.name], strict=True)
        if not all(moment.count for moment in moments):
            skipped[group.name] = "a layer that reads it is not called as a module"
            continue
        scale = outgoing_norms(model, group).to(moments[0].mean.device)
        scatter = torch.stack([moment.scatter for moment in moments]).sum(0)
        squares, directions = torch.linalg.eigh(scatter * torch.outer(scale, scale))
        squares = squares.flip(0).clamp_min(0)
        squares = torch.where(squares > squares[0] * len(squares) * _EPS, squares, 0.0)
        by_group[group.name] = Spectrum(group, consumers, tuple(moment.mean for moment in moments),
                                        scale, squares.sqrt(), directions.flip(1))
    return by_group, {group.name: skipped[group.name] for group in groups if group.name in skipped}


def rank_width(spectrum: Spectrum) -> LayerWidth:
    """The width of a group by the effective rank of its activations, rounded up, at least 1.

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


def score_projected(
    spectra: Mapping[str, Spectrum], widths: Mapping[str, int], score: Callable[[], float]
) -> float:
    """The score while the activations of groups are projected on as many directions as named."""
    changes: list[Change] = []
    for name, kept in widths.items():
        spectrum = spectra[name]
        if kept < spectrum.group.units:
            changes += [(consumer, partial(spectrum.project, mean=mean, kept=kept))
                        for consumer, mean in zip(spectrum.consumers, spectrum.means, strict=True)]
    with modified_inputs(changes):
        return score()
