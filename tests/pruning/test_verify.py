"""A cut is verified on the batches that the original takes; the others are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks import rows
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.verify import WrongCutError, check_cut
from wua_mlflow.slimming import slim
from wua_mlflow.widths.recommend import recommend_widths

EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
SIZES = ("a batch of 1", "a batch of 5")


class Takes(nn.Module):
    """Two layers; ``between`` refuses some batches, by an error of its own."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 8), nn.Linear(8, 3), between

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.b(self.between(self.a(x).relu(), *more))


def neighbours(hidden: Tensor, edges: Tensor) -> Tensor:
    return torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]])


def even(hidden: Tensor) -> Tensor:
    if len(hidden) % 2:
        raise ValueError("pairs, please")
    return hidden


def bounded(hidden: Tensor, chance: Tensor) -> Tensor:
    if not bool(((chance >= 0) & (chance <= 1)).all()):
        raise ValueError("chances, please")
    return hidden * chance


def fixed(hidden: Tensor) -> Tensor:
    assert len(hidden) == 6
    return hidden


CASES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "a graph": (neighbours, (rows(6, 4), EDGES), SIZES),
    "pairs": (even, rows(6, 4), SIZES),
    "six alone": (fixed, rows(6, 4), SIZES),
    "chances": (bounded, (rows(6, 4), torch.linspace(0, 1, 6)[:, None]),
                ("noise like the example",)),
    "any": (lambda hidden: hidden, rows(6, 4), ()),
}


@pytest.mark.parametrize(("between", "example", "unverified"), CASES.values(), ids=CASES)
def test_what_the_original_refuses_is_skipped_and_said(between, example, unverified):
    result = cut(Takes(between), example, {"a": range(5)})
    assert (result.units["a"], result.unverified) == ((8, 5), unverified)
    said = [note for note in result.summary().notes if note.startswith("not verified on ")]
    assert said == ([f"not verified on {', '.join(unverified)}: the original itself does not take "
                     f"{'it' if len(unverified) == 1 else 'them'}"] if unverified else [])


def test_what_only_the_cut_network_refuses_is_a_wrong_cut():
    model, example = Takes(lambda hidden: hidden), rows(6, 4)
    narrow = Takes(fixed)
    narrow.load_state_dict(model.state_dict())
    narrow.a, narrow.b = nn.Linear(4, 7), nn.Linear(7, 3)
    with torch.no_grad():
        for name, kept in {"a.weight": model.a.weight[:7], "a.bias": model.a.bias[:7],
                           "b.weight": model.b.weight[:, :7], "b.bias": model.b.bias}.items():
            narrow.get_parameter(name).copy_(kept)
    structure = unit_groups(model, example)
    with pytest.raises(WrongCutError, match="^its forward fails: AssertionError"):
        check_cut(model, narrow, structure, {"a": [7]}, example)


@pytest.mark.parametrize("form", [
    lambda x, y: [((x, EDGES), y)], lambda x, y: [{"x": x, "edges": EDGES, "labels": y}]])
def test_a_whole_graph_is_slimmed(form):
    class Graph(Takes):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return super().forward(x, edges)

    torch.manual_seed(0)
    model, data = Graph(neighbours), form(rows(6, 4), torch.arange(6) % 3)
    result = slim(model, data, widths={"a": 4})
    assert result.units == {"a": (8, 4)} and result.unverified == SIZES
    assert list(recommend_widths(model, data).widths) == ["a"]


@dataclass
class Output:
    logits: Tensor
    more: tuple[Tensor, ...] = ()


def test_outputs_in_dataclasses_are_compared_and_outputs_of_no_tensor_are_not_believed():
    plain, example = Takes(lambda hidden: hidden), rows(6, 4)
    structure = unit_groups(plain, example)

    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.a, self.b, self.run, self.wrap = model.a, model.b, model.forward, wrap

        def forward(self, x: Tensor) -> Any:
            return self.wrap(self.run(x))

    for wrap, spoilt, message in (
            (Output, 0, ""), (lambda out: Output(out[:1], (out,)), 1, "its outputs are not those"),
            (lambda out: "none", 0, "its outputs hold no tensor that could be compared")):
        narrow = cut(plain, example, {"a": range(7)}, structure).model
        narrow.b.bias.data += spoilt
        models = Wrapped(plain, wrap), Wrapped(narrow, wrap)
        if not message:
            assert check_cut(*models, structure, {"a": [7]}, example).refused == ()
            continue
        with pytest.raises(WrongCutError, match=f"^{message}"):
            check_cut(*models, structure, {"a": [7]}, example)
