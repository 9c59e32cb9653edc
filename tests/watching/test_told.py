"""What a layer learns from one product, one recurrence and one ReLU."""

from __future__ import annotations

import pytest
import torch

from wua_mlflow.usage.tracing.calls import WeightCall
from wua_mlflow.usage.tracing.layer import (
    RequiredStats,
    TracedLayer,
    ValidPositions,
    add_call,
    add_recurrent_call,
    propagate_units,
    record_relu_input,
)
from wua_mlflow.usage.tracing.recurrent import RecurrentCall
from wua_mlflow.usage.tracing.sums import mask_of
from wua_mlflow.usage.tracing.tags import tag, tag_of

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
X = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])  # one sample, two positions


def layer(**options) -> TracedLayer:
    return TracedLayer("name", "kind", "module", "linear", 3, **options)


@pytest.mark.parametrize(("needs", "outputs", "ones", "squares"), [
    (RequiredStats(), [4, 2, 0], None, None),
    (RequiredStats(output=False, powers=frozenset({1})), None, [[4, 6]], None),
    (RequiredStats(powers=frozenset({1, 2})), [4, 2, 0], [[4, 6]], [[10, 20]])])
def test_only_what_is_needed_is_summed(needs, outputs, ones, squares):
    one = layer()
    add_call(one, WeightCall("linear", WEIGHT, (X,)), X @ WEIGHT.T, needs, ValidPositions())
    found = [None if total.sums is None else total.sums.tolist()
             for total in (one.output, one.inputs[1], one.inputs[2])]
    assert found == [outputs, ones, squares]
    assert one.calls == 1
    assert one.dead_units().tolist() == [False, False, True]


def test_padding_is_in_no_sum_and_wakes_no_unit():
    one, mask = layer(), mask_of(torch.tensor([[1, 0]]))
    x = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]])
    add_call(one, WeightCall("linear", WEIGHT, (x,)), x @ WEIGHT.T,
                 RequiredStats(powers=frozenset({2})), ValidPositions(mask))
    assert one.output.mean().tolist() == [1, 0, 0]
    assert one.inputs[2].sums.tolist() == [[1, 0]]
    assert one.dead_units().tolist() == [False, True, True]


def test_a_computed_weight_that_is_another_in_the_second_call_is_noted():
    for second, changes in ((WEIGHT.clone(), False), (WEIGHT + 1, True)):
        one = layer(computed=WEIGHT)
        for weight in (WEIGHT, second):
            add_call(
                one,
                WeightCall("linear", weight, (X,)),
                X @ weight.T,
                RequiredStats(),
                ValidPositions(),
            )
        assert one.changes == changes


def test_a_relu_sees_the_layer_whose_units_still_are_in_their_places():
    one = layer()
    one.calls = 1
    output = torch.tensor([[-1.0, 2.0, -3.0], [-1.0, -2.0, 0.5]])
    tag(output, layer=one)
    after = output * 1
    record_relu_input(after, ValidPositions())
    assert one.alive_after_relu is None
    propagate_units(one, after, flat=False)
    record_relu_input(after, ValidPositions())
    assert one.dead_units().tolist() == [True, False, False]


def test_a_relu_does_not_see_padding():
    one = layer()
    one.calls = 1
    output = torch.tensor([[[-1.0, 2.0, -3.0], [5.0, 5.0, 5.0]]])
    tag(output, layer=one)
    record_relu_input(output, ValidPositions(mask_of(torch.tensor([[1, 0]]))))
    assert one.dead_units().tolist() == [True, False, True]


@pytest.mark.parametrize(("shape", "knows"), [((2, 12), True), ((2, 3, 4), False)])
def test_images_in_rows_are_no_units_for_a_relu_but_for_a_reader(shape, knows):
    one = layer(spatial=2)
    flat = torch.ones(shape)
    propagate_units(one, flat, flat=True)
    record_relu_input(flat, ValidPositions())
    assert one.alive_after_relu is None
    assert (tag_of(flat, "layer") is one) == knows


def test_a_relu_of_what_has_other_units_says_nothing():
    one = layer()
    output = torch.ones(2, 6)
    tag(output, layer=one)
    record_relu_input(output, ValidPositions())
    record_relu_input(3.0, ValidPositions())
    assert one.alive_after_relu is None


NEEDS = RequiredStats(powers=frozenset({1, 2}))


def test_a_recurrence_adds_states_and_what_came_before_them():
    states = torch.tensor([[[1.0], [-2.0], [4.0]]])  # one sample, three steps
    one = TracedLayer("w", "LSTM", "rnn", "recurrent", 1)
    add_recurrent_call(one, RecurrentCall(torch.ones(1, 1), (), 1, states, (torch.full((1, 1), 3.0),
                    states[:, -1]), states, False), NEEDS, ValidPositions())
    assert (one.output.sums.tolist(), one.output.count) == ([3], 3)
    assert one.inputs[1].sums.tolist() == [[3 + 1 + 2]]
    assert (one.inputs[2].sums.tolist(), one.inputs[2].count) == ([[9 + 1 + 4]], 3)


def test_packed_states_lose_their_last_and_never_fall_below_zero():
    torch.manual_seed(0)
    first, steps = torch.zeros(7, 1), torch.randn(7, 1)
    one = TracedLayer("w", "LSTM", "rnn", "recurrent", 1)
    add_recurrent_call(
        one,
        RecurrentCall(torch.ones(1, 1), (), 1, steps, (first, steps.flip(0)), steps, None),
        NEEDS,
        ValidPositions(),
    )
    assert 0 <= one.inputs[2].sums.item() < 1e-6
    assert one.inputs[2].count == 7


def test_what_a_projection_hides_is_not_told():
    steps = torch.ones(5, 2, 1)
    cell, projection = (TracedLayer("w", "LSTM", "rnn", "recurrent", 1) for _ in range(2))
    add_recurrent_call(cell, RecurrentCall(torch.ones(1, 1), (), 1, steps, None, None, True), NEEDS,
                    ValidPositions())
    assert (cell.calls, cell.alive, cell.output.sums, cell.flops) == (1, None, None, 2 * 10)
    add_recurrent_call(
        projection,
        RecurrentCall(torch.ones(1, 1), (), 1, None, None, steps, True),
        NEEDS,
        ValidPositions(),
    )
    assert (projection.calls, projection.inputs[1].sums, projection.flops) == (1, None, 2 * 10)
