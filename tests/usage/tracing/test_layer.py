"""A layer's totals, how its weight lies, and tags of its units."""

from __future__ import annotations

import pytest
import torch

from wua_mlflow.usage.tracing.layer import RunningSum, TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView


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
