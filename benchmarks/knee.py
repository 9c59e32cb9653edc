"""Which method recommends the width that a network really needs? Judged by a sweep.

The knee: the smallest width from which every larger width's isotonic mean test accuracy is at
least the largest's − margin; same budget for all; interval: bootstrap over seeds. A method is
judged by what its width costs: the shortfall of accuracy of networks trained anew at it, below the
largest's (from the sweep, between its widths linear in log width), and its FLOPs over the knee's
(those of one hidden layer are proportional to its width). A search is judged by ``search.py``.
Run: ``python benchmarks/knee.py``; the sweep is ``knee_sweep.py``'s. Prints markdown.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from knee_sweep import BLIND, FILE, TASKS, recipe_of, trained_together
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import nn

from wua_mlflow.data.tasks import loss_for, output_kind
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.widths.recommend import recommend_widths

__all__ = ["Knee", "Sweep", "knee_of", "main", "read_sweep", "shortfall"]

Floats = NDArray[np.float64]
MARGIN = 0.02
ORIGINALS = (32, 128)
SEEDS = tuple(range(42, 47))
METHODS = ("effective", "rank", "projection", "ablation")
ONE_LAYER = {name: task for name, task in (TASKS | BLIND).items() if task.layers == 1}
TOY = {"ORIGINALS": (8,), "SEEDS": (42, 43), "METHODS": ("rank",),
       "ONE_LAYER": {"wine": replace(TASKS["wine"], epochs=1)}}
"""What ``--toy`` makes of these."""


@dataclass(frozen=True)
class Sweep:
    """Accuracies by width; ``test`` has the shape (seeds, widths)."""

    widths: tuple[int, ...]
    test: Floats

    @property
    def isotonic(self) -> Floats:
        """The mean over seeds, made monotone in the width."""
        return isotonic(self.widths, self.test.mean(0))


@dataclass(frozen=True)
class Knee:
    """The knee, and a 95% interval."""

    width: int
    low: int
    high: int


def read_sweep(task: str) -> Sweep:
    """What ``knee_sweep.py`` wrote of a task."""
    with FILE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task]
    widths = sorted({int(row["width"]) for row in rows})
    seeds = sorted({int(row["seed"]) for row in rows})
    test = np.full((len(seeds), len(widths)), np.nan)
    for row in rows:
        test[seeds.index(int(row["seed"])), widths.index(int(row["width"]))] = float(row["test"])
    return Sweep(tuple(widths), test)


def isotonic(widths: Sequence[int], means: Floats) -> Floats:
    """The closest monotone sequence, in squares."""
    found: Floats = IsotonicRegression().fit_transform(np.log(widths), means)
    return found


def knee_of(sweep: Sweep, margin: float, *, resamples: int = 2000, seed: int = 0) -> Knee:
    """The knee, and the interval from resampled seeds (the same ones for all widths).

    >>> knee_of(Sweep((1, 2, 4), np.array([[0.5, 0.89, 0.9], [0.5, 0.89, 0.9]])), 0.02).width
    2
    """
    rng = np.random.default_rng(seed)
    found = [_knee(sweep.widths, sweep.test[rng.integers(len(sweep.test), size=len(sweep.test))]
                   .mean(0), margin) for _ in range(resamples)]
    low, high = np.quantile(found, (0.025, 0.975), method="inverted_cdf")
    return Knee(_knee(sweep.widths, sweep.test.mean(0), margin), int(low), int(high))


def _knee(widths: Sequence[int], means: Floats, margin: float) -> int:
    level = isotonic(widths, means)
    return widths[int(np.argmax(level >= level[-1] - margin - 1e-12))]


def shortfall(sweep: Sweep, width: int) -> float:
    """The largest width's isotonic mean minus this one's.

    >>> shortfall(Sweep((1, 4), np.array([[0.5, 0.9], [0.5, 0.9]])), 2)
    0.2
    """
    level = sweep.isotonic
    return round(float(level[-1] - np.interp(np.log(width), np.log(sweep.widths), level)), 12)


def _recommended(recipe: Recipe, model: nn.Module, method: str, seed: int) -> int:
    split = recipe.split
    part = split.train if method == "effective" else split.validation
    kind = output_kind(model, recipe.example(model, 2), split.task)
    result = recommend_widths(
        model, (part.inputs, part.targets), method=method, margin=MARGIN, task=split.task,
        loss=loss_for(split.task, kind), seed=seed,
        fit_data=split.train.inputs if method in ("rank", "projection") else None)
    (width,) = result.widths.values()
    return width


def lines(methods: Sequence[str]) -> Iterator[tuple[str, str, float, float]]:
    """A line of the table, the method, its shortfall and its FLOPs over the knee's."""
    for task in ONE_LAYER.values():
        sweep = read_sweep(task.name)
        knee = knee_of(sweep, MARGIN)
        recipe = recipe_of(task)
        for original in ORIGINALS:
            models = trained_together(recipe, (original,), SEEDS)
            for method in methods:
                widths = [_recommended(recipe, model, method, seed)
                          for model, seed in zip(models, SEEDS, strict=True)]
                lost = float(np.mean([shortfall(sweep, width) for width in widths]))
                excess = float(np.mean(widths)) / knee.width
                spread = f" ({min(widths)} to {max(widths)})" if len(set(widths)) > 1 else ""
                yield (f"| {task.name} | {original} | {knee.width} ({knee.low} to {knee.high}) "
                       f"| {method} | {np.median(widths):g}{spread} | {100 * lost:+.1f} "
                       f"| {excess:.1f} |", method, lost, excess)


def main() -> None:
    """Print the table, and what the default is chosen by."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        globals().update(TOY)
    methods = options.methods or METHODS
    torch.set_num_threads(1)
    print("| task | original | knee (95%) | method | width | shortfall, points | FLOPs ÷ knee's |")
    print("|---|---:|---:|---|---:|---:|---:|")
    found = []
    for line, *figures in lines(methods):
        print(line, flush=True)
        found.append(figures)
    print("\n| method | mean shortfall | worst | within the margin | FLOPs ÷ knee's: mean "
          "| geometric mean |")
    print("|---|---:|---:|---:|---:|---:|")
    for method in methods:
        lost = np.array([one[1] for one in found if one[0] == method])
        excess = np.array([one[2] for one in found if one[0] == method])
        print(f"| {method} | {100 * lost.mean():.1f} | {100 * lost.max():.1f} "
              f"| {np.sum(lost <= MARGIN)} of {len(lost)} | {excess.mean():.1f} "
              f"| {np.exp(np.log(excess).mean()):.1f} |")


if __name__ == "__main__":
    main()
