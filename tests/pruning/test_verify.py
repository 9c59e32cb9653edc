"""A batch as a model takes it, resized, changed and given to a model that writes into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks import rows
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.pruning.verify import _noise_like, _resized


def test_batches_to_check_a_cut_on():
    samples = torch.arange(6).reshape(3, 2)
    assert _resized(samples, 1).tolist() == [[0, 1]]
    assert _resized(samples, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    table = torch.tensor([[0, 5], [1, 6], [2, 7]])
    assert _noise_like(table).sort(0).values.tolist() == table.tolist()
    assert _noise_like({"x": rows(4, 3)})["x"].shape == (4, 3)


class Writing(nn.Module):
    """Doubles its input in place: what is traced often would overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.mul_(2)).relu()).relu())


def test_a_model_that_writes_into_its_input_is_cut():
    model, x = Writing(), rows(12, 3)
    before, structure = x.clone(), unit_groups(model, x)
    assert [group.name for group in structure.groups] == ["first", "second"]
    importance = unit_importance(model, structure, (x, torch.zeros(12, dtype=torch.long)),
                                 nn.functional.cross_entropy, criterion="spanning")
    keep = {name: values.argsort(descending=True)[:4].tolist()
            for name, values in importance.items()}
    compensated(model, structure, keep, x)
    assert cut(model, x, keep).model.first.out_features == 4
    assert torch.equal(x, before)
