"""Other weights for a model and its cut copy, on which both must still agree.

At the weights that a model has, a wrong cut can hide: attention that is close to uniform, or a
branch that is scaled by 1e-6, hardly shows in the outputs. Tests:
``tests/pruning/test_drawn_weights.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Draw", "without", "random_weights", "replaced_weights", "sharpened_weights"]


Draw = Callable[[str, Tensor, torch.Generator], Tensor]
"""Of a tensor's name, its values and a source of randomness: its new values."""
GAIN = 2.0
"""Of the standard deviation √(GAIN / inputs) (He et al. 2015): activations keep their size."""
SHARPENED = 3.0
"""By how much sharpened weights are larger than that, at least."""
SEED = 11


def random_weights(name: str, values: Tensor, generator: torch.Generator) -> Tensor:
    """Weights of another network: activations of order one, no unit like another, no zeros."""
    attribute = name.rpartition(".")[2]
    if attribute == "running_var" or (values.dim() == 1 and "bias" not in attribute
                                      and attribute != "running_mean"):
        return 0.5 + torch.rand(values.shape, generator=generator)
    if values.dim() <= 1:
        return 0.3 * torch.randn(values.shape, generator=generator)
    return _typical(values) * torch.randn(values.shape, generator=generator)


def sharpened_weights(name: str, values: Tensor, generator: torch.Generator) -> Tensor:
    """The model's own weights, enlarged where they are small: what they compute stands out."""
    values = values.detach().cpu().float()
    size = float(values.square().mean().sqrt()) if values.numel() else 0.0
    if not size or not math.isfinite(size):
        return random_weights(name, values, generator)
    wanted = SHARPENED * _typical(values) if values.dim() > 1 else 0.3
    return values * max(1.0, wanted / size)


def _typical(values: Tensor) -> float:
    """The standard deviation of weights that keep the size of activations."""
    inputs = values[0].numel() if values.dim() > 3 else min(values.shape[-2:])
    return math.sqrt(GAIN / max(1, inputs))


def without(values: Tensor, gone: Mapping[int, set[int]]) -> Tensor:
    """A tensor without some positions, by dimension."""
    for dim, positions in gone.items():
        staying = [place for place in range(values.shape[dim]) if place not in positions]
        values = values.index_select(dim, torch.tensor(staying, device=values.device))
    return values


@contextmanager
def replaced_weights(
    original: nn.Module, pruned: nn.Module, gone: Mapping[str, Mapping[int, set[int]]], draw: Draw
) -> Iterator[None]:
    """In the block both have new weights, the pruned model those of the original that it keeps.

    Afterwards both are bit for bit as before.

    Args:
        original: any module.
        pruned: the same without some positions of its parameters and buffers.
        gone: by name of a parameter or buffer, and by dimension, which positions.
        draw: of the new weights, from one seed.
    """
    generator = torch.Generator().manual_seed(SEED)
    theirs = _drawable(pruned)
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, tensor in _drawable(original).items():
                new = draw(name, tensor, generator)
                smaller = theirs.get(name)
                for each, values in ((tensor, new), (smaller, without(new, gone.get(name, {})))):
                    if each is not None and each.shape == values.shape:
                        before.append((each, each.detach().clone()))
                        each.copy_(values)
        yield
    finally:
        with torch.no_grad():
            for each, values in reversed(before):
                each.copy_(values)


def _drawable(model: nn.Module) -> dict[str, Tensor]:
    """Weights, and the statistics of norms; other buffers are what the forward needs them to be."""
    statistics = {name: buffer for name, buffer in model.named_buffers()
                  if name.rpartition(".")[2] in ("running_mean", "running_var")}
    return {name: tensor for name, tensor in {**dict(model.named_parameters()),
                                              **statistics}.items() if tensor.dim()}
