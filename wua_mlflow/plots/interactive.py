"""Figures to explore in a browser, by plotly: the same data as the pictures, with every name.

A picture is for looking; where there are too many points to name, the figure says what each is
under the pointer. Plotly's own script comes from its network, so that a page takes kilobytes.
Tests: ``tests/plots/test_interactive.py``.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from wua_mlflow.plots.style import MEASURED, MUTED, WITHIN_MARGIN, variant_colour
from wua_mlflow.verdict.text import FLOPS_ONE_SAMPLE
from wua_mlflow.widths.results import widths_name

if TYPE_CHECKING:
    from wua_mlflow.plots.pareto import ParetoData
    from wua_mlflow.plots.usage import LayersData
    from wua_mlflow.plots.widths import TrialsData

__all__ = ["explore_layers", "explore_pareto", "explore_trials", "html_page"]


def explore_pareto(data: ParetoData) -> Any:
    """Score against FLOPs: a variant a point, with the interval of its mean over seeds.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    score = data.score_name
    figure = _figure(f"{score} against FLOPs", FLOPS_ONE_SAMPLE, f"test {score}")
    for point in data.points:
        figure.add_scatter(
            x=[point.flops], y=[point.value], name=_safe(point.name), mode="markers",
            marker={"color": point.colour, "size": 12},
            error_y={"array": [point.half_width]} if point.half_width else None,
            hovertemplate=f"{_safe(point.name)}<br>%{{x:,}} FLOPs<br>{_safe(score)} "
                          f"%{{y:.4f}}<br>{max(1, len(point.replicates))} seeds<extra></extra>")
    if data.band:
        figure.add_hrect(*data.band, fillcolor=WITHIN_MARGIN, line_width=0, layer="below",
                         annotation_text="within the margin of the original")
    figure.update_xaxes(type="log")
    return figure


def explore_trials(data: TrialsData) -> Any:
    """Every network that the search trained: its cost and how far its score is from the original's.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    figure = _figure("Widths that were tried", FLOPS_ONE_SAMPLE,
                     f"validation {data.score_name}, difference from the original's")
    for held, name, colour in ((True, "holds", variant_colour("slim")), (False, "fails", MUTED)):
        trials = [trial for trial in data.trials if trial.holds == held]
        delta = np.array([trial.delta for trial in trials])
        figure.add_scatter(
            x=[trial.cost for trial in trials], y=delta, name=name, mode="markers",
            marker={"color": colour, "size": 9},
            error_y={"array": [trial.high for trial in trials] - delta,
                     "arrayminus": delta - [trial.low for trial in trials], "thickness": 1},
            text=[widths_name(trial.widths) for trial in trials],
            customdata=[trial.seeds for trial in trials],
            hovertemplate="widths %{text}<br>%{x:,} FLOPs<br>%{y:+.4f}<br>%{customdata} seeds"
                          "<extra></extra>")
    figure.add_hline(-data.margin, annotation_text="minus the margin")
    figure.update_xaxes(type="log")
    return figure


def explore_layers(data: LayersData) -> Any:
    """The effective share of each layer, in the order of the forward, beside its null's range.

    Returns:
        A ``plotly.graph_objects.Figure``.
    """
    figure = _figure("Effective share by layer", "layer, in the order of the forward",
                     "effective weights ÷ weights")
    places = np.arange(len(data.names))
    if not np.isnan(data.null_low).all():
        figure.add_scatter(x=places, y=data.null_high, mode="lines", line_width=0,
                           hoverinfo="skip", showlegend=False)
        figure.add_scatter(x=places, y=data.null_low, mode="lines", line_width=0, fill="tonexty",
                           hoverinfo="skip", name="a network that learned nothing")
    layers = data.usage.layers.values()
    figure.add_scatter(
        x=places, y=data.share, mode="markers", name="this network",
        marker={"color": MEASURED, "size": 7}, text=[_safe(name) for name in data.names],
        customdata=[(layer.weights, layer.units, layer.effective_weights, layer.entropy)
                    for layer in layers],
        hovertemplate="%{text}<br>share %{y:.3f}<br>%{customdata[2]:,.1f} effective of "
                      "%{customdata[0]:,} weights, %{customdata[1]:,} units<br>entropy "
                      "%{customdata[3]:.3f} nats<extra></extra>")
    return figure


def html_page(figure: Any) -> str:
    """The figure as a page; MLflow shows it among a run's artifacts."""
    page: str = figure.to_html(include_plotlyjs="cdn")
    return page


def _figure(title: str, x: str, y: str) -> Any:
    from plotly.graph_objects import Figure

    return Figure(layout={"title": _safe(title), "xaxis": {"title": _safe(x)},
                          "yaxis": {"title": _safe(y)}, "template": "plotly_white",
                          "hovermode": "closest"})


def _safe(name: str) -> str:
    """Plotly reads some HTML, and its own placeholders, in words."""
    return html.escape(name, quote=False).replace("%{", "%&#123;")
