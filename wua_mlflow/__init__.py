"""Is my PyTorch model bigger than it needs to be, how much smaller can it get, and is it as good?

The public names are loaded when they are first used: ``import wua_mlflow as wua`` is light and
never imports mlflow (``wua_mlflow.tracking`` does). Tests: ``tests/test_api.py``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wua_mlflow.flops import count_flops
    from wua_mlflow.slimming import load_slim, slim
    from wua_mlflow.tutorial import (
        compute_weight_importance,
        estimate_flops,
        generate_report,
        plot_importance_histogram,
        print_flops_report,
        print_report,
        show,
    )
    from wua_mlflow.usage.analyze import analyze
    from wua_mlflow.verdict.compare import compare
    from wua_mlflow.widths.recommend import recommend_widths

__version__ = "0.1.0"

_HOME = {
    "analyze": "usage.analyze",
    "compare": "verdict.compare",
    "compute_weight_importance": "tutorial",
    "count_flops": "flops",
    "estimate_flops": "tutorial",
    "generate_report": "tutorial",
    "load_slim": "slimming",
    "plot_importance_histogram": "tutorial",
    "print_flops_report": "tutorial",
    "print_report": "tutorial",
    "recommend_widths": "widths.recommend",
    "show": "tutorial",
    "slim": "slimming",
}

__all__ = [
    "__version__", "analyze", "compare", "compute_weight_importance", "count_flops",
    "estimate_flops", "generate_report", "load_slim", "plot_importance_histogram",
    "print_flops_report", "print_report", "recommend_widths", "show", "slim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'wua_mlflow' has no attribute '{name}'")
    return getattr(importlib.import_module(f"wua_mlflow.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
