"""A layer's totals, how its weight lies, and tags of its units."""

from __future__ import annotations

import pytest
import torch

from wua_mlflow.usage.tracing.layer import RunningSum, TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.tags import UnitTag, propagate_units, tag_of


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


def test_what_lies_together_in_memory():
    by_column, by_row = (layer(view=ParameterView("own", (3, 4), stride, 0))
                         for stride in ((1, 3), (4, 1)))
    assert [case.by_column for case in (by_column, by_row, layer("embedding"), layer())] == [
        True, False, True, False]
    assert (by_row.parameter, layer().parameter) == ("own", None)


def test_images_that_were_flattened_have_their_units_in_rows_only():
    source = UnitTag(layer("conv", spatial=2), call=1)
    in_rows, elsewhere, unflattened = torch.ones(2, 12), torch.ones(2, 3, 4), torch.ones(2, 3, 2, 2)
    for result in (in_rows, elsewhere, unflattened):
        propagate_units(source, result, flattened=result is not unflattened)
    assert [tag_of(result) for result in (in_rows, elsewhere, unflattened)] == [
        UnitTag(source.layer, call=1, flat=True), UnitTag(), source]
