"""Colours to colour-blind readers, ticks, and that drawing leaves matplotlib's state alone."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from wua_mlflow.plots import style
from wua_mlflow.plots.style import UNIT_COLOURS, VARIANT_COLOURS, variant_colour
from wua_mlflow.tracking.names import Variant

SEEN = {  # Machado, Oliveira & Fernandes (2009), severity 1.0
    "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0519]],
    "deutan": [[0.3673, 0.8606, -0.2280], [0.2802, 0.6727, 0.0471], [-0.0118, 0.0429, 0.9689]],
    "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}

_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


def linear(rgb: ArrayLike) -> np.ndarray:
    """sRGB in 0..1, last axis the channels, to linear light."""
    rgb = np.asarray(rgb, float)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """Linear light to CIELAB, in which a distance of 2 is just noticed."""
    xyz = np.clip(light, 0, 1) @ _XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]),
                     200 * (f[..., 1] - f[..., 2])], axis=-1)


_DRAW = """
import sys
from types import SimpleNamespace
import numpy as np
from wua_mlflow.plots.comparison import comparison_data, plot_comparison
from wua_mlflow.plots.histogram import histogram_data, plot_histogram
from wua_mlflow.plots.network import network_data, plot_network
from wua_mlflow.plots.pareto import pareto_data, plot_pareto
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data
from wua_mlflow.plots.widths import changes_data, plot_changes
from wua_mlflow.usage.results import Histogram, LayerUsage, ModelUsage
assert not {"matplotlib", "torch"} & set(sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()
metrics = {"flops/forward": 1.0, "score/test": 0.5}
changes = [SimpleNamespace(layer="fc", before=2, after=1)]
two = [SimpleNamespace(name=name, kind="slim", metrics=metrics, scores=(), tags={})
       for name in "ab"]
histogram = Histogram(np.array([0.0, 1.0]), np.array([4]), 0.0)
layer = LayerUsage("fc", "Linear", 4, 2, 1.0, 2.7, 0.5, 0.0, np.ones(2), histogram)
usage = ModelUsage("output", 9, {"fc": layer}, {})
for figure in (plot_histogram(histogram_data(np.full(8, 1 / 8))),
               plot_network(network_data({"fc": np.ones((3, 2))})), plot_pareto(pareto_data(two)),
               plot_comparison(comparison_data(two)), plot_layers(layers_data(usage)),
               plot_units(units_data(usage)), plot_changes(changes_data(changes))):
    figure.savefig(sys.argv[1], dpi=20)
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
print("drawn")
"""


def test_import_is_light_and_drawing_leaves_no_trace(tmp_path):
    command = [sys.executable, "-W", "error", "-c", _DRAW, str(tmp_path / "figure.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout == "drawn\n", done.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_every_variant_has_a_colour_and_strangers_are_grey():
    names = {value for key, value in vars(Variant).items() if not key.startswith("_")}
    assert set(VARIANT_COLOURS) == names
    assert len({variant_colour(name) for name in ("slim", "slim-2", "slim-3", "slim-4")}) == 4
    assert variant_colour("elsewhere") == "#68717a"


@pytest.mark.parametrize("sight", [*SEEN, "trichromat"])
def test_colours_differ_for_any_reader(sight):
    seen = np.array(SEEN.get(sight, np.eye(3)))
    variants = [seen @ linear(to_rgb(colour)) for colour in VARIANT_COLOURS.values()]
    for colour, other in itertools.combinations(variants, 2):
        assert np.linalg.norm(colour - other) > 0.2
    scale = lab(linear(matplotlib.colormaps[UNIT_COLOURS](np.linspace(0, 1, 256))[:, :3]) @ seen.T)
    none = lab(linear(to_rgb(style.NO_IMPORTANCE)) @ seen.T)
    assert np.linalg.norm(scale - none, axis=1).min() > 20
    assert (np.diff(scale[:, 0]) > 0).mean() > 0.97


def test_ticks_of_a_logarithmic_axis_are_round_and_a_difference_is_shaded_from_minus_the_margin():
    for ends, ticks in (((35, 75), ["40", "50", "60", "70"]), ((0.8, 13), ["1", "3", "10"]),
                        ((1e3, 1e6), ["1,000", "10,000", "100,000", "1 M"]),
                        ((30, 280), ["50", "100", "200"])):
        ax = Figure().subplots()
        style.log_axis(ax, *ends)
        assert [label.get_text() for label in ax.get_xticklabels()] == ticks
    ax = Figure().subplots()
    style.difference_axis(ax, (-0.05, 0.01), 0.02, "accuracy")
    (shade,) = ax.patches
    assert shade.get_x() == pytest.approx(-0.02)
    assert shade.get_x() + shade.get_width() >= ax.get_xlim()[1] - 1e-12
    assert [line.get_xdata()[0] for line in ax.lines] == [-0.02, 0]
    assert ax.get_xlim()[0] < -0.05
    assert ax.xaxis.get_major_formatter().format_ticks([-0.02, 1e-17, 0.005]) == ["−2", "0", "+0.5"]
