"""What ``compare`` is given: what is accepted and aligned, what is refused in one line."""

from __future__ import annotations

import numpy as np

from wua_mlflow.verdict.compare import compare


def test_margin_has_a_default():
    right = np.ones(400)
    assert compare(right, right) == compare(right, right, margin=0.02)
