"""What was tried against verdicts that claim too much; markdown tables of false rate and power.

Very small test sets (``widened`` is what ``compare`` does).
Run: ``python benchmarks/remedies.py --trials 2000``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping

import numpy as np
from calibration import EFFECTS, MARGINS, Pair, rare_losses, squared_errors

from wua_mlflow.verdict import intervals
from wua_mlflow.verdict.bootstrap import bootstrap_t_interval

__all__ = ["main"]

CONFIDENCE = 0.95

Halves = Mapping[str, float]
"""Distance from the mean to the lower limit, by remedy."""
Draw = Callable[[np.random.Generator, float], Pair]


def crossed_halves(old: np.ndarray, new: np.ndarray) -> Halves:
    """For recipes, scores of shapes (S_B, n) and (S_A, n)."""
    parts = intervals.crossed(old, new)
    error = math.sqrt(parts.variance)
    plain = intervals.t_quantile(CONFIDENCE, parts.freedom) * error
    freedom = max(1, min(parts.freedom, math.floor(parts.carried_by) - 1))
    columns = 2 / parts.carried_by * parts.example_means_variance / parts.examples
    found = {
        "t alone": plain,
        "widened": parts.half_width(CONFIDENCE),
        "t with at most k − 1 degrees": intervals.t_quantile(CONFIDENCE, freedom) * error,
        "t, C · (1 + 2/k)": plain * math.sqrt(1 + columns / error**2) if error else 0.0,
    }
    _, unseen, _ = intervals.score_range(old, new)
    reach = unseen * intervals.zero_event_limit(parts.examples, confidence=CONFIDENCE)
    return {name: max(half, reach) for name, half in found.items()}


def artifact_halves(old: np.ndarray, new: np.ndarray) -> Halves:
    """For two saved models, scores of shape (1, n)."""
    values = (new - old)[0]
    n, mean = values.size, values.mean()
    error = values.std(ddof=1) / math.sqrt(n)
    low, _ = bootstrap_t_interval(values, confidence=CONFIDENCE, seed=n, resamples=1_000)
    carried = intervals.effective_examples(values)
    few = intervals.t_quantile(CONFIDENCE, max(1, math.floor(carried) - 1)) * error
    student = intervals.t_quantile(CONFIDENCE, n - 1) * error
    return {
        "bootstrap-t alone": mean - low,
        "widened": math.sqrt(intervals.variance_inflation(carried)) * max(mean - low, student),
        "the farther of it and t(n − 1)": max(mean - low, student),
        "the farther of it and t with k − 1 degrees": max(mean - low, few),
    }


def rates(
    draw: Draw, halves: Callable[[np.ndarray, np.ndarray], Halves], margin: float, trials: int,
) -> dict[str, tuple[float, float]]:
    """By remedy, how often non-inferiority is claimed at a true loss of the margin, and of 0."""
    shares: list[dict[str, float]] = []
    for loss in (margin, 0.0):
        rng = np.random.default_rng([round(1e6 * loss), trials])
        counts: dict[str, float] = {}
        for _ in range(trials):
            old, new = (scores.astype(float) for scores in draw(rng, loss))
            delta = new.mean() - old.mean()
            for name, half in halves(old, new).items():
                claimed = delta - half > -margin
                counts[name] = counts.get(name, 0) + claimed / trials
        shares.append(counts)
    return {name: (shares[0][name], shares[1][name]) for name in shares[0]}


def of_recipes(data: str, seeds: int, n: int) -> Draw:
    """Scores of a recipe's kind of data."""
    return lambda rng, loss: EFFECTS[data](rng, loss, (seeds, seeds), n)


def of_scores(noise: Callable[[np.random.Generator, int], np.ndarray], n: int) -> Draw:
    """Two saved models' scores; the baseline's are 0."""
    return lambda rng, loss: (np.zeros((1, n)), noise(rng, n)[None] - loss)


def show(title: str, cases: Mapping[str, tuple[float, Draw]],
         halves: Callable[[np.ndarray, np.ndarray], Halves], trials: int) -> None:
    """Print a table: a row a remedy, in each cell the false rate and the power."""
    found = {name: rates(draw, halves, margin, trials) for name, (margin, draw) in cases.items()}
    print(f"| {title} | {' | '.join(found)} |")
    print("|---" * (1 + len(found)) + "|")
    for remedy in next(iter(found.values())):
        cells = [f"{100 * false:.1f}% / {100 * power:.0f}%"
                 for false, power in (each[remedy] for each in found.values())]
        print(f"| {remedy} | {' | '.join(cells)} |")
    print(flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_000, help="per cell and rate")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    trials = 2 if options.toy else options.trials
    if trials < 1:
        parser.error(f"trials: expected at least 1, but got {trials}")
    show("two saved models", {
        f"{noise.__name__.replace('_', ' ')}, n = {n}": (MARGINS[n], of_scores(noise, n))
        for noise in (squared_errors, rare_losses) for n in (30, 114)
    }, artifact_halves, trials)
    show("recipe", {
        f"{data}, {seeds} seeds, n = {n}": (MARGINS[n], of_recipes(data, seeds, n))
        for data, seeds, n in (
            ("right or wrong", 5, 30), ("right or wrong", 20, 30), ("right or wrong", 20, 114),
            ("some examples always lost", 5, 30), ("some examples always lost", 20, 30))
    }, crossed_halves, trials)


if __name__ == "__main__":
    main()
