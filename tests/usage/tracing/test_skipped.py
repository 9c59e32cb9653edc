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
    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.cell = nn.GRUCell(3, 4)
        for name, shape in parameters.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))


def layer(name: str, *size: int, **options) -> TracedLayer:
    view = ParameterView(f"{name}.weight", size, (size[1], 1), 0) if size else None
    return TracedLayer(name, "kind", name, "linear", 4, view=view, **options)


def reasons(
    model: nn.Module, *layers: TracedLayer, calls=(), other_uses=(), unsupported=()
) -> dict[str, str]:
    registry = LayerRegistry(model, lambda _: True)
    registry.layers = {layer.name: layer for layer in layers}
    registry.other_uses, registry.unsupported = dict(other_uses), dict(unsupported)
    return explain_skipped(registry, dict(calls))


FIRST, SECOND = layer("first", 4, 3), layer("second", 4, 4)
THROUGH = "used through {}, which is not a product that is analysed"
UNUSED = "never used in the forward"


def test_modules_that_were_called_and_not():
    assert reasons(Net(), FIRST, calls={"first": 2, "second": 3, "norm": 1},
                   other_uses={"cell.weight_hh": "gru_cell", "cell.weight_ih": "gru_cell"}) == {
        "second": "Linear was called 3 times, but no product of its weight was seen",
        "norm": "LayerNorm is not a kind of layer that is analysed",
        "cell": THROUGH.format("gru_cell")}
    assert reasons(Net(), FIRST, SECOND, calls={"norm": 1})["cell"] == NEVER_CALLED


def test_other_parameters_go_by_their_own_names():
    model = Net(ein=(2, 2), spare=(2, 2), vector=(2,))
    model.first.extra = nn.Parameter(torch.ones(2, 2))
    skipped = reasons(model, FIRST, calls={"": 1}, other_uses={"ein": "einsum"})
    assert {name: skipped.get(name) for name in ("ein", "spare", "first.extra", "", "vector")} == {
        "ein": THROUGH.format("einsum"), "spare": UNUSED, "first.extra": UNUSED,
        "": None, "vector": None}
    skipped = reasons(Net(scale=()), FIRST, SECOND, calls={"": 1})  # beside submodules
    assert skipped["scale"] == "a parameter of its own that is no matrix" and "" not in skipped
    assert reasons(Net(table=(3, 2)), FIRST, SECOND, calls={"": 1})["table"] == UNUSED


@pytest.mark.parametrize("name", ["first", "first.weight"])
def test_a_weight_that_was_refused_keeps_its_reason(name):
    refused = {name: "its weight is complex"}
    skipped = reasons(Net(), SECOND, calls={"first": 1}, unsupported=refused)
    assert {key: reason for key, reason in skipped.items() if key.startswith("first")} == refused


def test_tied_weights_go_by_the_layer_where_they_count_and_slices_leave_the_rest():
    model = Net()
    model.head, model.late = nn.Linear(3, 4), nn.Module()
    model.head.weight = model.late.bare = model.first.weight
    skipped = reasons(model, layer("first", 3, 3))
    for name in ("head", "late.bare"):
        assert skipped[name] == "shares its weight with 'first', where it is counted"
    assert skipped["first.weight[...]"] == "3 of its 12 weights are in no product that is analysed"


def test_a_module_that_makes_its_weight_covers_what_it_is_made_of():
    model = Net()
    model.first = parametrizations.weight_norm(model.first)
    model.second.spare = nn.Parameter(torch.ones(2, 2))
    skipped = reasons(model, layer("first", computed=torch.ones(4, 3)),
                      layer("second", computed=torch.ones(4, 4), changes=True),
                      other_uses={"second.weight": "mul"})
    assert {name: reason for name, reason in skipped.items()
            if name.startswith(("first", "second"))} == {
        "second": "its weight is computed anew from the data", "second.spare": UNUSED}
