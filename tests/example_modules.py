"""Small modules that the tests of the FLOP counter share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def mlp(width: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())


class Apply(nn.Module):
    """``function(*inputs, *weights)``, the weights of the given shapes trainable.

    ``modules`` are parts that the function calls.
    """

    def __init__(
        self, function: Callable[..., Any], *shapes: tuple[int, ...], **modules: nn.Module
    ) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.weights)


class Inner(nn.Module):
    """``module`` as an inner layer: its inputs need gradients too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*(x * self.scale for x in inputs))


class Peek(nn.Module):
    """Reads a value of its input before it calls ``module``: impossible on meta tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        float(next(iter([*args, *kwargs.values()])).sum())
        return self.module(*args, **kwargs)


class Conv1D(nn.Module):
    """Like the one of GPT-2: a Linear with the weight transposed."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], -1)
