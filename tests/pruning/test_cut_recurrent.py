"""Hidden units of LSTM, GRU and RNN, against torch's own layer with the units' readers at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.networks import kept_streams, rows
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, unit_groups


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


class Recurrent(nn.Module):
    """A recurrent layer; the head reads its last outputs, or the state that it ends with."""

    def __init__(self, kind, *, state=False, hidden=6, **options):
        super().__init__()
        self.rnn, self.state = kind(3, hidden, batch_first=True, **options), state
        self.head = nn.Linear(hidden * (1 + options.get("bidirectional", False)), 2)

    def forward(self, x):
        outputs, state = self.rnn(x)
        if self.state:
            last = state[0] if isinstance(state, tuple) else state
            return self.head(last[-1])
        return self.head(outputs[:, -1])


KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
OPTIONS = [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True},
           {"bias": False}, {"state": True}, {"state": True, "num_layers": 2}]


def unread(model, units):
    """A copy in which nothing reads the units: neither the layer itself nor the head."""
    found, hidden = copy.deepcopy(model), model.rnn.hidden_size
    both = [*units, *(hidden + unit for unit in units)]
    with torch.no_grad():
        for name, weight in found.rnn.named_parameters():
            if name.startswith("weight_hh"):
                weight[:, units] = 0
            elif name.startswith("weight_ih_l") and not name.startswith("weight_ih_l0"):
                weight[:, both if model.rnn.bidirectional else units] = 0
        found.head.weight[:, both if model.rnn.bidirectional else units] = 0
    return found


@pytest.mark.parametrize(("kind", "options"), [
    *(("lstm", options) for options in OPTIONS),
    *((kind, options) for kind in ("gru", "rnn") for options in (OPTIONS[3], OPTIONS[5]))], ids=str)
def test_outputs_parameters_and_flops(kind, options):
    model, keep = Recurrent(KINDS[kind], **options).eval(), [1, 2, 5]
    found = cut(model, rows(4, 5, 3), {"rnn": keep})
    expected = unread(model, [0, 3, 4])
    for batch in (rows(4, 5, 3), rows(1, 9, 3)):
        with torch.no_grad():
            torch.testing.assert_close(found.model(batch), expected(batch), rtol=1e-4, atol=1e-5)
    narrow = Recurrent(KINDS[kind], hidden=3, **options)
    assert found.model.rnn.hidden_size == 3
    assert {name: one.shape for name, one in found.model.state_dict().items()} == {
        name: one.shape for name, one in narrow.state_dict().items()}
    assert found.flops_after == count_flops(narrow, rows(4, 5, 3), backward=False).forward_flops


def test_the_kind_of_the_group_and_what_projects():
    group, = unit_groups(Recurrent(nn.LSTM), rows(4, 5, 3)).groups
    assert (group.name, group.kind, group.units) == ("rnn", "hidden", 6)

    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 6, proj_size=4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    found = unit_groups(Projected(), rows(4, 5, 3))
    assert found.groups == ()
    assert found.not_prunable["rnn"] == "the LSTM projects its hidden units"


def test_two_recurrent_layers_after_each_other():
    class Stack(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.one, self.two = nn.GRU(3, a, batch_first=True), nn.LSTM(a, b, batch_first=True)
            self.head = nn.Linear(b, 2)

        def forward(self, x):
            return self.head(self.two(self.one(x)[0])[0][:, -1])

    found = cut(Stack(5, 4), rows(4, 6, 3), {"one": [0, 4], "two": [1, 2, 3]})
    assert {name: one.shape for name, one in found.model.state_dict().items()} == {
        name: one.shape for name, one in Stack(2, 3).state_dict().items()}
