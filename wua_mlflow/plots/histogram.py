"""Histogram of a layer's normalized importance.

Tests: ``tests/plots/test_histogram.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import DASHED, INK, MEASURED
from wua_mlflow.usage.results import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["HistogramData", "histogram_data", "plot_histogram"]


_BINS, _FEW_WEIGHTS = 50, 100
"""Half as many bins for fewer weights."""
_SUM_TOLERANCE = 1e-3
"""How far the sum of a float32 array of normalized importance may lie from 1."""
_LOG_RATIO = 200
"""A tallest bar this many times as high as the lowest one would hide it on a linear axis."""
_SHORT_NAME, _LONG_NAME = 26, 60
_LEAST_PLACE = 0.008
"""Of the axis: a line nearer to its left end would be drawn upon the axis itself."""
_CAPTION = ("Effective weights = exp(entropy): so many equally important weights have this "
            "entropy. They describe concentration, and depend on how the network is parametrised.")


@dataclass(frozen=True)
class HistogramData:
    """Weights counted over equal bins of their normalized importance.

    ``edges`` has shape (bins + 1,), ``counts`` (bins,). ``uniform`` is 1 ÷ weights, the importance
    of each weight if all were equal; ``entropy`` is in nats. ``log_counts`` says that the counts
    span so much that the picture's vertical axis is logarithmic.
    """

    edges: np.ndarray
    counts: np.ndarray
    weights: int
    entropy: float
    effective_weights: float
    uniform: float
    log_counts: bool
    name: str


def histogram_data(
    normalized_importance: ArrayLike | Histogram,
    entropy: float | None = None,
    *,
    name: str = "",
) -> HistogramData:
    """Counts for the picture, from the values or from a ready ``usage.Histogram``.

    There are 50 bins, 25 for fewer than 100 weights: neighbouring bins of a ready histogram are
    merged then.

    Args:
        normalized_importance: any shape, not negative, with sum 1 (or 0 where all are zero).
        entropy: in nats; computed from the values, or taken from the histogram, where not given.
        name: of the layer, for the title.

    Raises:
        ValueError: a value is negative, NaN or infinite, the sum is neither 1 nor 0, or there are
            no weights.

    >>> histogram_data([0.25, 0.25, 0.5]).counts.tolist()[12:]
    [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    """
    if isinstance(normalized_importance, Histogram):
        edges, counts = _merged(normalized_importance)
        entropy = normalized_importance.entropy if entropy is None else entropy
    else:
        from scipy.special import entr

        values = _checked(normalized_importance)
        top = float(values.max()) or 1.0
        counts, edges = np.histogram(values, _bins_for(values.size), (0.0, top))
        entropy = max(0.0, float(entr(values).sum())) if entropy is None else entropy
    weights = int(counts.sum())
    return HistogramData(
        edges=edges,
        counts=counts,
        weights=weights,
        entropy=entropy,
        effective_weights=math.exp(entropy) if counts[-1] else 0.0,
        uniform=1 / weights,
        log_counts=bool(counts.max() > _LOG_RATIO * counts[counts > 0].min()),
        name=name,
    )


def plot_histogram(data: HistogramData) -> Figure:
    """Draw the histogram, 7 × 4.3 inches."""
    title, subtitle = _titles(data)
    page = style.sheet(7.0, 3.88, title=title, subtitle=subtitle, caption=_CAPTION)
    axes = page.axes(0.9, 0.8, 5.8, 2.55)
    style.strip_axes(axes, grid="y")
    low, room = (0.6, 3.0) if data.log_counts else (0.0, 1.14)
    axes.set_yscale("log" if data.log_counts else "linear")
    axes.stairs(data.counts, data.edges, baseline=low, fill=True, color=MEASURED, linewidth=0)
    axes.vlines(data.edges, low, np.maximum([low, *data.counts], [*data.counts, low]),
                color="white", linewidth=0.6)
    axes.set_ylim(low, room * float(data.counts.max()))
    axes.set_xlim(0, data.edges[-1])
    if not data.log_counts:
        axes.locator_params(axis="y", integer=True)
    axes.ticklabel_format(axis="x", scilimits=(-3, 4), useOffset=False)
    axes.tick_params(axis="x", pad=7)
    axes.xaxis.get_offset_text().set(fontsize=style.SMALL, color=style.MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: style.number(value))
    axes.set_xlabel("normalized importance of a weight", fontsize=style.LABEL, color=INK)
    scale = ", logarithmic" if data.log_counts else ""
    axes.set_ylabel(f"number of weights{scale}", fontsize=style.LABEL, color=INK)
    _mark_uniform(axes, data)
    return page.figure


def _titles(data: HistogramData) -> tuple[str, str]:
    """The effective weights and the entropy; a long name has the first line to itself."""
    effective = f"effective weights {style.number(data.effective_weights)} of " \
                f"{style.number(data.weights)}"
    details = "every importance of this layer is zero"
    if data.counts[-1]:
        share, most = data.effective_weights / data.weights, math.log(data.weights)
        details = f"share {share:.1%}; entropy {data.entropy:.4f} nats of at most {most:.4f}"
    if len(data.name) > _SHORT_NAME:
        return style.elide(data.name, _LONG_NAME), f"{effective}; {details}"
    return f"{data.name}: {effective}" if data.name else f"E{effective[1:]}", details


def _mark_uniform(ax: Axes, data: HistogramData) -> None:
    """A line at the importance of equally important weights, and its words."""
    first, last = data.edges[[1, -1]]
    at, words = data.uniform, f"1/{data.weights:,}, if all were equal"
    if not data.counts[-1]:
        ax.set_xticks([0])
        at, words = first, f"{data.weights:,} weights, each of importance 0"
    elif data.uniform < _LEAST_PLACE * last:
        share = math.floor(1000 * data.counts[0] / data.weights) / 1000
        at, words = first, f"{words}: within the first bar, which holds {share:.1%} of the weights"
    else:
        ax.axvline(data.uniform, color=INK, linewidth=1.1, linestyle=DASHED)
    side, ha = (5, "left") if at < 0.6 * last else (-5, "right")
    style.note(ax, words, (at, 1), (side, -3), ("data", "axes fraction"), ha=ha, va="top",
               bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})


def _bins_for(weights: int) -> int:
    return _BINS if weights >= _FEW_WEIGHTS else _BINS // 2


def _merged(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Edges and counts with as few bins as the number of weights deserves."""
    counts = np.asarray(histogram.counts)
    if counts.sum() < 1:
        raise ValueError("normalized_importance: expected at least one weight, but got none")
    most, count = _bins_for(int(counts.sum())), len(counts)
    step = next(k for k in range(1, count + 1) if count % k == 0 and count // k <= most)
    return np.asarray(histogram.edges)[::step], counts.reshape(-1, step).sum(axis=1)


def _checked(importance: ArrayLike) -> np.ndarray:
    values = np.asarray(importance, dtype=np.float64).ravel()
    if values.size == 0:
        raise ValueError("normalized_importance: expected at least one weight, but got none")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            "normalized_importance: expected finite numbers of at least 0, but got another")
    total = float(values.sum())
    if total != 0 and abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"normalized_importance: expected a sum of 1, but got {total:.6g}; "
                         "divide the importance by its sum")
    return values
