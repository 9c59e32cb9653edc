"""What looking at a recipe verdict while seeds are added does to errors, power and cost.

Both sides get 5, 8, 12, 16 and 20 seeds until the verdict is settled or hardly can be; beside it
the verdict at 20 seeds alone. ``--given``: only the candidate gets them, against one given network.
``--ahead``: all 20 of the candidate are there, as after a search, and the baseline alone gets them:
10, 16, 20, 20, 20 are compared with its 5, 8, 12, 16, 20.
Variances are estimated at every look, as in ``compare``. The noise is such that 20 seeds have the
power named; "false" has the true difference at −margin. Run:
``python benchmarks/looks.py --trials 1000``. Prints markdown.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.looks import LEAST_CHANCE, SEEDS_AT_LOOKS

__all__ = ["main"]

MARGIN, EXAMPLES, MOST = 0.02, 540, SEEDS_AT_LOOKS[-1]
SHARES = (0.0, 0.3, 0.7)
"""Of the variance at the last look: how much is the test examples'."""
CELLS = {"false": (3.0, -MARGIN), "80%": (2.80, 0.0), "90%": (3.24, 0.0), "98%": (4.01, 0.0)}
"""Margin over the standard error at the last look, and the true difference."""


def scores_of(
    rng: np.random.Generator, share: float, drift: float, delta: float, *, given: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both sides, shape (seeds, examples); one of the baseline where it is ``given``."""
    variance, residual = (MARGIN / drift) ** 2, 0.05
    by_seed = math.sqrt((1 - share) * variance * MOST / (1 if given else 2))
    by_example = math.sqrt(share * variance * EXAMPLES)
    common = rng.normal(0.5, 0.2, EXAMPLES)
    base, cand = (common + rng.normal(0, by_seed, (MOST, 1))
                  + rng.normal(0, residual, (MOST, EXAMPLES)) for _ in range(2))
    if given:
        base = common[None, :]
    return base, cand + delta + rng.normal(0, by_example, EXAMPLES)


def outcome_by_looks(
    base: np.ndarray, cand: np.ndarray, *, ahead: bool = False
) -> tuple[bool, int]:
    """Whether non-inferiority is claimed, and with how many of the baseline's seeds it ended."""
    pairs = [(min(MOST, 2 * seeds), seeds) for seeds in SEEDS_AT_LOOKS]
    for seeds in SEEDS_AT_LOOKS:
        if ahead:
            verdict = compare(base[:seeds], cand, margin=MARGIN, planned_seeds=pairs,
                              compared_seeds=min(MOST, 2 * seeds))
        else:
            verdict = compare(base[:seeds], cand[:seeds], margin=MARGIN,
                              planned_seeds=SEEDS_AT_LOOKS)
        if verdict.outcome != "inconclusive":
            break
        assert verdict.counts is not None
        if (verdict.counts.chance_to_settle or 0.0) < LEAST_CHANCE:
            break
    return verdict.outcome == "non_inferior", seeds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000, help="per row")
    parser.add_argument("--given", action="store_true", help="against one given network")
    parser.add_argument("--ahead", action="store_true", help="all of the candidate's are there")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    print(f"{trials:,} trials a row.\n")
    print("| power at 20 seeds | examples' share | non_inferior, 20 seeds | with looks "
          "| seeds: median | mean |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (drift, delta) in CELLS.items():
        for share in SHARES:
            rng = np.random.default_rng([round(100 * drift), round(10 * share)])
            fixed, ended = 0, []
            for _ in range(trials):
                base, cand = scores_of(rng, share, drift, delta, given=options.given)
                fixed += compare(base, cand, margin=MARGIN).outcome == "non_inferior"
                ended.append(outcome_by_looks(base, cand, ahead=options.ahead))
            claims, seeds = np.array(ended).T
            print(f"| {name} | {100 * share:.0f}% | {100 * fixed / trials:.1f}% "
                  f"| {100 * claims.mean():.1f}% | {np.median(seeds):g} | {seeds.mean():.1f} |",
                  flush=True)


if __name__ == "__main__":
    main()
