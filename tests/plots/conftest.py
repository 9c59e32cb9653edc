"""Shared by the pictures' tests: is every word of a figure inside it, and none on another?"""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


@pytest.fixture
def legible(monkeypatch):
    """Lays a figure out, asserts that no text is cut or covered by text, returns what it says."""

    def check(figure: Figure) -> list[str]:
        words: list[str] = []
        boxes = []

        def record(text, renderer):
            if text.get_visible() and text.get_text():
                words.append(text.get_text())
                boxes.append(Text.get_window_extent(text, renderer).extents)

        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", record)
            figure.draw_without_rendering()
        low, high = np.split(np.array(boxes), 2, axis=1)
        cut = (low < figure.bbox.min).any(axis=1) | (high > figure.bbox.max).any(axis=1)
        assert not cut.any(), [words[i] for i in np.flatnonzero(cut)]
        shared = np.minimum(high, high[:, None]) - np.maximum(low, low[:, None])
        covered = np.argwhere(np.triu((shared > 1).all(axis=2), 1))
        assert not covered.size, [(words[i], words[k]) for i, k in covered]
        return words

    return check
