"""Shared by the pictures' tests: is every word of a figure inside it, and none on another?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


@pytest.fixture
def legible(monkeypatch: pytest.MonkeyPatch) -> Callable[[Figure], list[str]]:
    """Draws a figure, asserts that no text is cut or covered by text, and returns what it says."""

    def check(figure: Figure) -> list[str]:
        boxes: list[tuple[str, Bbox]] = []
        draw = Text.draw

        def record(text, renderer):
            if text.get_visible() and text.get_text():
                boxes.append((text.get_text(), Text.get_window_extent(text, renderer)))
            return draw(text, renderer)

        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", record)
            FigureCanvasAgg(figure).draw()
        page = figure.bbox
        for words, box in boxes:
            inside = box.x0 >= page.x0 and box.x1 <= page.x1
            assert inside and box.y0 >= page.y0 and box.y1 <= page.y1, f"cut: {words!r}"
        corners = np.array([box.extents for _, box in boxes])
        for i, (words, box) in enumerate(boxes):
            low = np.maximum(corners[i + 1 :, :2], box.extents[:2])
            high = np.minimum(corners[i + 1 :, 2:], box.extents[2:])
            (covered,) = np.nonzero((high - low).min(axis=1) > 1)
            assert not covered.size, (words, [boxes[i + 1 + k][0] for k in covered])
        return [words for words, _ in boxes]

    return check
