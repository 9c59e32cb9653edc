"""Shared by the pictures' tests: is every word of a figure inside it, and none on another?"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


@pytest.fixture
def legible(monkeypatch: pytest.MonkeyPatch) -> Callable[[Figure], list[str]]:
    """Draws a figure, asserts that no text is cut or covered by text, and returns what it says."""

    def check(figure: Figure) -> list[str]:
        drawn: dict[int, tuple[Text, Bbox]] = {}
        draw_text = RendererAgg.draw_text

        def record(renderer, gc, x, y, s, prop, angle, ismath=False, mtext=None):
            drawn[id(mtext)] = (mtext, mtext.get_window_extent(renderer))
            return draw_text(renderer, gc, x, y, s, prop, angle, ismath=ismath, mtext=mtext)

        monkeypatch.setattr(RendererAgg, "draw_text", record)
        figure.canvas.draw() if hasattr(figure.canvas, "get_renderer") else _draw(figure)
        monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
        page = figure.bbox
        boxes = [(text.get_text(), box) for text, box in drawn.values()]
        for words, box in boxes:
            inside = box.x0 >= page.x0 and box.x1 <= page.x1
            assert inside and box.y0 >= page.y0 and box.y1 <= page.y1, f"cut: {words!r}"
        for (words, box), (others, other) in itertools.combinations(boxes, 2):
            shared = Bbox.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) <= 1, (words, others)
        return [words for words, _ in boxes]

    return check


def _draw(figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
