"""Pruning by masking: silent where the units are read, and afterwards as before."""

from __future__ import annotations

import pytest
import torch

from tests.networks import snapshot
from tests.pruning.cutting_cases import CASES, silent
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.unit_groups import masked


def test_it_is_the_network_whose_readers_get_zero_and_then_as_before(pruned):
    case, model, removed = pruned.case, pruned.model, pruned.case.removed()
    inputs, before = case.example(5), snapshot(model)
    with torch.no_grad():
        with silent(model, case.readers, removed):
            expected = model(inputs)
        with masked(model, pruned.structure, removed) as same:
            assert same is model and snapshot(model) != before
            torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-6)
    assert snapshot(model) == before
    with pytest.raises(KeyError), masked(model, pruned.structure, removed):
        raise KeyError
    assert snapshot(model) == before


@pytest.mark.parametrize(("removed", "message"), [
    ({"0": [7]}, "units: expected numbers below 7 for 0, but got 7"),
    ({"9": [0]}, "group: expected one of 0, 2, but got '9'"),
])
def test_what_is_refused(removed, message):
    model = CASES["mlp"].whole()
    structure, before = unit_groups(model, torch.zeros(2, 4)), snapshot(model)
    with pytest.raises(ValueError) as raised, masked(model, structure, removed):
        pass
    assert str(raised.value).startswith(message)
    assert snapshot(model) == before
