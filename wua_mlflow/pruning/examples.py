"""A batch as a model takes it: a tensor, a tuple of arguments, or a dict of keywords.

May import: torch, nested. Tests: ``tests/slimming/test_examples.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.usage.batches import mapped

__all__ = ["called", "copied", "noise_like", "resized", "tensors_in"]


SEED = 7


def called(model: nn.Module, example: Any) -> Any:
    """What the model makes of a batch: a tensor, a tuple of arguments, a dict of keywords."""
    own = copied(example)
    if isinstance(own, Mapping):
        return model(**own)
    return model(*own) if isinstance(own, tuple) else model(own)


def copied(example: Any) -> Any:
    """The same with tensors of its own: a model may write into what it is given."""
    return mapped(example, Tensor, Tensor.clone)


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """All tensors of what a model takes or gives."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for one in outputs.values():
            yield from tensors_in(one)
    elif isinstance(outputs, tuple | list):
        for one in outputs:
            yield from tensors_in(one)


def resized(example: Any, samples: int) -> Any:
    """The example with so many samples: the first ones, again from the start where it has fewer.

    >>> resized((torch.arange(3), "fast"), 5)
    (tensor([0, 1, 2, 0, 1]), 'fast')
    """
    first = next(tensors_in(example if isinstance(example, Mapping) else (example,)), None)
    if first is None or not first.dim():
        return example
    rows = torch.arange(samples) % len(first)

    def taken(one: Tensor) -> Tensor:
        return one[rows.to(one.device)] if one.dim() and len(one) == len(first) else one

    return mapped(example, Tensor, taken)


def noise_like(example: Any) -> Any:
    """Like the example, from a generator of its own: floating-point numbers of its mean and spread.

    Whole numbers, which may be places in a table, change places with those of other samples.
    """
    generator = torch.Generator().manual_seed(SEED)

    def drawn(one: Tensor) -> Tensor:
        if one.dtype == torch.bool or one.is_complex() or not one.dim():
            return one
        whole = not one.is_floating_point() or bool((one == one.round()).all())
        if whole and bool((one != one[0]).any()):
            rows = torch.rand(one.shape, generator=generator).argsort(dim=0)
            return one.gather(0, rows.to(one.device))
        if not one.is_floating_point():
            return one
        spread = one.double().std() if one.numel() > 1 else torch.tensor(1.0)
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        return (one.double().mean().cpu() + (spread.cpu() + 1e-3) * noise).to(one)

    return mapped(example, Tensor, drawn)
