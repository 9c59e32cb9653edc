"""How wide the hidden layers really have to be: scores by width, over seeds, on ten tasks.

The truth that ``knee.py`` and searches of widths are judged by. Four tasks are bundled, six are
generated (``blind.py``; data, budgets and widths were fixed before any network was trained on
them). A network has one hidden layer (``deep``: w and w ÷ 2 units) and is trained to convergence,
all widths of a task with the same budget. Of every network the score of each validation and test
example is kept: ``data/<task>.npz``, read by ``read_scores``; ``data/knee.csv`` holds the means.
It goes on from where it stopped. Run: ``python benchmarks/knee_sweep.py [--task NAME] [--out
FOLDER]``.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.tasks import loss_for, output_kind
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.rng import Purpose, isolated, seed_all, torch_generator

__all__ = ["BLIND", "DATA", "FILE", "SEEDS", "TASKS", "WIDTHS", "Scores", "Task", "main",
           "read_scores", "recipe_of", "trained_together"]

DATA = Path(__file__).parent / "data"
FILE = DATA / "knee.csv"
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 11, 14, 18, 24, 32, 45, 64, 91, 128)
SEEDS = tuple(range(42, 62))
MORE = {"usecase": ((1, 2, 3, 4), tuple(range(42, 242)))}
"""Widths at which a collapse is rare and costly, and the seeds that show how rare."""


@dataclass(frozen=True)
class Task:
    """A data set and the budget at which every width of it has converged."""

    data: str
    epochs: int
    lr: float
    batch_size: int | str = 64
    layers: int = 1

    @property
    def name(self) -> str:
        """Of the data set, as in the table and in the files' names."""
        return self.data.rpartition(":")[2]

    def path(self, width: int) -> tuple[int, ...]:
        """The hidden widths.

        >>> Task("blind:deep", 1, 0.01, layers=2).path(5)
        (5, 2)
        """
        return tuple(max(1, width // 2**layer) for layer in range(self.layers))


TASKS = {task.name: task for task in (
    Task("usecase", 1000, 0.01, "full"),
    Task("wine", 300, 0.003),
    Task("breast_cancer", 300, 0.003),
    Task("digits", 200, 0.003),
)}
BLIND = {task.name: task for task in (
    Task("blind:spirals", 400, 0.01),
    Task("blind:friedman", 250, 0.01),
    Task("blind:rare", 200, 0.003),
    Task("blind:deep", 200, 0.003, layers=2),
    Task("blind:stripes", 150, 0.003),
    Task("blind:table", 150, 0.003),
)}
ORDER = ("breast_cancer", "wine", "digits", "usecase", *BLIND)
TOY = {"WIDTHS": (1, 2), "SEEDS": (42, 43), "ORDER": ("wine", "friedman", "deep"),
       "TASKS": {"wine": Task("wine", 1, 0.003)}, "MORE": {"wine": ((1,), (42, 43, 44))},
       "BLIND": {name: replace(BLIND[name], epochs=1) for name in ("friedman", "deep")}}
"""What ``--toy`` makes of these."""


@dataclass(frozen=True)
class Scores:
    """The scores of the networks of one width.

    Attributes:
        seeds: shape (seeds,).
        validation: of each example, 0 or 1 (regression: what averages to R²), shape (seeds,
            examples).
        test: the same of the test part.
    """

    seeds: NDArray[np.int64]
    validation: NDArray[np.float32]
    test: NDArray[np.float32]


def read_scores(task: str, folder: Path = DATA) -> dict[int, Scores]:
    """The scores of a task by width; empty where none are kept.

    >>> read_scores("no such task")
    {}
    """
    file = folder / f"{task}.npz"
    if not file.exists():
        return {}
    with np.load(file) as kept:
        sizes = [int(size) for size in kept["examples"]]
        return {int(width): Scores(kept[f"{width}.seeds"], *(
            _unpacked(kept[f"{width}.{part}"], size)
            for part, size in zip(("validation", "test"), sizes, strict=True)))
            for width in kept["widths"]}


def write_scores(task: str, scores: Mapping[int, Scores], folder: Path) -> None:
    """Keep the scores: right or wrong as bits, those of a regression as float16."""
    first = next(iter(scores.values()))
    arrays: dict[str, NDArray[np.generic]] = {
        "widths": np.array(sorted(scores)),
        "examples": np.array([first.validation.shape[1], first.test.shape[1]])}
    for width, one in scores.items():
        arrays |= {f"{width}.seeds": one.seeds, f"{width}.validation": _packed(one.validation),
                   f"{width}.test": _packed(one.test)}
    part = folder / f".{task}.npz"
    np.savez_compressed(part, allow_pickle=False, **arrays)
    part.replace(folder / f"{task}.npz")


def _packed(scores: NDArray[np.float32]) -> NDArray[np.generic]:
    if np.isin(scores, (0, 1)).all():
        return np.packbits(scores.astype(bool), axis=1)
    return scores.astype(np.float16)


def _unpacked(kept: NDArray[np.generic], examples: int) -> NDArray[np.float32]:
    if kept.dtype == np.uint8:
        kept = np.unpackbits(kept, axis=1, count=examples)
    return kept.astype(np.float32)


def write_table(task: str, scores: Mapping[int, Scores], file: Path) -> None:
    """Write the means of the seeds that all widths have; rows of other networks stay."""
    rows = {}
    if file.exists():
        with file.open(newline="") as old:
            rows = {tuple(row[:3]): row for row in list(csv.reader(old))[1:]}
    for width, one in scores.items():
        for seed, *parts in zip(one.seeds, one.validation, one.test, strict=True):
            if int(seed) in SEEDS:
                row = [task, str(width), str(seed),
                       *(f"{part.mean(dtype=np.float64):.6f}" for part in parts)]
                rows[tuple(row[:3])] = row
    with file.open("w", newline="") as new:
        csv.writer(new).writerows([["task", "width", "seed", "validation", "test"], *rows.values()])


def settings_of(task: Task) -> Settings:
    """What trains a network of the task."""
    return load_settings(None, {"data": task.data, "model": "mlp", "hidden": list(task.path(1)),
                                "lr": task.lr, "optimizer": "adam", "batch_size": task.batch_size,
                                "epochs": task.epochs, "threads": 1, "seed": SEEDS[0],
                                "seeds": len(SEEDS), "slim_epochs": task.epochs})


def recipe_of(task: Task) -> Recipe:
    """The task's data, divided with the first seed for all networks."""
    return load_recipe(settings_of(task))


def sweep(
    task: Task, widths: Sequence[int], seeds: Sequence[int], folder: Path
) -> Iterator[tuple[int, int, float]]:
    """Train what the folder lacks; yields the width, the networks trained and their seconds."""
    recipe, scores = recipe_of(task), read_scores(task.name, folder)
    for width in widths:
        kept = scores.get(width)
        lacking = [seed for seed in seeds if kept is None or seed not in kept.seeds]
        if not lacking:
            continue
        began = time.perf_counter()
        new = trained(recipe, task.path(width), lacking)
        scores[width] = new if kept is None else Scores(*(
            np.concatenate(pair) for pair in zip(vars(kept).values(), vars(new).values(),
                                                 strict=True)))
        write_scores(task.name, scores, folder)
        write_table(task.name, scores, folder / FILE.name)
        yield width, len(lacking), time.perf_counter() - began


def trained(recipe: Recipe, widths: tuple[int, ...], seeds: Sequence[int]) -> Scores:
    """The scores of networks of these widths, trained from scratch, one a seed."""
    found = []
    for model in trained_together(recipe, widths, seeds):
        kind = output_kind(model, recipe.example(model, 2), recipe.split.task)
        found.append([recipe.evaluate(model, part, kind).scores.astype(np.float32)
                      for part in (recipe.split.validation, recipe.split.test)])
    validation, test = (np.stack(part) for part in zip(*found, strict=True))
    return Scores(np.array(seeds), validation, test)


def trained_together(
    recipe: Recipe, widths: tuple[int, ...], seeds: Sequence[int]
) -> list[nn.Module]:
    """Networks that ``train_one`` would make one after the other, up to rounding, in one batch.

    Each has its own initial weights and its own order of the samples; Adam acts on each weight for
    itself, so that the sum of their losses trains each as its own loss would.
    """
    settings, train = recipe.settings, recipe.split.train
    networks = []
    for seed in seeds:
        with isolated():
            seed_all(seed)
            networks.append(recipe.build(widths))
    kind = output_kind(networks[0], recipe.example(networks[0], 2), recipe.split.task)
    loss = loss_for(recipe.split.task, kind)
    weights, _ = torch.func.stack_module_state(networks)

    def loss_of_one(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(networks[0], weights, (inputs,)), targets)

    losses = torch.func.vmap(loss_of_one)
    optimizer = torch.optim.Adam(weights.values(), lr=settings.lr)
    orders = [torch_generator(seed, Purpose.LOADER) for seed in seeds]
    size = len(train) if settings.batch_size == "full" else min(settings.batch_size, len(train))
    for _ in range(settings.epochs):
        rows = torch.arange(len(train)).expand(len(seeds), -1) if size == len(train) else \
            torch.stack([torch.randperm(len(train), generator=order) for order in orders])
        for batch in rows.split(size, dim=1):
            optimizer.zero_grad()
            losses(weights, train.inputs[batch], train.targets[batch]).sum().backward()
            optimizer.step()
    for number, network in enumerate(networks):
        network.load_state_dict({name: stacked[number].detach()
                                 for name, stacked in weights.items()})
    return [network.eval() for network in networks]


def main() -> None:
    """Train what is not kept yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=ORDER, help="one task only")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the files")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        globals().update(TOY)
        options.out = Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    options.out.mkdir(exist_ok=True, parents=True)
    names = [options.task] if options.task else ORDER
    plan = [(name, WIDTHS, SEEDS) for name in names]
    plan += [(name, *MORE[name]) for name in names if name in MORE]
    for name, widths, seeds in plan:
        for width, networks, seconds in sweep((TASKS | BLIND)[name], widths, seeds, options.out):
            print(f"{name} {width}: {networks} networks, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
