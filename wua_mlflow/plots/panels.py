"""The ink of the comparison: a strip of scores, the verdict's intervals, bars for what is saved.

May import: numpy; matplotlib inside its functions. Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import canvas, comparison
from wua_mlflow.plots.palette import INK, MUTED, RULE, WITHIN_MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.plots.canvas import Sheet
    from wua_mlflow.plots.comparison import BarPanel, ComparisonData, ScoreRow, VerdictInterval

__all__ = ["draw_comparison"]

_WIDTH_IN, _EDGE_IN, _GAP_IN, _COLUMNS = 11.4, 0.3, 0.3, 3
_QUALITY_TOP_IN, _HEAD_IN, _ROW_IN = 1.1, 0.4, 0.52
_SCORE_WORDS_IN, _INTERVALS_IN = 1.95, 2.7
_BAR_ROW_IN, _BAR_HEAD_IN = 0.3, 0.46
_LONGEST_BAR = 0.52
"""Of a panel's width; the rest is for the words."""


def draw_comparison(data: ComparisonData, ax: Axes | None = None) -> Figure:
    """Draw the whole picture on a new figure, or in the place of ``ax``.

    Text keeps its size in points, so ``ax`` should be about 11 × 6 inches.
    """
    names = tuple(canvas.elide(name, 28) for name in data.names)
    names_in = canvas.text_width(names, canvas.LABEL) + 0.12
    quality_in = max(1.1, _ROW_IN * max(len(data.names), len(data.verdicts)))
    bar_in = _BAR_ROW_IN * len(data.names)
    bars_top = _QUALITY_TOP_IN + _HEAD_IN + quality_in + 1.0
    lines = -(-len(data.panels) // _COLUMNS)
    height = bars_top + lines * (_BAR_HEAD_IN + bar_in) + (0.35 if lines else -0.15)
    page = canvas.sheet(_WIDTH_IN, height, ax)
    page.write(_EDGE_IN, 0.25, data.headline, size=14, bold=True)
    if data.savings:
        against = f"{data.names[-1]} against {data.names[0]}: {data.savings}"
        page.write(_EDGE_IN, 0.6, against, size=10.5)
    left = _EDGE_IN + names_in
    _draw_quality(page, data, left, quality_in)
    if data.panels:
        page.write(_EDGE_IN, bars_top - 0.12, "What does it save?", size=canvas.TITLE, bold=True)
    width = (_WIDTH_IN - _EDGE_IN - left - _GAP_IN * (_COLUMNS - 1)) / _COLUMNS
    for i, panel in enumerate(data.panels):
        line, column = divmod(i, _COLUMNS)
        top = bars_top + line * (_BAR_HEAD_IN + bar_in) + _BAR_HEAD_IN
        axes = page.axes(left + column * (width + _GAP_IN), top, width, bar_in)
        _draw_bars(axes, panel, data.colours, names if column == 0 else ())
    return page.figure


def _draw_quality(page: Sheet, data: ComparisonData, left: float, height: float) -> None:
    top = _QUALITY_TOP_IN + _HEAD_IN
    right = _WIDTH_IN - _EDGE_IN
    page.write(_EDGE_IN, _QUALITY_TOP_IN, "Is it as good?", size=canvas.TITLE, bold=True)
    if data.verdicts:
        words_in = canvas.text_width(_lines(data.verdicts), canvas.SMALL) + 0.15
        _draw_verdicts(page.axes(right - _INTERVALS_IN, top, _INTERVALS_IN, height), data)
        right -= _INTERVALS_IN + words_in + 0.15
    if any(row.value is not None or row.replicates for row in data.scores):
        width = right - _SCORE_WORDS_IN - left
        _draw_scores(page.axes(left, top, width, height), data)


def _lines(verdicts: tuple[VerdictInterval, ...]) -> list[str]:
    return [line for verdict in verdicts for line in _verdict_words(verdict).split("\n")]


def _draw_scores(ax: Axes, data: ComparisonData) -> None:
    canvas.strip_axes(ax, keep=("bottom",))
    for row, (score, colour) in enumerate(zip(data.scores, data.colours, strict=True)):
        _draw_score(ax, row, score, colour)
    drawn = [x for s in data.scores for x in (*s.replicates, s.value) if x is not None]
    pad = 0.08 * (max(drawn) - min(drawn)) or 0.01
    ax.set_xlim(min(drawn) - pad, max(drawn) + pad)
    _name_rows(ax, tuple(canvas.elide(name, 28) for name in data.names))
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"test {data.score_name}", fontsize=canvas.SMALL, color=MUTED)
    ax.grid(axis="x", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if any(score.replicates for score in data.scores):
        _score_legend(ax)


def _score_legend(ax: Axes) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", markersize=8, label="this model"),
        Line2D([], [], marker="o", markersize=4, fillstyle="none", label="each seed"),
        Line2D([], [], marker="|", markersize=10, markeredgewidth=2, label="mean over seeds"),
    ]
    for handle in handles:
        handle.set(color=MUTED, linestyle="none")
    canvas.legend_below(ax, handles, points=35)


def _draw_score(ax: Axes, row: int, score: ScoreRow, colour: str) -> None:
    if score.replicates:
        spread = 0.2 * np.sin(2.4 * np.arange(len(score.replicates)))
        ax.scatter(
            score.replicates, row + spread, s=16, facecolors="none", edgecolors=colour, alpha=0.8
        )
    if score.mean is not None:
        ax.vlines(score.mean, row - 0.34, row + 0.34, color=colour, linewidth=2.2)
    words = ["not measured"]
    if score.value is not None:
        ax.scatter([score.value], [row], s=80, color=colour, edgecolors="white", zorder=3)
        words = [f"{score.value:.4f}"]
    if score.mean is not None and score.std is not None:
        seeds = len(score.replicates)
        words.append(f"{seeds} seeds: {score.mean:.3f} ± {score.std:.3f}")
    ax.annotate(
        "\n".join(words),
        xy=(1, row),
        xycoords=("axes fraction", "data"),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=canvas.SMALL,
        color=INK,
        annotation_clip=False,
    )


def _draw_verdicts(ax: Axes, data: ComparisonData) -> None:
    score, margin = data.verdicts[0].score, data.verdicts[0].margin
    canvas.strip_axes(ax, keep=("bottom",))
    low = min(-margin, *(v.low for v in data.verdicts))
    high = max(margin, *(v.high for v in data.verdicts))
    pad = 0.12 * (high - low) or 0.01
    ax.set_xlim(low - pad, high + pad)
    ax.axvspan(-margin, high + pad, color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axvline(-margin, color=INK, linewidth=1.4, zorder=1)
    ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    for row, verdict in enumerate(data.verdicts):
        _draw_interval(ax, row, verdict, data.colours[-1])
    _name_rows(ax, tuple(map(_verdict_words, data.verdicts)), size=canvas.SMALL)
    ax.xaxis.set_major_formatter(lambda value, _: _tick(value, score))
    ax.locator_params(axis="x", nbins=5)
    candidate, original = (canvas.elide(data.names[i], 16) for i in (-1, 0))
    unit = ", in points" if score == "accuracy" else ""
    ax.set_xlabel(
        f"{score}, {candidate} − {original}{unit}\nshaded: better, or within the margin",
        fontsize=canvas.SMALL,
        color=MUTED,
        linespacing=1.5,
        parse_math=False,
    )
    ax.annotate(
        f"margin {comparison.points(-margin, score)}",
        xy=(-margin, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=canvas.SMALL,
        color=INK,
        annotation_clip=False,
    )


def _tick(value: float, score: str) -> str:
    words = comparison.points(value, score) if abs(value) > 1e-12 else "0"
    return f"+{words}" if value > 1e-12 else words


def _verdict_words(verdict: VerdictInterval) -> str:
    who = {"artifact": "these two models", "recipe": "recipe, over seeds"}
    outcome = comparison.outcome_words(verdict)
    numbers = comparison.interval_words(verdict)
    return f"{who.get(verdict.label, verdict.label)}:\n{outcome}\n{numbers}"


def _draw_interval(ax: Axes, row: int, verdict: VerdictInterval, colour: str) -> None:
    ax.hlines(row, verdict.low, verdict.high, color=colour, linewidth=2.6, zorder=2)
    ax.vlines([verdict.low, verdict.high], row - 0.1, row + 0.1, color=colour, linewidth=2.6)
    ax.scatter([verdict.delta], [row], s=52, color=colour, edgecolors="white", zorder=3)


def _draw_bars(ax: Axes, panel: BarPanel, colours: tuple[str, ...], names: tuple[str, ...]) -> None:
    canvas.strip_axes(ax, keep=("left",))
    values = np.array([bar.value or 0.0 for bar in panel.bars])
    longest = float(values.max()) or 1.0
    rows = np.arange(len(values), dtype=float)
    canvas.bars(ax, rows, (np.zeros_like(values), values), 0.68, colours)
    ax.set_xlim(0, longest / _LONGEST_BAR)
    ax.set_xticks([])
    _name_rows(ax, names)
    ax.set_ylim(len(values) - 0.5, -0.5)
    for row, bar in enumerate(panel.bars):
        ax.annotate(
            bar.label,
            xy=(values[row], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=canvas.SMALL + 0.5,
            color=INK if bar.value is not None else MUTED,
        )
    ax.annotate(
        panel.title,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=canvas.LABEL,
        color=MUTED,
        annotation_clip=False,
    )


def _name_rows(ax: Axes, names: tuple[str, ...], size: float = canvas.LABEL) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
