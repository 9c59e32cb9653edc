"""What readers read, against activations taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import numpys, rows
from wua_mlflow.pruning.activations import (
    Moments,
    consumer_inputs,
    measure_moments,
    modified_inputs,
    outgoing_norms,
)
from wua_mlflow.pruning.unit_groups import ParameterSlice, UnitGroup


def columns(units, each=1):
    return tuple(tuple(range(unit * each, (unit + 1) * each)) for unit in range(units))


def group(parameter, units, *, each=1, dim=1, kind="units"):
    return UnitGroup(
        "made", ("made",), (ParameterSlice(parameter, dim, columns(units, each)),), units, kind=kind
    )


def the_port(model, own):
    found = consumer_inputs(model, own)
    assert not isinstance(found, str), found
    return found[0]


class TransposedLinear(nn.Module):
    """As transformers' own ``Conv1D``: the weight has shape (inputs, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


Conv1D = type("Conv1D", (TransposedLinear,), {})


@pytest.mark.parametrize(("model", "inputs", "own", "expected"), [
    (nn.Linear(5, 2), rows(7, 5), group("weight", 5), lambda x: x),
    (nn.Linear(5, 2), rows(7, 3, 5), group("weight", 5), lambda x: x.reshape(21, 5)),
    (nn.Linear(12, 2), rows(7, 12), group("weight", 3, each=4),
     lambda x: x.reshape(7, 3, 4).transpose(1, 2).reshape(28, 3)),
    (nn.Conv2d(3, 2, 3), rows(4, 3, 6, 5), group("weight", 3),
     lambda x: x.permute(0, 2, 3, 1).reshape(120, 3)),
    (nn.Conv1d(3, 2, 3), rows(4, 3, 6), group("weight", 3),
     lambda x: x.permute(0, 2, 1).reshape(24, 3)),
    (nn.ConvTranspose2d(3, 2, 3), rows(4, 3, 6, 5), group("weight", 3, dim=0),
     lambda x: x.permute(0, 2, 3, 1).reshape(120, 3)),
    (nn.LSTM(5, 2, batch_first=True), rows(4, 6, 5), group("weight_ih_l0", 5),
     lambda x: x.reshape(24, 5)),
    (Conv1D(5, 2), rows(4, 6, 5), group("weight", 5, dim=0), lambda x: x.reshape(24, 5)),
], ids=["linear", "sequence", "flattened", "conv", "conv1d", "transposed", "lstm", "HF Conv1D"])
def test_rows_of_units(model, inputs, own, expected):
    port = the_port(model, own)
    wanted = expected(inputs)
    assert torch.equal(port.rows(inputs), wanted)
    assert torch.equal(port.with_rows(inputs, wanted), inputs)
    doubled = port.with_rows(inputs, 2 * wanted)
    assert torch.equal(doubled, 2 * inputs)
    measured, skipped = measure_moments(model, [own], lambda: model(inputs))
    (_, found), = measured["made"]
    assert not skipped
    assert found.count == len(wanted)
    assert numpys(found.mean) == pytest.approx(numpys(wanted).mean(0), abs=1e-7)
    assert numpys(found.scatter) / (len(wanted) - 1) == pytest.approx(
        np.cov(numpys(wanted).T), abs=1e-7)


def test_units_at_some_columns_only():
    own = UnitGroup("b", ("b",), (ParameterSlice("weight", 1, ((4,), (1,))),), 2)
    port = the_port(nn.Linear(6, 2), own)
    inputs = rows(3, 6)
    assert torch.equal(port.rows(inputs), inputs[:, [4, 1]])
    changed = port.with_rows(inputs, torch.zeros(3, 2))
    assert torch.equal(changed[:, [0, 2, 3, 5]], inputs[:, [0, 2, 3, 5]])
    assert not changed[:, [1, 4]].any()


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34), (1,) * 100])
def test_moments_do_not_depend_on_batches(sizes):
    own = rows(100, 4).double() + 1e4  # far from zero: sums of squares would cancel
    found = Moments(0, torch.zeros(4).double(), torch.zeros(4, 4).double())
    for part in own.split(sizes):
        found.add(part)
    assert found.count == 100
    assert numpys(found.mean) == pytest.approx(numpys(own).mean(0), rel=1e-14)
    assert numpys(found.scatter) / 99 == pytest.approx(np.cov(numpys(own).T), rel=1e-8)


def test_norms_of_the_weights_that_read_a_unit():
    model = nn.Sequential(nn.Linear(12, 2), nn.Conv2d(3, 5, 3), nn.LSTM(3, 2))
    own = UnitGroup("u", ("u",), (ParameterSlice("0.weight", 1, columns(3, 4)),
                                  ParameterSlice("1.weight", 1, columns(3)),
                                  ParameterSlice("2.weight_ih_l0", 1, columns(3))), 3)
    by_hand = [np.sqrt((numpys(model[0].weight)[:, 4 * u:4 * u + 4] ** 2).sum()
                       + (numpys(model[1].weight)[:, u] ** 2).sum()
                       + (numpys(model[2].weight_ih_l0)[:, u] ** 2).sum()) for u in range(3)]
    assert numpys(outgoing_norms(model, own)) == pytest.approx(np.array(by_hand))


def test_inputs_are_changed_within_the_block_alone():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    port = the_port(model, group("0.weight", 4))
    x = rows(5, 4)
    before = model(x)
    with modified_inputs([(port, lambda r: r + 1), (port, lambda r: r * 2)]):
        assert torch.allclose(model(x), model[0].weight.T.new_tensor(
            (numpys(x) + 1) * 2 @ numpys(model[0].weight).T, dtype=torch.float32), atol=1e-5)
    assert torch.equal(model(x), before)
    assert not model[0]._forward_pre_hooks


def test_inputs_are_changed_no_more_when_the_block_raises():
    model = nn.Linear(4, 3)
    port = the_port(model, group("weight", 4))
    with pytest.raises(RuntimeError), modified_inputs([(port, lambda r: r)]):
        model(torch.rand(2, 5))
    assert not model._forward_pre_hooks


def test_inputs_given_by_name():
    model = nn.Linear(4, 3)
    port = the_port(model, group("weight", 4))
    x = rows(5, 4)
    with modified_inputs([(port, torch.zeros_like)]):
        assert torch.equal(model(input=x), model.bias.expand(5, 3))


@pytest.mark.parametrize(("model", "own", "why"), [
    (nn.Linear(4, 3), group("weight", 4, kind="heads"), "its units are heads, not activations"),
    (nn.LSTM(4, 3), group("weight_hh_l0", 3, kind="hidden"), "nothing but itself reads it"),
    (nn.LSTM(4, 3, 2), group("weight_ih_l1", 3, kind="hidden"), "what weight_ih_l1 reads cannot be "
                                                                "seen"),
    (nn.Conv2d(4, 4, 3, groups=2), group("weight", 2), "what weight reads cannot be seen"),
    (nn.MultiheadAttention(4, 2), group("in_proj_weight", 4), "what in_proj_weight reads cannot"),
    (nn.Linear(4, 3), UnitGroup("a", ("a",), (ParameterSlice("weight", 1, ((0,), (1, 2, 3))),), 2),
     "what weight reads cannot be seen"),
    (nn.Linear(4, 3), UnitGroup("a", ("a",), (), 2), "nothing but itself reads it"),
])
def test_what_cannot_be_seen_is_said(model, own, why):
    found = consumer_inputs(model, own)
    assert isinstance(found, str) and found.startswith(why)
