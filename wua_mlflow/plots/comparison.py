"""The comparison: is the slim network as good, and what does it save, quantity by quantity?

Tests: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import EDGE_IN, INK, MUTED
from wua_mlflow.verdict.text import (
    interval_words,
    outcome_words,
    points,
    question_answered,
    ratio_words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.plots.style import Sheet
    from wua_mlflow.results import VariantResult
    from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "BarPanel", "ComparisonData", "QUANTITIES", "Quantity", "ScoreRow",
    "comparison_data", "difference_words", "plot_comparison", "savings",
]


def _bytes(value: float) -> str:
    return f"{style.number(value)}B" if value >= 1e6 else \
        f"{value / 1e3:.3g} kB" if value >= 1e3 else f"{value:.0f} B"


@dataclass(frozen=True)
class Quantity:
    """A quantity that is drawn as bars; ``less`` and ``more`` say what a smaller value means."""

    metric: str
    title: str
    write: Callable[[float], str]
    less: str
    more: str
    noun: str | None = None
    """What the line of savings calls it; it does not mention a quantity without."""
    same_within: float = 1.005
    same: str = "same"
    """The words for a ratio that is nearer to 1 than ``same_within``."""

    def ratio_words(self, original: float, value: float) -> str:
        """The ratio original ÷ value."""
        return ratio_words(original / value, self.less, self.more, same_within=self.same_within,
                           same=self.same)


QUANTITIES = (
    Quantity("flops/forward", "FLOPs per sample, forward", style.number, "fewer", "more", "FLOPs"),
    Quantity("params/total", "Parameters", style.number, "fewer", "more", "parameters"),
    Quantity("size/bytes", "Size on disk", _bytes, "smaller", "larger", "on disk"),
    Quantity("latency/p50_ms", "Latency, median at batch 1", "{:.3g} ms".format, "faster", "slower",
             "at batch 1", same_within=1.05, same="about as fast"),
    Quantity("usage/effective_weights", "Effective weights", style.number, "fewer", "more"),
    Quantity("usage/entropy", "Entropy of the importance", "{:.3f} nats".format, "", ""),
)


def difference_words(original: float, value: float, quantity: Quantity) -> str:
    """``value`` against the original's; empty where one of them is zero.

    The entropy, a logarithm, has a difference instead of a ratio.

    >>> difference_words(122, 86, QUANTITIES[0]), difference_words(2.7584, 2.4191, QUANTITIES[-1])
    ('1.4× fewer', '−0.34')
    """
    if quantity.less:
        return quantity.ratio_words(original, value) if original > 0 and value > 0 else ""
    difference = round(value - original, 2)
    return f"{difference:+.2f}".replace("-", "−") if difference else quantity.same


def savings(original: Mapping[str, float], candidate: Mapping[str, float]) -> str:
    """What the candidate costs less or more, in one line; empty where both cost the same.

    >>> savings({"flops/forward": 122, "params/total": 41}, {"flops/forward": 86})
    '1.4× fewer FLOPs'
    """
    savings = []
    for quantity in QUANTITIES:
        before, after = original.get(quantity.metric), candidate.get(quantity.metric)
        if quantity.noun and before and after:
            words = quantity.ratio_words(before, after)
            savings += [] if words == "same" else [f"{words} {quantity.noun}"]
    return ", ".join(savings)


@dataclass(frozen=True)
class BarPanel:
    """One quantity: by variant its value (None: not measured) and the words beside the bar."""

    metric: str
    title: str
    values: tuple[float | None, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """A variant's test score (None: not measured), and those of all seeds, the main one's first."""

    value: float | None
    seeds: tuple[float, ...]

    @property
    def replicated(self) -> bool:
        """Whether there are several seeds, so a mean and a spread."""
        return len(self.seeds) > 1

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def std(self) -> float:
        """Standard deviation over the seeds (ddof 1)."""
        return float(np.std(self.seeds, ddof=1))


@dataclass(frozen=True)
class ComparisonData:
    """What the figure shows; rows of every panel are in the order of ``names``.

    The first variant is the original, the last one the candidate. ``savings`` may be empty.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    headline: str
    savings: str
    score_name: str
    scores: tuple[ScoreRow, ...]
    panels: tuple[BarPanel, ...]
    verdicts: tuple[Verdict, ...]


def comparison_data(
    variants: Sequence[VariantResult], verdicts: Sequence[Verdict] = ()
) -> ComparisonData:
    """Bars, scores, intervals and words of the figure.

    Ratios are original ÷ variant, in words ("1.4× fewer"); entropy, a logarithm, has a difference.
    A quantity that no variant has is left out. The headline follows the recipe's verdict where
    there is one, else the artifact's.

    Args:
        variants: at least two, the original first, the candidate last.
        verdicts: of the candidate against the original; of the artifact, the recipe, or none.

    Raises:
        ValueError: fewer than two variants, or a figure that is not finite.
    """
    if len(variants) < 2:
        raise ValueError(f"variants: expected at least two, but got {len(variants)}")
    for variant in variants:
        if not all(map(math.isfinite, (*variant.metrics.values(), *variant.scores))):
            raise ValueError(f"variants: expected finite figures, but {variant.name} has another")
    original, candidate = variants[0], variants[-1]
    classified = any("accuracy/test" in variant.metrics for variant in variants)
    metric = "accuracy/test" if classified else "score/test"
    return ComparisonData(
        names=tuple(variant.name for variant in variants),
        colours=tuple(style.variant_colour(variant.kind) for variant in variants),
        headline=_headline(original.name, candidate.name, verdicts),
        savings=savings(original.metrics, candidate.metrics),
        score_name=verdicts[0].score if verdicts else metric.removesuffix("/test"),
        scores=tuple(ScoreRow(variant.metrics.get(metric), variant.scores)
                     for variant in variants),
        panels=tuple(_panel(quantity, variants) for quantity in QUANTITIES
                     if any(quantity.metric in variant.metrics for variant in variants)),
        verdicts=tuple(verdicts),
    )


def _headline(original: str, candidate: str, verdicts: Sequence[Verdict]) -> str:
    recipe_first = sorted(verdicts, key=lambda verdict: verdict.kind != "recipe")
    if not recipe_first:
        return f"{candidate} beside {original}; no verdict"
    return question_answered(original, candidate, recipe_first[0])


def _panel(quantity: Quantity, variants: Sequence[VariantResult]) -> BarPanel:
    values = tuple(variant.metrics.get(quantity.metric) for variant in variants)
    labels = []
    for i, value in enumerate(values):
        words = "not measured" if value is None else quantity.write(value)
        if i and values[0] is not None and value is not None:
            difference = difference_words(values[0], value, quantity)
            words += f" · {difference}" if difference else ""
        labels.append(words)
    return BarPanel(quantity.metric, quantity.title, values, tuple(labels))


_WIDTH_IN, _GAP_IN, _COLUMNS = 11.4, 0.3, 3
_QUALITY_TOP_IN, _HEAD_IN, _ROW_IN = 1.1, 0.4, 0.52
_SCORE_WORDS_IN, _INTERVALS_IN = 1.95, 2.7
_BAR_ROW_IN, _BAR_HEAD_IN = 0.3, 0.46
_LONGEST_BAR = 0.5
"""Of a panel's width; the rest is for the words."""


def plot_comparison(data: ComparisonData) -> Figure:
    """Draw every panel; about 11 × 6 inches."""
    names = [style.elide(name, 28) for name in data.names]
    left = EDGE_IN + style.text_width(names, style.LABEL) + 0.12
    quality_in = max(1.1, _ROW_IN * max(len(names), len(data.verdicts)))
    bar_in = _BAR_ROW_IN * len(names)
    scored = any(score.value is not None or score.replicated for score in data.scores)
    bars_top = _QUALITY_TOP_IN
    if scored or data.verdicts:
        bars_top += _HEAD_IN + quality_in + 1.0
    lines = -(-len(data.panels) // _COLUMNS)
    foot = bars_top + lines * (_BAR_HEAD_IN + bar_in) + (0.2 if lines else -0.3)
    saved = f"{data.names[-1]} against {data.names[0]}: {data.savings}" if data.savings else ""
    page = style.sheet(_WIDTH_IN, foot, title=data.headline, subtitle=saved)
    _draw_quality(page, data, (left, quality_in), scored=scored)
    if data.panels:
        page.write(EDGE_IN, bars_top - 0.12, "What does it save?", style.TITLE, color=INK,
                   weight="bold")
    width = (_WIDTH_IN - EDGE_IN - left - _GAP_IN * (_COLUMNS - 1)) / _COLUMNS
    for i, panel in enumerate(data.panels):
        line, column = divmod(i, _COLUMNS)
        top = bars_top + line * (_BAR_HEAD_IN + bar_in) + _BAR_HEAD_IN
        axes = page.axes(left + column * (width + _GAP_IN), top, width, bar_in)
        _draw_bars(axes, panel, data.colours)
        _name_rows(axes, names, shown=column == 0)
    return page.figure


def _draw_quality(
    page: Sheet, data: ComparisonData, place: tuple[float, float], *, scored: bool
) -> None:
    """Scores and intervals; ``place`` is the left edge of the scores, and the height of both."""
    left, height = place
    top, right = _QUALITY_TOP_IN + _HEAD_IN, _WIDTH_IN - EDGE_IN
    if scored or data.verdicts:
        page.write(EDGE_IN, _QUALITY_TOP_IN, "Is it as good?", style.TITLE, color=INK,
                   weight="bold")
    if data.verdicts:
        words = [_verdict_words(verdict) for verdict in data.verdicts]
        words_in = style.text_width("\n".join(words).split("\n"), style.SMALL) + 0.15
        axes = page.axes(right - _INTERVALS_IN, top, _INTERVALS_IN, height)
        _draw_verdicts(axes, data)
        _name_rows(axes, words, size=style.SMALL)
        right -= _INTERVALS_IN + words_in + 0.15
    if scored:
        axes = page.axes(left, top, right - _SCORE_WORDS_IN - left, height)
        _draw_scores(axes, data)
        if any(score.replicated for score in data.scores):
            _score_legend(page, left, top + height + 0.5)


def _draw_scores(ax: Axes, data: ComparisonData) -> None:
    for row, (score, colour) in enumerate(zip(data.scores, data.colours, strict=True)):
        _draw_score(ax, row, score, colour)
    style.strip_axes(ax, keep=("bottom",), grid="x")
    ax.margins(x=0.08)
    _name_rows(ax, [style.elide(name, 28) for name in data.names])
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"test {data.score_name}", fontsize=style.SMALL, color=MUTED)


def _score_legend(page: Sheet, left: float, top: float) -> None:
    page.legend(left, top, [
        style.legend_mark(MUTED, "this model", linestyle="", marker="o", markersize=8),
        style.legend_mark(MUTED, "each seed", linestyle="", marker="o", markersize=4,
                          fillstyle="none"),
        style.legend_mark(MUTED, "mean over seeds", linestyle="", marker="|", markersize=10,
                          markeredgewidth=2)])


def _draw_score(ax: Axes, row: int, score: ScoreRow, colour: str) -> None:
    words = "not measured"
    if score.value is not None:
        ax.scatter([score.value], [row], s=80, color=colour, edgecolors="white", zorder=3)
        words = f"{score.value:.4f}"
    if score.replicated:
        spread = 0.2 * np.sin(2.4 * np.arange(len(score.seeds)))
        ax.scatter(score.seeds, row + spread, s=16, facecolors="none", edgecolors=colour, alpha=0.8)
        ax.vlines(score.mean, row - 0.34, row + 0.34, color=colour, linewidth=2.2)
        words += f"\n{len(score.seeds)} seeds: {score.mean:.3f} ± {score.std:.3f}"
    style.note(ax, words, (1, row), (10, 0), ("axes fraction", "data"), va="center",
               color=INK)


def _draw_verdicts(ax: Axes, data: ComparisonData) -> None:
    score, margin = data.verdicts[0].score, data.verdicts[0].margin
    style.strip_axes(ax, keep=("bottom",))
    limits = [limit for verdict in data.verdicts for limit in (verdict.low, verdict.high)]
    style.difference_axis(ax, limits, margin, score)
    for row, verdict in enumerate(data.verdicts):
        colour = data.colours[-1]
        ax.plot([verdict.low, verdict.high], [row, row], color=colour, linewidth=2.6, marker="|",
                markersize=9, markeredgewidth=2.6, zorder=2)
        ax.scatter([verdict.delta], [row], s=52, color=colour, edgecolors="white", zorder=3)
    original, candidate = (style.elide(data.names[i], 16) for i in (0, -1))
    unit = ", in points" if score == "accuracy" else ""
    ax.set_xlabel(f"{score}, {candidate} − {original}{unit}\nshaded: better, or within the margin",
                  fontsize=style.SMALL, color=MUTED, linespacing=1.5, parse_math=False)
    style.note(ax, f"margin {points(-margin, score)}", (-margin, 1), (0, 3),
               ("data", "axes fraction"), ha="center", va="bottom", color=INK)


def _verdict_words(verdict: Verdict) -> str:
    which = "recipe, over seeds" if verdict.kind == "recipe" else "these two models"
    return f"{which}:\n{outcome_words(verdict)}\n{interval_words(verdict)}"


def _draw_bars(ax: Axes, panel: BarPanel, colours: tuple[str, ...]) -> None:
    style.strip_axes(ax, keep=("left",))
    values = np.array([value or 0.0 for value in panel.values])
    rows = np.arange(len(values), dtype=float)
    style.bars(ax, rows, 0, values, 0.68, colours)
    ax.set_xlim(0, (values.max() or 1.0) / _LONGEST_BAR)
    ax.set_xticks([])
    for row, (value, label) in enumerate(zip(panel.values, panel.labels, strict=True)):
        style.note(ax, label, (values[row], row), (5, 0), "data", va="center",
                   fontsize=style.SMALL + 0.5, color=MUTED if value is None else INK)
    style.note(ax, panel.title, (0, 1), (0, 4), fontsize=style.LABEL)


def _name_rows(
    ax: Axes, names: Sequence[str], *, size: float = style.LABEL, shown: bool = True
) -> None:
    """Names at the left of the rows, the first row on top."""
    ax.set_yticks(range(len(names)), names if shown else [""] * len(names), fontsize=size,
                  color=INK, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
