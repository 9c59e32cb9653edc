"""Small modules that several folders of tests share."""

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
    """Like the one of GPT-2: the weight has the shape (inputs, outputs)."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.3)
        self.bias = nn.Parameter(torch.randn(nf) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)
