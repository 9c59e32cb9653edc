"""What a variant costs and uses, quantity by quantity, and how a smaller or larger one is called.

Imports nothing but ``canvas`` for numbers. Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import INK, MUTED, RULE, WITHIN_MARGIN
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
    from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "Bar", "BarPanel", "ComparisonData", "QUANTITIES", "Quantity", "ScoreRow", "VariantFigures",
    "against", "comparison_data", "draw_comparison", "plot_comparison",
    "savings",
]


def _bytes(value: float) -> str:
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= power:
            return f"{value / power:.3g} {unit}"
    return f"{value:,.0f} B"


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


QUANTITIES = (
    Quantity("flops/forward", "FLOPs per sample, forward", style.number, "fewer", "more", "FLOPs"),
    Quantity("params/total", "Parameters", style.number, "fewer", "more", "parameters"),
    Quantity("size/bytes", "Size on disk", _bytes, "smaller", "larger", "on disk"),
    Quantity(
        "latency/p50_ms",
        "Latency, median at batch 1",
        "{:.3g} ms".format,
        "faster",
        "slower",
        "at batch 1",
        same_within=1.05,
        same="about as fast",
    ),
    Quantity("usage/effective_weights", "Effective weights", style.number, "fewer", "more"),
    Quantity("usage/entropy", "Entropy of the importance", "{:.3f} nats".format, "", ""),
)


def against(original: float, value: float, quantity: Quantity) -> str:
    """``value`` against the original's in words; empty where one of them is zero.

    >>> against(122, 86, QUANTITIES[0]), against(2.7584, 2.4191, QUANTITIES[-1])
    ('1.4× fewer', '−0.34')
    """
    if not quantity.less:
        return f"{value - original:+.2f}".replace("-", "−")
    return _ratio_words(original / value, quantity) if original > 0 and value > 0 else ""


def savings(original: Mapping[str, float], candidate: Mapping[str, float]) -> str:
    """What the candidate costs less or more, in one line; empty where both cost the same.

    >>> savings({"flops/forward": 122, "params/total": 41}, {"flops/forward": 86})
    '1.4× fewer FLOPs'
    """
    said = []
    for quantity in QUANTITIES:
        before, after = original.get(quantity.metric), candidate.get(quantity.metric)
        if quantity.noun and before and after:
            words = _ratio_words(before / after, quantity)
            said.append("" if words == "same" else f"{words} {quantity.noun}")
    return ", ".join(filter(None, said))


def _ratio_words(ratio: float, quantity: Quantity) -> str:
    return ratio_words(ratio, quantity.less, quantity.more, same_within=quantity.same_within,
                       same=quantity.same)


_ACCURACY, _SCORE = "accuracy/test", "score/test"


@dataclass(frozen=True)
class VariantFigures:
    """What is known of one variant; ``metrics`` is keyed by the contract's names.

    ``replicate_scores`` are the test scores of the replicates over seeds, the main one included.
    """

    name: str
    colour: str
    metrics: Mapping[str, float]
    replicate_scores: Sequence[float] | None = None


@dataclass(frozen=True)
class Bar:
    """One bar: its value (None: not measured) and the words beside it."""

    value: float | None
    label: str


@dataclass(frozen=True)
class BarPanel:
    """One quantity, a bar a variant, in the order of the variants."""

    metric: str
    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class ScoreRow:
    """A variant's test score (None: not measured), and those of its replicates."""

    value: float | None
    replicates: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the replicates, where there are any."""
        return float(np.mean(self.replicates)) if self.replicates else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the replicates (ddof 1), where there are two or more."""
        return float(np.std(self.replicates, ddof=1)) if len(self.replicates) > 1 else None


@dataclass(frozen=True)
class ComparisonData:
    """What the picture says; rows of every panel are in the order of ``names``.

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
    variants: Sequence[VariantFigures],
    verdicts: Sequence[Verdict] = (),
) -> ComparisonData:
    """Bars, scores, intervals and words of the picture.

    Ratios are original ÷ variant, in words ("1.4× fewer"); entropy, a logarithm, has a difference.
    A quantity that no variant has is left out. The headline follows the recipe's verdict where
    there is one, else the artifact's.

    Args:
        variants: at least two, the original first, the candidate last.
        verdicts: of the candidate against the original; of the artifact, the recipe, or none.

    Raises:
        ValueError: fewer than two variants, two of one name, or a figure that is not finite.

    >>> big = VariantFigures("oversized", "#5b7c99", {"flops/forward": 122.0})
    >>> slim = VariantFigures("slim", "#d95f02", {"flops/forward": 86.0})
    >>> comparison_data([big, slim]).panels[0].bars[1].label
    '86 · 1.4× fewer'
    """
    _check(variants)
    original, candidate = variants[0], variants[-1]
    classified = any(_ACCURACY in v.metrics for v in variants)
    panels = (_panel(quantity, variants) for quantity in QUANTITIES)
    return ComparisonData(
        names=tuple(v.name for v in variants),
        colours=tuple(v.colour for v in variants),
        headline=_headline(original.name, candidate.name, verdicts),
        savings=savings(original.metrics, candidate.metrics),
        score_name=verdicts[0].score if verdicts else ("accuracy" if classified else "score"),
        scores=tuple(_score(v, _ACCURACY if classified else _SCORE) for v in variants),
        panels=tuple(panel for panel in panels if any(b.value is not None for b in panel.bars)),
        verdicts=tuple(verdicts),
    )


def plot_comparison(data: ComparisonData, ax: Axes | None = None) -> Figure:
    """Draw every panel on a new figure of 11 inches' width, or in the place of ``ax``."""

    return draw_comparison(data, ax)


def _headline(original: str, candidate: str, verdicts: Sequence[Verdict]) -> str:
    deciding = sorted(verdicts, key=lambda verdict: verdict.kind != "recipe")
    if not deciding:
        return f"{candidate} beside {original}; no verdict"
    return question_answered(original, candidate, deciding[0])


def _panel(quantity: Quantity, variants: Sequence[VariantFigures]) -> BarPanel:
    original = variants[0].metrics.get(quantity.metric)
    bars = []
    for i, variant in enumerate(variants):
        value = variant.metrics.get(quantity.metric)
        words = [] if value is None else [quantity.write(value)]
        if i and original is not None and value is not None:
            words.append(against(original, value, quantity))
        bars.append(Bar(value, " · ".join(filter(None, words)) or "not measured"))
    return BarPanel(quantity.metric, quantity.title, tuple(bars))


def _score(variant: VariantFigures, metric: str) -> ScoreRow:
    replicates = tuple(float(score) for score in variant.replicate_scores or ())
    return ScoreRow(variant.metrics.get(metric), replicates)


def _check(variants: Sequence[VariantFigures]) -> None:
    if len(variants) < 2:
        raise ValueError(f"variants: expected at least two, but got {len(variants)}")
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"variants: expected different names, but got {names}")
    for variant in variants:
        wrong = [key for key, value in variant.metrics.items() if not math.isfinite(value)]
        if wrong or not all(math.isfinite(score) for score in variant.replicate_scores or ()):
            where = f"metrics {wrong}" if wrong else "replicate_scores"
            raise ValueError(f"{where} of {variant.name}: expected finite numbers")


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
    names = tuple(style.elide(name, 28) for name in data.names)
    names_in = style.text_width(names, style.LABEL) + 0.12
    quality_in = max(1.1, _ROW_IN * max(len(data.names), len(data.verdicts)))
    bar_in = _BAR_ROW_IN * len(data.names)
    bars_top = _QUALITY_TOP_IN + _HEAD_IN + quality_in + 1.0
    lines = -(-len(data.panels) // _COLUMNS)
    height = bars_top + lines * (_BAR_HEAD_IN + bar_in) + (0.35 if lines else -0.15)
    page = style.sheet(_WIDTH_IN, height, ax)
    page.write(_EDGE_IN, 0.25, data.headline, size=14, bold=True)
    if data.savings:
        against = f"{data.names[-1]} against {data.names[0]}: {data.savings}"
        page.write(_EDGE_IN, 0.6, against, size=10.5)
    left = _EDGE_IN + names_in
    _draw_quality(page, data, left, quality_in)
    if data.panels:
        page.write(_EDGE_IN, bars_top - 0.12, "What does it save?", size=style.TITLE, bold=True)
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
    page.write(_EDGE_IN, _QUALITY_TOP_IN, "Is it as good?", size=style.TITLE, bold=True)
    if data.verdicts:
        words_in = style.text_width(_lines(data.verdicts), style.SMALL) + 0.15
        _draw_verdicts(page.axes(right - _INTERVALS_IN, top, _INTERVALS_IN, height), data)
        right -= _INTERVALS_IN + words_in + 0.15
    if any(row.value is not None or row.replicates for row in data.scores):
        width = right - _SCORE_WORDS_IN - left
        _draw_scores(page.axes(left, top, width, height), data)


def _lines(verdicts: tuple[Verdict, ...]) -> list[str]:
    return [line for verdict in verdicts for line in _verdict_words(verdict).split("\n")]


def _draw_scores(ax: Axes, data: ComparisonData) -> None:
    style.strip_axes(ax, keep=("bottom",))
    for row, (score, colour) in enumerate(zip(data.scores, data.colours, strict=True)):
        _draw_score(ax, row, score, colour)
    drawn = [x for s in data.scores for x in (*s.replicates, s.value) if x is not None]
    pad = 0.08 * (max(drawn) - min(drawn)) or 0.01
    ax.set_xlim(min(drawn) - pad, max(drawn) + pad)
    _name_rows(ax, tuple(style.elide(name, 28) for name in data.names))
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"test {data.score_name}", fontsize=style.SMALL, color=MUTED)
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
    style.legend_below(ax, handles, points=35)


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
        fontsize=style.SMALL,
        color=INK,
        annotation_clip=False,
    )


def _draw_verdicts(ax: Axes, data: ComparisonData) -> None:
    score, margin = data.verdicts[0].score, data.verdicts[0].margin
    style.strip_axes(ax, keep=("bottom",))
    low = min(-margin, *(v.low for v in data.verdicts))
    high = max(margin, *(v.high for v in data.verdicts))
    pad = 0.12 * (high - low) or 0.01
    ax.set_xlim(low - pad, high + pad)
    ax.axvspan(-margin, high + pad, color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axvline(-margin, color=INK, linewidth=1.4, zorder=1)
    ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    for row, verdict in enumerate(data.verdicts):
        _draw_interval(ax, row, verdict, data.colours[-1])
    _name_rows(ax, tuple(map(_verdict_words, data.verdicts)), size=style.SMALL)
    ax.xaxis.set_major_formatter(lambda value, _: _tick(value, score))
    ax.locator_params(axis="x", nbins=5)
    candidate, original = (style.elide(data.names[i], 16) for i in (-1, 0))
    unit = ", in points" if score == "accuracy" else ""
    ax.set_xlabel(
        f"{score}, {candidate} − {original}{unit}\nshaded: better, or within the margin",
        fontsize=style.SMALL,
        color=MUTED,
        linespacing=1.5,
        parse_math=False,
    )
    ax.annotate(
        f"margin {points(-margin, score)}",
        xy=(-margin, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=style.SMALL,
        color=INK,
        annotation_clip=False,
    )


def _tick(value: float, score: str) -> str:
    words = points(value, score) if abs(value) > 1e-12 else "0"
    return f"+{words}" if value > 1e-12 else words


def _verdict_words(verdict: Verdict) -> str:
    who = {"artifact": "these two models", "recipe": "recipe, over seeds"}
    outcome = outcome_words(verdict)
    numbers = interval_words(verdict)
    return f"{who.get(verdict.kind, verdict.kind)}:\n{outcome}\n{numbers}"


def _draw_interval(ax: Axes, row: int, verdict: Verdict, colour: str) -> None:
    ax.hlines(row, verdict.low, verdict.high, color=colour, linewidth=2.6, zorder=2)
    ax.vlines([verdict.low, verdict.high], row - 0.1, row + 0.1, color=colour, linewidth=2.6)
    ax.scatter([verdict.delta], [row], s=52, color=colour, edgecolors="white", zorder=3)


def _draw_bars(ax: Axes, panel: BarPanel, colours: tuple[str, ...], names: tuple[str, ...]) -> None:
    style.strip_axes(ax, keep=("left",))
    values = np.array([bar.value or 0.0 for bar in panel.bars])
    longest = float(values.max()) or 1.0
    rows = np.arange(len(values), dtype=float)
    style.bars(ax, rows, (np.zeros_like(values), values), 0.68, colours)
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
            fontsize=style.SMALL + 0.5,
            color=INK if bar.value is not None else MUTED,
        )
    ax.annotate(
        panel.title,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=style.LABEL,
        color=MUTED,
        annotation_clip=False,
    )


def _name_rows(ax: Axes, names: tuple[str, ...], size: float = style.LABEL) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
