"""What ``compare`` is given, as checked arrays.

Tests: ``tests/verdict/test_inputs.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wua_mlflow.verdict.sample_size import check_share

__all__ = ["check_level", "checked_scores"]


Floats = NDArray[np.float64]

_MIN_SEEDS = 5
"""Fewer seeds give no recipe verdict."""


def check_level(margin: float, confidence: float) -> None:
    """Raise unless 0 ≤ ``margin`` < 1 and 0 < ``confidence`` < 1."""
    check_share("margin", margin, zero=True)
    check_share("confidence", confidence, zero=False)


def checked_scores(baseline: Any, candidate: Any) -> tuple[Floats, Floats]:
    """Both scores in the shape (seeds, examples), checked.

    Args:
        baseline: scores, or an object with ``.scores`` and perhaps ``.digest``.
        candidate: the same.

    Raises:
        ValueError: one line; two different test sets, or scores that are none or do not fit.
    """
    digests = [getattr(results, "digest", None) for results in (baseline, candidate)]
    if None not in digests and digests[0] != digests[1]:
        raise ValueError(f"baseline and candidate: expected the same test set, but got the digests "
                         f"{digests[0]} and {digests[1]}")
    old, new = _scores("baseline", baseline), _scores("candidate", candidate)
    for what, axis in (("test examples", 1), ("seeds", 0)):
        if old.shape[axis] != new.shape[axis]:
            raise ValueError(f"baseline and candidate: expected scores of the same {what}, but got "
                             f"{old.shape[axis]} and {new.shape[axis]}")
    seeds, examples = old.shape
    if examples < 2:
        raise ValueError(f"examples: expected at least 2, but got {examples}")
    if 1 < seeds < _MIN_SEEDS:
        raise ValueError(f"seeds: expected at least {_MIN_SEEDS} for a recipe verdict, or a single "
                         f"one for an artifact verdict, but got {seeds}")
    return old, new


def _scores(name: str, results: Any) -> Floats:
    try:
        scores = np.asarray(getattr(results, "scores", results), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers, but got {error}") from None
    if scores.ndim not in (1, 2) or scores.shape[0] == 0:
        raise ValueError(f"{name}: expected scores of shape (examples,) or (seeds, examples), but "
                         f"got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name}: expected finite scores, but got NaN or infinity")
    return np.atleast_2d(scores)
