"""The bootstrap-t of large test sets, by cells, beside resampling one by one: limits and time.

Data sets from ordinary to very uneven ones; both ways with the same number of resamples. An error
is the difference of two limits over its Monte Carlo standard error, which the order statistics'
spacing gives; the root of the mean square of such errors is about 1 where the two agree. Prints
markdown. Run: ``python benchmarks/bootstrap.py`` (10 minutes).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np

from wua_mlflow.verdict import bootstrap

__all__ = ["main"]

Floats = np.ndarray
CONFIDENCE = 0.95
SETS, SIZES = 25, (2_000, 20_000)
"""Data sets of each kind and size whose limits are compared."""
TIMED = (10_000, 50_000, 200_000)
"""Examples, for the times; one data set each."""


def normal(rng: np.random.Generator, n: int) -> Floats:
    return rng.normal(size=n)


def squared_errors(rng: np.random.Generator, n: int) -> Floats:
    """Of a regression: the candidate adds an independent error of its own."""
    error, added = rng.normal(0, 0.3, n), rng.normal(0, 0.15, n)
    return error**2 - (error + added) ** 2


def uneven(spread: float) -> Callable[[np.random.Generator, int], Floats]:
    """Errors whose scale is log-normal over the examples."""
    return lambda rng, n: squared_errors(rng, n) * np.exp(2 * spread * rng.normal(size=n))


KINDS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": normal, "squared errors": squared_errors,
    "squared errors, scales of sd 0.5": uneven(0.5),
    "squared errors, scales of sd 0.8": uneven(0.8),
    "minus a log-normal": lambda rng, n: -rng.lognormal(0, 1, n),
    "t with 3 degrees": lambda rng, n: rng.standard_t(3, n),
    "one in a hundred differs": lambda rng, n: -1.0 * (rng.random(n) < 0.01) * rng.random(n),
}


def sorted_t(values: Floats, resamples: int, seed: int) -> Floats:
    """t of the resamples, ascending."""
    standardized = (values - values.mean()) / values.std(ddof=1)
    return np.sort(bootstrap._resampled_t(standardized, resamples, np.random.default_rng(seed)))


def quantile_and_error(t: Floats, share: float) -> tuple[float, float]:
    """An order statistic and its standard error, from those two binomial deviations around it."""
    place, deviation = share * len(t), math.sqrt(share * (1 - share) * len(t))
    low, high = (t[round(min(max(place + side, 0), len(t) - 1))]
                 for side in (-2 * deviation, 2 * deviation))
    return float(t[round(place)]), float(high - low) / 4


def one_by_one(values: Floats, resamples: int, seed: int) -> Floats:
    """As ``sorted_t``, whatever the number of examples."""
    limit, bootstrap._ONE_BY_ONE = bootstrap._ONE_BY_ONE, len(values)
    try:
        return sorted_t(values, resamples, seed)
    finally:
        bootstrap._ONE_BY_ONE = limit


def agreement(resamples: int) -> None:
    """Print how far the limits are from those of resampling one by one."""
    print("| data | examples | data sets | errors, root of mean square | largest | half width, "
          "by cells ÷ one by one |\n|---|---:|---:|---:|---:|---:|")
    tail = (1 - CONFIDENCE) / 2
    for kind, draw in KINDS.items():
        for n in SIZES:
            errors, widths = [], []
            for number in range(SETS):
                values = draw(np.random.default_rng([n, number]), n)
                ways = sorted_t(values, resamples, 2 * number), one_by_one(
                    values, resamples, 2 * number + 1)
                ends = [[quantile_and_error(t, share) for t in ways] for share in (tail, 1 - tail)]
                errors += [(a - b) / math.hypot(sa, sb) for (a, sa), (b, sb) in ends]
                widths.append((ends[1][0][0] - ends[0][0][0]) / (ends[1][1][0] - ends[0][1][0]))
            print(f"| {kind} | {n:,} | {SETS} | {np.sqrt(np.mean(np.square(errors))):.2f} "
                  f"| {np.max(np.abs(errors)):.1f} | {np.mean(widths):.4f} |", flush=True)


def times(resamples: int) -> None:
    """Print how long both take; one by one at as many examples in every resample."""
    print("\n| examples | by cells, s | one by one ÷ by cells |\n|---:|---:|---:|")
    for n in TIMED:
        values = squared_errors(np.random.default_rng(n), n)
        began = time.perf_counter()
        sorted_t(values, resamples, 0)
        between = time.perf_counter()
        one_by_one(values, max(1, resamples // 10), 0)
        slow = 10 * (time.perf_counter() - between)
        print(f"| {n:,} | {between - began:.2f} | {slow / (between - began):.0f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    resamples = options.resamples
    if options.toy:
        globals().update(SETS=1, SIZES=(1_500,), TIMED=(1_500,))
        resamples = 200
    print(f"{resamples:,} resamples.\n")
    agreement(resamples)
    times(resamples)


if __name__ == "__main__":
    main()
