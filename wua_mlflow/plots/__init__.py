"""Pictures: each is ``x_data(...)`` to a frozen dataclass, then ``plot_x(data, ax=None)`` to ink.

Importing this loads numpy only; matplotlib is imported when a picture is drawn, never its pyplot.
Tests: ``tests/plots/``.
"""

from __future__ import annotations

from wua_mlflow.plots.changes import LayerChange, changes_data, plot_changes
from wua_mlflow.plots.comparison import (
    VariantFigures,
    VerdictInterval,
    comparison_data,
    plot_comparison,
)
from wua_mlflow.plots.curves import WidthCurve, curves_data, plot_curves
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.layers import layers_data, plot_layers
from wua_mlflow.plots.network import network_data, plot_network
from wua_mlflow.plots.palette import VARIANT_COLOURS, variant_colour
from wua_mlflow.plots.pareto import pareto_data, plot_pareto
from wua_mlflow.plots.trials import SearchTrial, plot_trials, trials_data
from wua_mlflow.plots.units import plot_units, units_data

__all__ = [
    "VARIANT_COLOURS",
    "LayerChange",
    "SearchTrial",
    "VariantFigures",
    "VerdictInterval",
    "WidthCurve",
    "changes_data",
    "comparison_data",
    "curves_data",
    "histogram_data",
    "layers_data",
    "network_data",
    "pareto_data",
    "plot_changes",
    "plot_comparison",
    "plot_curves",
    "plot_histogram",
    "plot_layers",
    "plot_network",
    "plot_pareto",
    "plot_trials",
    "plot_units",
    "trials_data",
    "units_data",
    "variant_colour",
]
