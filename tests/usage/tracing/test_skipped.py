"""Each reason for which a weight is in no layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.registry import LayerRegistry
from wua_mlflow.usage.tracing.skipped import NEVER_CALLED, explain_skipped


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.cell = nn.GRUCell(3, 4)


def layer(name: str, parameter: str | None = None, size: tuple[int, ...] = (4, 3),
          **options) -> TracedLayer:
    view = None if parameter is None else ParameterView(parameter, size, (size[1], 1), 0)
    return TracedLayer(name, "kind", name, "linear", size[0], view=view, **options)


def reasons(
    model: nn.Module, *layers: TracedLayer, calls=(), other_uses=(), unsupported=()
) -> dict[str, str]:
    registry = LayerRegistry(model, lambda _: True)
    registry.layers = {layer.name: layer for layer in layers}
    registry.other_uses, registry.unsupported = dict(other_uses), dict(unsupported)
    return explain_skipped(registry, dict(calls))


FIRST = layer("first", "first.weight")
SECOND = layer("second", "second.weight", (4, 4))
THROUGH = "used through {}, which is not a product that is analysed"


def test_modules_that_were_called_and_not():
    found = reasons(Net(), FIRST, calls={"first": 2, "second": 3, "norm": 1},
                    other_uses={"cell.weight_hh": "gru_cell", "cell.weight_ih": "gru_cell"})
    assert found == {
        "second": "Linear was called 3 times, but no product of its weight was seen",
        "norm": "LayerNorm is not a kind of layer that is analysed",
        "cell": THROUGH.format("gru_cell")}
    assert reasons(Net(), FIRST, SECOND, calls={"norm": 1})["cell"] == NEVER_CALLED


def test_the_other_matrices_of_a_module_each_have_their_reason():
    model = Net()
    model.ein, model.spare = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    model.vector = nn.Parameter(torch.ones(2))
    found = reasons(model, FIRST, calls={"": 1}, other_uses={"ein": "einsum"})
    assert found["ein"] == THROUGH.format("einsum")
    assert found["spare"] == "never used in the forward"
    assert not {"", "vector"} & set(found)
    model.first.extra = nn.Parameter(torch.ones(2, 2))
    assert reasons(model, FIRST)["first.extra"] == "never used in the forward"


def test_a_parameter_beside_submodules_goes_by_its_own_name():
    model = Net()
    model.scale = nn.Parameter(torch.ones(()))
    found = reasons(model, FIRST, SECOND, calls={"": 1})
    assert found["scale"] == "a parameter of its own that is no matrix" and "" not in found
    model.table = nn.Parameter(torch.ones(3, 2))
    del model.scale
    assert reasons(model, FIRST, SECOND, calls={"": 1})["table"] == "never used in the forward"


@pytest.mark.parametrize("name", ["first", "first.weight"])
def test_a_weight_that_was_refused_keeps_its_reason(name):
    found = reasons(Net(), SECOND, calls={"first": 1}, unsupported={name: "its weight is complex"})
    assert {key: value for key, value in found.items() if key.startswith("first")} == {
        name: "its weight is complex"}


def test_tied_weights_go_by_the_layer_where_they_count():
    model = Net()
    model.head = nn.Linear(3, 4)
    model.head.weight = model.first.weight
    model.late = nn.Module()
    model.late.bare = model.first.weight
    found = reasons(model, FIRST)
    for name in ("head", "late.bare"):
        assert found[name] == "shares its weight with 'first', where it is counted"


def test_slices_leave_the_rest():
    found = reasons(Net(), layer("first", "first.weight", (3, 3)))
    assert found["first.weight[...]"] == "3 of its 12 weights are in no product that is analysed"


def test_a_module_that_makes_its_weight_covers_what_it_is_made_of():
    model = Net()
    model.first = parametrizations.weight_norm(model.first)
    model.second.spare = nn.Parameter(torch.ones(2, 2))
    found = reasons(model, layer("first", computed=torch.ones(4, 3)),
                    layer("second", computed=torch.ones(4, 4), changes=True),
                    other_uses={"second.weight": "mul"})
    assert not any(name.startswith("first") for name in found)
    assert found["second"] == "its weight is computed anew from the data"
    assert found["second.spare"] == "never used in the forward"
    assert "second.weight" not in found
