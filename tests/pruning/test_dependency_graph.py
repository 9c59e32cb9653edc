"""Language models as transformers has them: caches beside the outputs, heads that share keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.dependency_graph import EndlessError, Graph, caches_off
from wua_mlflow.pruning.find_groups import prunable_copy


class Attention(nn.Module):
    """Grouped-query attention: four heads of queries share two of keys and values."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys
        self.q_proj, self.o_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k_proj, self.v_proj = nn.Linear(16, 4 * keys), nn.Linear(16, 4 * keys)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        samples, length = x.shape[:2]
        q, k, v = (layer(x).view(samples, length, heads, 4).transpose(1, 2) for layer, heads in (
            (self.q_proj, 4), (self.k_proj, self.keys), (self.v_proj, self.keys)))
        q, k = (part + torch.cat([-part[..., 2:], part[..., :2]], -1) for part in (q, k))  # rotary
        k, v = (part[:, :, None].expand(-1, -1, 4 // self.keys, -1, -1).reshape(
            samples, 4, length, 4) for part in (k, v))
        mixed = scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(samples, length, 16)), k


class Language(nn.Module):
    """Gives a cache beside its outputs, not a tensor, unless its configuration says not to."""

    def __init__(self, keys: int = 4) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.embed, self.attention = nn.Embedding(30, 16), Attention(keys)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 30)
        self.position = nn.Parameter(torch.randn(9, 16))

    def forward(self, tokens: Tensor) -> dict[str, object]:
        x = self.embed(tokens) + self.position[:tokens.shape[1]]
        mixed, keys = self.attention(x)
        x = x + mixed
        outputs = {"logits": self.head(x + self.down(self.up(x).relu()))}
        return {**outputs, "cache": SimpleNamespace(keys=keys)} if self.config.use_cache else \
            outputs


TOKENS = torch.randint(30, (3, 7))


@pytest.mark.parametrize("keys", [4, 2])
def test_what_keeps_a_cache_is_cut_all_the_same(keys: int) -> None:
    """Where heads share keys the library would look for the units that belong together for ever."""
    model = Language(keys).eval()
    structure = unit_groups(model, TOKENS)
    assert [group.name for group in structure.groups] == ["up"]
    assert set(structure.not_prunable) >= {f"attention.{part}_proj" for part in "qkvo"}
    assert "the forward divides its units by a fixed number, as into heads" in \
        structure.not_prunable["attention.k_proj"]
    assert structure.not_prunable["position"] == "no kind of layer that can be cut holds it"
    pruned = cut(model, TOKENS, {"up": list(range(10))}, structure).model
    assert model.config.use_cache is pruned.config.use_cache is True
    with torch.no_grad():
        model.down.weight[:, 10:] = 0
    torch.testing.assert_close(pruned(TOKENS)["logits"], model(TOKENS)["logits"])


def test_heads_that_share_keys_end_the_search_with_a_reason() -> None:
    graph = Graph(prunable_copy(Language(2)), TOKENS)
    with pytest.raises(EndlessError, match="the units come round again and again"):
        graph.members("attention.k_proj", range(8))


def test_where_the_library_fails_the_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    members = Graph.members

    def failing(graph: Graph, name: str, units: range) -> list[object]:
        if name == "0":
            raise IndexError("list index out of range")
        return members(graph, name, units)

    monkeypatch.setattr(Graph, "members", failing)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert unit_groups(model, torch.zeros(2, 2)).not_prunable["0"] == \
        "what reads its units cannot be followed (IndexError: list index out of range)"


def test_caches_are_on_again_also_when_the_block_raises() -> None:
    first, second = Language(), Language()
    second.config = first.config
    first.attention.config = SimpleNamespace(use_cache=False)
    with pytest.raises(KeyError), caches_off(first, second):
        assert not first.config.use_cache and not first.attention.config.use_cache
        raise KeyError
    assert first.config.use_cache and not first.attention.config.use_cache
