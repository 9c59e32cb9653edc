"""A layer's totals, which of its units live, how its weight lies, and tags of its units."""

from __future__ import annotations

import pytest
import torch

from wua_mlflow.usage.tracing.layer import FiredUnits, RunningSum, TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.tags import UnitTag, propagate_units, tag, tag_of


def layer(operation: str = "linear", **options) -> TracedLayer:
    return TracedLayer("name", "kind", "module", operation, 4, **options)


def test_a_total_is_float64_and_none_of_the_tensors_it_was_given():
    total, part = RunningSum(), torch.tensor([1.0, 2.0**-60])
    with pytest.raises(ValueError, match="something added"):
        total.mean()
    total.add(torch.zeros(2), 0)
    assert total.mean().tolist() == [0, 0]
    for _ in range(3):
        total.add(part, 2)
    total.add(torch.tensor([2.0**30, 1.0]), 0)
    assert total.mean().tolist() == [(3 + 2.0**30) / 6, (1 + 3 * 2.0**-60) / 6]
    assert (total.count, total.sums.dtype, part.tolist()) == (6, torch.float64, [1.0, 2.0**-60])


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("shape", [(300, 5), (7, 5, 40)], ids=["rows", "positions"])
def test_units_that_live_in_any_batch(above, shape):
    fired, batches = FiredUnits(5, torch.device("cpu"), above=above), []
    for number in range(4):
        rows = torch.zeros(shape)
        if number:  # unit 0 never; one in the first rows, one in the last, one below zero only
            rows[0, 1], rows[-1, number] = 1.0, 2.0
            rows[:, 4] = -1.0
        fired.update(rows)
        batches.append(rows.transpose(0, 1).reshape(5, -1))
    every = torch.cat(batches, 1)
    expected = (every > 0).any(1) if above else (every != 0).any(1)
    assert fired.flags.tolist() == expected.tolist()
    assert fired.calls == 4
    assert fired.to(torch.device("cpu")).flags.tolist() == expected.tolist()


def test_a_relu_says_more_than_zero_if_it_comes_after_every_call():
    traced, rows = layer(), torch.tensor([[-1.0, 0.0, 1.0, -2.0]])
    assert traced.dead_units() is None
    traced.fired = FiredUnits(4, torch.device("cpu"), above=False)
    traced.fired.update(rows)
    traced.calls = 1
    assert traced.dead_units().tolist() == [False, True, False, False]
    traced.fired_in_relu = FiredUnits(4, torch.device("cpu"), above=True)
    traced.fired_in_relu.update(rows)
    assert traced.dead_units().tolist() == [True, True, False, True]
    traced.calls = 2
    assert traced.dead_units().tolist() == [False, True, False, False]


def test_what_lies_together_in_memory():
    by_column, by_row = (layer(view=ParameterView("own", (3, 4), stride, 0))
                         for stride in ((1, 3), (4, 1)))
    assert [case.by_column for case in (by_column, by_row, layer("embedding"), layer())] == [
        True, False, True, False]
    assert (by_row.parameter, layer().parameter) == ("own", None)


def test_a_tag_is_of_one_tensor_as_it_is_now():
    x = torch.ones(3)
    tag(x, call=1)
    tag(x, flat=True)
    assert tag_of(x) == UnitTag(call=1, flat=True)
    assert tag_of(x.clone()) == tag_of("no tensor") == UnitTag()
    x += 1
    assert tag_of(x) == UnitTag()
    tag(x, positive=True)
    assert tag_of(x) == UnitTag(positive=True)
    with torch.inference_mode():
        x = torch.ones(3)
        tag(x, call=1)
        assert tag_of(x).call == 1


def test_images_that_were_flattened_have_their_units_in_rows_only():
    source = UnitTag(layer("conv", spatial=2), call=1)
    in_rows, elsewhere, unflattened = torch.ones(2, 12), torch.ones(2, 3, 4), torch.ones(2, 3, 2, 2)
    propagate_units(source, in_rows, flattened=True)
    propagate_units(source, elsewhere, flattened=True)
    propagate_units(source, unflattened, flattened=False)
    assert tag_of(in_rows) == UnitTag(source.layer, call=1, flat=True)
    assert tag_of(elsewhere) == UnitTag()
    assert tag_of(unflattened) == source
