"""The same measurement on networks that learned nothing: what a share must be read beside.

Each draw re-initialises the network (``reset_parameters``) and sees the same inputs; where a layer
cannot be re-initialised, its own weights are permuted. May import: randomness, usage.
Tests: ``tests/test_null.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from wua_mlflow.randomness import Purpose, isolated, torch_generator
from wua_mlflow.usage import ModelUsage, NullUsage

__all__ = ["PERMUTED", "REINITIALISED", "with_null"]

REINITIALISED = "re-initialised"
PERMUTED = "permuted"


def with_null(
    usages: Mapping[str, ModelUsage],
    model: nn.Module,
    measure: Callable[[nn.Module], Mapping[str, ModelUsage]],
    *,
    draws: int,
    seed: int,
) -> dict[str, ModelUsage]:
    """The usages with the null's range for the model and for each of its layers.

    Args:
        usages: the measurements of ``model``, by criterion.
        model: left as found; the draws work on one copy.
        measure: the same measurements, of a copy that has forgotten.
        draws: how many networks, at least 1.
        seed: of this function's own random numbers.

    Raises:
        ValueError: ``draws`` below 1.
    """
    if draws < 1:
        raise ValueError(f"draws: expected a whole number of at least 1, but got {draws}")
    kind = REINITIALISED if _can_reset(model) else PERMUTED
    nulls: list[Mapping[str, ModelUsage]] = []
    with isolated(), torch.inference_mode(False):  # or the copies could have no gradients
        generator = torch_generator(seed, Purpose.NULL)
        blank = copy.deepcopy(model)
        for _ in range(draws):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            _forget(blank, kind)
            nulls.append(measure(blank))
    return {name: _joined(usage, [null[name] for null in nulls], kind)
            for name, usage in usages.items()}


def _joined(usage: ModelUsage, nulls: Sequence[ModelUsage], kind: str) -> ModelUsage:
    layers = {
        name: replace(layer, null=_range(
            kind, layer.entropy, [null.layers[name].effective_share for null in nulls],
            [null.layers[name].entropy for null in nulls]))
        for name, layer in usage.layers.items()
    }
    whole = _range(kind, usage.entropy, [null.effective_share for null in nulls],
                   [null.entropy for null in nulls])
    return replace(usage, layers=layers, null=whole)


def _can_reset(model: nn.Module) -> bool:
    return all(
        callable(getattr(module, "reset_parameters", None))
        for module in model.modules()
        if any(True for _ in module.parameters(recurse=False))
    )


def _forget(model: nn.Module, kind: str) -> None:
    with torch.no_grad():
        if kind == REINITIALISED:
            for module in reversed(list(model.modules())):  # a parent has the last word
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            return
        for parameter in model.parameters():
            flat = parameter.flatten()
            parameter.copy_(flat[torch.randperm(flat.numel())].reshape(parameter.shape))


def _range(
    kind: str, entropy: float, shares: Sequence[float], entropies: Sequence[float]
) -> NullUsage:
    low, high = np.quantile(shares, [0.025, 0.975])
    return NullUsage(
        kind=kind,
        draws=len(shares),
        share=float(np.mean(shares)),
        low=float(low),
        high=float(high),
        shift=float(np.mean(entropies)) - entropy,
    )
