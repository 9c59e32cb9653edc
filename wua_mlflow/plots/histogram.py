"""How many weights have how much of a layer's importance: the data, then the picture.

May import: numpy; matplotlib inside ``plot_histogram``. Test: ``tests/plots/test_histogram.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from wua_mlflow.plots import style
from wua_mlflow.plots.style import INK, MEASURED, MUTED, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from wua_mlflow.usage.results import Histogram

__all__ = ["HistogramData", "histogram_data", "plot_histogram"]


_FEWEST_BINS = 10
_SUM_SLACK = 1e-3
"""How far the sum of a float32 array of normalized importance may lie from 1."""
_LOG_RATIO = 200
"""A tallest bar this many times as high as the lowest one would hide it on a linear axis."""
_SHORT_NAME, _LONG_NAME = 26, 60
_LEAST_PLACE = 0.008
"""Of the axis: a line nearer to its left end would be drawn upon the axis itself."""
_CAPTION = (
    "Effective weights = exp(entropy): so many equally important weights have this entropy.\n"
    "They describe concentration, and depend on how the network is parametrised."
)


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
    bins: int = 50,
    *,
    name: str = "",
) -> HistogramData:
    """Counts for the picture, from the values or from a ready ``usage.Histogram``.

    Few weights get fewer bins: the square root of their number, at least ten. A ready histogram's
    neighbouring bins are merged for that.

    Args:
        normalized_importance: any shape, not negative, with sum 1 (or 0 where all are zero).
        entropy: in nats; computed from the values, or taken from the histogram, where not given.
        bins: at most this many bins.
        name: of the layer, for the title.

    Raises:
        ValueError: a value is negative, NaN or infinite, the sum is neither 1 nor 0, or there are
            no weights or no bins.

    >>> histogram_data([0.25, 0.25, 0.5]).counts.tolist()
    [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    """
    if bins < 1:
        raise ValueError(f"bins: expected an integer of at least 1, but got {bins}")
    if hasattr(normalized_importance, "edges"):
        ready = cast("Histogram", normalized_importance)
        edges, counts = _merged(ready, bins)
        entropy = ready.entropy if entropy is None else entropy
    else:
        values = _checked(normalized_importance)
        edges, counts = _counted(values, bins)
        entropy = _entropy(values) if entropy is None else entropy
    weights = int(counts.sum())
    present = counts[counts > 0]
    return HistogramData(
        edges=edges,
        counts=counts,
        weights=weights,
        entropy=entropy,
        effective_weights=math.exp(entropy) if counts[-1] else 0.0,
        uniform=1 / weights,
        log_counts=bool(present.max() > _LOG_RATIO * present.min()),
        name=name,
    )


def plot_histogram(data: HistogramData, ax: Axes | None = None) -> Figure:
    """Draw the histogram on ``ax``, or on a new figure of 7 × 4.3 inches."""
    left_points = 0.0
    if ax is None:
        ax = style.sheet(7.0, 4.3).axes(0.9, 0.8, 5.8, 2.55)
        left_points = -72 * 0.7
    style.strip_axes(ax)
    _draw_bars(ax, data)
    if data.counts[-1]:
        _draw_uniform(ax, data)
    else:
        _draw_dead(ax, data)
    exponent = _exponent(data.edges[-1])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:.4g}")
    ax.yaxis.set_major_formatter(lambda value, _: style.number(value))
    unit = f" ({style.power_of_ten(exponent)})" if exponent else ""
    ax.set_xlabel(f"normalized importance of a weight{unit}", fontsize=style.LABEL, color=INK)
    scale = ", logarithmic" if data.log_counts else ""
    ax.set_ylabel(f"number of weights{scale}", fontsize=style.LABEL, color=INK)
    style.title(ax, *_titles(data), left_points=left_points)
    style.caption(ax, _CAPTION, below_points=42, left_points=left_points)
    return style.root_figure(ax)


def _titles(data: HistogramData) -> tuple[str, str]:
    """A short name stands before the figure, a long one has the first line to itself."""
    figure = f"effective weights {_count(data.effective_weights)} of {_count(data.weights)}"
    if not data.counts[-1]:
        more = "every importance of this layer is zero"
    else:
        share = f"share {data.effective_weights / data.weights:.1%}"
        most = math.log(data.weights)
        more = f"{share}; entropy {data.entropy:.4f} nats of at most {most:.4f}"
    if len(data.name) > _SHORT_NAME:
        return style.elide(data.name, _LONG_NAME), f"{figure}; {more}"
    return f"{data.name}: {figure}" if data.name else f"E{figure[1:]}", more


def _draw_bars(ax: Axes, data: HistogramData) -> None:
    low = 0.5 if data.log_counts else 0.0
    if data.log_counts:
        ax.set_yscale("log")
    ax.stairs(data.counts, data.edges, baseline=low, fill=True, color=MEASURED, linewidth=0)
    if len(data.counts) <= 25:
        ax.vlines(data.edges, low, _beside(data.counts), color="white", linewidth=0.8)
    tallest = float(data.counts.max())
    ax.set_ylim(1.2 * low, tallest * (3 if data.log_counts else 1.14))
    ax.set_xlim(0, data.edges[-1])
    ax.grid(axis="y", color=RULE, linewidth=0.5, alpha=0.6)
    ax.set_axisbelow(True)


def _beside(counts: np.ndarray) -> np.ndarray:
    """At each edge, the taller of the two bars that meet there."""
    padded = np.concatenate([[0], counts, [0]])
    return np.max([padded[:-1], padded[1:]], axis=0)


def _draw_uniform(ax: Axes, data: HistogramData) -> None:
    hidden = data.uniform < _LEAST_PLACE * data.edges[-1]
    if not hidden:
        ax.axvline(data.uniform, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    right = data.uniform < 0.6 * data.edges[-1]
    words = f"1/{data.weights:,}, if all were equal"
    if hidden:
        first = math.floor(1000 * data.counts[0] / data.weights) / 1000
        words += f": within the first bar, which holds {first:.1%} of the weights"
    _beside_line(ax, float(data.edges[1]) if hidden else data.uniform, words, right=right)


def _draw_dead(ax: Axes, data: HistogramData) -> None:
    ax.set_xticks([0])
    words = f"{data.weights:,} weights, each of importance 0"
    _beside_line(ax, float(data.edges[1]), words, right=True)


def _beside_line(ax: Axes, x: float, words: str, *, right: bool) -> None:
    ax.annotate(
        words,
        xy=(x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(5 if right else -5, -3),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        fontsize=style.SMALL,
        color=MUTED,
        annotation_clip=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


def _bins_for(weights: int, bins: int) -> int:
    return min(bins, max(_FEWEST_BINS, math.isqrt(weights)))


def _counted(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    top = float(values.max()) or 1.0
    counts, edges = np.histogram(values, bins=_bins_for(values.size, bins), range=(0.0, top))
    return edges, counts


def _merged(ready: Histogram, bins: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.asarray(ready.counts)
    if counts.sum() < 1:
        raise ValueError("normalized_importance: expected at least one weight, but got none")
    wanted = _bins_for(int(counts.sum()), bins)
    have = len(counts)
    factor = next(k for k in range(1, have + 1) if have % k == 0 and have // k <= wanted)
    return np.asarray(ready.edges)[::factor], counts.reshape(-1, factor).sum(axis=1)


def _checked(importance: ArrayLike) -> np.ndarray:
    values = np.asarray(importance, dtype=np.float64).ravel()
    if values.size == 0:
        raise ValueError("normalized_importance: expected at least one weight, but got none")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            "normalized_importance: expected finite numbers of at least 0, but got another"
        )
    total = float(values.sum())
    if total != 0 and abs(total - 1) > _SUM_SLACK:
        raise ValueError(
            f"normalized_importance: expected a sum of 1, but got {total:.6g}; "
            "divide the importance by its sum"
        )
    return values


def _entropy(values: np.ndarray) -> float:
    p = values[values > 0]
    return float(max(0.0, -(p * np.log(p)).sum()))


def _count(weights: float) -> str:
    if weights >= 1000 or weights == int(weights):
        return style.number(round(weights))
    return f"{weights:.1f}"


def _exponent(top: float) -> int:
    """The power of ten that is taken out of the tick labels: 0 where they are short without it."""
    return math.floor(math.log10(top)) if top < 0.005 else 0
