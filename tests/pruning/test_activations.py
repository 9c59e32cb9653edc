"""What readers read, against activations taken by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.example_modules import Conv1D
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


def group(parameter, by_unit, *, dim=1, kind="units"):
    """Units that one parameter reads, by their columns of it."""
    reader = ParameterSlice(parameter, dim, by_unit)
    return UnitGroup("made", ("made",), (reader,), len(by_unit), kind=kind)


FIVE, THREE = columns(5), columns(3)


@pytest.mark.parametrize(("model", "inputs", "units", "expected"), [
    (nn.Linear(5, 2), rows(7, 5), group("weight", FIVE), lambda x: x),
    (nn.Linear(5, 2), rows(7, 3, 5), group("weight", FIVE), lambda x: x.reshape(21, 5)),
    (nn.Linear(12, 2), rows(7, 12), group("weight", columns(3, 4)),
     lambda x: x.reshape(7, 3, 4).transpose(1, 2).reshape(28, 3)),
    (nn.Conv2d(3, 2, 3), rows(4, 3, 6, 5), group("weight", THREE),
     lambda x: x.permute(0, 2, 3, 1).reshape(120, 3)),
    (nn.Conv1d(3, 2, 3), rows(4, 3, 6), group("weight", THREE),
     lambda x: x.permute(0, 2, 1).reshape(24, 3)),
    (nn.ConvTranspose2d(3, 2, 3), rows(4, 3, 6, 5), group("weight", THREE, dim=0),
     lambda x: x.permute(0, 2, 3, 1).reshape(120, 3)),
    (nn.LSTM(5, 2, batch_first=True), rows(4, 6, 5), group("weight_ih_l0", FIVE),
     lambda x: x.reshape(24, 5)),
    (Conv1D(5, 2), rows(4, 6, 5), group("weight", FIVE, dim=0), lambda x: x.reshape(24, 5)),
], ids=["linear", "sequence", "flattened", "conv", "conv1d", "transposed", "lstm", "HF Conv1D"])
def test_rows_of_units(model, inputs, units, expected):
    consumer, = consumer_inputs(model, units)
    wanted = expected(inputs)
    assert torch.equal(consumer.rows(inputs), wanted)
    assert torch.equal(consumer.with_rows(inputs, 2 * wanted), 2 * inputs)
    measured, skipped = measure_moments(model, [units], lambda: model(inputs))
    (_, moments), = measured["made"]
    assert not skipped
    assert moments.count == len(wanted)
    assert numpys(moments.mean) == pytest.approx(numpys(wanted).mean(0), abs=1e-7)
    assert numpys(moments.scatter) / (len(wanted) - 1) == pytest.approx(
        np.cov(numpys(wanted).T), abs=1e-7)


def test_units_at_some_columns_only():
    consumer, = consumer_inputs(nn.Linear(6, 2), group("weight", ((4,), (1,))))
    inputs = rows(3, 6)
    assert torch.equal(consumer.rows(inputs), inputs[:, [4, 1]])
    changed = consumer.with_rows(inputs, torch.zeros(3, 2))
    assert torch.equal(changed[:, [0, 2, 3, 5]], inputs[:, [0, 2, 3, 5]])
    assert not changed[:, [1, 4]].any()


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34), (1,) * 100])
def test_moments_do_not_depend_on_batches(sizes):
    values = rows(100, 4).double() + 1e4  # far from zero: sums of squares would cancel
    moments = Moments(0, torch.zeros(4).double(), torch.zeros(4, 4).double())
    for part in values.split(sizes):
        moments.add(part)
    assert moments.count == 100
    assert numpys(moments.mean) == pytest.approx(numpys(values).mean(0), rel=1e-14)
    assert numpys(moments.scatter) / 99 == pytest.approx(np.cov(numpys(values).T), rel=1e-8)


def test_norms_of_the_weights_that_read_a_unit():
    model = nn.Sequential(nn.Linear(12, 2), nn.Conv2d(3, 5, 3), nn.LSTM(3, 2))
    readers = (ParameterSlice("0.weight", 1, columns(3, 4)), ParameterSlice("1.weight", 1, THREE),
               ParameterSlice("2.weight_ih_l0", 1, THREE))
    weights = (numpys(model[0].weight).reshape(2, 3, 4), numpys(model[1].weight),
               numpys(model[2].weight_ih_l0))
    by_hand = [sum((weight[:, u] ** 2).sum() for weight in weights) ** 0.5 for u in range(3)]
    norms = outgoing_norms(model, UnitGroup("u", ("u",), readers, 3))
    assert numpys(norms) == pytest.approx(np.array(by_hand))


def test_inputs_are_changed_within_the_block_alone():
    model, x = nn.Linear(4, 3), rows(5, 4)
    consumer, = consumer_inputs(model, group("weight", columns(4)))
    before = model(x)
    with modified_inputs([(consumer, lambda r: r + 1), (consumer, lambda r: r * 2)]):
        expected = (numpys(x) + 1) * 2 @ numpys(model.weight).T + numpys(model.bias)
        assert numpys(model(x)) == pytest.approx(expected, abs=1e-5)
        assert torch.equal(model(input=x), model(x))
    assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError), modified_inputs([(consumer, lambda r: r)]):
        model(torch.rand(2, 5))
    assert not model._forward_pre_hooks


UNSEEN = "what %s reads cannot be seen"


@pytest.mark.parametrize(("model", "units", "why"), [
    (nn.Linear(4, 3), group("weight", FIVE, kind="heads"), "its units are heads, not activations"),
    (nn.LSTM(4, 3), group("weight_hh_l0", THREE, kind="hidden"), "nothing but itself reads it"),
    (nn.LSTM(4, 3, 2), group("weight_ih_l1", THREE, kind="hidden"), UNSEEN % "weight_ih_l1"),
    (nn.Conv2d(4, 4, 3, groups=2), group("weight", columns(2)), UNSEEN % "weight"),
    (nn.MultiheadAttention(4, 2), group("in_proj_weight", FIVE), UNSEEN % "in_proj_weight"),
    (nn.Linear(4, 3), group("weight", ((0,), (1, 2, 3))), UNSEEN % "weight"),
    (nn.Linear(4, 3), UnitGroup("a", ("a",), (), 2), "nothing but itself reads it"),
])
def test_what_cannot_be_seen_is_said(model, units, why):
    assert consumer_inputs(model, units) == why
