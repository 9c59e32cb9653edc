"""How often the range of numbers that would settle a verdict holds the right number.

Pilots from a known truth; of those that end inconclusive: how often what ``compare`` names holds
the number that the truth requires for a chance of 80%. Prints markdown.
Run: ``python benchmarks/settle.py`` (3 minutes).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wua_mlflow.verdict import sample_size
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.intervals import Crossed, SideVariance, normal_quantile
from wua_mlflow.verdict.sample_size import RequiredSampleSize

__all__ = ["main"]

Pair = tuple[np.ndarray, np.ndarray]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Truth:
    """A kind of pilot: its name, margin, draws of both sides' scores, and what would settle it."""

    name: str
    margin: float
    draw: Callable[[np.random.Generator], Pair]
    required: RequiredSampleSize


def flips(examples: int, gained: float, lost: float, margin: float) -> Truth:
    """Right or wrong: shares that only one of the two gets right."""

    def draw(rng: np.random.Generator) -> Pair:
        u = rng.random(examples)
        return u >= gained, (u < gained) | (u >= gained + lost)

    needed = sample_size.required_tango(gained, lost, margin=margin, confidence=CONFIDENCE)
    return Truth(f"Tango, {examples} examples, gains {100 * gained:g}%, loses {100 * lost:g}%",
                 margin, draw, RequiredSampleSize(examples=needed))


def amounts(examples: int, delta: float, margin: float, spread: float = 0.3) -> Truth:
    """Normal differences of scores, of which the spread is carried by n ÷ 3."""

    def draw(rng: np.random.Generator) -> Pair:
        old = rng.normal(size=examples)
        return old, old + delta + spread * rng.normal(size=examples)

    def power_quantile(n: int) -> float:
        return (delta + margin) * math.sqrt(n) / spread \
            - normal_quantile(CONFIDENCE) * math.sqrt(1 + 9 / n)

    enough = normal_quantile(2 * sample_size.POWER - 1)
    needed = next(n for n in range(2, 10**6) if power_quantile(n) >= enough)
    return Truth(f"bootstrap-t, {examples} examples, difference {delta:g}", margin, draw,
                 RequiredSampleSize(examples=needed))


def recipes(seeds: int, examples: int, by_seed: float, margin: float) -> Truth:
    """Normal effects of seeds, examples and both; the true difference is 0."""
    by_example, residual = 0.05, 0.1

    def draw(rng: np.random.Generator) -> Pair:
        common = rng.normal(0, 0.3, examples)
        old, new = (common + rng.normal(0, by_seed, (seeds, 1))
                    + rng.normal(0, residual, (seeds, examples)) for _ in range(2))
        return old, new + rng.normal(0, by_example, examples)

    side = SideVariance(seeds, by_seed**2 + residual**2 / examples, residual**2)
    parts = Crossed(0.0, side, side, examples, by_example**2 + 2 * residual**2 / seeds,
                    examples / 3)
    return Truth(f"recipes, {seeds} seeds, {examples} examples, seeds' sd {by_seed:g}", margin,
                 draw, sample_size.required_crossed(parts, margin, confidence=CONFIDENCE))


TRUTHS = (
    flips(300, 0.05, 0.05, 0.025), flips(300, 0.02, 0.03, 0.03), flips(540, 0.0, 0.012, 0.025),
    flips(114, 0.05, 0.05, 0.05), amounts(114, 0.0, 0.06), amounts(540, -0.02, 0.05),
    recipes(5, 540, 0.02, 0.02), recipes(8, 540, 0.02, 0.02), recipes(20, 300, 0.03, 0.02),
    recipes(5, 100, 0.005, 0.015),
)


def holds(truth: tuple[int, ...] | None, low: tuple[int, ...], high: tuple[int, ...] | None,
          now: tuple[int, ...]) -> bool:
    """Whether the range that is named holds the right number; None is none at all."""
    if truth is None:
        return high is None
    return (low <= now or low <= truth) and (high is None or truth <= high)


def row(truth: Truth, trials: int) -> str:
    """Cells of the table."""
    rng, held, opened, pilots, lows, seen = np.random.default_rng(7), 0, 0, 0, [], []
    for _ in range(trials):
        verdict = compare(*truth.draw(rng), margin=truth.margin, confidence=CONFIDENCE)
        if verdict.outcome != "inconclusive" or verdict.needed is None:
            continue
        needed = verdict.needed
        pilots += 1
        held += holds(truth.required.of(needed.kind), needed.low, needed.high, needed.now)
        opened += needed.high is None
        if needed.kind != "both":
            lows.append(needed.low[0])
            seen.append(needed.as_seen[0] if needed.as_seen else math.inf)
    right = " or ".join(f"{number:,} {kind}" for kind, number in (
        ("seeds", truth.required.seeds), ("examples", truth.required.examples)) if number)
    points = [f"{point:,.0f}" for point in np.quantile(seen, (0.1, 0.9), method="lower")] \
        if seen else ["", ""]
    middle = f"{np.median(lows):,.0f}" if lows else ""
    share = max(pilots, 1)
    return (f"| {truth.name} | {truth.margin:g} | {right} | {100 * pilots / trials:.0f}% "
            f"| {points[0]} to {points[1]} | {middle} | {100 * opened / share:.0f}% "
            f"| {100 * held / share:.0f}% |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500, help="pilots a row")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 3 if options.toy else options.trials
    print(f"{trials:,} pilots a row.\n")
    print("| pilot | margin | right | inconclusive | one number: 10 to 90% | lower end, median "
          "| no upper end | range holds it |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for truth in TRUTHS:
        print(row(truth, trials), flush=True)


if __name__ == "__main__":
    main()
