"""Our artifact verdict beside a peer's, ``illate-parity``: false "as good" at −margin, power at 0.

The peer's check is a paired percentile bootstrap of the accuracy, 10,000 resamples; where it is not
installed that is written out here. Both verdicts depend on the counts of examples that only one
model gets right, so rates are sums over these counts, not simulations. Prints markdown.
Run: ``python benchmarks/peer_parity.py`` (1 minute).
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from scipy.stats import multinomial

from wua_mlflow.verdict.compare import compare

__all__ = ["main"]

MARGINS = {30: 0.15, 50: 0.10, 114: 0.05, 540: 0.02}
"""Test examples to margin: about what such a test set can show."""
GAINED = {"only loses": 0.0, "gains 1.5%, loses as many + the loss": 0.015}
"""Share of the examples that only the candidate gets right."""
RESAMPLES = 10_000
LEAST_CHANCE = 1e-6
"""Counts less likely than this are left out."""


def percentile_bootstrap(baseline: np.ndarray, candidate: np.ndarray, margin: float) -> bool:
    """Whether the lower limit of a paired percentile bootstrap is not below −margin."""
    differences = candidate.astype(float) - baseline
    rng, n = np.random.default_rng(2), len(differences)
    means = [differences[rng.integers(0, n, (100, n))].mean(axis=1)
             for _ in range(max(1, RESAMPLES // 100))]
    return bool(np.quantile(np.concatenate(means), 0.025) >= -margin)


def peers_check(baseline: np.ndarray, candidate: np.ndarray, margin: float) -> bool:
    """Whether ``illate-parity`` says PASS; labels are 1 where a model is right."""
    from illate_parity.bootstrap import fast_paired_accuracy
    from illate_parity.parity import verdict

    found = fast_paired_accuracy(np.ones(len(baseline)), baseline, candidate, n_boot=RESAMPLES,
                                 seed=2)
    return bool(verdict(found["low"], found["high"], margin) == "PASS")


def ours(baseline: np.ndarray, candidate: np.ndarray, margin: float) -> bool:
    """Whether ``compare`` says ``non_inferior``."""
    return compare(baseline, candidate, margin=margin).outcome == "non_inferior"


def counts(n: int, gained: float, loss: float) -> Iterator[tuple[int, int, float]]:
    """How many only the candidate, and only the baseline, gets right, and how likely that is."""
    lost = gained + loss
    chances = multinomial(n, [gained, lost, 1 - gained - lost])
    for g in range(n + 1 if gained else 1):
        for count in range(n + 1 - g if lost else 1):
            chance = float(chances.pmf([g, count, n - g - count]))
            if chance > LEAST_CHANCE:
                yield g, count, chance


def rate(
    claims: Callable[[int, int, int, float], bool], n: int, gained: float, loss: float
) -> float:
    """How likely it is that the candidate is called as good."""
    return sum(chance for g, lost, chance in counts(n, gained, loss)
               if claims(n, g, lost, MARGINS[n]))


def by_counts(
    check: Callable[[np.ndarray, np.ndarray, float], bool]
) -> Callable[[int, int, int, float], bool]:
    """A check of scores as one of counts, each computed once."""

    @cache
    def claims(n: int, gained: int, lost: int, margin: float) -> bool:
        baseline, candidate = np.ones(n), np.ones(n)
        baseline[:gained] = 0
        candidate[gained:gained + lost] = 0
        return check(baseline, candidate, margin)

    return claims


def main() -> None:
    """Print the table."""
    global RESAMPLES
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    if parser.parse_args().toy:
        RESAMPLES = 100
        del MARGINS[114], MARGINS[540]
    installed = importlib.util.find_spec("illate_parity") is not None
    name = "illate-parity" if installed else "paired percentile bootstrap"
    checks = [by_counts(peers_check if installed else percentile_bootstrap), by_counts(ours)]
    print(f"| data | examples | margin | false: {name} | ours | power: {name} | ours |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for data, gained in GAINED.items():
        for n, margin in MARGINS.items():
            cells = [f"{100 * rate(check, n, gained, loss):.1f}%"
                     for loss in (margin, 0.0) for check in checks]
            print(f"| {data} | {n} | {margin:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
