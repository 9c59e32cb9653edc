"""Recurrent layers on meta tensors: the products of all steps at once, not one step after another.

May import: torch. Tests: ``tests/test_recurrence.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["AllStepsAtOnce"]

_STATES = {torch.lstm: 2, torch.gru: 1, torch.rnn_tanh: 1, torch.rnn_relu: 1}
"""How many states each carries from step to step."""


class AllStepsAtOnce(TorchFunctionMode):
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` on meta tensors, with the products that they do.

    A step multiplies its input, the state before it, and, where it projects, its hidden units.
    Their rows are stacked over the steps: the same multiply-accumulates, forward and backward, in
    a fixed number of operators. The outputs depend on all that they depend on in the layer, so
    that their backward does its products again. Packed sequences, and layers of which only some
    parameters require a gradient, are left to torch, step by step.

    >>> with torch.device("meta"), AllStepsAtOnce():
    ...     y, (h, c) = torch.nn.LSTM(6, 8, proj_size=3)(torch.zeros(4, 2, 6))
    >>> y.shape, h.shape, c.shape
    (torch.Size([4, 2, 3]), torch.Size([1, 2, 3]), torch.Size([1, 2, 8]))
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _STATES and not kwargs and len(args) == 9 and _can_be_stacked(args):
            return _all_steps(_STATES[func], *args)
        return func(*args, **(kwargs or {}))


def _can_be_stacked(args: Sequence[Any]) -> bool:
    x, parameters = args[0], args[2]
    packed = isinstance(parameters, Tensor) or isinstance(args[3], list | tuple)
    return x.is_meta and not packed and len({p.requires_grad for p in parameters}) == 1


def _all_steps(states: int, x: Tensor, start: Any, parameters: Sequence[Tensor], *options: Any
               ) -> tuple[Tensor, ...]:
    """The layer's outputs, as torch's own function gives them for the same arguments."""
    biases, layers, _, _, bidirectional, batch_first = options
    starts = start if states == 2 else [start]
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    ends = []
    for layer in range(layers):
        outputs = []
        for i in range(layer * directions, (layer + 1) * directions):
            weights = parameters[i * each:(i + 1) * each]
            output, *end = _direction(x, [s[i] for s in starts], weights, biases)
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*ends, strict=True))


def _direction(x: Tensor, start: list[Tensor], weights: Sequence[Tensor], biases: bool
               ) -> tuple[Tensor, ...]:
    """One layer in one direction: its outputs (steps × batch × state), then its states at the end.

    The values mean nothing, the shapes and what depends on what do.
    """
    by_x, by_h, *more = weights
    bias_x, bias_h = more[:2] if biases else (None, None)
    hidden = start[-1].shape[-1]
    inputs = F.linear(x, by_x, bias_x)
    first = F.linear(start[0], by_h, bias_h)
    cell = inputs[..., :hidden] + first[..., :hidden] + start[-1]
    inner, last = cell[:-1], cell[-1:]
    if by_h.shape[1] != hidden:
        inner, last = F.linear(inner, more[-1]), F.linear(last, more[-1])
    from_before = F.linear(inner, by_h, bias_h).sum(0)[..., :1]
    output = torch.cat([inner, last]) + from_before
    return output, output[-1], *([cell[-1] + from_before] if len(start) == 2 else [])
