"""Attention with fewer heads, against torch's own module with the heads' outputs silenced."""

import copy

import pytest
import torch
from torch import nn

from tests.networks import Layers, encoder, rows, snapshot
from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.heads import PrunedMultiheadAttention


def attending(*, weights=False, **options):
    """Self-attention with what it may look at, and a head."""

    def forward(net, x, mask=None):
        values = x[..., : options.get("vdim", 8)]
        return net.head(net.attention(x, x, values, need_weights=weights, attn_mask=mask)[0])

    attention = nn.MultiheadAttention(8, 4, **{"batch_first": True, **options})
    return Layers(forward, attention=attention, head=nn.Linear(8, 2)).eval()


def without(model, heads):
    """Torch's own module: what the heads give is not read."""
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for head in heads:
            silent.attention.out_proj.weight[:, 2 * head: 2 * head + 2] = 0
    return silent.eval()


def shapes_of(attention):
    return (*attention.in_proj_weight.shape, *attention.out_proj.weight.shape)


@pytest.mark.parametrize(("keep", "options"), [
    ([0], {}), ([1, 3], {"batch_first": False}), ([1, 3], {"bias": False}),
    ([0, 2, 3], {"weights": True})], ids=str)
def test_outputs_parameters_and_flops(keep, options):
    model, example = attending(**options), rows(3, 5, 8)
    result = cut(model, example, {"attention": keep})
    expected, length = without(model, set(range(4)) - set(keep)), len(example)
    if options.get("batch_first", True):
        length = example.shape[1]
    causal = torch.full((length, length), -torch.inf).triu(1)
    with torch.no_grad():
        for batch, mask in ((example, None), (rows(2, 7, 8), None), (example, causal)):
            torch.testing.assert_close(result.model(batch, mask), expected(batch, mask),
                                       rtol=1e-4, atol=1e-6)
        assert not torch.allclose(result.model(example, causal), result.model(example))
    size, bias = 2 * len(keep), options.get("bias", True)
    assert sum(weight.numel() for weight in result.model.parameters()) == \
        3 * size * 8 + 8 * size + bias * (3 * size + 8) + 8 * 2 + 2
    assert shapes_of(result.model.attention) == (3 * size, 8, 8, size)
    assert result.flops_after == \
        15 * 2 * (3 * size * 8 + size * 8 + 8 * 2) + 15 * length * 2 * 2 * size
    assert result.flops_after == count_flops(result.model, example, backward=False).forward_flops


def per_head(samples, heads):
    """A mask for each sample and head; the first source is never masked."""
    mask = rows(samples * heads, 5, 6) > 0.8
    mask[..., 0] = False
    return mask


PADDING = torch.tensor([[False] * 4 + [True] * 2] * 3)


@pytest.mark.parametrize("options", [
    {}, {"need_weights": False}, {"average_attn_weights": False},
    {"key_padding_mask": PADDING}, {"key_padding_mask": PADDING, "need_weights": False},
    {"attn_mask": per_head(3, 4)[0]}, {"attn_mask": per_head(3, 4), "need_weights": False},
    {"attn_mask": rows(5, 6), "key_padding_mask": PADDING},
], ids=lambda options: ",".join(options))
@pytest.mark.parametrize("form", ["batch first", "batch second", "one sample"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_with_all_heads_it_is_torchs_own(form, options):
    original = nn.MultiheadAttention(8, 4, batch_first=form == "batch first").eval()
    ours = PrunedMultiheadAttention(original)
    inputs = [rows(3, 5, 8), rows(3, 6, 8), rows(3, 6, 8, seed=4)]
    if form == "batch second":
        inputs = [part.transpose(0, 1) for part in inputs]
    elif form == "one sample":
        inputs = [part[0] for part in inputs]
        options = {name: option[0] if name == "key_padding_mask" else option[:4]
                   if name == "attn_mask" and option.dim() == 3 else option
                   for name, option in options.items()}
    for outputs, expected in zip(ours(*inputs, **options), original(*inputs, **options),
                                 strict=True):
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-6)


def test_masks_of_another_number_of_heads_are_refused():
    ours = PrunedMultiheadAttention(nn.MultiheadAttention(8, 2, batch_first=True))
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
        "block.norm1 (LayerNorm) normalises over these units: without some the others change"
    before = snapshot(model)
    result = cut(model, tokens, {"block.linear1": [0, 3, 9], "block.self_attn": [1]}, structure)
    assert snapshot(model) == before
    assert result.params_before - result.params_after == 13 * (8 + 1 + 8) + 4 * 3 * (8 + 1) + 4 * 8
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.block.linear2.weight[:, sorted(set(range(16)) - {0, 3, 9})] = 0
        by_hand.block.self_attn.out_proj.weight[:, :4] = 0
        for batch in (tokens, torch.randint(20, (1, 9))):
            torch.testing.assert_close(result.model(batch), by_hand(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "reason"), [
    ({"add_bias_kv": True}, "it adds keys of its own (add_bias_kv, add_zero_attn)"),
    ({"kdim": 8, "vdim": 4}, "its keys or values have a size of their own (kdim, vdim)")])
def test_what_is_not_cut_says_why(options, reason):
    structure = unit_groups(attending(**options), rows(3, 5, 8))
    assert structure.groups == ()
    assert structure.not_prunable["attention"] == reason
