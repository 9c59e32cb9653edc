"""Recurrent networks run layer by layer, so that the hidden states of every layer can be read.

The fused call of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` returns the last layer's states only; the
same kernel called once a layer gives the same numbers and all of them.
Tests: ``tests/usage/test_recurrent_layers.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CELLS", "RECURRENT", "LayerStates", "RecurrentCall", "UnitConsumers", "run_by_layer",
           "run_cell"]


_aten = torch.ops.aten
RECURRENT: frozenset[Any] = frozenset({
    torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu,
    _aten.lstm.input, _aten.lstm.data, _aten.gru.input, _aten.gru.data,
    _aten.rnn_tanh.input, _aten.rnn_tanh.data, _aten.rnn_relu.input, _aten.rnn_relu.data,
})
"""The functions that run a whole recurrent network."""
CELLS: frozenset[Any] = frozenset({
    torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell,
    _aten.lstm_cell.default, _aten.gru_cell.default, _aten.rnn_tanh_cell.default,
    _aten.rnn_relu_cell.default,
})
"""The functions that run one step of a recurrent layer."""


class LayerStates(NamedTuple):
    """The hidden states of a recurrent layer.

    Attributes:
        outputs: at every step, shape (..., units of all directions).
        first: that the layer began with, shape (directions, ...).
        last: that it ended with, shaped like ``first``.
        direction: which of the directions is meant.
    """

    outputs: Tensor
    first: Tensor
    last: Tensor
    direction: int


@dataclass(frozen=True)
class UnitConsumers:
    """What reads the units of one direction of a recurrent layer.

    Attributes:
        weight: reads them within the layer, through its columns.
        states: what is made of these reads the units, too. None where a projection alone does.
        state: of a single step, which is handed on: whatever is made of it reads the units.
    """

    weight: Tensor
    states: LayerStates | None = None
    state: Tensor | None = None


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
    data, sizes, batch_first = args[0], args[1:1 + packed], args[8:9 - packed]
    state, weights, has_bias, layers, _, _, bidirectional = args[1 + packed:8 + packed]
    time_first = None if packed else not batch_first[0]
    several = isinstance(state, list | tuple)
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // (layers * directions)
    last_states = []
    for layer in range(layers):
        first = [part[layer * directions:(layer + 1) * directions].contiguous()
                 for part in (state if several else [state])]
        parts = [list(weights[start * per_direction:(start + 1) * per_direction])
                 for start in range(layer * directions, (layer + 1) * directions)]
        with warnings.catch_warnings():  # cuDNN: the weights of one layer are no chunk of their own
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
            outputs, *last = func(data, *sizes, first if several else first[0], sum(parts, []),
                                  has_bias, 1, 0.0, False, bool(bidirectional), *batch_first)
        for direction, part in enumerate(parts):
            states = LayerStates(outputs, first[0], last[0], direction)
            for call in _calls(part, has_bias, data, time_first, states):
                on_call(call)
        last_states.append(last)
        data = outputs
    return data, *map(torch.cat, zip(*last_states, strict=True))


def run_cell(
    func: Callable[..., Any], args: Sequence[Any], on_call: Callable[[RecurrentCall], object]
) -> Any:
    """The result of ``func(*args)``, one step of a recurrent layer.

    Args:
        func: one of ``CELLS``.
        args: as ``nn.LSTMCell`` passes them: inputs, states, two weights and their biases.
        on_call: called for each of the two weights.
    """
    result = func(*args)
    inputs, before, of_inputs, of_states, *biases = args
    state = result[0] if isinstance(result, tuple) else result
    before = before[0] if isinstance(before, list | tuple) else before
    steps = LayerStates(state.unsqueeze(0), before.unsqueeze(0), state.unsqueeze(0), 0)
    weights = of_inputs, of_states, *(bias for bias in biases if bias is not None)
    for call in _calls(weights, len(weights) > 2, inputs.unsqueeze(0), True, steps):
        on_call(replace(call, consumers=UnitConsumers(of_states, state=state)))
    return result


def _calls(
    weights: Sequence[Tensor], has_bias: bool, inputs: Tensor, time_first: bool | None,
    states: LayerStates,
) -> Iterator[RecurrentCall]:
    """The calls of one layer in one direction: of its inputs, its states, and its projection.

    Args:
        weights: ``weight_ih``, ``weight_hh``, the biases and the projection, as far as they are.
        has_bias: whether two biases are among them.
        inputs: of the layer.
        time_first: as in ``RecurrentCall``.
        states: of the layer.
    """
    of_inputs, of_states, *rest = weights
    biases = tuple(rest[:2]) if has_bias else ()
    projection = rest[-1] if len(rest) > len(biases) else None
    direction, width = states.direction, of_states.shape[1]
    outputs = states.outputs.narrow(-1, direction * width, width)
    borders = states.first[direction], states.last[direction]
    gates = of_inputs.shape[0] // (width if projection is None else projection.shape[1])
    readers = UnitConsumers(of_states, states)
    of_units = (outputs, time_first, direction == 1, readers) if projection is None else \
        (None, time_first, direction == 1, UnitConsumers(projection))
    yield RecurrentCall(of_inputs, biases[:1], gates, inputs, None, *of_units)
    yield RecurrentCall(of_states, biases[1:], gates, outputs, borders, *of_units)
    if projection is not None:
        yield RecurrentCall(projection, (), 1, None, None, outputs, time_first, direction == 1,
                            readers)
