"""Recurrent layers run one by one give what the fused call gives, and each weight is shown."""

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
