"""Pictures are free until drawn, and leave matplotlib's global state alone."""

from __future__ import annotations

import subprocess
import sys

_DRAW = """
import sys
import numpy as np
from wua_mlflow.plots import *
from wua_mlflow.usage.results import Histogram, LayerUsage, ModelUsage
assert not {"matplotlib", "torch"} & set(sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()
data = histogram_data(np.full(8, 1 / 8))
plot_histogram(data).savefig(sys.argv[1])
plot_network(network_data([np.ones((3, 2))])).savefig(sys.argv[1])
two = [VariantFigures(n, "#000000", {"flops/forward": 1.0}) for n in ("a", "b")]
plot_comparison(comparison_data(two)).savefig(sys.argv[1])
histogram = Histogram(np.array([0.0, 1.0]), np.array([4]), 0.0)
layer = LayerUsage("fc", "Linear", 4, 2, 1.0, 2.7, 0.5, 0.0, np.ones(2), histogram)
usage = ModelUsage("output", 9, {"fc": layer}, {})
plot_layers(layers_data(usage)).savefig(sys.argv[1])
plot_units(units_data(usage)).savefig(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
print("drawn")
"""


def test_import_is_light_and_drawing_leaves_no_trace(tmp_path):
    command = [sys.executable, "-W", "error", "-c", _DRAW, str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "drawn\n", done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
