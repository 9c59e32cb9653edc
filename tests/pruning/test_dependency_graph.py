"""Language models as transformers has them: caches beside the outputs, heads that share keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.pruning import dependency_graph, find_groups
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.dependency_graph import caches_off


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Cache:
    """Not a tensor, and nothing that a graph can be followed through."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Attention(nn.Module):
    """Grouped-query attention: four heads of queries share two of keys and values."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys
        self.q_proj, self.o_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k_proj, self.v_proj = nn.Linear(16, 4 * keys), nn.Linear(16, 4 * keys)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.shape[:2]
        q = self.q_proj(x).view(*rows, 4, 4).transpose(1, 2)
        k, v = (one(x).view(*rows, self.keys, 4).transpose(1, 2)
                for one in (self.k_proj, self.v_proj))
        q, k = (one + torch.cat([-one[..., 2:], one[..., :2]], -1) for one in (q, k))  # rotary
        k, v = (one[:, :, None].expand(-1, -1, 4 // self.keys, -1, -1).reshape(
            rows[0], 4, rows[1], 4) for one in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(*rows, 16)), k


class Language(nn.Module):
    """Gives its keys beside its outputs, unless its configuration says not to."""

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
        logits = self.head(x + self.down(self.up(x).relu()))
        return {"logits": logits, "cache": Cache(keys)} if self.config.use_cache else \
            {"logits": logits}


TOKENS = torch.randint(30, (3, 7))


@pytest.mark.parametrize("keys", [4, 2])
def test_what_keeps_a_cache_is_cut_all_the_same(keys: int) -> None:
    """Where heads share keys the library would look for the units that belong together for ever."""
    model = Language(keys).eval()
    structure = unit_groups(model, TOKENS)
    assert [group.name for group in structure.groups] == ["up"]
    assert set(structure.not_prunable) >= {f"attention.{part}_proj" for part in "qkvo"}
    found = cut(model, TOKENS, {"up": list(range(10))}).model
    assert model.config.use_cache is found.config.use_cache is True
    expected = Language(keys).eval()
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected.down.weight[:, 10:] = 0
    torch.testing.assert_close(found(TOKENS)["logits"], expected(TOKENS)["logits"])


def test_heads_that_share_keys_end_the_search_with_a_reason() -> None:
    model = Language(2).eval()
    found = dependency_graph.Graph(find_groups.prunable_copy(model), TOKENS)
    with pytest.raises(dependency_graph.EndlessError, match="the units come round again and again"):
        found.members("attention.k_proj", range(8))
    assert "the forward divides its units by a fixed number, as into heads" in \
        unit_groups(model, TOKENS).not_prunable["attention.k_proj"]


def test_a_matrix_that_no_layer_holds_is_named() -> None:
    assert unit_groups(Language().eval(), TOKENS).not_prunable["position"] == \
        "no kind of layer that can be cut holds it"


def test_where_the_library_fails_the_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    coupled = dependency_graph.Graph.members

    def failing(
        graph: dependency_graph.Graph, name: str, units: range
    ) -> list[dependency_graph.GroupMember]:
        if name == "up":
            raise IndexError("list index out of range")
        return coupled(graph, name, units)

    monkeypatch.setattr(dependency_graph.Graph, "members", failing)
    assert unit_groups(Language().eval(), TOKENS).not_prunable["up"] == \
        "what reads its units cannot be followed (IndexError: list index out of range)"


def test_caches_are_on_again_also_when_the_block_raises() -> None:
    first, second = Language(), Language()
    second.config = first.config
    first.attention.config = SimpleNamespace(use_cache=False)
    with pytest.raises(KeyError), caches_off(first, second):
        assert not first.config.use_cache and not first.attention.config.use_cache
        raise KeyError
    assert first.config.use_cache and not first.attention.config.use_cache
