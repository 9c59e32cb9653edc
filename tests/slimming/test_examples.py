"""A batch as a model takes it, resized, changed and given to a model that writes into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks import rows
from wua_mlflow.pruning.compensation import folded
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.examples import called, copied, noise_like, resized
from wua_mlflow.pruning.importance import unit_importance


def test_resized_batches():
    rows = torch.arange(6).reshape(3, 2)
    assert resized(rows, 1).tolist() == [[0, 1]]
    assert resized(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]


def test_copies_go_into_tuples_and_dicts():
    x = torch.ones(2)
    (first, how), by_name = copied((x, "fast")), copied({"x": [x], "how": None})
    for one in (copied(x), first, by_name["x"][0]):
        one += 1
        assert one.tolist() == [2, 2]
    assert x.tolist() == [1, 1]
    assert how == "fast"
    assert by_name["how"] is None


def test_noise_keeps_whole_numbers_in_their_columns():
    table = torch.tensor([[0, 5], [1, 6], [2, 7]])
    assert noise_like(table).sort(0).values.tolist() == table.tolist()
    assert noise_like({"x": rows(4, 3)})["x"].shape == (4, 3)


class Writing(nn.Module):
    """Doubles its input in place: what is traced often would overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.mul_(2)).relu()).relu())


def test_a_model_that_writes_into_its_input_is_cut():
    torch.manual_seed(0)
    model, x = Writing(), rows(12, 3)
    kept = x.clone()
    assert torch.equal(called(model, x), called(model, x))
    structure = unit_groups(model, x)
    assert [one.name for one in structure.groups] == ["first", "second"]
    importance = unit_importance(model, structure, (x, torch.zeros(12, dtype=torch.long)),
                                 nn.functional.cross_entropy, criterion="spanning")
    keep = {name: one.argsort(descending=True)[:4].tolist() for name, one in importance.items()}
    folded(model, structure, keep, x)
    assert cut(model, x, keep).model.first.out_features == 4
    assert torch.equal(x, kept)
