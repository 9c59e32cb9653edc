"""Our cut against Torch-Pruning's, random channels and training from scratch: a sanity check.

Small data, so no more than that. digits (MLP and CNN) and breast cancer, cut to 0.5, 0.25 and 0.1
of the FLOPs by one counter, fine-tuned with equal updates, each with the learning rate that does
best on the validation data of all 10 seeds, of which each has an oversized network of its own. Ours
drops units, unless compensating for them is ahead on the same data by more than a standard error;
both are rows of their own, too.
"From scratch" has the widths of our cut and trains as long as the original did (Scratch-E, Liu et
al. 2019), once more with no more updates than the fine-tuning has.
Run: ``python benchmarks/pruning.py``; prints markdown. ``--blind``: on generated data that nothing
was chosen on (``blind.py``).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from cutters import CHOICE, ITERATIVE, ONE_SHOT, STEPS, VARIANTS, Cutter
from holm import holm, standard_error, worse_by
from torch import Tensor, nn

from wua_mlflow.config import load_settings
from wua_mlflow.data.tasks import loss_for
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import Trained, train_made, train_one

__all__ = ["main"]

RATIOS = (0.5, 0.25, 0.1)
SEEDS = tuple(range(42, 52))
TUNING = len(SEEDS)
RATES = (0.001, 0.003, 0.01, 0.03)
FINE_TUNING = 20
MARGINS = (0.02, 0.03)
"""The second because the first is below what breast cancer's 171 test examples can show."""


@dataclass(frozen=True)
class Task:
    """A network to be cut: what is trained on what."""

    name: str
    data: str
    model: str
    hidden: str
    epochs: int


TASKS = (Task("breast cancer, MLP 64-32", "breast_cancer", "mlp", "64,32", 60),
         Task("digits, MLP 128-64", "digits", "mlp", "128,64", 60),
         Task("digits, CNN 32-32", "digits", "cnn", "32,32", 30))
BLIND = (Task("gratings, CNN 32-32", "blind:gratings", "cnn", "32,32", 30),
         Task("teacher, MLP 128-64", "blind:teacher", "mlp", "128,64", 60),
         Task("mixture, MLP 128-64", "blind:mixture", "mlp", "128,64", 60))
TOY = {"SEEDS": (42, 43), "RATES": (0.003,), "FINE_TUNING": 5,
       "TASKS": (Task("breast cancer, MLP 8-4", "breast_cancer", "mlp", "8,4", 1),)}
"""What ``--toy`` makes of these."""


class Bench:
    """A task's data, and the FLOPs of its oversized network."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.recipe: Recipe = load_recipe(load_settings(None, {
            "data": task.data, "model": task.model, "hidden": task.hidden, "threads": 1,
            "epochs": task.epochs, "seed": SEEDS[0]}))
        self.example = self.recipe.split.train.inputs[:4]
        widths = self.recipe.settings.hidden
        self.networks = {seed: train_one(self.recipe, widths, task.epochs, seed=seed)
                         for seed in SEEDS}
        self.whole = self.flops(self.networks[SEEDS[0]].model)
        self.first_cuts: dict[tuple[Cutter, float, int], nn.Module] = {}

    def cut(self, cutter: Cutter, trained: Trained, most: float, seed: int) -> nn.Module:
        """A copy of the cut network; those of the oversized ones are made once."""
        if trained is not self.networks[seed]:
            return cutter(self, trained, most, seed)
        key = cutter, most, seed
        if key not in self.first_cuts:
            self.first_cuts[key] = cutter(self, trained, most, seed)
        return copy.deepcopy(self.first_cuts[key])

    def flops(self, model: nn.Module) -> float:
        return float(count_flops(model, self.example, backward=False).forward_flops)

    def loss(self, trained: Trained) -> Callable[[Tensor, Tensor], Tensor]:
        return loss_for(self.recipe.split.task, trained.kind)

    def tuned(
        self, make: Callable[[], nn.Module], epochs: int, rate: float, seed: int,
        teacher: nn.Module | None = None,
    ) -> Trained:
        settings = self.recipe.settings.model_copy(update={"lr": rate})
        recipe = Recipe(settings, self.recipe.split, self.recipe.build, self.recipe.device)
        return train_made(recipe, make, epochs, seed=seed, teacher=teacher)

    def scores(self, trained: Trained, part: str) -> np.ndarray:
        return self.recipe.evaluate(trained.model, getattr(self.recipe.split, part),
                                    trained.kind).scores


SCRATCH = "from scratch"
SHORT_SCRATCH = f"from scratch, {FINE_TUNING} epochs"
METHODS = (*(name for name in ONE_SHOT if name not in CHOICE), *ITERATIVE, SCRATCH, SHORT_SCRATCH)


def one(bench: Bench, method: str, ratio: float, rate: float, seed: int) -> Trained:
    """A network cut and trained by a method."""
    trained = bench.networks[seed]
    most = ratio * bench.whole
    if method in (SCRATCH, SHORT_SCRATCH):
        model = bench.cut(ONE_SHOT["random"], trained, most, seed)
        widths = tuple(_widths(model))
        epochs = bench.task.epochs if method == SCRATCH else FINE_TUNING
        return bench.tuned(lambda: bench.recipe.build(widths), epochs, rate, seed)
    steps = STEPS if method.endswith("steps") else 1
    teacher = trained.model if method.endswith("distilled") else None
    cutter = {**ONE_SHOT, **ITERATIVE, **VARIANTS}[method]
    for step in range(1, steps + 1):
        model = bench.cut(cutter, trained, bench.whole * ratio ** (step / steps), seed)
        trained = bench.tuned(lambda made=model: copy.deepcopy(made), FINE_TUNING // steps, rate,
                              seed, teacher)
    return trained


def _widths(model: nn.Module) -> list[int]:
    layers = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    return [len(one.weight) for one in layers[:-1]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", type=int, default=range(len(TASKS)))
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--tuning", type=int, default=TUNING, help="seeds that choose the rate")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--variants", nargs="*", help="other ways of ours alone: all, or some")
    parser.add_argument("--ours", nargs="+", default=CHOICE, metavar="WAY",
                        help="of which ways the best one on validation data is ours")
    parser.add_argument("--errors", type=float, default=1.0,
                        help="by so many standard errors a later way is to be ahead to be ours")
    parser.add_argument("--untuned", action="store_true",
                        help="only what is left before any fine-tuning, dropped and compensated")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        globals().update(TOY)
        options.tasks, options.ratios, options.tuning = [0], (0.5,), 2
    methods = (*options.ours, *(METHODS if options.variants is None else
                                options.variants or VARIANTS))
    torch.set_num_threads(1)
    print("| task | FLOPs | method | lr | accuracy, mean ± sd | FLOPs reached | ours − it, points "
          "| ours non-inferior by 2 points (Holm p) | by 3 points |\n"
          "|---|---:|---|---:|---:|---:|---:|---|---|")
    for place in options.tasks:
        bench = Bench((BLIND if options.blind else TASKS)[place])
        whole = np.stack([bench.scores(bench.networks[seed], "test") for seed in SEEDS])
        print(f"| {bench.task.name} | 1 | oversized | | {_shown(whole)} | 1 | | | |", flush=True)
        for ratio in options.ratios if options.untuned else ():
            left = [_untuned(bench, method, ratio) for method in CHOICE]
            print(f"| {bench.task.name} | {ratio:g} | | | {left[0]} dropped, {left[1]} compensated "
                  "| | | | |", flush=True)
        for ratio in () if options.untuned else options.ratios:
            _point(bench, ratio, methods, (options.ours, options.errors), SEEDS[:options.tuning])


def _point(
    bench: Bench, ratio: float, methods: Sequence[str], rule: tuple[Sequence[str], float],
    tuning: Sequence[int],
) -> None:
    found, rates, reached = {}, {}, {}
    validated: dict[str, np.ndarray] = {}
    for method in methods:
        tried = {(rate, seed): one(bench, method, ratio, rate, seed)
                 for rate in RATES for seed in tuning}
        by_rate = {rate: np.stack([bench.scores(tried[rate, seed], "validation")
                                   for seed in tuning]) for rate in RATES}
        rates[method] = max(RATES, key=lambda rate, known=by_rate: known[rate].mean())
        validated[method] = by_rate[rates[method]]
        networks = [tried.get((rates[method], seed)) or one(bench, method, ratio, rates[method],
                                                            seed) for seed in SEEDS]
        found[method] = np.stack([bench.scores(network, "test") for network in networks])
        reached[method] = np.mean([bench.flops(network.model) for network in networks])
    choice, errors = rule
    chosen = choice[0]
    for method in choice[1:]:
        ahead = validated[method] - validated[chosen]
        chosen = method if ahead.mean() > errors * standard_error(ahead) else chosen
    others = [method for method in methods if method not in choice]
    p = [holm({method: worse_by(margin, found[chosen] - found[method]) for method in others})
         for margin in MARGINS]
    for method in methods:
        against = ["", "", ""] if method in choice else [
            f"{100 * (found[chosen] - found[method]).mean():+.1f}",
            *(f"{'yes' if one[method] < 0.025 else 'no'} ({one[method]:.3f})" for one in p)]
        name = f"{method} (taken)" if method == chosen else method
        print(f"| {bench.task.name} | {ratio:g} | {name} | {rates[method]:g} "
              f"| {_shown(found[method])} | {reached[method] / bench.whole:.2f} "
              f"| {' | '.join(against)} |", flush=True)


def _untuned(bench: Bench, method: str, ratio: float) -> str:
    """Accuracy of the cut networks before they are fine-tuned."""
    cutter = {**ONE_SHOT, **VARIANTS}[method]
    networks = [replace(trained, model=bench.cut(cutter, trained, ratio * bench.whole, seed))
                for seed, trained in bench.networks.items()]
    return _shown(np.stack([bench.scores(network, "test") for network in networks]))


def _shown(scores: np.ndarray) -> str:
    by_seed = 100 * scores.mean(1)
    return f"{by_seed.mean():.1f} ± {by_seed.std(ddof=1):.1f}"


if __name__ == "__main__":
    main()
