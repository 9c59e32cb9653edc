"""Attention with fewer heads, against torch's own module with the heads' outputs silenced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.networks import encoder, kept_streams, rows, snapshot
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.heads import PrunedMultiheadAttention
from wua_mlflow.pruning.unit_groups import masked


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


class Attending(nn.Module):
    """Self-attention with what it may look at, and a head."""

    def __init__(self, heads=4, *, batch_first=True, bias=True, weights=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, heads, bias=bias, batch_first=batch_first)
        self.head, self.weights = nn.Linear(8, 2), weights

    def forward(self, x, mask=None):
        found, _ = self.attention(x, x, x, need_weights=self.weights, attn_mask=mask)
        return self.head(found)


def without(model, heads):
    """Torch's own module: what the heads give is not read."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for head in heads:
            found.attention.out_proj.weight[:, 2 * head: 2 * head + 2] = 0
    return found.eval()


@pytest.mark.parametrize(("keep", "options"), [
    ([0], {}), ([0, 2, 3], {}), ([1, 3], {"batch_first": False}), ([1, 3], {"bias": False}),
    ([0, 2, 3], {"weights": True})], ids=str)
def test_outputs_parameters_and_flops(keep, options):
    model = Attending(**options).eval()
    gone = [head for head in range(4) if head not in keep]
    example = rows(3, 5, 8)
    found = cut(model, example, {"attention": keep})
    for batch in (rows(3, 5, 8), rows(2, 7, 8)):
        with torch.no_grad():
            torch.testing.assert_close(found.model(batch), without(model, gone)(batch),
                                       rtol=1e-4, atol=1e-6)
    size, bias = 2 * len(keep), options.get("bias", True)
    expected = 3 * size * 8 + 8 * size + bias * (3 * size + 8) + 8 * 2 + 2
    assert sum(one.numel() for one in found.model.parameters()) == expected
    assert shapes_of(found.model.attention) == (3 * size, 8, 8, size)
    tokens, length = 15, 3 if options.get("batch_first") is False else 5
    products = tokens * 2 * (3 * size * 8 + size * 8 + 8 * 2) + tokens * length * 2 * 2 * size
    assert found.flops_after == products
    assert found.flops_after == count_flops(found.model, example, backward=False).forward_flops


def shapes_of(attention):
    return (*attention.in_proj_weight.shape, *attention.out_proj.weight.shape)


def test_masks_are_respected():
    model, example = Attending().eval(), rows(3, 5, 8)
    causal = torch.full((5, 5), -torch.inf).triu(1)
    found = cut(model, example, {"attention": [1, 2]}).model
    with torch.no_grad():
        torch.testing.assert_close(found(example, causal), without(model, [0, 3])(example, causal),
                                   rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found(example, causal), found(example))


def per_head(samples, heads):
    """A mask for each sample and head; the first source is never masked."""
    mask = rows(samples * heads, 5, 6) > 0.8
    mask[..., 0] = False
    return mask


@pytest.mark.parametrize("options", [
    {}, {"need_weights": False}, {"average_attn_weights": False},
    {"key_padding_mask": torch.tensor([[False] * 4 + [True] * 2] * 3)},
    {"attn_mask": per_head(3, 4)[0]}, {"attn_mask": per_head(3, 4), "need_weights": False},
    {"attn_mask": rows(5, 6), "key_padding_mask": torch.tensor([[False] * 5 + [True]] * 3)},
], ids=lambda options: ",".join(options))
@pytest.mark.parametrize("form", ["batch first", "batch second", "one sample"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_with_all_heads_it_is_torchs_own(form, options):
    original = nn.MultiheadAttention(8, 4, batch_first=form == "batch first").eval()
    ours = PrunedMultiheadAttention(original, range(4))
    query, key, value = rows(3, 5, 8), rows(3, 6, 8), rows(3, 6, 8, seed=4)
    if form == "batch second":
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    elif form == "one sample":
        query, key, value = query[0], key[0], value[0]
        options = {name: option[0] if name == "key_padding_mask" else option[:4]
                   if name == "attn_mask" and option.dim() == 3 else option
                   for name, option in options.items()}
    expected, outputs = original(query, key, value, **options), ours(query, key, value, **options)
    torch.testing.assert_close(outputs[0], expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outputs[1], expected[1], rtol=1e-4, atol=1e-6)


def test_masks_of_another_number_of_heads_are_refused():
    ours = PrunedMultiheadAttention(nn.MultiheadAttention(8, 4, batch_first=True), [0, 1])
    x = rows(3, 5, 8)
    with pytest.raises(ValueError, match="^attn_mask: expected one mask a head of 2 heads, or one "
                                         "for all, but got 4$"):
        ours(x, x, x, attn_mask=per_head(3, 4)[..., :5])


def test_the_heads_and_the_feed_forward_of_an_encoder_layer():
    model, tokens = encoder().eval(), torch.randint(20, (4, 6))
    structure = unit_groups(model, tokens)
    assert {group.name: (group.units, group.kind) for group in structure.groups} == {
        "block.linear1": (16, "units"), "block.self_attn": (2, "heads")}
    assert structure.not_prunable["block.self_attn.out_proj"] == \
        "attention gives as many outputs as it reads"
    before = snapshot(model)
    found = cut(model, tokens, {"block.linear1": [0, 3, 9], "block.self_attn": [1]})
    assert snapshot(model) == before
    assert found.params_before - found.params_after == 13 * (8 + 1 + 8) + 4 * 3 * (8 + 1) + 4 * 8
    removed = {"block.linear1": [u for u in range(16) if u not in (0, 3, 9)],
               "block.self_attn": [0]}
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.block.linear2.weight[:, removed["block.linear1"]] = 0
        by_hand.block.self_attn.out_proj.weight[:, :4] = 0
        for batch in (tokens, torch.randint(20, (1, 9))):
            expected = by_hand(batch)
            torch.testing.assert_close(found.model(batch), expected, rtol=1e-4, atol=1e-5)
            with masked(model, structure, removed):
                torch.testing.assert_close(model(batch), expected)


def test_cut_heads_can_be_cut_again_and_trained():
    found = cut(Attending(), rows(3, 5, 8), {"attention": [0, 1, 3]}).model
    assert isinstance(found.attention, PrunedMultiheadAttention)
    again = cut(found, rows(3, 5, 8), {"attention": [2]}).model
    assert shapes_of(again.attention) == (6, 8, 8, 2)
    again(rows(3, 5, 8)).square().mean().backward()
    assert all(one.grad is not None for one in again.parameters())


@pytest.mark.parametrize(("attention", "reason"), [
    (nn.MultiheadAttention(8, 4, add_bias_kv=True, batch_first=True),
     "it adds keys of its own (add_bias_kv, add_zero_attn)"),
    (nn.MultiheadAttention(8, 4, kdim=8, vdim=4, batch_first=True),
     "its keys or values have a size of their own (kdim, vdim)"),
])
def test_what_is_not_cut_says_why(attention, reason):
    class Of(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(8, 2)

        def forward(self, x):
            values = x[..., : attention.vdim]
            return self.head(self.attention(x, x, values, need_weights=False)[0])

    found = unit_groups(Of(), rows(3, 5, 8))
    assert found.groups == ()
    assert found.not_prunable["attention"] == reason
