"""The pictures of an analysis and of a verdict, as files to log.

Tests: ``tests/tracking/test_pictures.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from wua_mlflow.plots.comparison import plot_verdict
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.interactive import explore_layers, html_page
from wua_mlflow.plots.network import network_data, plot_network
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data
from wua_mlflow.tracking.names import ArtifactPath, importance_plot, keys_of
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict.compare import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["usage_pictures", "verdict_picture"]


MOST_HISTOGRAMS = 20
MOST_ROWS = 1000
"""A model of more layers gets no picture with a row for each layer: it could not be read."""
MOST_COLUMNS, MOST_UNITS = 20, 15
"""A network of more layers, or of more units, inputs or outputs in one, gets no diagram: its lines
could not be told apart."""


def usage_pictures(
    model: nn.Module | None, usage: ModelUsage, *, inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> dict[str, Callable[[Path], object]]:
    """By artifact path: the layers, their units, histograms, and the diagram of a small MLP.

    Histograms are of the first layers; what could not be read is left out.

    Args:
        model: what was measured; without it there is no diagram.
        usage: the measurement.
        inputs: names of the inputs.
        outputs: names of the outputs, as of classes.
    """
    files: dict[str, Callable[[Path], object]] = {}
    layers = list(usage.layers.values())
    if len(layers) <= MOST_ROWS:
        files[ArtifactPath.LAYERS_PLOT] = _drawn(plot_layers, layers_data, usage)
    if len(layers) > MOST_HISTOGRAMS:
        files[ArtifactPath.LAYERS_PAGE] = lambda path: path.write_text(
            html_page(explore_layers(layers_data(usage))), encoding="utf-8")
    if len(layers) <= MOST_ROWS and any(layer.units > 1 for layer in layers):
        files[ArtifactPath.UNITS_PLOT] = _drawn(plot_units, units_data, usage)
    keys = keys_of(usage.layers)
    for layer in layers[:MOST_HISTOGRAMS]:
        files[importance_plot(layer.name, keys)] = _drawn(
            plot_histogram, histogram_data, layer.histogram, layer.entropy, name=layer.name)
    chain = _linear_chain(model) if model is not None else {}
    if chain:
        files[ArtifactPath.NETWORK_PLOT] = _drawn(
            plot_network, network_data,
            {name: weight.detach().cpu().numpy() for name, weight in chain.items()},
            inputs=inputs, outputs=outputs)
    return files


def verdict_picture(verdict: Verdict) -> Callable[[Path], None]:
    """The interval of the difference, against the margin."""
    return _drawn(plot_verdict, lambda: verdict)


def _drawn(
    plot: Callable[[Any], Figure], data: Callable[..., Any], *values: Any, **options: Any
) -> Callable[[Path], None]:
    """A function that plots the data of these values and writes the figure as the file given."""
    def save(path: Path) -> None:
        with warnings.catch_warnings():  # a name in a script that the font has not
            warnings.filterwarnings("ignore", "Glyph")
            plot(data(*values, **options)).savefig(path)

    return save


def _linear_chain(model: nn.Module) -> dict[str, Tensor]:
    """The weights of an MLP, in order; empty where it is anything else, or could not be read."""
    chain: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            chain[name] = module.weight
        elif any(True for _ in module.parameters(recurse=False)):
            return {}
    weights = list(chain.values())
    fits = all(a.shape[0] == b.shape[1] for a, b in pairwise(weights))
    small = len(chain) <= MOST_COLUMNS and all(max(w.shape) <= MOST_UNITS for w in weights)
    return chain if fits and small else {}
