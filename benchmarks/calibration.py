"""How often a verdict claims "non_inferior" falsely, and how often rightly; a markdown table.

False: the true difference is exactly −margin; 2.5% is nominal (two-sided 95% intervals).
Power: the true difference is 0. Run: ``python benchmarks/calibration.py --trials 2000``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wua_mlflow.verdict.bootstrap import inflated_bootstrap_t
from wua_mlflow.verdict.compare import compare

__all__ = ["MARGINS", "main"]

MARGINS = {30: 0.15, 114: 0.05, 540: 0.02, 10_000: 0.01}
"""Test examples to margin: about what such a test set can show."""

SEEDS = ((5, 5), (10, 10), (20, 20), (5, 10), (10, 5), (10, 20), (20, 10))
"""Of the baseline and of the candidate."""
RECIPE_EXAMPLES = (30, 114, 540)
RESAMPLES = {30: 2_000, 114: 2_000, 540: 1_000, 10_000: 199}
"""Of the bootstrap; fewer than ``compare`` takes, for speed."""

COLLAPSE = 0.2
"""What a collapse costs."""

ACCURACY = 0.9
"""Of the baseline, where scores are right or wrong."""

Pair = tuple[np.ndarray, np.ndarray]
"""Scores of the baseline, shape (S_B, n), and of the candidate, shape (S_A, n)."""

Scores = Callable[[np.random.Generator, float, tuple[int, int], int], Pair]
"""(generator, true loss, (S_B, S_A), n) to scores; seeds are drawn for each side by itself."""

Claims = Callable[[np.random.Generator, float, int, float], bool]
"""(generator, true loss, n, margin) to whether one simulated verdict is "non_inferior"."""


SELDOM = {30: 0.03, 114: 0.01, 540: 0.004, 10_000: 0.0002}
"""The share of examples that hold all of the loss, by the number of examples: one or two."""


@dataclass(frozen=True)
class Design:
    """One row of the table for each n: what is simulated, and how."""

    method: str
    data: str
    seeds: tuple[int, int]
    claims: Claims
    examples: tuple[int, ...] = tuple(MARGINS)


def flips(gained: float) -> Scores:
    """Each example by itself: a share ``gained`` only the candidate gets right."""

    def scores(rng: np.random.Generator, loss: float, _: tuple[int, int], n: int) -> Pair:
        u = rng.random((1, n))
        lost = (u >= gained) & (u < 2 * gained + loss)
        return u >= gained, ~lost

    return scores


def claims_of(scores: Scores, seeds: tuple[int, int] = (1, 1)) -> Claims:
    """What ``compare`` says of such scores."""

    def claims(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
        old, new = scores(rng, loss, seeds, n)
        return compare(old, new, margin=margin).outcome == "non_inferior"

    return claims


def squared_errors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences of R² with mean 0: the candidate adds an independent error of its own."""
    error, added = rng.normal(0, 0.3, n), rng.normal(0, 0.15, n)
    return error**2 - (error + added) ** 2 + 0.15**2


def rare_losses(rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences with mean 0 and a heavy lower tail (minus a lognormal)."""
    return 0.05 * (math.exp(0.5) - rng.lognormal(0, 1, n))


def seldom_lost(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
    """All of the loss lies in a few examples, of which a test set may draw none; small noise."""
    share = SELDOM[n]
    d = rng.normal(0, 0.003, n) - (rng.random(n) < share) * loss / share
    low, _ = inflated_bootstrap_t(d, confidence=0.95, seed=int(rng.integers(2**31)),
                              resamples=RESAMPLES[n])
    return low > -margin


def bootstrap(
    noise: Callable[[np.random.Generator, int], np.ndarray],
) -> Claims:
    """Real scores of two saved models."""

    def claims(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
        seed = int(rng.integers(2**31))
        low, _ = inflated_bootstrap_t(
            noise(rng, n) - loss, confidence=0.95, seed=seed, resamples=RESAMPLES[n]
        )
        return low > -margin

    return claims


def normal_effects(
    rng: np.random.Generator, loss: float, seeds: tuple[int, int], n: int
) -> Pair:
    """Normal effects of seed, example and both; of a difference 0.02, 0.05 and 0.1."""
    old, new = noise_of_seeds(rng, seeds, n)
    by_seed = 0.02 / math.sqrt(2)
    return (old + rng.normal(0, by_seed, (seeds[0], 1)),
            new + rng.normal(0, by_seed, (seeds[1], 1)) - loss)


def noise_of_seeds(rng: np.random.Generator, seeds: tuple[int, int], n: int) -> Pair:
    """Effects of examples, in common and of the candidate's alone, and of seeds' examples."""
    common, own = rng.normal(0, 0.3, n), rng.normal(0, 0.05, n)
    residuals = (rng.normal(0, 0.1 / math.sqrt(2), (side, n)) for side in seeds)
    return common + next(residuals), common + own + next(residuals)


def collapses(baseline: float, candidate: float) -> Scores:
    """Such shares of the seeds lose 20 points; ``loss`` is that of the seeds that do not."""

    def scores(rng: np.random.Generator, loss: float, seeds: tuple[int, int], n: int) -> Pair:
        old, new = noise_of_seeds(rng, seeds, n)
        return (old - COLLAPSE * (rng.random((seeds[0], 1)) < baseline),
                new - COLLAPSE * (rng.random((seeds[1], 1)) < candidate) - loss)

    return scores


def right_or_wrong(
    rng: np.random.Generator, loss: float, seeds: tuple[int, int], n: int
) -> Pair:
    """Each seed gets examples right by a probit model; the loss is spread over all examples."""
    right = probit(rng, n)
    return right(ACCURACY, seeds[0]), right(ACCURACY - loss, seeds[1])


def probit(rng: np.random.Generator, n: int) -> Callable[[float, int], np.ndarray]:
    """Draws of which example is right with which seed, at an accuracy; examples in common.

    A single seed stands for a given model, whose seed is no chance: it has no effect.
    """
    common = rng.normal(0, 1.5, n)

    def right(accuracy: float, seeds: int) -> np.ndarray:
        by_seed = 0.2 if seeds > 1 else 0.0
        spread = math.sqrt(1.5**2 + 0.5**2 + by_seed**2 + 0.7**2)
        own = (rng.normal(0, 0.5, n) + rng.normal(0, by_seed, (seeds, 1))
               + rng.normal(0, 0.7, (seeds, n)))
        return np.asarray(common + own + spread * NormalDist().inv_cdf(accuracy) > 0)

    return right


def systematic(share: float) -> Scores:
    """As above, and some examples the candidate gets wrong with every seed, and the baseline 1.5%.

    The candidate's are among the first ``share`` of the examples: a class of the test set.
    """

    def scores(rng: np.random.Generator, loss: float, seeds: tuple[int, int], n: int) -> Pair:
        gained, of_class = 0.015, np.arange(n) < round(share * n)
        u, scale = rng.random(n), n / max(1, of_class.sum())
        always_lost = of_class & (u < scale * (gained + loss / ACCURACY))
        always_gained = u > 1 - gained
        right = probit(rng, n)
        return (right(ACCURACY, seeds[0]) & ~always_gained,
                right(ACCURACY, seeds[1]) & ~always_lost)

    return scores


EFFECTS: dict[str, Scores] = {
    "normal effects": normal_effects,
    "right or wrong": right_or_wrong,
    "some examples always lost": systematic(1.0),
    "losses in one class only": systematic(0.25),
    "collapses on both sides": collapses(0.05, 0.05),
    "collapses of the candidate": collapses(0.0, 0.05),
    "collapses of the baseline": collapses(0.05, 0.0),
    "many collapses of the baseline": collapses(0.2, 0.0),
}
"""Of recipes; a collapse is one seed in twenty, or many: one in five."""


def designs() -> Iterator[Design]:
    """All designs, in the table's order."""
    one = (1, 1)
    data = "gains 1.5% of examples, loses as many + the loss"
    yield Design("Tango", data, one, claims_of(flips(0.015)))
    yield Design("Tango", "only loses", one, claims_of(flips(0.0)))
    for data in ("some examples always lost", "losses in one class only"):
        yield Design("Tango", data, one, claims_of(EFFECTS[data]))
    yield Design("bootstrap-t", "squared errors", one, bootstrap(squared_errors))
    yield Design("bootstrap-t", "a heavy tail of losses", one, bootstrap(rare_losses))
    yield Design("bootstrap-t", "all of the loss in few examples", one, seldom_lost)
    for data, scores in EFFECTS.items():
        for seeds in SEEDS:
            yield Design("crossed, t", data, seeds, claims_of(scores, seeds), RECIPE_EXAMPLES)


def rate(design: Design, loss: float, n: int, *, trials: int) -> float:
    """Share of trials in which non-inferiority is claimed."""
    rng = np.random.default_rng([n, round(1e6 * loss), *dict.fromkeys(design.seeds)])
    return sum(design.claims(rng, loss, n, MARGINS[n]) for _ in range(trials)) / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000, help="per row and rate")
    parser.add_argument("--recipes", action="store_true", help="only the rows of recipes")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    if trials < 1:
        parser.error(f"trials: expected at least 1, but got {trials}")
    error = 100 * math.sqrt(0.025 * 0.975 / trials)
    if options.toy:
        RESAMPLES.update(dict.fromkeys(RESAMPLES, 99))
    print(f"{trials:,} trials; a false rate of 2.5% has a standard error of {error:.2f} points.\n")
    print("| method | data | seeds | examples | margin | false non_inferior | power at 0 |")
    print("|---|---|---|---|---|---|---|")
    for design in designs():
        if options.recipes and max(design.seeds) == 1:
            continue
        for n in design.examples:
            margin, seeds = MARGINS[n], "/".join(map(str, dict.fromkeys(design.seeds)))
            false, power = (rate(design, loss, n, trials=trials) for loss in (margin, 0.0))
            print(
                f"| {design.method} | {design.data} | {seeds} | {n:,} | {margin:g} "
                f"| {100 * false:.1f}% | {100 * power:.0f}% |",
                flush=True,
            )


if __name__ == "__main__":
    main()
