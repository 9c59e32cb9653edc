"""The public names: which they are, where they come from, what importing them costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import wua_mlflow as wua

TUTORIAL = {
    "print_flops_report": ["model", "nb_epochs", "dataset"],
    "compute_weight_importance": ["model", "X", "skip_last"],
    "generate_report": ["importance", "weights"],
    "print_report": ["report"],
    "plot_importance_histogram": ["normalized_importance", "entropy"],
    "show": ["model", "X"],
    "estimate_flops": ["model", "nb_epochs", "dataset"],
}
HEAVY = ["torch", "mlflow", "matplotlib", "pandas", "scipy", "sklearn", "ptflops"]


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    script = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True,
                          text=True, check=True, timeout=600)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_every_public_name_is_there_and_documented_and_the_tutorials_take_its_arguments():
    assert list(wua.__all__) == sorted(wua.__all__) == dir(wua)
    for name in set(wua.__all__) - {"__version__"}:
        function = getattr(wua, name)
        assert callable(function)
        assert function.__module__.startswith("wua_mlflow.")
        assert inspect.getdoc(function)
        assert name in sys.modules[function.__module__].__all__
    with pytest.raises(AttributeError, match="module 'wua_mlflow' has no attribute 'analyse'"):
        _ = wua.analyse
    for name, arguments in TUTORIAL.items():
        assert list(inspect.signature(getattr(wua, name)).parameters) == arguments
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert wua.__version__ == project["project"]["version"]


def test_importing_the_package_is_light_and_the_library_never_loads_mlflow():
    assert not modules_after("import wua_mlflow").intersection(HEAVY)
    code = ("from wua_mlflow import *\nassert callable(analyze)\n"
            "lazy = {'mlflow', 'matplotlib', 'sklearn', 'pandas'}.intersection(sys.modules)\n"
            "assert not lazy, lazy\nimport wua_mlflow.plots.result")
    loaded = modules_after(code)
    assert "torch" in loaded and "mlflow" not in loaded
