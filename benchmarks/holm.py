"""Several comparisons of one method, read together.

Used by ``pruning.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from wua_mlflow.verdict.intervals import Crossed, crossed

__all__ = ["holm", "standard_error", "worse_by"]


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values (Holm 1979).

    >>> {name: round(value, 9) for name, value in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, highest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p) - rank) * value))
        adjusted[name] = highest
    return adjusted


def standard_error(differences: np.ndarray) -> float:
    """Of their mean, shape (seeds, examples), seeds paired and crossed with examples."""
    half = _crossed(differences).half_width(0.95)
    return float(half / stats.t.ppf(0.975, len(differences) - 1))


def worse_by(margin: float, differences: np.ndarray) -> float:
    """p of "ours is worse by the margin or more", seeds crossed with examples, t with S − 1."""
    mean, error = _crossed(differences).mean, standard_error(differences)
    if error == 0:
        return 0.0 if mean > -margin else 1.0
    return float(stats.t.sf((mean + margin) / error, len(differences) - 1))


def _crossed(differences: np.ndarray) -> Crossed:
    """Differences of one seed are one draw: as of a candidate beside a baseline that scores 0."""
    return crossed(np.zeros_like(differences[:1]), differences)
