"""The result types of an analysis: what is known of a layer's and of a model's weights.

Definitions: ``docs/conventions.md``.
Tests: ``tests/usage/test_results.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.display import Displayed, Summary
from wua_mlflow.errors import group_by_reason
from wua_mlflow.verdict.text import FLOPS_ONE_SAMPLE

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Concentration", "Histogram", "LayerUsage", "ModelUsage", "NullUsage", "PERMUTED",
    "REINITIALISED",
]


REINITIALISED = "re-initialised"
PERMUTED = "permuted"


@dataclass(frozen=True)
class Histogram:
    """Counts of normalized importance over equal bins.

    ``edges`` has one entry more than ``counts``; ``entropy`` is in nats and is that of the values
    themselves, not of the bins.
    """

    edges: np.ndarray
    counts: np.ndarray
    entropy: float


@dataclass(frozen=True)
class Concentration:
    """How concentrated the importance of ``count`` entries (weights, or units) is.

    ``entropy`` is in nats, ``effective`` its exponential (0 where no entry matters), ``low_share``
    the share of entries below 1% of their mean (criterion ``output``, weights: below 0.01).
    """

    count: int
    entropy: float
    effective: float
    top90_share: float
    low_share: float

    @property
    def effective_share(self) -> float:
        """``effective`` ÷ ``count``, in 0..1."""
        return self.effective / self.count


@dataclass(frozen=True)
class NullUsage:
    """The effective share of the same layer (or model) in networks that learned nothing.

    ``share`` is the mean over the draws, ``low`` and ``high`` the 2.5% and 97.5% quantiles,
    ``shift`` the mean null entropy minus the measured one, in nats (positive: more concentrated
    than a network that learned nothing). ``kind`` names the null: ``re-initialised``, ``permuted``,
    or of a model both, with how many layers were permuted.
    """

    kind: str
    draws: int
    share: float
    low: float
    high: float
    shift: float


@dataclass(frozen=True, repr=False)
class LayerUsage(Displayed):
    """How one layer's weights are used, under one criterion.

    ``unit_importance`` has shape (units,): the sum over each unit's incoming weights, unless the
    criterion has its own. ``unit_usage`` says how concentrated that is.
    ``dead`` says that every importance of the layer is zero: effective weights are 0 then.
    ``dead_units`` counts the units whose output is zero for all data, or never above zero before
    a ReLU; None where outputs were not seen.
    ``head_importance`` has shape (heads,), of an attention's query, key or value projection, or
    of one that makes all three.
    ``forward_flops`` are those of the layer's products, of one sample, on average over the data.
    ``effective_rank`` is that of the layer's centred activations, where it was asked for, at most
    the number of units.
    """

    name: str
    kind: str
    weights: int
    units: int
    entropy: float
    effective_weights: float
    top90_share: float
    low_share: float
    unit_importance: np.ndarray
    histogram: Histogram
    dead: bool = False
    null: NullUsage | None = None
    unit_usage: Concentration | None = None
    dead_units: int | None = None
    effective_rank: float | None = None
    head_importance: np.ndarray | None = None
    forward_flops: float | None = None

    @property
    def effective_share(self) -> float:
        """Effective weights ÷ weights, in 0..1."""
        return self.effective_weights / self.weights

    @property
    def null_share(self) -> float | None:
        """Mean effective share of the null, where one was drawn."""
        return self.null.share if self.null else None

    def summary(self) -> Summary:
        """What is shown of it: a figure a row."""
        return Summary(f"{self.name or 'the model'} ({self.kind})", ("", ""),
                       [row for row in zip(_HEAD[2:], _cells(self)[2:], strict=True) if row[1]])

    def table(self) -> pd.DataFrame:
        """Its figures in one row."""
        return _frame([self])


@dataclass(frozen=True, repr=False)
class ModelUsage(Displayed):
    """Usage of every analysed layer, in the order of the forward, and what was left out.

    ``skipped`` maps a module's name to the reason why it was not analysed.
    """

    criterion: str
    samples: int
    layers: Mapping[str, LayerUsage]
    skipped: Mapping[str, str]
    null: NullUsage | None = None

    @property
    def weights(self) -> int:
        """Number of analysed weights."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def effective_weights(self) -> float:
        """Sum over the layers of exp(entropy)."""
        return sum(layer.effective_weights for layer in self.layers.values())

    @property
    def entropy(self) -> float:
        """Logarithm of the effective weights, in nats; 0 where no weight matters."""
        effective = self.effective_weights
        return math.log(effective) if effective > 0 else 0.0

    @property
    def effective_share(self) -> float:
        """Effective weights ÷ analysed weights."""
        return self.effective_weights / self.weights

    @property
    def top90_share(self) -> float:
        """Sum of the layers' top-90 counts ÷ analysed weights."""
        return self._weighted("top90_share")

    @property
    def low_share(self) -> float:
        """Sum of the layers' low counts ÷ analysed weights."""
        return self._weighted("low_share")

    @property
    def units(self) -> int:
        """Number of units of the analysed layers."""
        return sum(layer.units for layer in self.layers.values())

    @property
    def effective_units(self) -> float | None:
        """Sum over the layers of their effective units; None where a layer's are not known."""
        known = [layer.unit_usage.effective for layer in self.layers.values()
                 if layer.unit_usage is not None]
        return sum(known) if len(known) == len(self.layers) else None

    @property
    def effective_unit_share(self) -> float | None:
        """Effective units ÷ units; None where a layer's effective units are not known."""
        effective = self.effective_units
        return None if effective is None else effective / self.units

    @property
    def dead_units(self) -> int | None:
        """Sum over the layers whose outputs were seen; None where no layer's were."""
        known = [layer.dead_units for layer in self.layers.values()
                 if layer.dead_units is not None]
        return sum(known) if known else None

    @property
    def effective_rank(self) -> float | None:
        """Sum over the layers in which it was measured; None where it was in none."""
        known = [layer.effective_rank for layer in self.layers.values()
                 if layer.effective_rank is not None]
        return sum(known) if known else None

    def summary(self) -> Summary:
        """What is shown of it: a layer a row, the model in the last one."""
        null, dead = self.null, self.dead_units
        totals = [("all", "", f"{self.weights:,}", f"{self.units:,}",
                   f"{self.effective_weights:,.1f}", f"{self.effective_share:.1%}",
                   f"{null.low:.1%} – {null.high:.1%}" if null else "",
                   "" if dead is None else f"{dead:,}", f"{self.entropy:.4f}", "", "")] \
            if self.layers else []
        return Summary(
            f"Usage of {self.weights:,} weights in {len(self.layers):,} layers, criterion "
            f"{self.criterion}, over {self.samples:,} samples", _HEAD,
            [_cells(layer) for layer in self.layers.values()], totals,
            [f"not analysed: {names}: {why}" for names, why in group_by_reason(self.skipped)],
            names=2)

    def table(self) -> pd.DataFrame:
        """The figures of each layer, a row each; shares are in 0..1, entropies in nats."""
        return _frame(self.layers.values())

    def _weighted(self, what: str) -> float:
        total = sum(getattr(layer, what) * layer.weights for layer in self.layers.values())
        return float(total / self.weights)


_HEAD = ("layer", "kind", "weights", "units", "effective", "share", "learned nothing",
         "dead units", "entropy", "rank", FLOPS_ONE_SAMPLE)
"""What is shown of a layer; a column that is empty for all of them is left out."""


def _cells(layer: LayerUsage) -> list[str]:
    null, dead, rank, flops = (
        layer.null, layer.dead_units, layer.effective_rank, layer.forward_flops)
    return [layer.name or "the model", layer.kind, f"{layer.weights:,}", f"{layer.units:,}",
            f"{layer.effective_weights:,.1f}", f"{layer.effective_share:.1%}",
            f"{null.low:.1%} – {null.high:.1%}" if null else "",
            "" if dead is None else f"{dead:,}", f"{layer.entropy:.4f}",
            "" if rank is None else f"{rank:,.1f}", "" if flops is None else f"{flops:,.0f}"]


def _frame(layers: Iterable[LayerUsage]) -> pd.DataFrame:
    import pandas as pd

    figures = ("kind", "weights", "units", "effective_weights", "effective_share", "entropy",
               "top90_share", "low_share", "dead", "dead_units", "effective_rank", "forward_flops")
    rows = [{"layer": layer.name, **{name: getattr(layer, name) for name in figures},
             "effective_units": layer.unit_usage and layer.unit_usage.effective,
             **{f"null_{name}": layer.null and getattr(layer.null, name)
                for name in ("share", "low", "high", "shift")}} for layer in layers]
    return pd.DataFrame(rows).set_index("layer") if rows else pd.DataFrame()
