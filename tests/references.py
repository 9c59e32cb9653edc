"""Importances by hand, from what a layer's weights met, and what a usage says of every weight."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.usage.analyze import layer_importance
from wua_mlflow.usage.results import ModelUsage

CRITERIA = ("output", "input", "wanda", "magnitude")


def by_hand(criterion: str, weight: Tensor, met: Tensor, gave: Tensor) -> Tensor:
    """The importances of a layer's weights, in float64.

    Args:
        criterion: one of ``CRITERIA``.
        weight: shape (units, weights of a unit).
        met: what each weight multiplied, shape (times, weights of a unit), or (times, units,
            weights of a unit) where the units met different things.
        gave: the units' outputs, shape (times, units).
    """
    size, met, gave = (tensor.detach().double() for tensor in (weight.abs(), met, gave))
    if criterion == "output":
        return size * gave.mean(0).abs().unsqueeze(1)
    if criterion == "input":
        return size * met.abs().mean(0)
    return size * met.square().sum(0).sqrt() if criterion == "wanda" else size


def assert_importance(  # noqa: PLR0913 - a layer of a model, and what it met
    model: nn.Module, data: Any, name: str, weight: Tensor, met: Tensor, gave: Tensor,
    *, relative: float = 1e-5, only: tuple[str, ...] = CRITERIA,
) -> None:
    """The analysis of one layer equals what is computed by hand."""
    for criterion in only:
        importance, = layer_importance(model, data, [name], criterion).values()
        expected = by_hand(criterion, weight, met, gave)
        torch.testing.assert_close(
            importance.flatten(1), expected, rtol=relative, atol=1e-7,
            msg=lambda text, criterion=criterion: f"{name}, {criterion}: {text}")


def flat(tensor: Tensor) -> Tensor:
    """Shape (everything, features)."""
    return tensor.detach().reshape(-1, tensor.shape[-1])


@contextmanager
def recorded(*modules: nn.Module) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """For each module the first input and the output of each of its calls."""
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in modules]
    handles = [module.register_forward_hook(
        lambda _, inputs, output, into=into: into.append((inputs[0].detach(), output.detach())))
        for module, into in zip(modules, calls, strict=True)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def met_and_gave(model: nn.Module, module: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
    """What a linear module met and gave in one forward in eval mode, over all of its calls."""
    training = model.training
    model.eval()
    with recorded(module) as [calls], torch.no_grad():
        model(*inputs)
    model.train(training)
    return (torch.cat([flat(x) for x, _ in calls]), torch.cat([flat(z) for _, z in calls]))


def unnamed(model: nn.Module, usage: ModelUsage, computed: tuple[str, ...] = ()) -> list[str]:
    """Weights of two dimensions or more of which a usage says nothing, under any of their names.

    A module's name stands for its ``weight``; in ``skipped``, for all that the module has.

    Args:
        model: unwrapped.
        usage: of it.
        computed: the modules whose weight is made of all their parameters.
    """
    layers = {re.sub(r"\[[\d:, ]+\]$", "", name) for name in usage.layers}
    outputs = {name for name, why in usage.skipped.items() if why.startswith("the output layer")}
    layers |= {re.sub(r"\[[\d:, ]+\]$", "", name) for name in outputs}
    skipped = set(usage.skipped) - outputs
    missing = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = name.replace("_orig_mod.", "")
        owner, _, attribute = name.rpartition(".")
        holder, made, _ = name.partition("parametrizations.")
        is_named = name in layers | skipped or owner in skipped
        is_named |= attribute == "weight" and owner in layers
        is_named |= owner in computed and owner in layers
        is_named |= bool(made) and holder.rstrip(".") in layers
        if attribute == "in_proj_weight":
            is_named |= {f"{owner}.{part}_proj".lstrip(".") for part in "qkv"} <= layers
        elif attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            is_named |= name.removesuffix("_weight") in layers
        if parameter.dim() > 1 and not is_named:
            missing.append(name)
    return missing
