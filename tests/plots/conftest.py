"""Shared by the pictures' tests: is every word of a figure inside it, and none on another?"""

from __future__ import annotations

import itertools
from collections.abc import Callable

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
        for (words, box), (others, other) in itertools.combinations(boxes, 2):
            shared = Bbox.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) <= 1, (words, others)
        return [words for words, _ in boxes]

    return check
