"""Recurrent layers one by one give what the fused call gives; what their weights meet is shown."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode

from wua_mlflow.usage.tracing.recurrent import RECURRENT, RecurrentCall, run_by_layer

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


class ByLayer(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RecurrentCall] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in RECURRENT:
            return run_by_layer(func, args, self.calls.append)
        return func(*args, **(kwargs or {}))


KINDS = {"gru": (nn.GRU, {}), "relu": (nn.RNN, {"nonlinearity": "relu"}),
         "projected": (nn.LSTM, {"proj_size": 2}), "no bias": (nn.LSTM, {"bias": False})}


@pytest.mark.parametrize(("packed", "batch_first", "both_ways"), [
    (False, False, True), (False, True, False), (True, True, True)])
@pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)
def test_the_result_is_the_fused_calls(kind, options, both_ways, batch_first, packed):
    torch.manual_seed(0)
    rnn = kind(3, 4, 2, batch_first=batch_first, bidirectional=both_ways, **options).eval()
    x = torch.randn(5, 6, 3) if batch_first else torch.randn(6, 5, 3)
    if packed:
        x = pack_padded_sequence(x, [6, 2, 5, 1, 3], batch_first, enforce_sorted=False)
    results = [rnn(x)]
    with ByLayer() as mode:
        results.append(rnn(x))
    expected, actual = ([outputs.data, *(ends if isinstance(ends, tuple) else [ends])]
                        for outputs, ends in results)
    torch.testing.assert_close(actual, expected)
    ways = 2 if both_ways else 1
    assert len(mode.calls) == 2 * ways * (3 if options.get("proj_size") else 2)
    assert {id(call.weight) for call in mode.calls} == {
        id(p) for p in rnn.parameters() if p.dim() == 2}
    assert mode.calls[-1].outputs is not None or not options.get("proj_size")


@pytest.mark.parametrize(("backwards", "expected"), [
    (False, [[0, 0], [1, 2], [3, 4]]), (True, [[3, 4], [5, 6], [0, 0]])])
@pytest.mark.parametrize("time_first", [True, False])
def test_a_hidden_weight_meets_the_state_before(time_first, backwards, expected):
    states = torch.arange(6.0).view(3, 2, 1) + 1  # three steps, two samples: 1 2 | 3 4 | 5 6
    borders = torch.zeros(2, 1), states[0] if backwards else states[-1]
    states = states if time_first else states.transpose(0, 1)
    met = RecurrentCall(torch.ones(1, 1), (), 1, states, borders, states, time_first,
                        backwards).multiplied()[..., 0]
    assert (met if time_first else met.T).tolist() == expected


def test_what_is_packed_or_hidden_is_not_laid_out():
    state = torch.ones(4, 1)
    assert RecurrentCall(state, (), 1, state, (state, state), state, None).multiplied() is None
    assert RecurrentCall(state, (), 1, None, None, state, True).multiplied() is None
    assert RecurrentCall(state, (), 1, state, None, state, True).multiplied() is state
