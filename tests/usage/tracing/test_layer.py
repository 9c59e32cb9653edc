"""A layer's totals, which of its units live, and how its weight lies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wua_mlflow.usage.tracing.layer import FiredUnits, RunningSum, TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView


def layer(operation: str = "linear", **options) -> TracedLayer:
    return TracedLayer("name", "kind", "module", operation, 4, **options)


def test_a_total_is_float64_and_none_of_the_tensors_it_was_given():
    total, part = RunningSum(), torch.tensor([1.0, 2.0])
    for _ in range(3):
        total.add(part, 2)
    assert total.mean().tolist() == [0.5, 1.0]
    assert (total.count, total.sums.dtype, part.tolist()) == (6, torch.float64, [1.0, 2.0])
    exact = RunningSum()
    exact.add(torch.tensor([2.0**30]), 1)
    exact.add(torch.tensor([2.0**-20]), 1)
    assert exact.sums.item() == 2.0**30 + 2.0**-20


def test_a_mean_over_nothing():
    with pytest.raises(ValueError, match="something added"):
        RunningSum().mean()
    empty = RunningSum()
    empty.add(torch.zeros(2), 0)
    assert empty.mean().tolist() == [0, 0]


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("shape", [(300, 5), (7, 5, 40)], ids=["rows", "positions"])
def test_units_that_live_in_any_batch(above, shape):
    torch.manual_seed(0)
    fired, seen = FiredUnits(5, torch.device("cpu"), above=above), []
    for number in range(4):
        rows = torch.zeros(shape)
        if number:  # unit 0 never; one in the first rows, one in the last, one below zero only
            rows[0, 1], rows[-1, number] = 1.0, 2.0
            rows[:, 4] = -1.0
        fired.update(rows)
        seen.append(rows.transpose(0, 1).reshape(5, -1))
    every = torch.cat(seen, 1)
    expected = (every > 0).any(1) if above else (every != 0).any(1)
    assert fired.flags.tolist() == expected.tolist()
    assert fired.calls == 4
    assert fired.to(torch.device("cpu")).flags.tolist() == expected.tolist()


def test_no_rows_decide_nothing():
    fired = FiredUnits(3, torch.device("cpu"), above=False)
    fired.update(torch.zeros(0, 3))
    assert fired.flags.tolist() == [False] * 3


def test_a_relu_says_more_than_zero_if_it_comes_after_every_call():
    one = layer()
    assert one.dead_units() is None
    one.fired = FiredUnits(4, torch.device("cpu"), above=False)
    one.fired.update(torch.tensor([[-1.0, 0.0, 1.0, -2.0]]))
    one.calls = 1
    assert one.dead_units().tolist() == [False, True, False, False]
    one.fired_in_relu = FiredUnits(4, torch.device("cpu"), above=True)
    one.fired_in_relu.update(torch.tensor([[-1.0, 0.0, 1.0, -2.0]]))
    assert one.dead_units().tolist() == [True, True, False, True]
    one.calls = 2
    assert one.dead_units().tolist() == [False, True, False, False]


def test_units_first():
    rows = torch.arange(24.0)
    assert layer().units_first(rows.view(4, 6)).equal(rows.view(4, 6))
    assert layer("embedding").units_first(rows.view(6, 4)).equal(rows.view(6, 4).T)
    recurrent = layer("recurrent", gates=3).units_first(rows.view(12, 2))
    assert recurrent.shape == (4, 3, 2)
    assert recurrent[1].tolist() == [rows.view(12, 2)[i].tolist() for i in (1, 5, 9)]
    assert layer("recurrent", gates=3).of_fan_in(torch.tensor([[1, 2]])).tolist() == [
        [1, 2, 1, 2, 1, 2]]


@pytest.mark.parametrize("groups", [1, 2])
def test_units_first_of_a_transposed_convolution(groups):
    conv = nn.ConvTranspose1d(4, 6, 3, groups=groups)
    found = layer("conv", groups=groups, transposed=True).units_first(conv.weight)
    parts = [part.transpose(0, 1) for part in conv.weight.chunk(groups)]
    assert found.equal(torch.cat(parts))


def test_what_lies_together_in_memory():
    def seen(size, stride):
        return layer(view=ParameterView("own", size, stride, 0))

    assert seen((3, 4), (1, 3)).by_column
    assert not seen((3, 4), (4, 1)).by_column
    assert layer("embedding").by_column
    assert not layer().by_column
    assert (seen((3, 4), (4, 1)).parameter, layer().parameter) == ("own", None)
