"""Does the importance of a unit foretell what the loss loses without it? On test data, 5 seeds.

Networks of 64 hidden units trained to convergence, as in ``knee_sweep.py``; importance on training
data. Spearman's correlation with the exact change, the split-half reliability of that change, and
the area of the ablation curve (0: as a random order, 1: as the greedy one).
Run: ``python benchmarks/fidelity.py``. Prints markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from knee_sweep import TASKS, Task, recipe_of

from wua_mlflow.data.tasks import loss_for
from wua_mlflow.pipeline.replicates import train_one
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.widths.fidelity import Fidelity, fidelity

__all__ = ["main"]

CRITERIA = ("spanning", "taylor", "magnitude", "output", "wanda", "random")
HIDDEN = 64
SEEDS = tuple(range(42, 47))
TOY = {"HIDDEN": 8, "SEEDS": (42, 43), "TASKS": {"wine": replace(TASKS["wine"], epochs=1)}}
"""What ``--toy`` makes of these."""


def measured(task: Task, seed: int) -> Fidelity:
    """Of one network."""
    recipe = recipe_of(task)
    split = recipe.split
    trained = train_one(recipe, (HIDDEN,), task.epochs, seed=seed)
    loss = loss_for(split.task, trained.kind)
    train, test = ((part.inputs, part.targets) for part in (split.train, split.test))
    structure = unit_groups(trained.model, split.train.inputs[:4])
    importances = {name: unit_importance(trained.model, structure, train, loss, criterion=name,
                                         seed=seed) for name in CRITERIA}
    return fidelity(trained.model, test, structure, importances, task=split.task, loss=loss,
                    seed=seed)


def lines() -> Iterator[str]:
    """The table's rows."""
    for task in TASKS.values():
        found = [measured(task, seed) for seed in SEEDS]
        reliability = _shown([one.reliability for one in found])
        for name in CRITERIA:
            yield (f"| {task.data} | {name} | {_shown([one.spearman[name] for one in found])} "
                   f"| {reliability} | {_shown([one.area[name] for one in found])} |")


def _shown(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    if parser.parse_args().toy:
        globals().update(TOY)
    torch.set_num_threads(1)
    print("| task | importance | rank correlation | reliability | area |\n|---|---|---:|---:|---:|")
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
