"""What a search of widths takes, what its verdict says, and what it costs; replayed on the sweep.

Every draw is a whole pipeline with ``seeds: auto``: networks of the original, the search from the
width of ``rank`` on, the screen of new networks, wider ones where they collapse, looks until the
verdict is settled. The networks are drawn, with replacement, from those that ``knee_sweep.py``
trained (20 a width; ``usecase`` 200 of its smallest), a width between two of the sweep's is the
nearest of them. A knee is the smallest width from which on every larger one's isotonic mean test
score is within the margin of the original's; as its networks may be worse by just less than the
margin, the smallest width that can be shown is printed beside it. Run:
``python benchmarks/search.py --draws 200``. Prints markdown.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from knee import isotonic
from knee_sweep import (
    BLIND,
    DATA,
    TASKS,
    Scores,
    Task,
    read_scores,
    recipe_of,
    trained_together,
)
from numpy.typing import NDArray

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline.replicates import Replicate
from wua_mlflow.pipeline.screen import more_collapse
from wua_mlflow.pipeline.seeds import NO_HISTORY, SeedHistory, SharedExamples, recipe_verdict
from wua_mlflow.pipeline.target_widths import wider
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.intervals import collapsed_seeds
from wua_mlflow.verdict.looks import LEAST_CHANCE, planned_looks
from wua_mlflow.widths.recommend import recommend_widths
from wua_mlflow.widths.retrain_search import FinalVerdict, search_widths

__all__ = ["main"]

Floats = NDArray[np.float64]
MARGIN, MOST = 0.02, 20
ORIGINALS = (32, 128)
SHOWN = 0.8
"""A width can be shown where its networks are ``non_inferior`` this often, 20 seeds a side."""
VERDICTS = 50
"""That tell it, for each width."""


@dataclass(frozen=True)
class Replay:
    """One task and one original width, with the networks that were trained of each width."""

    task: Task
    original: int
    scores: dict[int, Scores]

    @cached_property
    def widths(self) -> list[int]:
        """Of the sweep, up to the original's."""
        return sorted(width for width in self.scores if width <= self.original)

    @cached_property
    def means(self) -> dict[int, float]:
        """Mean test score by width, all networks."""
        return {width: float(self.scores[width].test.mean(dtype=np.float64))
                for width in self.widths}

    @cached_property
    def knee(self) -> int:
        """The smallest width within the margin of the original, and every larger one too."""
        level = isotonic(self.widths, np.array([self.means[width] for width in self.widths]))
        return self.widths[int(np.argmax(level >= level[-1] - MARGIN - 1e-12))]

    @cached_property
    def suggestion(self) -> int:
        """What ``rank`` recommends for a trained original."""
        recipe = recipe_of(self.task)
        model, = trained_together(recipe, self.task.path(self.original), [42])
        split = recipe.split
        result = recommend_widths(
            model, (split.validation.inputs, split.validation.targets), method="rank",
            margin=MARGIN, task=split.task, fit_data=split.train.inputs)
        return next(iter(result.widths.values()))

    def collapse_rate(self, width: int) -> float:
        """The share of all networks of a width that collapsed, on test data."""
        return float(collapsed_seeds(self.scores[width].test.astype(float), MARGIN).mean())

    def nearest(self, width: int) -> int:
        """The sweep's width that is nearest in the logarithm."""
        return min(self.widths, key=lambda one: abs(math.log(one / width)))

    def cost(self, width: int) -> float:
        """FLOPs of a network over the original's; layers in a row count as their product."""
        one, whole = self.task.path(width), self.task.path(self.original)
        recipe_inputs = 10  # of ``deep``, the only task of two layers
        if len(one) == 1:
            return width / self.original

        def products(widths: Sequence[int]) -> int:
            return sum(a * b for a, b in zip((recipe_inputs, *widths), (*widths, 4), strict=True))

        return products(one) / products(whole)

    def networks(
        self, rng: np.random.Generator, width: int, count: int
    ) -> tuple[Floats, Floats]:
        """Validation and test scores of networks drawn with replacement, (count, examples)."""
        one = self.scores[self.nearest(width)]
        rows = rng.integers(len(one.seeds), size=count)
        return one.validation[rows].astype(float), one.test[rows].astype(float)


@dataclass(frozen=True)
class Outcome:
    """What one pipeline ended with; ``width`` None where it found no narrower network.

    ``searched``: trainings of the search alone; ``trainings``: of all, ``cost`` in originals'.
    """

    width: int | None
    non_inferior: bool
    told: bool
    searched: int
    trainings: int
    cost: float


def pipeline(replay: Replay, rng: np.random.Generator) -> Outcome:
    """One pipeline: search, screen, verdict."""
    settings = load_settings(None, {"data": replay.task.data, "margin": MARGIN,
                                    "seeds": f"5-{MOST}"})
    validation, test = replay.networks(rng, replay.original, MOST)
    first = settings.first_seeds
    drawn: dict[int, Floats] = {}

    def score(widths: tuple[int, ...], number: int) -> Floats:
        width = replay.nearest(widths[0])
        if width not in drawn:
            drawn[width] = replay.networks(rng, width, 8)[0]
        return drawn[width][number]

    found = search_widths(
        score, [replay.original], [replay.suggestion], baseline=validation[:first],
        margin=MARGIN, final=FinalVerdict(MOST, test.shape[1]), runs=settings.search_runs,
        cost=lambda widths: replay.cost(replay.nearest(widths[0])))
    trainings = found.trainings
    cost = sum(trial.seeds * trial.cost for trial in found.trials[1:])
    widths, screened = found.widths, 0
    while widths != (replay.original,):
        screened += 1
        new_validation, new_test = replay.networks(rng, widths[0], MOST)
        count, passed = _screened(new_validation, validation[:first])
        trainings, cost = trainings + count, cost + count * replay.cost(replay.nearest(widths[0]))
        if passed:
            break
        widths = wider(widths, (replay.original,), found)
    if widths == (replay.original,):
        return Outcome(None, False, True, found.trainings, trainings + first, cost + first)
    history = SeedHistory(screened, 0, MOST)
    for seeds in planned_looks(MOST):
        verdict = verdict_of(test[:seeds], new_test, settings, history)
        assert verdict is not None and verdict.counts is not None
        if verdict.outcome != "inconclusive" or \
                (verdict.counts.chance_to_settle or 0.0) < LEAST_CHANCE:
            break
    told = f"up to {100 * verdict.counts.collapse_high:.0f}% of seeds could" in verdict.sentence
    return Outcome(replay.nearest(widths[0]), verdict.outcome == "non_inferior", told,
                   found.trainings, trainings + seeds, cost + seeds)


def verdict_of(
    original: Floats, slim: Floats, settings: Settings, history: SeedHistory = NO_HISTORY
) -> Verdict | None:
    """The recipe verdict over scores of shape (seeds, examples)."""
    sides = [[Replicate(number, row, 0.0, {}) for number, row in enumerate(side)]
             for side in (original, slim)]
    examples = SharedExamples("multiclass", np.empty(original.shape[1]))
    return recipe_verdict(*sides, examples, settings, history)


def _screened(new: Floats, original: Floats) -> tuple[int, bool]:
    """How many networks the screen trains, and whether it is passed."""
    for count in range(1, len(new) + 1):
        if not more_collapse(new[:count], original, MARGIN)[1]:
            return count, False
    return len(new), True


def smallest_shown(replay: Replay, rng: np.random.Generator) -> int | None:
    """The smallest width that can be shown, and every larger one too; None where none can."""
    settings = load_settings(None, {"data": replay.task.data, "margin": MARGIN, "seeds": MOST})

    def can_be_shown(width: int) -> bool:
        shown = 0
        for _ in range(VERDICTS):
            (_, old), (_, new) = (replay.networks(rng, one, MOST)
                                  for one in (replay.original, width))
            verdict = verdict_of(old, new, settings)
            shown += verdict is not None and verdict.outcome == "non_inferior"
        return shown >= SHOWN * VERDICTS

    smallest = None
    for width in reversed(replay.widths):
        if not can_be_shown(width):
            break
        smallest = width
    return smallest


def row(replay: Replay, draws: int) -> dict[str, float]:
    """Print a row of the table; what the summary needs."""
    rng = np.random.default_rng([replay.original, *map(ord, replay.task.name)])
    outcomes = [pipeline(replay, rng) for _ in range(draws)]
    assert all(outcome.told for outcome in outcomes), "the sentence has its second part"
    taken = [outcome.width or replay.original for outcome in outcomes]
    lost = np.array([replay.means[replay.original] - replay.means[width] for width in taken])
    costs = np.array([replay.cost(width) for width in taken])
    shown = smallest_shown(replay, rng)
    figures = {
        "beyond": float(np.mean(lost > MARGIN)),
        "collapses": float(np.mean([replay.collapse_rate(width) for width in taken])),
        "claims": float(np.mean([outcome.non_inferior for outcome in outcomes])),
        "false": float(np.mean([one.non_inferior and short > MARGIN
                                for one, short in zip(outcomes, lost, strict=True)])),
        "over knee": float(np.log(costs / replay.cost(replay.knee)).mean()),
        "over shown": float(np.log(costs / replay.cost(shown)).mean()) if shown else math.nan,
        "knee is shown": float(shown == replay.knee),
        "trainings": float(np.mean([outcome.trainings for outcome in outcomes])),
        "cost": float(np.mean([outcome.cost for outcome in outcomes])),
        "least searched": float(np.quantile([outcome.searched for outcome in outcomes], 0.05)),
        "most searched": float(np.quantile([outcome.searched for outcome in outcomes], 0.95))}
    common = ", ".join(f"{width} ({100 * times / draws:.0f}%)"
                       for width, times in Counter(taken).most_common(3))
    print(f"| {replay.task.name} | {replay.original} | {replay.knee} | {shown or '–'} "
          f"| {replay.suggestion} "
          f"| {common} | {100 * lost.mean():+.1f} | {100 * figures['beyond']:.1f}% "
          f"| {100 * figures['collapses']:.1f}% | {100 * figures['claims']:.0f}% "
          f"| {100 * figures['false']:.1f}% | {math.exp(figures['over knee']):.2f} "
          f"| {math.exp(figures['over shown']) if shown else math.nan:.2f} "
          f"| {figures['trainings']:.1f} "
          f"| {figures['cost']:.1f} |", flush=True)
    return figures


HEAD = ("task", "original", "knee", "shown from", "rank", "widths taken most", "shortfall, points",
        "beyond the margin", "collapse", "non_inferior", "and beyond", "FLOPs ÷ knee's",
        "÷ shown's", "trainings", "in originals")


def toy() -> dict[int, Scores]:
    """A few made-up networks, to see that it runs."""
    rng = np.random.default_rng(0)

    def networks(width: int) -> Scores:
        right = 0.95 - 0.4 / width
        return Scores(np.arange(4), *((rng.random((4, size)) < right).astype(np.float32)
                                      for size in (60, 150)))

    return {width: networks(width) for width in (1, 4, 16, 32)}


def main() -> None:
    """Print the table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200, help="per row")
    parser.add_argument("--task", action="append", choices=[*TASKS, *BLIND], help="these alone")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sweep's files")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = 2 if options.toy else options.draws
    names = options.task or [*TASKS, *BLIND]
    tasks = {name: (TASKS | BLIND)[name] for name in names}
    originals = ORIGINALS
    if options.toy:
        tasks, originals = {"wine": replace(TASKS["wine"], epochs=1)}, (32,)
    print(f"{draws:,} draws a row.\n\n| {' | '.join(HEAD)} |\n"
          f"|---|---:|---:|---:|---:|---|{'---:|' * (len(HEAD) - 6)}")
    found = [row(Replay(task, original, scores), draws) for name, task in tasks.items()
             if (scores := toy() if options.toy else read_scores(name, options.data))
             for original in originals if original in scores]
    told = () if options.toy else (
        collapses(name, read_scores(name, options.data)) for name in tasks)
    print("\n" + "\n".join(filter(None, told)))
    print(f"\nMeans of all rows: {_mean(found, 'trainings'):.1f} trainings, "
          f"{_mean(found, 'cost'):.1f} in units of the original's. Geometric means: FLOPs over the "
          f"knee's {math.exp(_mean(found, 'over knee')):.2f}, over the smallest width's that can "
          f"be shown, where one can, {math.exp(_mean(found, 'over shown')):.2f}.")
    print(f"Trainings of a search alone, from the 5th to the 95th of a hundred, mean of all rows: "
          f"{_mean(found, 'least searched'):.0f} to {_mean(found, 'most searched'):.0f}.")
    shown = [one for one in found if one["knee is shown"]]
    if shown:
        print(f"Where the knee itself can be shown ({len(shown)} of {len(found)} rows): FLOPs over "
              f"the knee's {math.exp(_mean(shown, 'over knee')):.2f}.")


def collapses(name: str, scores: dict[int, Scores]) -> str:
    """How many networks of each width collapsed, on test data; nothing where none did."""
    lost = {width: collapsed_seeds(one.test.astype(float), MARGIN)
            for width, one in scores.items()}
    seen = ", ".join(f"{each.sum()} of {len(each)} at {width}"
                     for width, each in sorted(lost.items()) if each.any())
    return f"- Collapsed networks of {name}, by width: {seen}." if seen else ""


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    return float(np.nanmean([row[name] for row in rows]))


if __name__ == "__main__":
    main()
