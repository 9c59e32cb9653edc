"""Recurrent layers run layer by layer, so that each one's hidden states can be seen.

The fused call of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` gives the last layer's states only; the
same kernel called once a layer gives the same numbers and all of them.
May import: torch. Tests: ``tests/watching/test_recurrent.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["RECURRENT", "RecurrentCall", "UnitConsumers", "run_by_layer"]


_aten = torch.ops.aten
RECURRENT: frozenset[Any] = frozenset({
    torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu,
    _aten.lstm.input, _aten.lstm.data, _aten.gru.input, _aten.gru.data,
    _aten.rnn_tanh.input, _aten.rnn_tanh.data, _aten.rnn_relu.input, _aten.rnn_relu.data,
})
"""The functions that run a whole recurrent network."""


@dataclass(frozen=True)
class UnitConsumers:
    """What reads the units of one direction of a recurrent layer.

    Within the layer the columns of ``weight``; beyond it whatever is made of ``outputs``, shape
    (..., units of all directions), and of the last states ``ends``, shape (directions, ...). Both
    None where a projection is all that reads the units. ``start`` are the states that the layer
    began with, as ``ends`` lie.
    """

    weight: Tensor
    outputs: Tensor | None = None
    ends: Tensor | None = None
    direction: int = 0
    start: Tensor | None = None


@dataclass(frozen=True)
class RecurrentCall:
    """One weight of one recurrent layer in one direction, and what it met.

    ``weight`` has shape (gates · units, in), gates first. It multiplies the last dimension of
    ``given`` or, where there are ``ends``, of the states one step before those of ``given``: the
    first end comes before all of them, the second is the last and nobody's input. Both None:
    hidden. ``outputs`` is the hidden state of the units, or None where a projection hides it.
    ``time_first`` says how the leading dimensions lie (None: packed), ``backwards`` in which
    direction the steps go, ``readers`` what reads the units.
    """

    weight: Tensor
    biases: tuple[Tensor, ...]
    gates: int
    given: Tensor | None
    ends: tuple[Tensor, Tensor] | None
    outputs: Tensor | None
    time_first: bool | None
    backwards: bool = False
    readers: UnitConsumers | None = None

    @property
    def flops(self) -> int:
        """FLOPs of the weight's products, 2 a multiply-accumulate: one a step and sample."""
        seen = self.given if self.given is not None else self.outputs
        assert seen is not None, "one of both is there"
        return 2 * self.weight.numel() * seen[..., 0].numel()

    def met(self) -> Tensor | None:
        """What the weight multiplied at each step, as ``given`` lies; None if packed or hidden."""
        if self.given is None or self.ends is None:
            return self.given
        if self.time_first is None:
            return None
        time = 0 if self.time_first else 1
        steps, first = self.given.shape[time], self.ends[0].unsqueeze(time)
        if self.backwards:
            return torch.cat([self.given.narrow(time, 1, steps - 1), first], time)
        return torch.cat([first, self.given.narrow(time, 0, steps - 1)], time)


def run_by_layer(
    func: Callable[..., Any], args: Sequence[Any], seen: Callable[[RecurrentCall], object]
) -> tuple[Any, ...]:
    """The result of ``func(*args)``, each of its layers run on its own and told to ``seen``.

    Args:
        func: one of ``RECURRENT``.
        args: as ``nn.LSTM`` passes them.
        seen: called for each weight of each layer and direction.
    """
    packed = isinstance(args[3], list | tuple)
    if packed:
        data, sizes, state, weights, bias, layers, _, _, two_ways = args[:9]
        time_first: bool | None = None
    else:
        data, state, weights, bias, layers, _, _, two_ways, batch_first = args[:9]
        time_first = not batch_first
    states = list(state) if isinstance(state, list | tuple) else [state]
    ways = 2 if two_ways else 1
    each = len(weights) // (layers * ways)
    finals: list[list[Tensor]] = [[] for _ in states]
    for layer in range(layers):
        start = [part[layer * ways:(layer + 1) * ways].contiguous() for part in states]
        own = list(weights[layer * ways * each:(layer + 1) * ways * each])
        given = start if isinstance(state, list | tuple) else start[0]
        tail = (bias, 1, 0.0, False, bool(two_ways))
        with warnings.catch_warnings():  # cuDNN: the weights of one layer are no chunk of their own
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
            outcome = (func(data, sizes, given, own, *tail) if packed
                       else func(data, given, own, *tail, not time_first))
        outputs, *ends = outcome
        for way in range(ways):
            _tell(own[way * each:(way + 1) * each], bias, (data, outputs),
                  (start[0], ends[0]), (way, ways), time_first, seen)
        for kept, end in zip(finals, ends, strict=True):
            kept.append(end)
        data = outputs
    return (data, *(torch.cat(kept) for kept in finals))


def _tell(  # noqa: PLR0913 - one layer and direction of a recurrent call, part by part
    weights: Sequence[Tensor],
    bias: bool,
    data: tuple[Tensor, Tensor],
    ends: tuple[Tensor, Tensor],
    way: tuple[int, int],
    time_first: bool | None,
    seen: Callable[[RecurrentCall], object],
) -> None:
    into, hidden, *rest = weights
    biases = tuple(rest[:2]) if bias else ()
    projection = rest[-1] if len(rest) > (2 if bias else 0) else None
    width = hidden.shape[1]
    outputs = data[1].narrow(-1, way[0] * (data[1].shape[-1] // way[1]), width)
    borders, backwards = (ends[0][way[0]], ends[1][way[0]]), way[0] == 1
    units = projection.shape[1] if projection is not None else width
    gates = into.shape[0] // units
    shown = None if projection is not None else outputs
    of_states = UnitConsumers(hidden, data[1], ends[1], way[0], ends[0])
    readers = of_states if projection is None else UnitConsumers(projection)
    seen(
        RecurrentCall(into, biases[:1], gates, data[0], None, shown, time_first, backwards, readers)
    )
    seen(RecurrentCall(hidden, biases[1:], gates, outputs, borders, shown, time_first, backwards,
                    readers))
    if projection is not None:
        seen(
            RecurrentCall(projection, (), 1, None, None, outputs, time_first, backwards, of_states)
        )
