"""What is sliced, what stays shared, and the sizes that modules state afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks import Layers, rows
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.slicing import slice_units

IMAGES = (4, 3, 8, 8)


SIZES = {
    "linear": (nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), (4, 3), "0", {
        "0": {"out_features": 5, "in_features": 3}, "1": {"out_features": 2, "in_features": 5}}),
    "convolutions": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
                     IMAGES, "0", {"0": {"out_channels": 5}, "1": {"num_features": 5},
                                   "2": {"in_channels": 5}}),
    "no weights": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False),
                                 nn.Conv2d(8, 2, 1)), IMAGES, "0", {"1": {"num_features": 5}}),
    "depthwise": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8),
                                nn.Conv2d(8, 2, 1)), IMAGES, "0", {
        "1": {"in_channels": 5, "out_channels": 5, "groups": 5}}),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.PReLU(8), nn.Conv2d(8, 2, 1)),
                   IMAGES, "0", {"0": {"out_channels": 5, "in_channels": 3},
                                 "1": {"num_parameters": 5}}),
    "embedding": (nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2)), None, "0", {
        "0": {"num_embeddings": 9, "embedding_dim": 5}, "1": {"in_features": 5}}),
    "bilinear": (Layers(lambda net, x: net.both(net.one(x), x), one=nn.Linear(3, 8),
                        both=nn.Bilinear(8, 3, 2)), (4, 3), "one", {
        "both": {"in1_features": 5, "in2_features": 3, "out_features": 2}}),
}


@pytest.mark.parametrize(("model", "shape", "name", "sizes"), SIZES.values(), ids=SIZES)
def test_modules_state_the_sizes_of_their_weights(model, shape, name, sizes):
    example = torch.randint(9, (4, 3)) if shape is None else rows(*shape)
    group = unit_groups(model.eval(), example).group(name)
    slice_units(model, [(group, [1, 4, 7])])
    for module, expected in sizes.items():
        stated = {size: getattr(model.get_submodule(module), size) for size in expected}
        assert stated == expected, module
    assert model(example).shape[-1 if shape != IMAGES else 1] == 2


def test_parameters_stay_shared_trainable_or_not_and_contiguous():
    first, last = nn.Linear(3, 8), nn.Linear(8, 2)
    first.weight.requires_grad_(False)
    model = Layers(lambda net, x: net.last(net.first(x)) + net.last(net.again(x)),
                   first=first, again=nn.Linear(3, 8), last=last)
    model.again.weight = first.weight
    group = unit_groups(model, rows(4, 3)).groups[0]
    slice_units(model, [(group, [0])])
    assert model.again.weight is model.first.weight
    assert not model.first.weight.requires_grad and model.last.weight.requires_grad
    assert model.last.weight.is_contiguous() and model.last.weight.shape == (2, 7)


def test_several_groups_in_one_parameter_go_at_once():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    whole = model[2].weight.detach().clone()
    structure = unit_groups(model, rows(4, 3))
    slice_units(model, [(structure.group("0"), [0, 1]), (structure.group("2"), [5])])
    assert torch.equal(model[2].weight, whole[:5, 2:])


def test_norms_without_weights_and_unflatten_state_fewer():
    model = nn.Sequential(nn.Linear(3, 24), nn.Unflatten(1, (6, 2, 2)), nn.InstanceNorm2d(6),
                          nn.GroupNorm(3, 6, affine=False), nn.Conv2d(6, 2, 1)).eval()
    structure = unit_groups(model, rows(4, 3))
    pruned = cut(model, rows(4, 3), {group.name: [0, 2] for group in structure.groups}).model
    assert (pruned[1].unflattened_size, pruned[2].num_features) == ((4, 2, 2), 4)
    assert (pruned[3].num_groups, pruned[3].num_channels) == (2, 4)


def test_numbers_that_say_how_wide_a_layer_is_fall_where_a_trial_asks_for_it():
    """As ``d_model`` of ``nn.Transformer``; a place at which units are split falls with those."""
    def run(net, x):
        hidden = net.up(x).relu()
        return net.head(hidden[:, :net.first] * 2) + net.other(hidden[:, net.first:])

    net = Layers(run, up=nn.Linear(3, 8), head=nn.Linear(5, 2), other=nn.Linear(3, 2), first=5)
    structure = unit_groups(net, rows(4, 3))
    assert {group.name: group.units for group in structure.groups} == {"up": 8}
    assert cut(net, rows(4, 3), {"up": [0, 1, 4, 7]}, structure).model.first == 3
    both = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    model = Layers(lambda net, x: net.head(net.both(net.embed(x), net.embed(x))),
                   embed=nn.Linear(3, 8), both=both, head=nn.Linear(8, 2)).eval()
    pruned = cut(model, rows(2, 5, 3), {"embed": [0, 1, 4, 7]},
                 unit_groups(model, rows(2, 5, 3), ("stream",))).model
    assert pruned.both.d_model == 4
