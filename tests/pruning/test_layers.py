"""Language models as transformers has them: caches beside the outputs, heads that share keys."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tests.networks import Layers
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.layers import caches_off


def attend(net, x):
    """Grouped-query attention: four heads of queries share two of keys and values."""
    samples, length = x.shape[:2]
    q, k, v = (layer(x).view(samples, length, heads, 4).transpose(1, 2) for layer, heads in (
        (net.q_proj, 4), (net.k_proj, net.keys), (net.v_proj, net.keys)))
    q, k = (part + torch.cat([-part[..., 2:], part[..., :2]], -1) for part in (q, k))  # rotary
    k, v = (part[:, :, None].expand(-1, -1, 4 // net.keys, -1, -1).reshape(samples, 4, length, 4)
            for part in (k, v))
    mixed = scaled_dot_product_attention(q, k, v)
    return net.o_proj(mixed.transpose(1, 2).reshape(samples, length, 16)), k


def predict(net, tokens):
    """Gives a cache beside its outputs, not a tensor, unless its configuration says not to."""
    x = net.embed(tokens) + net.position[:tokens.shape[1]]
    mixed, keys = net.attention(x)
    outputs = {"logits": net.head(x + mixed + net.down(net.up(x + mixed).relu()))}
    return {**outputs, "cache": SimpleNamespace(keys=keys)} if net.config.use_cache else outputs


def language(keys=4):
    attention = Layers(attend, keys=keys, q_proj=nn.Linear(16, 16), o_proj=nn.Linear(16, 16),
                       k_proj=nn.Linear(16, 4 * keys), v_proj=nn.Linear(16, 4 * keys))
    return Layers(predict, config=SimpleNamespace(use_cache=True), embed=nn.Embedding(30, 16),
                  attention=attention, up=nn.Linear(16, 24), down=nn.Linear(24, 16),
                  head=nn.Linear(16, 30), position=nn.Parameter(torch.randn(9, 16))).eval()


TOKENS = torch.randint(30, (3, 7))


@pytest.mark.parametrize("keys", [4, 2])
def test_what_keeps_a_cache_is_cut_all_the_same(keys):
    model = language(keys)
    structure = unit_groups(model, TOKENS)
    assert [group.name for group in structure.groups] == ["embed", "up"]
    assert set(structure.not_prunable) >= {f"attention.{part}_proj" for part in "qkv"}
    assert "the forward divides its units by a fixed number, as into heads" in \
        structure.not_prunable["attention.k_proj"]
    assert structure.groups[0].layers == ("position", "embed", "attention.o_proj", "down")
    pruned = cut(model, TOKENS, {"up": list(range(10))}, structure).model
    assert model.config.use_cache is pruned.config.use_cache is True
    with torch.no_grad():
        model.down.weight[:, 10:] = 0
    torch.testing.assert_close(pruned(TOKENS)["logits"], model(TOKENS)["logits"])


def test_caches_are_on_again_also_when_the_block_raises():
    first, second = language(), language()
    second.config = first.config
    first.attention.config = SimpleNamespace(use_cache=False)
    with pytest.raises(KeyError), caches_off(first, second):
        assert not first.config.use_cache and not first.attention.config.use_cache
        raise KeyError
    assert first.config.use_cache and not first.attention.config.use_cache
