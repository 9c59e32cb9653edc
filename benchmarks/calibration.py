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

from wua_mlflow.bootstrap import bootstrap_t_interval
from wua_mlflow.verdict import compare

__all__ = ["main"]

MARGINS = {30: 0.15, 114: 0.05, 540: 0.02}
"""Test examples to margin: about what such a test set can show."""

SEEDS = (5, 20)
RESAMPLES = 2_000

Claims = Callable[[np.random.Generator, float, int, float], bool]
"""(generator, true loss, n, margin) to whether one simulated verdict is "non_inferior"."""


@dataclass(frozen=True)
class Design:
    """One row of the table for each n: what is simulated, and how."""

    method: str
    data: str
    seeds: int
    claims: Claims


def tango(gained: float) -> Claims:
    """0/1 scores of two saved models; ``gained``: share that only the candidate gets right."""

    def claims(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
        u = rng.random(n)
        base = u >= gained
        cand = (u < gained) | (u >= 2 * gained + loss)
        return compare(base, cand, margin=margin).outcome == "non_inferior"

    return claims


def squared_errors(rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences of R² with mean 0: the candidate adds an independent error of its own."""
    error, added = rng.normal(0, 0.3, n), rng.normal(0, 0.15, n)
    return error**2 - (error + added) ** 2 + 0.15**2


def rare_losses(rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences with mean 0 and a heavy lower tail (minus a lognormal)."""
    return 0.05 * (math.exp(0.5) - rng.lognormal(0, 1, n))


def bootstrap(
    noise: Callable[[np.random.Generator, int], np.ndarray],
) -> Claims:
    """Real scores of two saved models; fewer resamples than ``compare`` takes, for speed."""

    def claims(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
        seed = int(rng.integers(2**31))
        low, _ = bootstrap_t_interval(
            noise(rng, n) - loss, confidence=0.95, seed=seed, resamples=RESAMPLES
        )
        return low > -margin

    return claims


def normal_effects(rng: np.random.Generator, loss: float, shape: tuple[int, int]) -> np.ndarray:
    """Differences with normal effects of seed, example and both."""
    seeds, n = shape
    return (
        rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, 0.05, n) + rng.normal(0, 0.1, shape) - loss
    )


def collapses_on_both_sides(
    rng: np.random.Generator, loss: float, shape: tuple[int, int]
) -> np.ndarray:
    """The same, with one seed in twenty of either recipe losing 20 points instead."""
    seeds, n = shape
    lost, gained = rng.random((2, seeds, 1)) < 0.05
    effect = 0.2 * (1.0 * gained - lost)
    return effect + rng.normal(0, 0.05, n) + rng.normal(0, 0.1, shape) - loss


def collapses_of_the_candidate(
    rng: np.random.Generator, loss: float, shape: tuple[int, int]
) -> np.ndarray:
    """The same, but only the candidate's; its other seeds are 1 point better for it."""
    seeds, n = shape
    effect = 0.2 * (0.05 - (rng.random((seeds, 1)) < 0.05))
    return effect + rng.normal(0, 0.05, n) + rng.normal(0, 0.1, shape) - loss


def right_or_wrong(rng: np.random.Generator, loss: float, shape: tuple[int, int]) -> np.ndarray:
    """Differences of 0/1 scores, 90% of the baseline's right, from a probit model."""
    seeds, n = shape
    spread = math.sqrt(1.5**2 + 0.5**2 + 0.2**2 + 0.7**2)
    common = rng.normal(0, 1.5, n)

    def right(accuracy: float) -> np.ndarray:
        own = rng.normal(0, 0.5, n) + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 0.7, shape)
        return common + own + spread * NormalDist().inv_cdf(accuracy) > 0

    base = right(0.9)
    differences: np.ndarray = right(0.9 - loss) * 1.0 - base
    return differences


CROSSED = (normal_effects, right_or_wrong, collapses_on_both_sides, collapses_of_the_candidate)


def crossed(
    differences: Callable[[np.random.Generator, float, tuple[int, int]], np.ndarray], seeds: int
) -> Claims:
    """Seeds crossed with examples."""

    def claims(rng: np.random.Generator, loss: float, n: int, margin: float) -> bool:
        d = differences(rng, loss, (seeds, n))
        return compare(np.zeros_like(d), d, margin=margin).outcome == "non_inferior"

    return claims


def designs() -> Iterator[Design]:
    """All designs, in the table's order."""
    yield Design("Tango", "gains 1.5% of examples, loses as many + the loss", 1, tango(0.015))
    yield Design("Tango", "only loses", 1, tango(0.0))
    yield Design("bootstrap-t", "squared errors", 1, bootstrap(squared_errors))
    yield Design("bootstrap-t", "rare large losses", 1, bootstrap(rare_losses))
    for data in CROSSED:
        for seeds in SEEDS:
            yield Design("crossed, t", data.__name__.replace("_", " "), seeds, crossed(data, seeds))


def rate(design: Design, loss: float, n: int, *, trials: int) -> float:
    """Share of trials in which non-inferiority is claimed."""
    rng = np.random.default_rng([n, round(1e6 * loss), design.seeds])
    return sum(design.claims(rng, loss, n, MARGINS[n]) for _ in range(trials)) / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000, help="per row and rate")
    trials = parser.parse_args().trials
    if trials < 1:
        parser.error(f"trials: expected at least 1, but got {trials}")
    error = 100 * math.sqrt(0.025 * 0.975 / trials)
    print(f"{trials:,} trials; a false rate of 2.5% has a standard error of {error:.2f} points.\n")
    print("| method | data | seeds | examples | margin | false non_inferior | power at 0 |")
    print("|---|---|---|---|---|---|---|")
    for design in designs():
        for n, margin in MARGINS.items():
            false, power = (rate(design, loss, n, trials=trials) for loss in (margin, 0.0))
            print(
                f"| {design.method} | {design.data} | {design.seeds} | {n} | {margin:g} "
                f"| {100 * false:.1f}% | {100 * power:.0f}% |",
                flush=True,
            )


if __name__ == "__main__":
    main()
