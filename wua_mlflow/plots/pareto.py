"""Test score against FLOPs: each variant's mean over seeds, its interval, and every seed.

May import: numpy, scipy inside ``pareto_data``, ``comparison`` for its types, ``canvas``,
``ticks``; matplotlib inside functions. Test: ``tests/plots/test_pareto.py``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.comparison import VariantFigures
from wua_mlflow.plots.style import INK, MUTED, RULE, WITHIN_MARGIN, log_ticks, tick_words
from wua_mlflow.verdict.text import points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ParetoData", "ParetoPoint", "pareto_data", "plot_pareto"]


_WIDTH_IN, _EDGE_IN, _LEFT_IN, _RIGHT_IN, _PLOT_IN = 9.0, 0.3, 1.0, 0.35, 3.3
_HEAD_IN, _LABEL_ROW_IN, _FOOT_IN, _CAPTION_LINE_IN = 0.85, 0.36, 0.55, 0.155
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

    ``value`` is the mean over ``replicates``, or the one model's score where there are fewer than
    two; ``low`` and ``high`` are None then. ``slot`` is its place among variants of the same FLOPs:
    0 in the middle, ±0.5, ±1 … beside it.
    """

    name: str
    colour: str
    flops: float
    value: float
    low: float | None
    high: float | None
    replicates: tuple[float, ...]
    slot: float = 0.0


@dataclass(frozen=True)
class ParetoData:
    """The points, the original first; ``margin`` is None where no loss was agreed on."""

    points: tuple[ParetoPoint, ...]
    score_name: str
    margin: float | None
    confidence: float

    @property
    def band(self) -> tuple[float, float] | None:
        """From the original's score down by the margin."""
        top = self.points[0].value
        return None if self.margin is None else (top - self.margin, top)


def pareto_data(
    variants: Sequence[VariantFigures],
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

    >>> old = VariantFigures("old", "#5b7c99", {"flops/forward": 60}, [0.8, 0.9])
    >>> new = VariantFigures("new", "#d95f02", {"flops/forward": 42, "accuracy/test": 0.85})
    >>> data = pareto_data([old, new], margin=0.02)
    >>> [(point.flops, round(point.value, 2)) for point in data.points]
    [(60.0, 0.85), (42.0, 0.85)]
    """
    found = [_point(variant, confidence) for variant in variants]
    if not found or found[0] is None:
        raise ValueError("variants: expected the original's flops/forward and its score on test "
                         "data, but got none")
    known = [one for one in found if one is not None]
    numbers = [n for one in known for n in (one.flops, one.value, *one.replicates)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("variants: expected finite FLOPs and scores")
    return ParetoData(_beside(known), score, margin, confidence)


def plot_pareto(data: ParetoData, ax: Axes | None = None) -> Figure:
    """Draw the points on a new figure of 9 inches' width, or in the place of ``ax``."""
    at, (low, high) = _places(data)
    inches = _WIDTH_IN - _LEFT_IN - _RIGHT_IN
    labels = [_label(point, data.score_name) for point in data.points]
    centres = [_LEFT_IN + inches * (math.log(x / low) / math.log(high / low)) for x in at]
    placed = _placed(labels, centres)
    rows = 1 + max(row for row, _ in placed)
    top = _HEAD_IN + rows * _LABEL_ROW_IN + 0.08
    words = textwrap.fill(_caption(data), 145)
    height = top + _PLOT_IN + _FOOT_IN + _CAPTION_LINE_IN * (1 + words.count("\n")) + 0.15
    page = style.sheet(_WIDTH_IN, height, ax)
    title = f"Test {data.score_name} against FLOPs of one sample"
    page.write(_EDGE_IN, 0.2, title, size=style.TITLE, bold=True)
    page.write(_EDGE_IN, 0.48, "further left: fewer FLOPs; further up: better",
               size=style.SUBTITLE)
    page.write(_EDGE_IN, top + _PLOT_IN + _FOOT_IN, words, size=style.SMALL, colour=MUTED)
    axes = page.axes(_LEFT_IN, top, inches, _PLOT_IN)
    _draw_frame(axes, data, (low, high))
    for point, x in zip(data.points, at, strict=True):
        _draw_point(axes, point, x, 1 + _SLOT_IN * math.log(high / low) / inches)
    up = _PLOT_IN + 0.08
    for (row, left), point, x, label in zip(placed, data.points, at, labels, strict=True):
        middle = left + _label_in(label) / 2
        above = up + (rows - 1 - row) * _LABEL_ROW_IN
        _draw_label(axes, label, (middle - _LEFT_IN, above), (x, point), (inches, _PLOT_IN))
    return page.figure


def _point(variant: VariantFigures, confidence: float) -> ParetoPoint | None:
    flops = variant.metrics.get("flops/forward")
    value = variant.metrics.get("accuracy/test", variant.metrics.get("score/test"))
    seeds = np.array(variant.replicate_scores or (), float)
    if not flops or (value is None and not seeds.size):
        return None
    if seeds.size < 2:
        only = float(seeds[0]) if value is None else float(value)
        return ParetoPoint(variant.name, variant.colour, float(flops), only, None, None, ())
    from scipy.special import stdtrit

    mean = float(seeds.mean())
    error = float(seeds.std(ddof=1)) / math.sqrt(seeds.size)
    half = float(stdtrit(seeds.size - 1, (1 + confidence) / 2)) * error
    return ParetoPoint(variant.name, variant.colour, float(flops), mean, mean - half, mean + half,
                       tuple(map(float, seeds)))


def _beside(found: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """The points with their slots."""
    placed = []
    for one in found:
        alike = [other for other in found if abs(math.log(other.flops / one.flops)) < _ALIKE]
        slot = alike.index(one) - (len(alike) - 1) / 2
        placed.append(replace(one, slot=slot))
    return tuple(placed)


def _places(data: ParetoData) -> tuple[list[float], tuple[float, float]]:
    """Where the points stand along FLOPs, slots included, and the axis's ends."""
    flops = np.array([point.flops for point in data.points])
    low, high = float(flops.min()), float(flops.max())
    missing = max(1.0, _NARROWEST / (high / low)) ** 0.5
    low, high = low / missing, high * missing
    pad = (high / low) ** 0.12
    low, high = low / pad, high * pad
    step = _SLOT_IN / (_WIDTH_IN - _LEFT_IN - _RIGHT_IN) * math.log(high / low)
    return [point.flops * math.exp(point.slot * step) for point in data.points], (low, high)


def _label(point: ParetoPoint, score: str) -> str:
    name = style.elide(point.name, _LONGEST_NAME)
    return f"{name}\n{style.number(point.flops)} FLOPs · {_value(point.value, score)}"


def _value(value: float, score: str) -> str:
    return f"{100 * value:.1f}%" if score == "accuracy" else f"{value:.3f}".replace("-", "−")


def _label_in(label: str) -> float:
    return style.text_width(label.split("\n"), style.SMALL) + 0.02


def _placed(labels: Sequence[str], centres: Sequence[float]) -> list[tuple[int, float]]:
    """For each label a row and its left edge in inches, such that none covers another."""
    taken: list[list[tuple[float, float]]] = []
    placed: dict[int, tuple[int, float]] = {}
    for i in sorted(range(len(labels)), key=centres.__getitem__):
        width = _label_in(labels[i])
        left = min(max(centres[i] - width / 2, _EDGE_IN), _WIDTH_IN - _EDGE_IN - width)
        row = 0
        while row < len(taken) and any(left < end + _LABEL_GAP_IN for _, end in taken[row]):
            row += 1
        if row == len(taken):
            taken.append([])
        taken[row].append((left, left + width))
        placed[i] = (row, left)
    return [placed[i] for i in range(len(labels))]


def _caption(data: ParetoData) -> str:
    seeds = any(point.low is not None for point in data.points)
    percent = f"{100 * data.confidence:.4g}%"
    said = ["Each point is one trained model; with one seed there is no interval."]
    if seeds:
        said = [f"Point: mean over seeds; bar: its {percent} interval over seeds, on the same test "
                "examples; rings: each seed."]
    if seeds and any(point.low is None for point in data.points):
        said.append("A point without a bar is one trained model.")
    if any(point.slot for point in data.points):
        said.append("Those of the same FLOPs stand beside each other.")
    if data.margin is not None:
        unit = f" of {data.score_name}"
        if data.score_name == "accuracy":
            unit = " point" if data.margin == 0.01 else " points"
        said.append(f"Shaded: down to {points(data.margin, data.score_name)}{unit} below the "
                    "original.")
    said.append("The verdict does not come from this picture: it compares the two example by "
                "example.")
    return " ".join(said)


def _draw_frame(ax: Axes, data: ParetoData, ends: tuple[float, float]) -> None:
    style.strip_axes(ax)
    ax.set_xscale("log")
    ax.set_xlim(*ends)
    ax.minorticks_off()
    ticks = log_ticks(*ends)
    ax.set_xticks(ticks, [style.number(tick) for tick in ticks])
    ax.set_xlabel("FLOPs of one sample, forward (logarithmic)", fontsize=style.SMALL, color=MUTED)
    ax.set_ylabel(f"test {data.score_name}", fontsize=style.SMALL, color=MUTED)
    drawn = [n for point in data.points for n in
             (point.value, point.low, point.high, *point.replicates) if n is not None]
    drawn += data.band or ()
    low, high = min(drawn), max(drawn)
    pad = 0.07 * (high - low) or 0.01
    ax.set_ylim(low - pad, high + pad)
    ax.locator_params(axis="y", nbins=7)
    shown = [tick for tick in ax.get_yticks() if low - pad <= tick <= high + pad]
    ax.set_yticks(shown, tick_words(shown, data.score_name))
    ax.grid(axis="y", color=RULE, linewidth=0.5)
    ax.set_axisbelow(True)
    if data.band:
        ax.axhspan(*data.band, color=WITHIN_MARGIN, linewidth=0, zorder=0)
    ax.axhline(data.points[0].value, color=data.points[0].colour, linewidth=1.0,
               linestyle=(0, (4, 3)), zorder=1)


def _draw_point(ax: Axes, point: ParetoPoint, x: float, spread: float) -> None:
    """``spread`` is the ratio of FLOPs that one slot spans."""
    if point.replicates:
        count = len(point.replicates)
        side = 0.27 + 0.09 * (np.arange(count) % 3)
        ax.scatter(x * spread ** side, point.replicates, s=13, facecolors="none",
                   edgecolors=point.colour, linewidths=0.9, alpha=0.85, zorder=2)
    if point.low is not None and point.high is not None:
        ax.vlines(x, point.low, point.high, color=point.colour, linewidth=2.4, zorder=3)
        ends = x * spread ** np.array([-0.1, 0.1])
        ax.hlines([point.low, point.high], *ends, color=point.colour, linewidth=2.0, zorder=3)
    ax.scatter([x], [point.value], s=70, color=point.colour, edgecolors="white", zorder=4)


def _draw_label(
    ax: Axes, label: str, at_in: tuple[float, float], target: tuple[float, ParetoPoint],
    size_in: tuple[float, float],
) -> None:
    """Two centred lines over the axes, with a thin line down to the point; ``at_in`` from its left
    lower corner."""
    x, point = target
    top = point.value if point.high is None else point.high
    across, up = at_in[0] / size_in[0], at_in[1] / size_in[1]
    ax.annotate("", xy=(x, top), xytext=(across, up), textcoords="axes fraction",
                arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.8, "shrinkA": 0,
                            "shrinkB": 2}, annotation_clip=False, zorder=1)
    for line, (words, colour) in enumerate(zip(label.split("\n"), (INK, MUTED), strict=True)):
        ax.annotate(words, xy=(across, up), xycoords="axes fraction",
                    xytext=(0, 12.5 - 11.5 * line + 2), textcoords="offset points", ha="center",
                    va="bottom", fontsize=style.SMALL, color=colour, annotation_clip=False,
                    parse_math=False, weight="normal" if line else "bold",
                    bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6})
