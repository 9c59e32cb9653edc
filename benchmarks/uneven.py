"""R² where errors are uneven or targets heavy-tailed: false "non_inferior" at −margin, power at 0.

The baseline's R² is about 0.91; the candidate's errors are correlated with the baseline's and, at
−margin, larger by a factor. The scales of the errors are log-normal over the examples. Beside
``compare`` (linearised anew in every resample, widened more where errors are uneven) stands what
was tried. Prints markdown. Run: ``python benchmarks/uneven.py`` (20 minutes).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from wua_mlflow.verdict import intervals
from wua_mlflow.verdict.bootstrap import bootstrap_t_interval, examples_stretch

__all__ = ["main"]

CONFIDENCE = 0.95
MARGINS = {30: 0.15, 50: 0.10, 114: 0.05, 300: 0.03, 540: 0.02}
"""Test examples to margin of R²."""
RECIPES = {30: 0.15, 114: 0.05, 540: 0.02}
SEEDS = (5, 10)
RESAMPLES = 999
"""Of the bootstrap; fewer than ``compare`` takes, for speed."""
ERROR = 0.3
"""Standard deviation of the baseline's errors; that of the targets is 1."""


@dataclass(frozen=True)
class Data:
    """One kind of data: sd of the log of the errors' scales, targets, likeness of the two."""

    name: str
    spread: float = 0.0
    heavy: bool = False
    correlation: float = 0.9

    def targets(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Normal, or t with 4 degrees of freedom; variance 1."""
        return rng.standard_t(4, n) / math.sqrt(2) if self.heavy else rng.normal(size=n)

    def scales(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Of the errors, with mean square ``ERROR``²."""
        return ERROR * np.exp(self.spread * rng.normal(size=n) - self.spread**2)


KINDS = (
    Data("ordinary errors"), Data("log-normal scales, sd 0.5", 0.5),
    Data("log-normal scales, sd 0.8", 0.8), Data("targets t with 4 degrees", heavy=True),
    Data("both, sd 0.5", 0.5, heavy=True),
    Data("sd 0.5, errors less alike", 0.5, correlation=0.5),
    Data("sd 0.8, errors less alike", 0.8, correlation=0.5),
)


def scores_of(targets: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """R² by example."""
    return np.asarray(1 - errors**2 / targets.var())


def two_models(
    data: Data, rng: np.random.Generator, loss: float, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, and the scores of both."""
    targets, scales = data.targets(rng, n), data.scales(rng, n)
    first, other = rng.normal(size=(2, n))
    second = data.correlation * first + math.sqrt(1 - data.correlation**2) * other
    worse = math.sqrt(1 + loss / ERROR**2)
    return targets, scores_of(targets, scales * first), scores_of(targets, worse * scales * second)


def two_recipes(
    data: Data, rng: np.random.Generator, loss: float, n: int, seeds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of so many seeds a side; 70% of an error's variance is common to all networks."""
    targets, scales = data.targets(rng, n), data.scales(rng, n)
    common = math.sqrt(0.7) * rng.normal(size=n)
    sides = []
    for worse in (1.0, math.sqrt(1 + loss / ERROR**2)):
        own = math.sqrt(0.1) * rng.normal(size=n) + math.sqrt(0.2) * rng.normal(size=(seeds, n))
        sides.append(scores_of(targets, worse * scales * (common + own)))
    return targets, sides[0], sides[1]


def artifact_lows(
    targets: np.ndarray, old: np.ndarray, new: np.ndarray, seed: int
) -> dict[str, float]:
    """Lower limits of the difference, by remedy."""
    differences, n = new - old, old.size
    mean = float(differences.mean())
    anew = differences - mean * intervals.excess_spread(targets)
    halves = {}
    for values, given in ((differences, None), (anew, targets)):
        low, _ = bootstrap_t_interval(differences, confidence=CONFIDENCE, seed=seed,
                                      resamples=RESAMPLES, targets=given)
        error = float(values.std(ddof=1)) / math.sqrt(n)
        halves[given is not None] = max(
            mean - low, intervals.t_quantile(CONFIDENCE, n - 1) * error)
    carried = intervals.effective_examples(anew)
    squares = np.stack([1 - old, 1 - new])
    kurtosis = n * float((np.square(squares).sum(1) / np.square(squares.sum(1))).mean())
    few = intervals.t_quantile(CONFIDENCE, max(1.0, carried - 1)) * anew.std(ddof=1) / math.sqrt(n)
    plain = math.sqrt(intervals.variance_inflation(carried))
    gated = math.sqrt(intervals.variance_inflation(
        carried, intervals.unseen_examples(np.stack([old, new]))))
    factors = {
        "before": halves[False] * math.sqrt(intervals.variance_inflation(
            intervals.effective_examples(differences))),
        "linearised anew": halves[True] * plain,
        "as `compare`": halves[True] * gated,
        "k − 1 degrees": max(halves[True], few) * plain,
        "× √(kurtosis ÷ 3)": halves[True] * plain * math.sqrt(max(1.0, kurtosis / 3)),
    }
    return {name: mean - half for name, half in factors.items()}


def recipe_lows(
    targets: np.ndarray, old: np.ndarray, new: np.ndarray, seed: int
) -> dict[str, float]:
    """The same of recipes."""
    before, now = intervals.crossed(old, new), intervals.crossed(old, new, targets=targets)
    linear = intervals.crossed(*(intervals.linearized_r2(side, targets) for side in (old, new)))
    stretched = replace(now, stretch=examples_stretch(
        new.mean(axis=0) - old.mean(axis=0), targets, confidence=CONFIDENCE, seed=seed,
        resamples=RESAMPLES)[0])
    return {name: parts.mean - parts.half_width(CONFIDENCE) for name, parts in (
        ("before", before), ("linearised", linear), ("and widened more", now),
        ("as `compare`", stretched))}


def rates(draw_lows: Iterator[dict[str, float]], margin: float, trials: int) -> dict[str, float]:
    """How often each remedy claims non-inferiority."""
    counts: dict[str, float] = {}
    for _ in range(trials):
        for name, low in next(draw_lows).items():
            counts[name] = counts.get(name, 0.0) + (low > -margin) / trials
    return counts


def artifacts(data: Data, loss: float, n: int) -> Iterator[dict[str, float]]:
    """Lower limits of one data set after the other."""
    rng = np.random.default_rng([n, KINDS.index(data), round(1e6 * loss)])
    while True:
        yield artifact_lows(*two_models(data, rng, loss, n), seed=int(rng.integers(2**31)))


def recipes(data: Data, loss: float, n: int, seeds: int) -> Iterator[dict[str, float]]:
    """The same of recipes."""
    rng = np.random.default_rng([n, KINDS.index(data), round(1e6 * loss), seeds])
    while True:
        yield recipe_lows(*two_recipes(data, rng, loss, n, seeds), seed=int(rng.integers(2**31)))


def show(first: str, false: dict[str, float], power: dict[str, float], *, head: bool) -> None:
    """One row of a table, and its head before it."""
    if head:
        print(f"\n| data | seeds | examples | margin | {' | '.join(false)} |")
        print("|---" * 2 + "|---:" * (2 + len(false)) + "|")
    cells = (f"{100 * false[name]:.1f}% / {100 * power[name]:.0f}%" for name in false)
    print(f"| {first} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000, help="per row and rate")
    parser.add_argument("--recipes", action="store_true", help="only the second table")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    error = 100 * math.sqrt(0.025 * 0.975 / trials)
    print(f"{trials:,} trials; a false rate of 2.5% has a standard error of {error:.2f} points.")
    head = True
    for data in () if options.recipes else KINDS:
        for n, margin in MARGINS.items():
            false, power = (rates(artifacts(data, loss, n), margin, trials)
                            for loss in (margin, 0.0))
            show(f"{data.name} | 1 | {n} | {margin:g}", false, power, head=head)
            head = False
    head = True
    for data in KINDS[:4]:
        for seeds in SEEDS:
            for n, margin in RECIPES.items():
                false, power = (rates(recipes(data, loss, n, seeds), margin, trials)
                                for loss in (margin, 0.0))
                show(f"{data.name} | {seeds} | {n} | {margin:g}", false, power, head=head)
                head = False


if __name__ == "__main__":
    main()
