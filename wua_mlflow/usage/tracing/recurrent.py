"""Recurrent networks run layer by layer, so that the hidden states of every layer can be read.

The fused call of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` returns the last layer's states only; the
same kernel called once a layer gives the same numbers and all of them.
Tests: ``tests/usage/tracing/test_recurrent.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
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

    Attributes:
        weight: reads them within the layer, through its columns.
        outputs: of the layer, shape (..., units of all directions): what is made of them reads
            the units. None where a projection alone reads them.
        last_states: shape (directions, ...), read like ``outputs``.
        direction: which of the directions.
        first_states: that the layer began with, shaped like ``last_states``.
    """

    weight: Tensor
    outputs: Tensor | None = None
    last_states: Tensor | None = None
    direction: int = 0
    first_states: Tensor | None = None


@dataclass(frozen=True)
class RecurrentCall:
    """One weight of one recurrent layer in one direction, and what it multiplied.

    Attributes:
        weight: shape (gates · units, in), gates first. It multiplies the last dimension of
            ``inputs``.
        biases: that belong to it.
        gates: how many.
        inputs: activations; where there are ``border_states``, the weight multiplies the states
            one step before these instead. None: hidden.
        border_states: the state before all of ``inputs``, and the last one, which no step reads.
        outputs: the hidden states of the units; None where a projection hides them.
        time_first: whether steps come before samples; None: packed.
        backwards: whether the steps go from the last to the first.
        consumers: what reads the units.
    """

    weight: Tensor
    biases: tuple[Tensor, ...]
    gates: int
    inputs: Tensor | None
    border_states: tuple[Tensor, Tensor] | None
    outputs: Tensor | None
    time_first: bool | None
    backwards: bool = False
    consumers: UnitConsumers | None = None

    @property
    def flops(self) -> int:
        """FLOPs of the weight's products, 2 a multiply-accumulate: one a step and sample."""
        steps = self.inputs if self.inputs is not None else self.outputs
        assert steps is not None, "one of both is there"
        return 2 * self.weight.numel() * steps[..., 0].numel()

    def multiplied(self) -> Tensor | None:
        """What the weight multiplied, laid out as ``inputs``; None if packed or hidden."""
        if self.inputs is None or self.border_states is None:
            return self.inputs
        if self.time_first is None:
            return None
        time = 0 if self.time_first else 1
        steps, first = self.inputs.shape[time], self.border_states[0].unsqueeze(time)
        if self.backwards:
            return torch.cat([self.inputs.narrow(time, 1, steps - 1), first], time)
        return torch.cat([first, self.inputs.narrow(time, 0, steps - 1)], time)


def run_by_layer(
    func: Callable[..., Any], args: Sequence[Any], on_call: Callable[[RecurrentCall], object]
) -> tuple[Any, ...]:
    """The result of ``func(*args)``, each of its layers run on its own.

    Args:
        func: one of ``RECURRENT``.
        args: as ``nn.LSTM`` passes them.
        on_call: called for each weight of each layer and direction.
    """
    packed = isinstance(args[3], list | tuple)
    if packed:
        data, sizes, state, weights, has_bias, layers, _, _, bidirectional = args[:9]
        time_first: bool | None = None
    else:
        data, state, weights, has_bias, layers, _, _, bidirectional, batch_first = args[:9]
        time_first = not batch_first
    states = list(state) if isinstance(state, list | tuple) else [state]
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // (layers * directions)
    last_states: list[list[Tensor]] = [[] for _ in states]
    for layer in range(layers):
        first = [part[layer * directions:(layer + 1) * directions].contiguous() for part in states]
        start = layer * directions * per_direction
        layer_weights = list(weights[start:start + directions * per_direction])
        initial = first if isinstance(state, list | tuple) else first[0]
        options = (has_bias, 1, 0.0, False, bool(bidirectional))
        with warnings.catch_warnings():  # cuDNN: the weights of one layer are no chunk of their own
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
            outputs, *last = (func(data, sizes, initial, layer_weights, *options) if packed else
                              func(data, initial, layer_weights, *options, not time_first))
        for direction in range(directions):
            direction_weights = layer_weights[
                direction * per_direction:(direction + 1) * per_direction]
            consumers = UnitConsumers(direction_weights[1], outputs, last[0], direction, first[0])
            for call in _calls(direction_weights, has_bias, data, time_first, consumers):
                on_call(call)
        for ends, end in zip(last_states, last, strict=True):
            ends.append(end)
        data = outputs
    return (data, *(torch.cat(ends) for ends in last_states))


def _calls(
    weights: Sequence[Tensor],
    has_bias: bool,
    inputs: Tensor,
    time_first: bool | None,
    consumers: UnitConsumers,
) -> Iterator[RecurrentCall]:
    """The calls of one layer in one direction: of its inputs, its states, and its projection.

    Args:
        weights: ``weight_ih``, ``weight_hh``, the biases and the projection, as far as they are.
        has_bias: whether two biases are among them.
        inputs: of the layer.
        time_first: as in ``RecurrentCall``.
        consumers: what reads the layer's outputs.
    """
    of_inputs, of_states, *rest = weights
    biases = tuple(rest[:2]) if has_bias else ()
    projection = rest[-1] if len(rest) > len(biases) else None
    direction, width = consumers.direction, of_states.shape[1]
    assert consumers.outputs is not None and consumers.last_states is not None
    assert consumers.first_states is not None, "a layer has outputs and states"
    states = consumers.outputs.narrow(-1, direction * width, width)
    borders = consumers.first_states[direction], consumers.last_states[direction]
    gates = of_inputs.shape[0] // (width if projection is None else projection.shape[1])
    outputs = states if projection is None else None
    backwards = direction == 1
    unit_consumers = consumers if projection is None else UnitConsumers(projection)
    yield RecurrentCall(of_inputs, biases[:1], gates, inputs, None, outputs, time_first, backwards,
                        unit_consumers)
    yield RecurrentCall(of_states, biases[1:], gates, states, borders, outputs, time_first,
                        backwards, unit_consumers)
    if projection is not None:
        yield RecurrentCall(projection, (), 1, None, None, states, time_first, backwards,
                            consumers)
