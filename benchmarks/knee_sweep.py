"""How wide the hidden layer really has to be: accuracy by width, over seeds, on four tasks.

The truth that ``knee.py`` judges the methods by. Each network has one hidden layer and is trained
to convergence, all widths of a task with the same budget. It goes on from where it stopped; a core
takes about 20 minutes. Run: ``python benchmarks/knee_sweep.py``; writes ``data/knee.csv``.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline.recipe import Recipe, load_recipe, train_one

__all__ = ["FILE", "SEEDS", "TASKS", "WIDTHS", "Task", "main", "recipe_of"]

FILE = Path(__file__).parent / "data" / "knee.csv"
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 11, 14, 18, 24, 32, 45, 64, 91, 128)
SEEDS = tuple(range(42, 62))


@dataclass(frozen=True)
class Task:
    """A bundled data set and the budget at which every width of it has converged."""

    data: str
    epochs: int
    lr: float
    batch_size: int | str = 64


TASKS = {task.data: task for task in (
    Task("usecase", 1000, 0.01, "full"),
    Task("wine", 300, 0.003),
    Task("breast_cancer", 300, 0.003),
    Task("digits", 200, 0.003),
)}
TOY = {"WIDTHS": (1, 2), "SEEDS": (42, 43), "TASKS": {"wine": Task("wine", 1, 0.003)}}
"""What ``--toy`` makes of these."""


def settings_of(task: Task) -> Settings:
    """What trains a network of the task."""
    return load_settings(None, {"data": task.data, "model": "mlp", "hidden": 1, "lr": task.lr,
                                "optimizer": "adam", "batch_size": task.batch_size,
                                "epochs": task.epochs, "threads": 1, "seed": SEEDS[0],
                                "seeds": len(SEEDS), "slim_epochs": task.epochs})


def recipe_of(task: Task) -> Recipe:
    """The task's data, divided with the first seed for all networks."""
    return load_recipe(settings_of(task))


def main() -> None:
    """Train what the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    if parser.parse_args().toy:
        globals().update(TOY, FILE=Path(tempfile.mkdtemp()) / "knee.csv")
    torch.set_num_threads(1)
    FILE.parent.mkdir(exist_ok=True)
    done = set()
    if FILE.exists():
        with FILE.open(newline="") as file:
            done = {(row["task"], int(row["width"]), int(row["seed"]))
                    for row in csv.DictReader(file)}
    with FILE.open("a", newline="") as file:
        rows = csv.writer(file)
        if not done:
            rows.writerow(["task", "width", "seed", "validation", "test"])
        for task in TASKS.values():
            recipe = recipe_of(task)
            for seed in SEEDS:
                for width in WIDTHS:
                    if (task.data, width, seed) in done:
                        continue
                    one = train_one(recipe, (width,), task.epochs, seed=seed)
                    scores = [recipe.evaluate(one.model, part, one.kind).score
                              for part in (recipe.split.validation, recipe.split.test)]
                    rows.writerow([task.data, width, seed, *(f"{s:.6f}" for s in scores)])
                file.flush()
            print(task.data, flush=True)


if __name__ == "__main__":
    main()
