"""How often verdicts by scores that are no mean of examples are false; what the guards cost.

Two classes, three in ten positive, and normal scores of both models, so that every true value is
known by quadrature; the candidate's separation is such that its true score is exactly the margin
below the original's (false: "non_inferior" all the same; 2.5% is nominal), or the same (power).
Run: ``python benchmarks/scores.py --trials 1000``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from wua_mlflow.verdict.bootstrap import inflated_bootstrap_t
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.guards import limits
from wua_mlflow.verdict.intervals import score_range, zero_event_limit
from wua_mlflow.verdict.predictions import checked_predictions
from wua_mlflow.verdict.recipe import recipe_interval
from wua_mlflow.verdict.scores import by_group

__all__ = ["main"]

SHARE = 0.3
"""Of positive examples."""
SEPARATION = 1.0
"""Of the original: half the distance of the classes' means."""
COMMON, OWN, BY_SEED, RESIDUAL, GROUP = 0.8, 0.4, 0.05, 0.4, 0.5
"""Standard deviations: of examples for both models, for each alone, of the seeds' separations, of
seeds and examples, and of groups (for both models)."""
GROUP_SIZE = 5
MARGINS = {50: 0.15, 114: 0.10, 540: 0.05}
"""Test examples to margin; of scores where less is better twice as much, as a share."""
SEEDS = (1, 5)
RESAMPLES = 999

LABELS = ("f1", "f1_macro", "mcc", "balanced_accuracy", "accuracy")
SCORES = ("f1", "f1_macro", "mcc", "balanced_accuracy", "roc_auc", "average_precision", "log_loss",
          "rmse", "accuracy in groups")

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(21)
GRID = np.linspace(-9.0, 9.0, 4001)


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    score: str
    examples: int
    seeds: int

    @property
    def margin(self) -> float:
        return MARGINS[self.examples] * (2 if self.score in ("log_loss", "rmse") else 1)

    @property
    def spread(self) -> float:
        """Standard deviation of a model's scores within a class."""
        parts = [COMMON, OWN, RESIDUAL * (self.seeds > 1), GROUP * self.score.endswith("groups")]
        return math.sqrt(sum(part**2 for part in parts))


def true_value(score: str, separation: float, spread: float, by_seed: float) -> float:
    """A score's expectation over seeds, of infinitely many examples."""
    seeds = separation + by_seed * NODES
    return float(WEIGHTS @ [of_normals(score, mean, spread) for mean in seeds] / WEIGHTS.sum())


def of_normals(score: str, mean: float, spread: float) -> float:
    """A score where the classes' scores are normal around ±mean, and positive ones are guessed
    above 0."""
    hit, alarm = norm.cdf(mean / spread), norm.cdf(-mean / spread)
    tp, fp = SHARE * hit, (1 - SHARE) * alarm
    fn, tn = SHARE - tp, 1 - SHARE - fp
    if score.startswith("accuracy"):
        return tp + tn
    if score == "balanced_accuracy":
        return (hit + 1 - alarm) / 2
    if score in ("f1", "f1_macro"):
        positive, negative = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
        return positive if score == "f1" else (positive + negative) / 2
    if score == "mcc":
        return (tp * tn - fp * fn) / math.sqrt(SHARE * (1 - SHARE) * (tp + fp) * (tn + fn))
    if score == "roc_auc":
        return float(norm.cdf(math.sqrt(2) * mean / spread))
    return by_quadrature(score, mean, spread)


def by_quadrature(score: str, mean: float, spread: float) -> float:
    """Average precision, or log-loss, over a grid of standardised scores."""
    width, density = GRID[1] - GRID[0], norm.pdf(GRID)
    z = mean + spread * GRID
    if score == "log_loss":
        of_positive, of_negative = probability(z), probability(-mean + spread * GRID)
        return float(-width * density @ (SHARE * np.log(of_positive)
                                         + (1 - SHARE) * np.log1p(-of_negative)))
    hits = SHARE * norm.sf(GRID)
    return float(width * density @ (hits / (hits + (1 - SHARE) * norm.sf(z + mean, scale=spread))))


def probability(z: np.ndarray) -> np.ndarray:
    """Of the positive class: right for the original of one seed."""
    slope = 2 * SEPARATION / (COMMON**2 + OWN**2)
    return np.asarray(1 / (1 + np.exp(-slope * z - math.log(SHARE / (1 - SHARE)))))


@cache
def separation(cell: Cell, loss: float) -> float:
    """Of a candidate whose true score is ``loss`` worse."""
    by_seed = BY_SEED * (cell.seeds > 1)
    if cell.score == "rmse" or not loss:
        return SEPARATION
    original = true_value(cell.score, SEPARATION, cell.spread, by_seed)
    goal = original * (1 + loss) if cell.score == "log_loss" else original - loss
    return float(brentq(lambda mean: true_value(cell.score, mean, cell.spread, by_seed) - goal,
                        0.02, SEPARATION))


Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Targets, predictions of the original and of the candidate, groups."""


def draw(cell: Cell, loss: float, rng: np.random.Generator) -> Sample:
    """One test set."""
    n, seeds = cell.examples, cell.seeds
    shape, recipe = (seeds, n), cell.seeds > 1
    groups = None
    common = rng.normal(0, COMMON, n)
    if cell.score.endswith("groups"):
        groups = rng.integers(n // GROUP_SIZE, size=n)
        common += rng.normal(0, GROUP, n // GROUP_SIZE)[groups]
    noise = [common + rng.normal(0, OWN, n) + recipe * rng.normal(0, RESIDUAL, shape)
             for _ in range(2)]
    if cell.score == "rmse":
        y = rng.normal(0, 2, n)
        scales = [1 + recipe * rng.normal(0, BY_SEED, (seeds, 1)) for _ in range(2)]
        return y, y + scales[0] * noise[0], y + (1 + loss) * scales[1] * noise[1], None
    y = (rng.random(n) < SHARE).astype(int)
    means = [SEPARATION, separation(cell, loss)]
    z = [noise[side] + (2 * y - 1) * (means[side] + recipe * rng.normal(0, BY_SEED, (seeds, 1)))
         for side in range(2)]
    if cell.score.startswith(LABELS):
        return y, (z[0] > 0).astype(int), (z[1] > 0).astype(int), groups
    return y, probability(z[0]), probability(z[1]), groups


Interval = Callable[[Cell, Sample, int], tuple[float, float]]


def interval(cell: Cell, sample: Sample, seed: int) -> tuple[float, float]:
    """The interval that ``compare`` gives, with fewer resamples."""
    y, baseline, candidate, groups = sample
    pair = checked_predictions(baseline, candidate, y, cell.score.removesuffix(" in groups"))
    old, new = pair.scores(cell.margin)
    moved = pair.moved
    if groups is not None:
        old, new = by_group(old, groups), by_group(new, groups)
        moved = np.bincount(np.unique(groups, return_inverse=True)[1], weights=moved) > 0
    if cell.seeds > 1:
        found = recipe_interval(old, new, margin=pair.scaled(cell.margin), confidence=0.95,
                                moved=moved)
        return pair.unscaled(found.low), pair.unscaled(found.high)
    differences = (new - old)[0]
    low, high = inflated_bootstrap_t(differences, confidence=0.95, seed=seed, resamples=RESAMPLES)
    reach = score_range(old, new, moved)[1] * zero_event_limit(differences.size, confidence=0.95)
    mean = float(differences.mean())
    return pair.unscaled(min(low, mean - reach)), pair.unscaled(max(high, mean + reach))


def rate(cell: Cell, loss: float, *, trials: int, method: Interval = interval) -> float:
    """Share of trials whose interval is above −margin; test sets of one class are drawn anew."""
    rng = np.random.default_rng([cell.examples, cell.seeds, SCORES.index(cell.score),
                                 round(1e6 * loss)])
    claims, done = 0, 0
    while done < trials:
        sample = draw(cell, loss, rng)
        if np.unique(sample[0]).size < 2:
            continue
        claims += method(cell, sample, done)[0] > -cell.margin
        done += 1
    return claims / trials


GUARDED = (("accuracy", 0.3, 0.05), ("accuracy", 0.1, 0.05), ("accuracy", 0.068, 0.02),
           ("balanced_accuracy", 0.1, 0.05), ("f1", 0.1, 0.05), ("mcc", 0.1, 0.05),
           ("roc_auc", 0.1, 0.05), ("average_precision", 0.1, 0.05))
"""Score, share of positive examples, margin."""
GUARDED_EXAMPLES = (114, 540, 2_000)


def guards_cost(
    score: str, share: float, margin: float, examples: int, *, trials: int
) -> dict[str, float]:
    """How often guards refuse what the interval alone calls "non_inferior".

    Of identical copies, of another model that is truly as good, and of the former with the rule
    that the candidate be shown above a constant answer.
    """
    rng = np.random.default_rng([examples, round(1000 * share), round(1000 * margin)])
    claims, refused, done = np.zeros(3), np.zeros(3), 0
    while done < trials:
        y = (rng.random(examples) < share).astype(int)
        if np.unique(y).size < 2:
            continue
        done += 1
        center = math.log(share / (1 - share)) / (2 * SEPARATION / (COMMON**2 + OWN**2))
        common = rng.normal(0, COMMON, examples) + (2 * y - 1) * SEPARATION + center
        z = [common + rng.normal(0, OWN, examples) for _ in range(2)]
        sides = [(side > 0).astype(int) for side in z] if score in LABELS else \
            [probability(side) for side in z]
        for place, candidate in enumerate((sides[0], sides[1], sides[0])):
            verdict = compare(sides[0], candidate, targets=y, score=score, margin=margin)
            alone = verdict.low > -margin
            claims[place] += alone
            refused[place] += alone and (
                verdict.outcome != "non_inferior" if place < 2
                else not shown_above_constant(candidate, y, score))
    names = ("identical", "as good", "identical, asked of the candidate")
    return dict(zip(names, refused / np.maximum(claims, 1), strict=True)) | {
        "claims of identical": claims[0] / trials}


def shown_above_constant(predictions: np.ndarray, y: np.ndarray, score: str) -> bool:
    """Whether predictions are above a constant answer by the interval."""
    pair = checked_predictions(predictions, predictions, y, score)
    return limits(pair.examples(pair.constant), pair.examples(pair.candidate),
                  confidence=0.95)[0] > 0


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000,
                        help="per row and rate; a quarter for guards")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    print("| score | seeds | examples | margin | false non_inferior | power at 0 |")
    print("|---|---|---|---|---|---|")
    for score in SCORES:
        for seeds in SEEDS:
            for examples in MARGINS:
                cell = Cell(score, examples, seeds)
                false, power = (rate(cell, loss, trials=trials) for loss in (cell.margin, 0.0))
                print(f"| {score} | {seeds} | {examples} | {cell.margin:g} | {100 * false:.1f}% | "
                      f"{100 * power:.0f}% |", flush=True)
    print("\nOf what the interval alone calls non-inferior, refused by the guards:\n")
    print("| score | positive | margin | examples | identical copies called so | refused of these "
          "| of other models as good | of copies, if the candidate were asked |")
    print("|---|---|---|---|---|---|---|---|")
    for score, share, margin in GUARDED:
        for examples in GUARDED_EXAMPLES:
            cost = guards_cost(score, share, margin, examples, trials=max(2, trials // 4))
            print(f"| {score} | {share:.1%} | {margin:g} | {examples:,} | "
                  f"{100 * cost['claims of identical']:.0f}% | {100 * cost['identical']:.1f}% | "
                  f"{100 * cost['as good']:.1f}% | "
                  f"{100 * cost['identical, asked of the candidate']:.1f}% |", flush=True)


if __name__ == "__main__":
    main()
