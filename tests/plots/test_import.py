"""Pictures are free until drawn, and leave matplotlib's global state alone."""

from __future__ import annotations

import subprocess
import sys

_DRAW = """
import sys
import numpy as np
from wua_mlflow.plots import *
assert not {"matplotlib", "torch"} & set(sys.modules)
import matplotlib
before = matplotlib.rcParams.copy()
data = histogram_data(np.full(8, 1 / 8))
plot_histogram(data).savefig(sys.argv[1])
plot_network(network_data([np.ones((3, 2))])).savefig(sys.argv[1])
two = [VariantFigures(n, "#000000", {"flops/forward": 1.0}) for n in ("a", "b")]
plot_comparison(comparison_data(two)).savefig(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
print("drawn")
"""


def test_import_is_light_and_drawing_leaves_no_trace(tmp_path):
    command = [sys.executable, "-W", "error", "-c", _DRAW, str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "drawn\n", done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
