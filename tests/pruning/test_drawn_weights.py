"""Other weights for a network and its cut copy: drawn alike, and put back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.networks import Layers, rows, snapshot
from tests.pruning.cutting_cases import residual
from wua_mlflow.pruning.cut import cut, remove_units, unit_groups
from wua_mlflow.pruning.drawn_weights import random_weights, replaced_weights, sharpened_weights
from wua_mlflow.pruning.verify import WrongCutError, check_cut, check_trial


@pytest.mark.parametrize("draw", [random_weights, sharpened_weights])
def test_both_have_the_same_weights_in_the_block_and_their_own_after_it(draw):
    model = residual(5, 4)
    pruned = cut(model, rows(4, 3, 6, 6), {"stem": [0, 2]}).model
    before = snapshot(model), snapshot(pruned)
    gone = {"stem.weight": {0: {1, 3, 4}}, "stem.bias": {0: {1, 3, 4}}}
    with pytest.raises(KeyError), replaced_weights(model, pruned, gone, draw):
        assert not torch.equal(model.stem.weight, torch.tensor(0.0))
        assert torch.equal(pruned.stem.weight, model.stem.weight[[0, 2]])
        assert torch.equal(pruned.head.bias, model.head.bias)
        assert bool((model.bn0.running_var > 0).all())
        raise KeyError
    assert (snapshot(model), snapshot(pruned)) == before


def test_weights_are_of_a_size_that_keeps_that_of_activations():
    generator = torch.Generator().manual_seed(0)
    for shape, inputs in (((64, 256), 64), ((32, 16, 3, 3), 16 * 9)):
        drawn = random_weights("weight", torch.zeros(shape), generator)
        assert float(drawn.std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.1)
    small = 1e-3 * torch.randn(64, 64, generator=generator)
    sharp = sharpened_weights("weight", small, generator)
    assert float(sharp.std()) == pytest.approx(3 * (2 / 64) ** 0.5, rel=0.1)
    torch.testing.assert_close(sharp / sharp.abs().max(), small / small.abs().max())
    assert torch.equal(sharpened_weights("weight", 1e4 * small, generator), 1e4 * small)
    assert bool(sharpened_weights("weight", torch.zeros(8, 8), generator).any())
    gamma = sharpened_weights("gamma", torch.full((8,), 1e-6), generator)
    torch.testing.assert_close(gamma, torch.full((8,), 0.3))


def by_head(net: nn.Module, x: Tensor) -> Tensor:
    """Attention with a bias table by head; the size of a head is what is left over."""
    samples, length, width = x.shape
    q, k, v = net.qkv(x).reshape(samples, length, 3, net.num_heads, -1).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / 4 + net.table[:net.num_heads]
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(samples, length, -1)
    return net.out(mixed)


def attention(heads: int) -> Layers:
    """Close to uniform, as it is before training."""
    torch.manual_seed(0)
    net = Layers(by_head, qkv=nn.Linear(12, 3 * heads * 4), out=nn.Linear(4 * heads, 5),
                 table=nn.Parameter(0.01 * torch.randn(heads, 6, 6)), num_heads=heads).eval()
    nn.init.normal_(net.qkv.weight, std=0.005)
    return net


def test_the_number_of_heads_falls_though_attention_that_is_close_to_uniform_hides_it():
    model, example = attention(4), rows(4, 6, 12)
    structure = unit_groups(model, example)
    heads, = (group for group in structure.groups if group.kind == "heads")
    assert (heads.units, heads.counts) == (4, ("num_heads",))
    pruned = cut(model, example, {heads.name: [0, 3]}, structure).model
    assert (pruned.num_heads, pruned.table.shape) == (2, (2, 6, 6))


def test_a_cut_that_is_wrong_only_at_other_weights_is_found():
    """The same weights, and heads of another size: at these weights the outputs are alike."""
    model, example = attention(4), rows(4, 6, 12)
    structure = unit_groups(model, example)
    heads, = (group for group in structure.groups if group.kind == "heads")
    removed = {heads.name: [1, 2]}
    pruned = remove_units(model, structure, removed)
    pruned.num_heads, pruned.table = 1, nn.Parameter(pruned.table.detach().clone())
    with torch.no_grad():
        pruned.out.bias.copy_(model.out.bias)
    for check in (check_cut, check_trial):
        with pytest.raises(WrongCutError, match="its outputs are not those"):
            check(model, pruned, structure, removed, example)


def scaled(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(x + net.gamma * net.down(net.up(x).relu().roll(net.shift, -1)))


def test_a_branch_that_hardly_shows_is_verified_too():
    """LayerScale begins at 1e-6; rolled units are others in the cut network."""
    net = Layers(scaled, up=nn.Linear(6, 8), down=nn.Linear(8, 6), head=nn.Linear(6, 2), shift=0,
                 gamma=nn.Parameter(torch.full((6,), 1e-6))).eval()
    example = rows(4, 6)
    structure = unit_groups(Layers(lambda _, x: scaled(net, x).clone(), **dict(
        net.named_children()), gamma=net.gamma), example)
    assert "up" not in {group.name for group in structure.groups}, "roll depends on all units"


def test_forwards_of_a_cut_are_few():
    """Twelve of the original and the cut network together, with finding the groups' trial."""
    calls = []

    class Counted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    model = Counted(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = unit_groups(model, rows(4, 4))
    tracing = 1
    assert len(calls) == 2 + tracing
    cut(model, rows(4, 4), {"0": [0, 1]}, structure)
    assert len(calls) - tracing <= 12
