"""Ways to cut a trained network to a share of its FLOPs: ours, Torch-Pruning's, by lot.

Used by ``pruning.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch_pruning as tp
from torch import nn

from wua_mlflow.pipeline.replicates import Trained
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import most_important, unit_importance

if TYPE_CHECKING:
    from pruning import Bench

__all__ = ["CHOICE", "ITERATIVE", "ONE_SHOT", "STEPS", "VARIANTS", "Cutter"]

STEPS = 5

Cutter = Callable[["Bench", Trained, float, int], nn.Module]
"""(bench, trained network, FLOPs at most, seed) -> the network, cut."""


def widest(fits: Callable[[float], bool]) -> float:
    """The largest share in (0, 1] that fits, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def ours(criterion: str, *, fold: bool = False) -> Cutter:
    """This project's cut, the same share of every group by its unit importance."""
    def cutter(bench: Bench, trained: Trained, most: float, seed: int) -> nn.Module:
        train = bench.recipe.split.train
        structure = unit_groups(trained.model, bench.example)
        importance = unit_importance(trained.model, structure, (train.inputs, train.targets),
                                     bench.loss(trained), criterion=criterion, seed=seed)
        widths = within(bench, {one.name: one.units for one in structure.groups}, most)
        keep = {name: most_important(one, widths[name]) for name, one in importance.items()}
        begin = compensated(trained.model, structure, keep, train.inputs) if fold else trained.model
        return cut(begin, bench.example, keep).model

    return cutter


def shrunk(by: float) -> Cutter:
    """Ours, dropped, all weights and biases times ``by`` (Ash & Adams 2020, arXiv 1910.08475)."""
    def cutter(bench: Bench, trained: Trained, most: float, seed: int) -> nn.Module:
        model = ONE_SHOT["ours, dropped"](bench, trained, most, seed)
        with torch.no_grad():
            for one in model.parameters():
                one.mul_(by)
        return model

    return cutter


def within(bench: Bench, whole: Mapping[str, int], most: float) -> dict[str, int]:
    """The same share of every group, and then single units where there is room for one more."""
    def fits(widths: Mapping[str, int]) -> bool:
        return bench.flops(bench.recipe.build(tuple(widths.values()))) <= most

    def shared(share: float) -> dict[str, int]:
        return {name: max(1, round(share * units)) for name, units in whole.items()}

    widths = shared(widest(lambda share: fits(shared(share))))
    room = True
    while room:
        room = False
        for name in sorted(whole, key=lambda name: widths[name] / whole[name]):
            more = {**widths, name: widths[name] + 1}
            if more[name] <= whole[name] and fits(more):
                widths, room = more, True
    return widths


def theirs(importance: Callable[[], object], *, gradients: bool = False) -> Cutter:
    """Torch-Pruning's global pruning, as narrow as the FLOPs ask for."""
    def cutter(bench: Bench, trained: Trained, most: float, seed: int) -> nn.Module:
        def made(ratio: float) -> nn.Module:
            model = copy.deepcopy(trained.model).eval()
            last = [one for one in model.modules() if isinstance(one, nn.Linear)][-1]
            if gradients:
                train = bench.recipe.split.train
                bench.loss(trained)(model(train.inputs), train.targets).backward()
            pruner = tp.pruner.MetaPruner(
                model, bench.example, importance=importance(), global_pruning=True,
                pruning_ratio=ratio, ignored_layers=[last])
            pruner.step()
            model.zero_grad(set_to_none=True)
            return model

        return made(1 - widest(lambda share: bench.flops(made(1 - share)) <= most))

    return cutter


# since torch-pruning 1.6 MagnitudeImportance is GroupMagnitudeImportance, unless told to look at
# the first layer of a group alone
IMPORTANCES = {
    "TP magnitude": (lambda: tp.importance.MagnitudeImportance(
        p=2, group_reduction="first"), False),
    "TP Taylor": (lambda: tp.importance.TaylorImportance(), True),
    "TP group norm": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
}
ONE_SHOT: dict[str, Cutter] = {
    "ours, dropped": ours("spanning"),
    "ours, compensated": ours("spanning", fold=True),
    **{name: theirs(make, gradients=graded) for name, (make, graded) in IMPORTANCES.items()},
    "random": ours("random"),
}
ITERATIVE = {f"{name}, {STEPS} steps": ONE_SHOT[name] for name in IMPORTANCES}
CHOICE = ("ours, dropped", "ours, compensated")
VARIANTS = {"ours, shrunk": shrunk(0.5), "ours, Taylor": ours("taylor"),
            "ours, Taylor, compensated": ours("taylor", fold=True),
            "ours, magnitude": ours("magnitude"),
            f"ours, {STEPS} steps": ONE_SHOT["ours, dropped"],
            f"ours, Taylor, {STEPS} steps": ours("taylor"),
            f"ours, magnitude, {STEPS} steps": ours("magnitude"),
            "ours, distilled": ONE_SHOT["ours, dropped"]}
"""Other ways of ours, for ``--variants``."""
