"""Which units are offered for cutting, what reads them, and what is named as not cut."""

import pytest
import torch
from torch import nn

from tests.networks import Layers, mlp, rows
from tests.pruning.cutting_cases import residual
from wua_mlflow.pruning.cut import cut, rebuild, unit_groups
from wua_mlflow.pruning.find_groups import KINDS


def test_every_group_and_nothing_else(pruned):
    structure = pruned.structure
    assert {group.name: group.units for group in structure.groups} == {
        name: units for name, (units, _) in pruned.case.units.items()}
    layers = {layer for group in structure.groups for layer in group.layers}
    weighted = {name for name, module in pruned.model.named_modules()
                if isinstance(getattr(module, "weight", None), nn.Parameter)
                and module.weight.dim() > 1}
    assert weighted <= layers | set(structure.not_prunable), "what is not cut is named"
    assert all(reason and "\n" not in reason for reason in structure.not_prunable.values())


def test_what_a_residual_sum_ties_and_who_reads_it():
    group = unit_groups(residual(5, 4), rows(4, 3, 6, 6)).group("stem")
    assert set(group.layers) == {"stem", "bn0", "conv2", "bn2"}
    readers = {reader.parameter: (reader.dim, reader.columns) for reader in group.readers}
    columns = tuple((unit,) for unit in range(5))
    assert readers == {"conv1.weight": (1, columns), "head.weight": (1, columns)}


@pytest.mark.parametrize(("model", "shape", "layer", "reason", "groups"), [
    (Layers(lambda net, x: net.head(net.embed(x) + net.inner(net.embed(x))),
            embed=nn.Linear(3, 6), head=nn.Linear(6, 2),
            inner=nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))),
     (3,), "embed", "inner.0 (LayerNorm) normalises over these units", ["inner.1"]),
    (mlp(3, 8, 2), (3,), "2", "its units are the network's outputs", ["0"]),
    (mlp(3, 1, 2), (3,), "0", "it has one unit", []),
    (Layers(lambda net, x: net.head(net.both(x)[..., :4] * net.both(x)[..., 4:].sigmoid()),
            both=nn.Linear(3, 8), head=nn.Linear(4, 2)), (3,), "both", "", []),
])
def test_what_is_not_cut_is_named_with_the_reason(model, shape, layer, reason, groups):
    """What cannot be followed is never cut, whatever the library makes of it."""
    structure = unit_groups(model, rows(4, *shape))
    assert structure.not_prunable[layer].startswith(reason)
    assert [group.name for group in structure.groups] == groups


def test_what_is_refused_in_one_line():
    exported = torch.export.export(mlp(3, 2), (rows(4, 3),)).module()
    for model, message in (
            (exported, "model: expected a module with layers to cut, but got an exported graph "
                       "(pt2), which has none; name the module and its weights: --model "
                       "package.module:factory --state "),
            (nn.Linear(5, 2), "model: its layers cannot be followed: ")):
        with pytest.raises(ValueError) as raised:
            unit_groups(model, rows(4, 3))
        assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_model_that_is_itself_a_layer():
    class ReadingItself(nn.Linear):
        def forward(self, x):
            return super().forward(self.inner(x).relu())

    model = ReadingItself(6, 3)
    model.inner = nn.Linear(4, 6)
    group, = unit_groups(model, rows(4, 4)).groups
    assert (group.name, group.readers[0].parameter) == ("inner", "weight")


def not_both(net, x):
    """Each layer can be cut, the second and the third not together."""
    if net.second.out_features < 6 and net.third.out_features < 6:
        raise ValueError("one of both has to be whole")
    return net.head(net.fourth(net.third(net.second(net.first(x).relu()).relu()).relu()).relu())


def test_what_cannot_be_cut_together_with_others_is_refused_alone():
    layers = {name: nn.Linear(6, 6) for name in ("first", "second", "third", "fourth", "head")}
    structure = unit_groups(Layers(not_both, **layers), rows(4, 6))
    assert [group.name for group in structure.groups] == ["first", "second", "fourth"]
    assert structure.not_prunable == {
        "third": "cut on trial together with others, its forward fails: ValueError: one of both "
                 "has to be whole",
        "head": "its units are the network's outputs"}


@pytest.mark.parametrize(("model", "shape", "groups"), [
    (Layers(lambda net, x: net.head(net.embed(x) + net.place), embed=nn.Linear(3, 6),
            place=nn.Parameter(torch.randn(6)), head=nn.Linear(6, 2)), (3,), {"embed": 6}),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), (3, 8, 8),
     {"0": 2}),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
     (3, 8, 8), {"0": 4, "0:2": 2, "1": 2}),
    (Layers(lambda net, x: nn.functional.linear(net.first(x).relu(), net.weight),
            first=nn.Linear(3, 8), weight=nn.Parameter(torch.randn(2, 8))), (3,), {"first": 8}),
    (nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2)), (3,), {"0": 4}),
])
def test_whole_groups_shares_of_groups_and_parameters_outside_layers(model, shape, groups):
    structure = unit_groups(model, rows(4, *shape))
    assert {group.name: group.units for group in structure.groups} == groups
    for name in groups:
        cut(model, rows(4, *shape), {name: [0]}, structure)


def test_what_a_norm_goes_over_is_cut_where_it_is_asked_for():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))
    assert unit_groups(net, rows(4, 5, 3)).not_prunable["0"] == (
        "1.norm1 (LayerNorm) normalises over these units: without some the others change")
    structure = unit_groups(net, rows(4, 5, 3), ("stream",))
    assert [(group.name, group.kind, group.units) for group in structure.groups] == [
        ("0", "stream", 8)]
    pruned = cut(net, rows(4, 5, 3), {"0": [1, 2, 5]}, structure).model
    assert pruned[1].norm2.normalized_shape == (3,)
    assert pruned[1].self_attn.in_proj_weight.shape == (24, 3)


def two_groups_of_one_layer() -> nn.Module:
    """The channels within a group of a GroupNorm, and the groups."""

    def forward(net, x):
        x = net.stem(x)
        return net.head((x + net.conv(torch.relu(net.norm(x)))).mean((2, 3)))

    return Layers(forward, stem=nn.Conv2d(3, 8, 3, padding=1), norm=nn.GroupNorm(4, 8),
                  conv=nn.Conv2d(8, 8, 3, padding=1), head=nn.Linear(8, 3))


@pytest.mark.parametrize("what", [("units",), ("stream",), KINDS])
def test_a_name_means_the_same_group_whatever_is_asked_for(what):
    """So a network is rebuilt from its names alone."""
    model, x = two_groups_of_one_layer(), torch.randn(4, 3, 6, 6)
    structure = unit_groups(model, x, what)
    kinds = {"stem": ("units", 4), "stem:2": ("stream", 2)}
    assert {group.name: (group.kind, group.units) for group in structure.groups} == {
        name: kind for name, kind in kinds.items() if kind[0] in what}
    for group in structure.groups:
        found = cut(model, x, {group.name: [0]}, structure)
        again = rebuild(two_groups_of_one_layer(), x, found.specification)
        again.load_state_dict(found.model.state_dict())
