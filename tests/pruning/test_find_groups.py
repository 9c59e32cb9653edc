"""Which units are offered for cutting, what reads them, and what is named as not cut."""

import pytest
import torch
from torch import nn

from tests.networks import Layers, mlp, rows
from tests.pruning.cutting_cases import residual
from wua_mlflow.pruning.cut import unit_groups


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
    (Layers(lambda net, x: net.head(net.embed(x) + net.place), embed=nn.Linear(3, 6),
            place=nn.Parameter(torch.randn(6)), head=nn.Linear(6, 2)),
     (3,), "embed", "place of Layers has a place for each of these units, and how it is cut is "
                    "not known", []),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)), (3, 8, 8), "0",
     "1 (GroupNorm) normalises over these units", []),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
     (3, 8, 8), "0", "1 is a grouped convolution, which shares them out evenly", []),
    (mlp(3, 8, 2), (3,), "2", "its units are the network's outputs", ["0"]),
    (mlp(3, 1, 2), (3,), "0", "it has one unit", []),
    (Layers(lambda net, x: net.head(net.both(x)[..., :4] * net.both(x)[..., 4:].sigmoid()),
            both=nn.Linear(3, 8), head=nn.Linear(4, 2)), (3,), "both", "", []),
    (Layers(lambda net, x: nn.functional.linear(net.first(x).relu(), net.weight),
            first=nn.Linear(3, 8), weight=nn.Parameter(torch.randn(2, 8))),
     (3,), "first", "", []),
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


def test_what_attention_reads_is_called_the_residual_stream():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))
    assert unit_groups(net, rows(4, 5, 3)).not_prunable["0"] == (
        "the residual stream, which 1.self_attn (MultiheadAttention) reads and divides into its "
        "heads: its width stays")
