"""How often a whole pipeline claims "non_inferior" that first chooses a width; a markdown table.

So many widths are tried: 5 networks of each, against 5 of the original, on validation data. The
cheapest that passes is judged on test data, by the networks that chose it (*same seeds*) or by new
ones (*new seeds*, as the pipeline does it). The original's count in both. False: every width loses
the whole margin, so any claim is false; 2.5% is nominal. Power: every width is as good. A network's
seed shifts its scores on validation and on test data alike. Run:
``python benchmarks/pipelines.py --trials 2000``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.looks import LEAST_CHANCE, SEEDS_AT_LOOKS

__all__ = ["main"]

MARGIN, ACCURACY = 0.02, 0.9
EXAMPLES = (540, 540)
"""Of the validation and of the test part."""
WIDTHS = (1, 4, 12)
FIRST, MOST = SEEDS_AT_LOOKS[0], SEEDS_AT_LOOKS[-1]
WAYS = {"5": (FIRST,), "looks to 20": SEEDS_AT_LOOKS}
"""Seeds of the verdict on test data."""

Parts = list[np.ndarray]
"""Scores on the validation and on the test part, each (seeds, examples)."""


@dataclass(frozen=True)
class Design:
    """How scores spread: standard deviations of the effects; on a probit scale, if ``right``.

    ``common``: of an example in every network; ``own``: in all networks of one width; ``seed``: of
    a network on all examples; ``residual``: of a network on one example.
    """

    name: str
    common: float
    own: float
    seed: float
    residual: float
    right: bool = False

    def examples(self, rng: np.random.Generator, spread: float) -> Parts:
        """An effect for each example of both parts."""
        return [rng.normal(0, spread, count) for count in EXAMPLES]

    def networks(
        self, rng: np.random.Generator, effects: Sequence[np.ndarray], seeds: int, loss: float
    ) -> Parts:
        """Scores of so many networks of a width that loses ``loss``."""
        by_seed = rng.normal(0, self.seed, (seeds, 1))
        values = [effect + by_seed + rng.normal(0, self.residual, (seeds, effect.size))
                  for effect in effects]
        if not self.right:
            return [value - loss for value in values]
        whole = math.hypot(self.common, self.own, self.seed, self.residual)
        threshold = -whole * NormalDist().inv_cdf(ACCURACY - loss)
        return [value > threshold for value in values]


DESIGNS = (
    Design("normal effects", 0.3, 0.05, 0.02 / math.sqrt(2), 0.1 / math.sqrt(2)),
    Design("seeds' effects alone", 0.3, 0.0, 0.02 / math.sqrt(2), 0.1 / math.sqrt(2)),
    Design("right or wrong", 1.5, 0.5, 0.2, 0.7, right=True),
)
"""As in ``calibration.py``."""


def is_claimed(baseline: np.ndarray, candidate: np.ndarray, looks: Sequence[int]) -> bool:
    """Whether non-inferiority is claimed at a look, as the pipeline takes them."""
    planned = looks if len(looks) > 1 else None
    for seeds in looks:
        verdict = compare(baseline[:seeds], candidate[:seeds], margin=MARGIN, planned_seeds=planned)
        counts = verdict.counts
        if verdict.outcome != "inconclusive" or counts is None or \
                (counts.chance_to_settle or 0.0) < LEAST_CHANCE:
            break
    return verdict.outcome == "non_inferior"


def trial(rng: np.random.Generator, design: Design, loss: float) -> tuple[int, np.ndarray]:
    """The widths tried before one passed, and what was claimed: by way, same or new seeds.

    Where none of them passes, nothing is claimed.
    """
    common = design.examples(rng, design.common)
    own = design.examples(rng, design.own)  # the original differs from every width
    original = design.networks(rng, np.add(common, own), MOST, 0.0)
    for tried in range(max(WIDTHS)):
        effects = np.add(common, design.examples(rng, design.own))
        chose = design.networks(rng, effects, FIRST, loss)
        if compare(original[0][:FIRST], chose[0], margin=MARGIN).outcome != "non_inferior":
            continue
        new = design.networks(rng, effects, MOST, loss)[1]
        same = np.vstack([chose[1], new[:MOST - FIRST]])
        return tried, np.array([[is_claimed(original[1], slim, looks) for slim in (same, new)]
                                for looks in WAYS.values()])
    return max(WIDTHS), np.zeros((len(WAYS), 2), dtype=bool)


def rates(design: Design, loss: float, trials: int) -> Callable[[int], np.ndarray]:
    """By number of widths the shares of claims, shape (ways, 2): same seeds, new seeds."""
    rng = np.random.default_rng([DESIGNS.index(design), round(1e6 * loss)])
    tried, claims = zip(*(trial(rng, design, loss) for _ in range(trials)), strict=True)
    passed, found = np.array(tried), np.array(claims)
    return lambda widths: (found & (passed < widths)[:, None, None]).mean(axis=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000, help="per row and rate")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 3 if options.toy else options.trials
    error = 100 * math.sqrt(0.025 * 0.975 / trials)
    print(f"{trials:,} trials; a false rate of 2.5% has a standard error of {error:.2f} points.\n")
    print("| data | seeds | widths | false, same seeds | false, new seeds | power, same | new |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for design in DESIGNS:
        false, power = (rates(design, loss, trials) for loss in (MARGIN, 0.0))
        for way, seeds in enumerate(WAYS):
            for widths in WIDTHS:
                cells = [f"{100 * rate:.1f}%" for rate in false(widths)[way]]
                cells += [f"{100 * rate:.0f}%" for rate in power(widths)[way]]
                print(f"| {design.name} | {seeds} | {widths} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
