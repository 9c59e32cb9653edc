"""The picture of a result of the library: what its ``.plot()`` draws.

Tests: ``tests/plots/test_result.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.flops import FlopCount
from wua_mlflow.plots import layer_rows, style
from wua_mlflow.plots.comparison import plot_verdict
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.usage import layers_data, plot_layers
from wua_mlflow.plots.widths import (
    changes_data,
    curves_data,
    plot_changes,
    plot_curves,
    plot_trials,
    trials_data,
)
from wua_mlflow.pruning.cut import Cut
from wua_mlflow.usage.results import LayerUsage, ModelUsage
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.widths.results import LayerChange, SearchResult, WidthRecommendation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["own_flops", "plot_result"]


@singledispatch
def plot_result(result: object) -> Figure:
    """The picture of a result.

    Raises:
        TypeError: it is nothing that has one.
        ValueError: it holds nothing to draw, such as no layer.
    """
    raise TypeError(f"result: expected one of this package, but got {type(result).__name__}")


@plot_result.register(ModelUsage)
def _(result: ModelUsage) -> Figure:
    return plot_layers(layers_data(result))


@plot_result.register(LayerUsage)
def _(result: LayerUsage) -> Figure:
    return plot_histogram(histogram_data(result.histogram, result.entropy, name=result.name))


@plot_result.register(Verdict)
def _(result: Verdict) -> Figure:
    return plot_verdict(result)


@plot_result.register(Cut)
def _(result: Cut) -> Figure:
    return plot_changes(changes_data([LayerChange(name, *units)
                                      for name, units in result.units.items()]))


@plot_result.register(WidthRecommendation)
def _(result: WidthRecommendation) -> Figure:
    if any(layer.curve.widths for layer in result.layers):
        return plot_curves(curves_data(result.layers, method=result.method))
    return plot_changes(changes_data([LayerChange(layer.layer, layer.units, layer.width)
                                      for layer in result.layers]))


@plot_result.register(SearchResult)
def _(result: SearchResult) -> Figure:
    return plot_trials(trials_data(result.trials, chosen=result.widths, margin=result.margin))


@plot_result.register(FlopCount)
def _(result: FlopCount) -> Figure:
    """A row for each module that computes something itself; together these are all FLOPs."""
    modules = {name: flops for name, flops in own_flops(result.by_module).items() if flops}
    if not modules:
        raise ValueError("result: expected a module that ran counted operators, but got none")
    flops = np.array(list(modules.values()), float)
    share = flops / (result.forward_flops or 1)
    rows = layer_rows.RowFigure(
        layers=list(modules),
        columns=[layer_rows.Column("FLOPs", [style.number(count) for count in flops]),
                 layer_rows.Column("share", [f"{part:.1%}" for part in share])],
        title=f"{style.number(result.forward_flops)} FLOPs of a forward",
        subtitle=f"of a batch of {result.samples:,}; of each module without the modules in it",
        heading="share of the forward's FLOPs", caption=" ".join(result.caveats))
    return rows.draw(lambda axes: _draw_flops(axes, share)).figure


def own_flops(by_module: Mapping[str, int]) -> dict[str, int]:
    """The FLOPs of each module without those of the modules that it holds.

    >>> own_flops({"": 9, "layers.0": 7, "layers.0.fc": 5, "head": 2})
    {'': 0, 'layers.0': 2, 'layers.0.fc': 5, 'head': 2}
    """
    own = dict(by_module)
    for name, flops in by_module.items():
        holder = name
        while holder:
            holder = holder.rpartition(".")[0]
            if holder in own:
                own[holder] -= flops
                break
    return own


def _draw_flops(ax: Axes, share: np.ndarray) -> None:
    style.bars(ax, np.arange(share.size), 0, share, 0.66, color=style.MEASURED)
    style.strip_axes(ax, keep=(), grid="x")
    ax.set_xlim(0, float(share.max(initial=0)) * 1.05 or 1)
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
