"""Test score against FLOPs: each variant's mean over seeds, its interval, and every seed.

Tests: ``tests/plots/test_pareto.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import DASHED, EDGE_IN, INK, MUTED, RULE, WITHIN_MARGIN
from wua_mlflow.verdict.intervals import t_quantile
from wua_mlflow.verdict.text import FLOPS_ONE_SAMPLE, in_points, margin_text, methods_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wua_mlflow.results import VariantResult

__all__ = ["ParetoData", "ParetoPoint", "pareto_data", "plot_pareto"]


_WIDTH_IN, _LEFT_IN, _PLOT_WIDTH_IN, _PLOT_IN = 9.0, 1.0, 7.65, 3.3
_HEAD_IN, _LABEL_ROW_IN, _FOOT_IN = 0.85, 0.36, 0.55
_LABEL_GAP_IN = 0.16
_SLOT_IN = 0.44
"""How far apart variants of the same FLOPs stand."""
_NARROWEST = 2.5
"""The axis of FLOPs spans at least this ratio."""
_ALIKE = 0.02
"""FLOPs within this share of one another stand beside each other."""
_LONGEST_NAME = 30


@dataclass(frozen=True)
class ParetoPoint:
    """One variant: its forward FLOPs, its score, and the interval of its mean over seeds.

    ``value`` is the mean over ``replicates``, ``half_width`` that of its interval; where there are
    fewer than two replicates, the one model's score and None. ``slot`` is its place among variants
    of the same FLOPs: 0 in the middle, ±0.5, ±1 … beside it.
    """

    name: str
    colour: str
    flops: float
    value: float
    half_width: float | None = None
    replicates: tuple[float, ...] = ()
    slot: float = 0.0

    @property
    def high(self) -> float:
        """The upper end of the interval; the value where there is none."""
        return self.value + (self.half_width or 0.0)


@dataclass(frozen=True)
class ParetoData:
    """The points, the original first; ``margin`` is None where no loss was agreed on.

    ``methods``: the note where the variants' verdicts were made by several methods.
    """

    points: tuple[ParetoPoint, ...]
    score_name: str
    margin: float | None
    confidence: float
    methods: str = ""

    @property
    def band(self) -> tuple[float, float] | None:
        """From the original's score down by the margin."""
        top = self.points[0].value
        return None if self.margin is None else (top - self.margin, top)


def pareto_data(
    variants: Sequence[VariantResult],
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    score: str = "accuracy",
) -> ParetoData:
    """Points of the picture; a variant without FLOPs or score is left out.

    The interval is that of the mean over seeds, by Student's t with S − 1 degrees of freedom: of
    the seeds alone, on the same test examples.

    Args:
        variants: the original first; ``flops/forward``, and ``accuracy/test`` or ``score/test``.
        margin: the loss that is accepted, as a fraction.
        confidence: of the intervals.
        score: what the score is called.

    Raises:
        ValueError: the original has no FLOPs or no score, or a figure is not finite.
    """
    placed = [_point(variant, confidence) for variant in variants]
    if not placed or placed[0] is None:
        raise ValueError("variants: expected the original's flops/forward and its score on test "
                         "data, but got none")
    known = [point for point in placed if point is not None]
    if not all(math.isfinite(figure) for point in known
               for figure in (point.flops, point.value, *point.replicates)):
        raise ValueError("variants: expected finite FLOPs and scores")
    return ParetoData(tuple(replace(point, slot=_slot(point, known)) for point in known), score,
                      margin, confidence, methods_note(
                          (variant.name, variant.tags.get("wua.verdict.method"))
                          for variant in variants if "wua.verdict" in variant.tags))


def _point(variant: VariantResult, confidence: float) -> ParetoPoint | None:
    flops = variant.metrics.get("flops/forward")
    value = variant.metrics.get("score/test", variant.metrics.get("accuracy/test"))
    seeds = variant.scores
    if not flops or (value is None and not seeds):
        return None
    point = ParetoPoint(variant.name, style.variant_colour(variant.kind), float(flops),
                        seeds[0] if value is None else value)
    if len(seeds) < 2:
        return point
    error = float(np.std(seeds, ddof=1)) / math.sqrt(len(seeds))
    return replace(point, value=float(np.mean(seeds)), replicates=seeds,
                   half_width=t_quantile(confidence, len(seeds) - 1) * error)


def _slot(point: ParetoPoint, points: Sequence[ParetoPoint]) -> float:
    alike = [other for other in points if abs(math.log(other.flops / point.flops)) < _ALIKE]
    return alike.index(point) - (len(alike) - 1) / 2


def plot_pareto(data: ParetoData) -> Figure:
    """Draw the points, 9 inches wide."""
    low, high = _flops_axis(data)
    slot = (high / low) ** (_SLOT_IN / _PLOT_WIDTH_IN)
    flops = [point.flops * slot**point.slot for point in data.points]
    labels = [f"{style.elide(point.name, _LONGEST_NAME)}\n{style.number(point.flops)} FLOPs · "
              f"{style.score_text(point.value, data.score_name)}" for point in data.points]
    centres = [_LEFT_IN + _PLOT_WIDTH_IN * math.log(x / low, high / low) for x in flops]
    placed = _label_places(labels, centres)
    rows = 1 + max(row for row, _ in placed)
    top = _HEAD_IN + rows * _LABEL_ROW_IN + 0.08
    page = style.sheet(_WIDTH_IN, top + _PLOT_IN + _FOOT_IN, caption=_caption(data),
                       title=f"Test {data.score_name} against {FLOPS_ONE_SAMPLE}",
                       subtitle="further left: fewer FLOPs; further up: better")
    axes = page.axes(_LEFT_IN, top, _PLOT_WIDTH_IN, _PLOT_IN)
    _draw_frame(axes, data, (low, high))
    for point, x, label, (row, centre) in zip(data.points, flops, labels, placed, strict=True):
        _draw_point(axes, point, x, slot)
        up = _PLOT_IN + 0.08 + (rows - 1 - row) * _LABEL_ROW_IN
        _draw_label(axes, label, ((centre - _LEFT_IN) / _PLOT_WIDTH_IN, up / _PLOT_IN),
                    (x, point.high))
    return page.figure


def _flops_axis(data: ParetoData) -> tuple[float, float]:
    """Its ends."""
    flops = [point.flops for point in data.points]
    low, high = min(flops), max(flops)
    room = max(high / low, _NARROWEST) ** 0.62 * (high / low) ** -0.5
    return low / room, high * room


def _label_places(labels: Sequence[str], centres: Sequence[float]) -> list[tuple[int, float]]:
    """For each label a row and its centre in inches, such that none covers another."""
    row_ends: list[float] = []
    placed: dict[int, tuple[int, float]] = {}
    for i in sorted(range(len(labels)), key=centres.__getitem__):
        half = style.text_width([labels[i]], style.SMALL, "bold") / 2
        centre = min(max(centres[i], EDGE_IN + half), _WIDTH_IN - EDGE_IN - half)
        row = next((row for row, end in enumerate(row_ends) if centre - half >= end),
                   len(row_ends))
        row_ends[row : row + 1] = [centre + half + _LABEL_GAP_IN]
        placed[i] = (row, centre)
    return [placed[i] for i in range(len(labels))]


def _caption(data: ParetoData) -> str:
    bars = [point.half_width is not None for point in data.points]
    margin = margin_text(data.margin or 0, data.score_name, of=False)
    sentences = [
        ("Each point is one trained model; with one seed there is no interval.", not any(bars)),
        (f"Point: mean over seeds; bar: its {100 * data.confidence:.4g}% interval over seeds, on "
         "the same test examples; rings: each seed.", any(bars)),
        ("A point without a bar is one trained model.", any(bars) and not all(bars)),
        ("Those of the same FLOPs stand beside each other.",
         any(point.slot for point in data.points)),
        (f"Shaded: down to {margin} below the original.", data.margin is not None),
        ("The verdict does not come from this picture: it compares the two example by example.",
         True),
        (data.methods, data.methods),
    ]
    return " ".join(words for words, shown in sentences if shown)


def _draw_frame(ax: Axes, data: ParetoData, ends: tuple[float, float]) -> None:
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    style.strip_axes(ax, grid="y")
    style.log_axis(ax, *ends)
    ax.set_xlabel(f"{FLOPS_ONE_SAMPLE} (logarithmic)", fontsize=style.SMALL, color=MUTED)
    ax.set_ylabel(f"test {data.score_name}", fontsize=style.SMALL, color=MUTED)
    drawn = [score for point in data.points for score in
             (2 * point.value - point.high, point.high, *point.replicates)]
    drawn += data.band or ()
    pad = 0.07 * (max(drawn) - min(drawn)) or 0.01
    ax.set_ylim(min(drawn) - pad, max(drawn) + pad)
    ax.locator_params(axis="y", nbins=7)
    ax.yaxis.set_major_formatter(PercentFormatter(1) if in_points(data.score_name)
                                 else ScalarFormatter(useOffset=False))
    if data.band:
        ax.axhspan(*data.band, color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axhline(data.points[0].value, color=data.points[0].colour, linewidth=1.0, linestyle=DASHED,
               zorder=1)


def _draw_point(ax: Axes, point: ParetoPoint, x: float, slot: float) -> None:
    """``slot`` is the ratio of FLOPs between neighbours of the same FLOPs."""
    aside = 0.27 + 0.09 * (np.arange(len(point.replicates)) % 3)
    ax.scatter(x * slot**aside, point.replicates, s=13, facecolors="none",
               edgecolors=point.colour, linewidths=0.9, alpha=0.85, zorder=2)
    ax.errorbar(x, point.value, point.half_width, color=point.colour, linewidth=2.4, capsize=3.5,
                capthick=2, zorder=3)
    ax.scatter([x], [point.value], s=70, color=point.colour, edgecolors="white", zorder=4)


def _draw_label(
    ax: Axes, label: str, at: tuple[float, float], target: tuple[float, float]
) -> None:
    """Two centred lines at a fraction ``at`` of the axes, and a thin line down to ``target``."""
    ax.annotate("", xy=target, xytext=at, textcoords="axes fraction", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.8, "shrinkA": 0,
                            "shrinkB": 2}, zorder=1)
    for words, up, look in zip(label.split("\n"), (14.5, 3), ({"color": INK, "weight": "bold"}, {}),
                               strict=True):
        style.note(ax, words, at, (0, up), ha="center", va="bottom",
                   bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6}, **look)
