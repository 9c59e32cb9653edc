"""The newcomer's picture: is the slim model as good, and what does it save?

The types and the data; ``panels.py`` draws. May import: numpy; no tracking (a test holds that the
metric names are the contract's). Test: ``tests/plots/test_comparison.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wua_mlflow.plots.quantities import QUANTITIES, Quantity, against, savings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Bar",
    "BarPanel",
    "ComparisonData",
    "ScoreRow",
    "VariantFigures",
    "VerdictInterval",
    "comparison_data",
    "plot_comparison",
]

OUTCOMES = ("non_inferior", "inferior", "inconclusive")
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
class VerdictInterval:
    """One verdict: the difference in ``score``, candidate minus original, and its interval.

    ``label`` is ``artifact`` (the two saved models) or ``recipe`` (over seeds). All numbers are in
    the score's own unit (accuracy as a share, 0.02 for two points), higher is better.
    """

    label: str
    delta: float
    low: float
    high: float
    margin: float
    outcome: str
    score: str = "accuracy"

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {OUTCOMES}, but got {self.outcome!r}")
        numbers = (self.delta, self.low, self.high, self.margin)
        if not all(map(math.isfinite, numbers)) or self.low > self.high or self.margin < 0:
            raise ValueError(
                "delta, low, high, margin: expected finite numbers, low ≤ high and margin ≥ 0, "
                f"but got {numbers}"
            )


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
    verdicts: tuple[VerdictInterval, ...]


def comparison_data(
    variants: Sequence[VariantFigures],
    verdict: VerdictInterval | Sequence[VerdictInterval] | None = None,
) -> ComparisonData:
    """Bars, scores, intervals and words of the picture.

    Ratios are original ÷ variant, in words ("1.4× fewer"); entropy, a logarithm, has a difference.
    A quantity that no variant has is left out. The headline follows the recipe's verdict where
    there is one, else the artifact's.

    Args:
        variants: at least two, the original first, the candidate last.
        verdict: none, one or several intervals.

    Raises:
        ValueError: fewer than two variants, two of one name, or a figure that is not finite.

    >>> big = VariantFigures("oversized", "#5b7c99", {"flops/forward": 122.0})
    >>> slim = VariantFigures("slim", "#d95f02", {"flops/forward": 86.0})
    >>> comparison_data([big, slim]).panels[0].bars[1].label
    '86 · 1.4× fewer'
    """
    _check(variants)
    verdicts = (verdict,) if isinstance(verdict, VerdictInterval) else tuple(verdict or ())
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
        verdicts=verdicts,
    )


def plot_comparison(data: ComparisonData, ax: Axes | None = None) -> Figure:
    """Draw every panel on a new figure of 11 inches' width, or in the place of ``ax``."""
    from wua_mlflow.plots import panels

    return panels.draw_comparison(data, ax)


def points(value: float, score: str) -> str:
    """A margin or a tick, rounding noise removed; accuracy in points (0.02 is 2 points).

    >>> points(-0.02, "accuracy"), points(0.05, "R²")
    ('−2', '0.05')
    """
    scaled = (100 if score == "accuracy" else 1) * value + 0.0  # + 0.0: no sign on a zero
    return f"{scaled:.4g}".replace("-", "−")


def interval_words(verdict: VerdictInterval) -> str:
    """Difference and interval, with as many decimals as show each limit on its side of the margin.

    >>> interval_words(VerdictInterval("artifact", -0.012, -0.0199, 0.004, 0.02, "non_inferior"))
    '−1.20 (−1.99 to +0.40)'
    """
    scale, first = (100.0, 1) if verdict.score == "accuracy" else (1.0, 3)
    limits = np.round(np.array([verdict.low, verdict.high]) * scale, 9)
    bounds = np.round(np.array([[-verdict.margin], [0.0]]) * scale, 9)
    decimals = first
    for decimals in range(first, 9):
        shown = np.array([float(f"{limit:.{decimals}f}") for limit in limits])
        if (np.sign(shown - bounds) == np.sign(limits - bounds)).all():
            break
    delta, low, high = (
        _signed(scale * value, decimals) for value in (verdict.delta, verdict.low, verdict.high)
    )
    return f"{delta} ({low} to {high})"


def _signed(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text if float(f"{value:.{decimals}f}") else text[1:]


def outcome_words(verdict: VerdictInterval) -> str:
    """The outcome as an interval shows it."""
    if verdict.outcome == "non_inferior":
        return "worse, within the margin" if verdict.high < 0 else "non-inferior"
    return verdict.outcome


def deciding(verdicts: Sequence[VerdictInterval]) -> VerdictInterval | None:
    """The recipe's verdict where there is one, else the first."""
    return next((v for v in verdicts if v.label == "recipe"), verdicts[0] if verdicts else None)


def _headline(original: str, candidate: str, verdicts: Sequence[VerdictInterval]) -> str:
    verdict = deciding(verdicts)
    if verdict is None:
        return f"{candidate} beside {original}; no verdict"
    margin = points(verdict.margin, verdict.score)
    unit = f"of {verdict.score}"
    if verdict.score == "accuracy":
        unit = "point of accuracy" if margin == "1" else "points of accuracy"
    pair = "" if verdict.label == "recipe" else " (these two models)"
    return _answer(original, candidate, verdict).format(f"{margin} {unit}") + pair


def _answer(original: str, candidate: str, verdict: VerdictInterval) -> str:
    if verdict.outcome == "inferior":
        return f"No: {candidate} is worse than {original} by more than {{}}"
    if verdict.outcome == "inconclusive":
        return f"Undecided: {candidate} may be worse than {original} by more than {{}}"
    if verdict.high < 0:
        return f"Worse, but within the margin: {candidate} is behind {original} by less than {{}}"
    return f"Yes: {candidate} is as good as {original}, to within {{}}"


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
