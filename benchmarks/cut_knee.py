"""Which method recommends the widths that a trained network can be cut to? Judged by a sweep.

As ``knee.py``, for cutting: the trained network loses its least important units and is fine-tuned.
The knee: the smallest FLOPs, the same share of every group kept, from which every larger cut's
isotonic mean test accuracy is at least that of the whole network − margin; the whole one is
fine-tuned as long. A method is judged by the accuracy that networks lose which are cut to its
widths, and by their FLOPs over the knee's.
Run: ``python benchmarks/cut_knee.py``; prints markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pruning import TASKS as CUT_TASKS
from pruning import Task
from sklearn.isotonic import IsotonicRegression

from wua_mlflow.config import load_settings
from wua_mlflow.data.tasks import loss_for
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.networks import (
    NetworkFactory,
    PruningPlan,
    cached,
    from_scratch,
    pruned_and_tuned,
)
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import Trained
from wua_mlflow.pipeline.target_widths import SearchSetup, search
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.widths.recommend import recommend_widths

__all__ = ["Swept", "knee_of", "main"]

MARGIN = 0.02
SEEDS = 5
FINE_TUNING = 20
SHARES = tuple(2.0 ** -(step / 3) for step in range(16))
METHODS = ("effective", "rank", "projection", "ablation")
Widths = Mapping[str, int]


TASKS = (Task("usecase, MLP 32-16", "usecase", "mlp", "32,16", 200), *CUT_TASKS)
TOY = {"SEEDS": 2, "FINE_TUNING": 1, "SHARES": (1.0, 0.5),
       "TASKS": (Task("usecase, MLP 8-4", "usecase", "mlp", "8,4", 1),)}
"""What ``--toy`` makes of these."""


@dataclass(frozen=True)
class Swept:
    """FLOPs of a forward, from the smallest up, and mean accuracies on test data, shape (cuts,)."""

    flops: NDArray[np.float64]
    means: NDArray[np.float64]


def knee_of(swept: Swept, margin: float) -> float:
    """The FLOPs of the smallest cut from which all larger ones are within the margin.

    >>> knee_of(Swept(np.array([1.0, 2, 4]), np.array([0.5, 0.89, 0.9])), 0.02)
    2.0
    """
    level = IsotonicRegression().fit_transform(np.log(swept.flops), swept.means)
    return float(swept.flops[int(np.argmax(level >= level[-1] - margin - 1e-12))])


class Bench:
    """A task's data, its trained networks, and what becomes of them when they are cut."""

    def __init__(self, task: Task, importance: str) -> None:
        self.importance = importance
        self.recipe: Recipe = load_recipe(load_settings(None, {
            "data": task.data, "model": task.model, "hidden": task.hidden, "threads": 1,
            "epochs": task.epochs, "batch_size": 64, "lr": 0.003, "optimizer": "adam",
            "seeds": SEEDS, "margin": MARGIN}))
        hidden = self.recipe.settings.hidden
        self.whole = cached(from_scratch(self.recipe, hidden, task.epochs))
        self.networks = [self.whole(number, self.recipe.settings.seed + number)
                         for number in range(SEEDS)]
        groups = unit_groups(self.networks[0].model, self.recipe.split.train.inputs[:4]).groups
        self.units = {group.name: group.units for group in groups}

    def maker(self, recipe: Recipe, widths: Sequence[int]) -> NetworkFactory:
        keep = dict(zip(self.units, widths, strict=True))
        return pruned_and_tuned(recipe, self.whole, self.whole, PruningPlan(
            keep, FINE_TUNING, importance=self.importance))

    def cut(self, number: int, widths: Widths) -> Trained:
        return self.maker(self.recipe, tuple(widths[name] for name in self.units))(
            number, self.recipe.settings.seed + number)

    def accuracy(self, trained: Trained) -> float:
        return self.recipe.evaluate(trained.model, self.recipe.split.test, trained.kind).score

    def validation_scores(self) -> NDArray[np.float64]:
        return np.stack([self.recipe.evaluate(each.model, self.recipe.split.validation,
                                              each.kind).scores for each in self.networks])

    def flops(self, widths: Sequence[int]) -> float:
        model = self.recipe.build(tuple(widths))
        return float(count_flops(model, self.recipe.split.train.inputs[:1],
                                 backward=False).forward_flops)

    def sweep(self) -> Swept:
        found = {}
        for share in SHARES:
            widths = {name: max(1, round(share * units)) for name, units in self.units.items()}
            flops = self.flops(tuple(widths.values()))
            if flops not in found:
                found[flops] = np.mean([self.accuracy(self.cut(number, widths))
                                        for number in range(SEEDS)])
        order = sorted(found)
        return Swept(np.array(order), np.array([found[one] for one in order]))

    def recommended(self, method: str) -> list[Widths]:
        """A network's widths; ``search`` finds those of all of them at once."""
        if method == "search":
            suggested = self._recommended("rank", 0)
            retraining = SearchSetup(self.recipe, self.maker, self.flops, self.validation_scores)
            found = search(self.recipe.settings, retraining, tuple(self.units.values()),
                           tuple(suggested.values())).widths
            return [dict(zip(self.units, found, strict=True))] * SEEDS
        return [self._recommended(method, number) for number in range(SEEDS)]

    def _recommended(self, method: str, number: int) -> Widths:
        split, trained = self.recipe.split, self.networks[number]
        part = split.train if method == "effective" else split.validation
        found = recommend_widths(
            trained.model, (part.inputs, part.targets), method=method, margin=MARGIN,
            task=split.task, loss=loss_for(split.task, trained.kind),
            fit_data=split.train.inputs if method in ("rank", "projection") else None)
        return {name: found.widths.get(name, units) for name, units in self.units.items()}


def lines(
    tasks: Sequence[int], methods: Sequence[str], importance: str
) -> Iterator[tuple[str, str, float, float]]:
    """A line of the table, the method, its shortfall and its FLOPs over the knee's."""
    for task in (TASKS[number] for number in tasks):
        bench = Bench(task, importance)
        swept = bench.sweep()
        knee, whole = knee_of(swept, MARGIN), swept.flops[-1]
        yield f"| {task.name} | {100 * knee / whole:.1f}% | the knee | | | |", "", 0, 1
        for method in methods:
            found = bench.recommended(method)
            lost = swept.means[-1] - np.mean([bench.accuracy(bench.cut(number, widths))
                                              for number, widths in enumerate(found)])
            flops = np.mean([bench.flops(tuple(widths.values())) for widths in found])
            middle = "-".join(f"{np.median([widths[name] for widths in found]):g}"
                              for name in bench.units)
            yield (f"| {task.name} | {100 * flops / whole:.1f}% | {method} | {middle} "
                   f"| {100 * lost:+.1f} | {flops / knee:.1f} |", method, lost, flops / knee)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", type=int, default=range(len(TASKS)))
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "search"])
    parser.add_argument("--importance", default="spanning", help="by which units are cut")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        globals().update(TOY)
        options.tasks, options.methods = [0], ["rank", "search"]
    torch.set_num_threads(1)
    print("| task | FLOPs | method | widths, median | shortfall, points | FLOPs ÷ knee's |")
    print("|---|---:|---|---:|---:|---:|")
    found = []
    for line, *figures in lines(options.tasks, options.methods, options.importance):
        print(line, flush=True)
        found.append(figures)
    print("\n| method | mean shortfall | worst | within the margin "
          "| FLOPs ÷ knee's: geometric mean |\n|---|---:|---:|---:|---:|")
    for method in options.methods:
        lost, excess = (np.array([one[place] for one in found if one[0] == method])
                        for place in (1, 2))
        print(f"| {method} | {100 * lost.mean():.1f} | {100 * lost.max():.1f} "
              f"| {np.sum(lost <= MARGIN)} of {len(lost)} | {np.exp(np.log(excess).mean()):.1f} |")


if __name__ == "__main__":
    main()
