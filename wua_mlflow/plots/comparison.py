"""The comparison: is the slim network as good, and what does it save, quantity by quantity?

Tests: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import EDGE_IN, INK, MUTED
from wua_mlflow.verdict import text
from wua_mlflow.verdict.decision import latency_gain
from wua_mlflow.verdict.intervals import t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.plots.style import Sheet
    from wua_mlflow.results import VariantResult
    from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "BarPanel", "ComparisonData", "QUANTITIES", "Quantity", "ScoreRow", "comparison_data",
    "plot_answer", "plot_comparison", "plot_verdict", "savings",
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
    less: str = ""
    more: str = ""
    noun: str = ""
    """What the line of savings calls it; it does not mention a quantity without."""
    same_within: float = text.SAME_COST
    same: str = "same"
    """The words for a ratio that is nearer to 1 than ``same_within``."""

    def change(self, original: float | None, value: float | None) -> str:
        """``value`` against the original's, as a ratio; "" where one is not known, or zero.

        A quantity without ``less``, the entropy, is a logarithm: it has a difference.

        >>> QUANTITIES[0].change(122, 86), QUANTITIES[-1].change(2.7584, 2.4191)
        ('1.4× fewer', '−0.34')
        """
        times = text.ratio(original, value)
        if self.less:
            return text.ratio_words(times, self.less, self.more, same_within=self.same_within,
                                    same=self.same) if times else ""
        if original is None or value is None:
            return ""
        difference = round(value - original, 2)
        return f"{difference:+.2f}".replace("-", "−") if difference else self.same


QUANTITIES = (
    Quantity("flops/forward", text.FLOPS_ONE_SAMPLE, style.number, "fewer", "more", "FLOPs"),
    Quantity("params/total", "Parameters", style.number, "fewer", "more", "parameters"),
    Quantity("size/bytes", "Size on disk", _bytes, "smaller", "larger", "on disk"),
    Quantity("latency/p50_ms", "Latency, median at batch 1", "{:.3g} ms".format, "faster", "slower",
             "per sample", same_within=text.SAME_LATENCY, same="about as fast"),
    Quantity("usage/effective_weights", "Effective weights", style.number, "fewer", "more"),
    Quantity("usage/entropy", "Entropy of the importance", "{:.3f} nats".format),
)


Interval = tuple[float, float, float]
"""A ratio with its limits."""


def savings(
    original: Mapping[str, float], candidate: Mapping[str, float], latency: Interval | None = None
) -> str:
    """What the candidate costs less or more, in one line; empty where both cost the same.

    Args:
        original: metrics by name.
        candidate: the same.
        latency: original ÷ candidate with its interval, where both were timed in turns.

    >>> savings({"flops/forward": 122, "params/total": 41}, {"flops/forward": 86})
    '1.4× fewer FLOPs'
    """
    changes = ((_change(quantity, original, candidate, latency), quantity.noun)
               for quantity in QUANTITIES if quantity.noun)
    return ", ".join(f"{words} {noun}" for words, noun in changes if words not in ("", "same"))


def _change(
    quantity: Quantity, original: Mapping[str, float], candidate: Mapping[str, float],
    latency: Interval | None,
) -> str:
    """The words of a change; those of a latency by its interval, as everywhere."""
    values = original.get(quantity.metric), candidate.get(quantity.metric)
    if quantity.metric != "latency/p50_ms" or latency is None:
        return quantity.change(*values)
    gain = latency_gain(*values, latency)
    return gain[0].removesuffix(" per sample") if gain else ""


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
    half_width: float = 0.0
    """Of the interval of the mean over seeds, on the same test examples."""

    @property
    def replicated(self) -> bool:
        """Whether there are several seeds, so a mean and a spread."""
        return len(self.seeds) > 1

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seeds))

    @property
    def words(self) -> str:
        """The score; with several seeds their mean and standard deviation (ddof 1) below it."""
        score = "not measured" if self.value is None else f"{self.value:.4f}"
        return score if not self.replicated else (
            f"{score}\n{len(self.seeds)} seeds: {self.mean:.3f} ± {np.std(self.seeds, ddof=1):.3f}")


@dataclass(frozen=True)
class ComparisonData:
    """What the figure shows; rows of every panel are in the order of ``names``.

    The first variant is the original, the last one the candidate. ``savings`` may be empty, and
    ``methods``: the note where the verdicts' methods differ.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    headline: str
    savings: str
    score_name: str
    scores: tuple[ScoreRow, ...]
    panels: tuple[BarPanel, ...]
    verdicts: tuple[Verdict, ...]
    methods: str = ""
    confidence: float = 0.95

    @property
    def scored(self) -> bool:
        """Whether there is a score to show."""
        return any(score.value is not None or score.replicated for score in self.scores)


def comparison_data(
    variants: Sequence[VariantResult], verdicts: Sequence[Verdict] = (),
    latency: Interval | None = None,
) -> ComparisonData:
    """Bars, scores, intervals and words of the figure.

    Ratios are original ÷ variant, in words ("1.4× fewer"); entropy, a logarithm, has a difference.
    A quantity that no variant has is left out. The headline follows the recipe's verdict where
    there is one, else the artifact's.

    Args:
        variants: at least two, the original first, the candidate last.
        verdicts: of the candidate against the original; of the artifact, the recipe, or none.
        latency: original ÷ candidate with its interval, where both were timed in turns.

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
    of_accuracy = verdicts[0].score == "accuracy" if verdicts else classified
    metric = "accuracy/test" if classified and of_accuracy else "score/test"
    confidence = verdicts[0].confidence if verdicts else 0.95
    decisive = min(verdicts, key=lambda verdict: verdict.kind != "recipe", default=None)
    return ComparisonData(
        names=tuple(variant.name for variant in variants),
        colours=tuple(style.variant_colour(variant.kind) for variant in variants),
        headline=text.question_answered(original.name, candidate.name, decisive) if decisive else
                 f"{candidate.name} beside {original.name}; no verdict",
        savings=savings(original.metrics, candidate.metrics, latency),
        score_name=verdicts[0].score if verdicts else metric.removesuffix("/test"),
        scores=tuple(_score_row(variant, metric, confidence) for variant in variants),
        panels=tuple(_panel(quantity, variants, latency) for quantity in QUANTITIES
                     if any(quantity.metric in variant.metrics for variant in variants)),
        verdicts=tuple(verdicts),
        methods=text.methods_note((_BASES[verdict.kind], verdict.method) for verdict in verdicts),
        confidence=confidence,
    )


_BASES = {"recipe": "recipe, over seeds", "artifact": "these two models"}
"""What a verdict is on, by its kind."""


def _score_row(variant: VariantResult, metric: str, confidence: float) -> ScoreRow:
    seeds, half = variant.scores, 0.0
    if len(seeds) > 1:
        half = t_quantile(confidence, len(seeds) - 1) * \
            float(np.std(seeds, ddof=1)) / math.sqrt(len(seeds))
    return ScoreRow(variant.metrics.get(metric), seeds, half)


def _panel(
    quantity: Quantity, variants: Sequence[VariantResult], latency: Interval | None
) -> BarPanel:
    values = tuple(variant.metrics.get(quantity.metric) for variant in variants)
    figures = ["not measured" if value is None else quantity.write(value) for value in values]
    changes = [_change(quantity, variants[0].metrics, variant.metrics,
                       latency if variant is variants[-1] else None) for variant in variants]
    changes[0] = ""
    labels = (" · ".join(filter(None, words)) for words in zip(figures, changes, strict=True))
    return BarPanel(quantity.metric, quantity.title, values, tuple(labels))


_WIDTH_IN, _GAP_IN, _COLUMNS = 11.4, 0.3, 3
_QUALITY_TOP_IN, _HEAD_IN, _ROW_IN = 0.98, 0.4, 0.52
_SCORE_WORDS_IN, _INTERVALS_IN = 1.95, 2.7
_BAR_ROW_IN, _BAR_HEAD_IN = 0.3, 0.46
_LONGEST_BAR, _SHORTEST_BAR = 0.5, 0.15
"""Of a panel's width, for the largest value; the rest is for the words."""


def plot_comparison(data: ComparisonData) -> Figure:
    """Draw every panel; about 11 × 6 inches."""
    names = [style.elide(name, 28) for name in data.names]
    left = EDGE_IN + style.text_width(names, style.LABEL) + 0.12
    quality_in = max(1.1, _ROW_IN * max(len(names), len(data.verdicts)))
    bar_in = _BAR_ROW_IN * len(names)
    judged = data.scored or bool(data.verdicts)
    bars_top = _QUALITY_TOP_IN + judged * (_HEAD_IN + quality_in + 1.0)
    lines = -(-len(data.panels) // _COLUMNS)
    foot = bars_top + lines * (_BAR_HEAD_IN + bar_in) + (0.2 if lines else -0.3)
    saved = f"{data.names[-1]} against {data.names[0]}: {data.savings}" if data.savings else ""
    page = style.sheet(_WIDTH_IN, foot, title=data.headline, subtitle=saved, caption=data.methods)
    for question, top, shown in (("Is it as good?", _QUALITY_TOP_IN, judged),
                                 ("What does it save?", bars_top - 0.12, lines)):
        if shown:
            page.write(EDGE_IN, top, question, 11, color=INK, weight="bold")
    _draw_quality(page, data, (left, quality_in))
    width = (_WIDTH_IN - EDGE_IN - left - _GAP_IN * (_COLUMNS - 1)) / _COLUMNS
    for i, panel in enumerate(data.panels):
        line, column = divmod(i, _COLUMNS)
        top = bars_top + line * (_BAR_HEAD_IN + bar_in) + _BAR_HEAD_IN
        axes = page.axes(left + column * (width + _GAP_IN), top, width, bar_in)
        _draw_bars(axes, panel, data.colours, width)
        _name_rows(axes, [""] * len(names) if column else names)
    return page.figure


def _draw_quality(page: Sheet, data: ComparisonData, place: tuple[float, float]) -> None:
    """Scores and intervals; ``place`` is the left edge of the scores, and the height of both."""
    left, height = place
    top, right = _QUALITY_TOP_IN + _HEAD_IN, _WIDTH_IN - EDGE_IN
    if data.verdicts:
        words = [_verdict_words(verdict) for verdict in data.verdicts]
        words_in = style.text_width(words, style.SMALL) + 0.15
        axes = page.axes(right - _INTERVALS_IN, top, _INTERVALS_IN, height)
        _draw_verdicts(axes, data)
        _name_rows(axes, words, size=style.SMALL)
        right -= _INTERVALS_IN + words_in + 0.15
    if data.scored:
        axes = page.axes(left, top, right - _SCORE_WORDS_IN - left, height)
        _draw_scores(axes, data)
        if any(score.replicated for score in data.scores):
            interval = f"mean over seeds, {100 * data.confidence:.4g}% interval"
            marks = (("this model", "o", 8, MUTED), ("each seed", "o", 4, "none"),
                     (interval, "|", 10, MUTED))
            page.legend(left, top + height + 0.5, [
                style.legend_mark(MUTED, label, linestyle="", marker=marker, markersize=size,
                                  markerfacecolor=fill, markeredgewidth=2 if marker == "|" else 1)
                for label, marker, size, fill in marks])


def _draw_scores(ax: Axes, data: ComparisonData) -> None:
    for row, (score, colour) in enumerate(zip(data.scores, data.colours, strict=True)):
        if score.value is not None:
            ax.scatter([score.value], [row], s=80, color=colour, edgecolors="white", zorder=3)
        if score.replicated:
            spread = 0.2 * np.sin(2.4 * np.arange(len(score.seeds)))
            ax.scatter(score.seeds, row + spread, s=16, facecolors="none", edgecolors=colour,
                       alpha=0.8)
            ax.errorbar(score.mean, row, xerr=score.half_width, color=colour, linewidth=2.2,
                        capsize=4, capthick=1.6, zorder=2)
            ax.vlines(score.mean, row - 0.34, row + 0.34, color=colour, linewidth=2.2)
        style.note(ax, score.words, (1, row), (10, 0), ("axes fraction", "data"), va="center",
                   color=INK)
    style.strip_axes(ax, keep=("bottom",), grid="x")
    ax.margins(x=0.08)
    _name_rows(ax, [style.elide(name, 28) for name in data.names])
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(f"test {data.score_name}", fontsize=style.SMALL, color=MUTED)


_ANSWER_IN, _ANSWER_LINE = 3.6, 39
"""Side of the square that MLflow shows an image in, and characters of a line in it."""


def plot_answer(data: ComparisonData) -> Figure:
    """The verdicts' intervals and what is saved, in a square that is still read at 200 pixels.

    MLflow's charts have no intervals; this is the picture among them.
    """
    title = textwrap.wrap(data.headline, _ANSWER_LINE - 5)
    saved = textwrap.wrap(data.savings or "saves nothing", _ANSWER_LINE)
    page = style.sheet(_ANSWER_IN, _ANSWER_IN - 0.15, title="")
    left, top = 0.15, 0.1
    page.write(left, top, "\n".join(title), 12, color=INK, weight="bold")
    top += 0.235 * len(title) + 0.08
    page.write(left, top, "\n".join(saved), 11, color=INK)
    top += 0.21 * len(saved) + 0.22
    rows = len(data.verdicts)
    bottom = _ANSWER_IN - 0.8
    axes = page.axes(left, top, _ANSWER_IN - 2 * left, bottom - top)
    axes.set_yticks([])
    _draw_intervals(axes, data.verdicts, data.colours[-1], ("original", "slim"), size=11)
    axes.set_ylim(rows - 0.35, -0.75)
    for row, verdict in enumerate(data.verdicts):
        words = f"{_BASES[verdict.kind]}: {text.interval_words(verdict)}"
        style.note(axes, words, (0.02, row - 0.28), (0, 0), ("axes fraction", "data"), ha="left",
                   va="center", color=INK, fontsize=11,
                   bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})
    return page.figure


def plot_verdict(verdict: Verdict) -> Figure:
    """One verdict: the interval of the difference, against the margin."""
    title, _, figures = verdict.headline.partition(": ")
    page = style.sheet(7.2, 2.2, title=title, subtitle=figures, caption=verdict.settle or "")
    axes = page.axes(EDGE_IN, 1.05, 7.2 - 2 * EDGE_IN, 0.5)
    axes.set_yticks([])
    axes.set_ylim(0.5, -0.5)
    _draw_intervals(axes, (verdict,), style.variant_colour("slim"), ("original", "slim"))
    return page.figure


def _draw_verdicts(ax: Axes, data: ComparisonData) -> None:
    original, candidate = (style.elide(data.names[i], 16) for i in (0, -1))
    _draw_intervals(ax, data.verdicts, data.colours[-1], (original, candidate))


def _draw_intervals(
    ax: Axes, verdicts: Sequence[Verdict], colour: str, names: tuple[str, str], *,
    size: float = style.SMALL,
) -> None:
    """An interval a row; ``names`` are the original's and the candidate's."""
    score, margin = verdicts[0].score, verdicts[0].margin
    style.strip_axes(ax, keep=("bottom",))
    limits = [limit for verdict in verdicts for limit in (verdict.low, verdict.high)]
    style.difference_axis(ax, limits, margin, score)
    for row, verdict in enumerate(verdicts):
        ax.plot([verdict.low, verdict.high], [row, row], color=colour, linewidth=2.6, marker="|",
                markersize=9, markeredgewidth=2.6, zorder=2)
        ax.scatter([verdict.delta], [row], s=52, color=colour, edgecolors="white", zorder=3)
    unit = {" points": ", in points", "%": ", in % of the original's"}.get(
        text.unit_of(score)[1], "")
    ax.set_xlabel(f"{score}, {names[1]} − {names[0]}{unit}\nshaded: better, or within the margin",
                  fontsize=size, color=MUTED, linespacing=1.5, parse_math=False)
    ax.tick_params(axis="x", labelsize=size)
    style.note(ax, f"margin {text.points(-margin, score)}", (-margin, 1), (0, 3),
               ("data", "axes fraction"), ha="center", va="bottom", color=INK,
               fontsize=size)


def _verdict_words(verdict: Verdict) -> str:
    return f"{_BASES[verdict.kind]}:\n{text.outcome_words(verdict)}\n{text.interval_words(verdict)}"


def _draw_bars(ax: Axes, panel: BarPanel, colours: tuple[str, ...], width_in: float) -> None:
    """Bars that leave the words beside the longest one their room."""
    words_in = style.text_width(panel.labels, style.SMALL + 0.5) + 0.12
    longest = max(_SHORTEST_BAR, min(_LONGEST_BAR, 1 - words_in / width_in))
    style.strip_axes(ax, keep=("left",))
    values = [value or 0.0 for value in panel.values]
    bars = ax.barh(range(len(values)), values, 0.68, color=colours)
    ax.set_xlim(0, (max(values) or 1.0) / longest)
    ax.set_xticks([])
    labels = ax.bar_label(bars, panel.labels, padding=5, fontsize=style.SMALL + 0.5, color=INK,
                          parse_math=False)
    for label, value in zip(labels, panel.values, strict=True):
        label.set_color(MUTED if value is None else INK)
    style.note(ax, panel.title, (0, 1), (0, 4), fontsize=style.LABEL)


def _name_rows(ax: Axes, names: Sequence[str], *, size: float = style.LABEL) -> None:
    """Names at the left of the rows, the first row on top."""
    ax.set_yticks(range(len(names)), names, fontsize=size, color=INK, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
