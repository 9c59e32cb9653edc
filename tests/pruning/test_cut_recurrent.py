"""Hidden units of LSTM, GRU and RNN, against torch's own layer with the units' readers at zero."""

import copy

import pytest
import torch
from torch import nn

from tests.networks import Layers, rows
from tests.pruning.cutting_cases import shapes
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, unit_groups


def recurrent(kind, *, state=False, hidden=6, **options):
    """A recurrent layer; the head reads its last outputs, or the state that it ends with."""

    def read(net, x):
        outputs, states = net.rnn(x)
        last = states[0] if isinstance(states, tuple) else states
        return net.head(last[-1] if state else outputs[:, -1])

    outputs = options.get("proj_size") or hidden * (1 + options.get("bidirectional", False))
    return Layers(read, rnn=kind(3, hidden, batch_first=True, **options),
                  head=nn.Linear(outputs, 2)).eval()


def unread(model, units):
    """A copy in which nothing reads the units: neither the layer itself nor the head."""
    silent, hidden = copy.deepcopy(model), model.rnn.hidden_size
    outputs = [*units, *(hidden + unit for unit in units)] if model.rnn.bidirectional else units
    with torch.no_grad():
        for name, weight in silent.rnn.named_parameters():
            if name.startswith("weight_hh"):
                weight[:, units] = 0
            elif name.startswith("weight_ih_l") and not name.startswith("weight_ih_l0"):
                weight[:, outputs] = 0
        silent.head.weight[:, outputs] = 0
    return silent


@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {}), (nn.LSTM, {"num_layers": 2, "bidirectional": True}), (nn.LSTM, {"bias": False}),
    (nn.LSTM, {"state": True, "num_layers": 2}), (nn.GRU, {"bidirectional": True}),
    (nn.GRU, {"num_layers": 2}), (nn.GRU, {"state": True}),
    (nn.RNN, {"num_layers": 2, "bidirectional": True}), (nn.RNN, {"state": True})],
    ids=lambda value: str(value) if isinstance(value, dict) else value.__name__)
def test_outputs_parameters_and_flops(kind, options):
    model, example = recurrent(kind, **options), rows(4, 5, 3)
    result = cut(model, example, {"rnn": [1, 2, 5]})
    expected = unread(model, [0, 3, 4])
    for batch in (example, rows(1, 9, 3)):
        with torch.no_grad():
            torch.testing.assert_close(result.model(batch), expected(batch), rtol=1e-4, atol=1e-5)
    narrow = recurrent(kind, hidden=3, **options)
    assert result.model.rnn.hidden_size == 3
    assert shapes(result.model) == shapes(narrow)
    assert result.flops_after == count_flops(narrow, example, backward=False).forward_flops


def test_the_kind_of_the_group_and_what_projects():
    group, = unit_groups(recurrent(nn.LSTM), rows(4, 5, 3)).groups
    assert (group.name, group.kind, group.units) == ("rnn", "hidden", 6)
    structure = unit_groups(recurrent(nn.LSTM, proj_size=4), rows(4, 5, 3))
    assert structure.groups == ()
    assert structure.not_prunable["rnn"] == "the LSTM projects its hidden units"


def test_two_recurrent_layers_after_each_other():
    def stack(a, b):
        return Layers(lambda net, x: net.head(net.lstm(net.gru(x)[0])[0][:, -1]),
                      gru=nn.GRU(3, a, batch_first=True), lstm=nn.LSTM(a, b, batch_first=True),
                      head=nn.Linear(b, 2))

    result = cut(stack(5, 4), rows(4, 6, 3), {"gru": [0, 4], "lstm": [1, 2, 3]})
    assert shapes(result.model) == shapes(stack(2, 3))
