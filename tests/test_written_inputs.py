"""A model that writes into what it is given: the data stay, and every pass sees the same ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import labels, rows
from wua_mlflow.analysis import analyze
from wua_mlflow.evaluation import outputs_of
from wua_mlflow.training import Budget, fit
from wua_mlflow.widths import recommend_widths


class Standardising(nn.Module):
    """Shifts and scales its input, in place or not: twice is not once."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).mul_(3) if self.in_place else (x - 0.5) * 3
        return self.head(self.first(x).relu())


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    writing = Standardising(in_place=True)
    plain = Standardising(in_place=False)
    plain.load_state_dict(writing.state_dict())
    return writing, plain


@pytest.mark.parametrize("criterion", ["output", "wanda", "taylor"])
def test_an_analysis_with_its_nulls_and_ranks(criterion):
    writing, plain = pair()
    x, y = rows(40, 3), labels(40)
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]
    kept = copy.deepcopy(batches)
    options = {"criterion": criterion, "null": 3, "effective_rank": True,
               "loss": functional.cross_entropy}
    found, expected = (analyze(model, batches, **options) for model in (writing, plain))
    one, other = found.layers["first"], expected.layers["first"]
    assert one.entropy == other.entropy
    assert one.effective_rank == other.effective_rank
    assert one.null == other.null
    assert all(torch.equal(a, b) for before, after in zip(kept, batches, strict=True)
               for a, b in zip(before, after, strict=True))


def test_data_that_come_whole():
    writing, plain = pair()
    x = rows(40, 3)
    kept = x.clone()
    assert analyze(writing, x).layers["first"].entropy == \
        analyze(plain, x).layers["first"].entropy
    assert torch.equal(x, kept)


def test_the_batch_is_as_it_was_where_the_forward_raises():
    class Raising(Standardising):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("own")

    x = rows(10, 3)
    kept = x.clone()
    with pytest.raises(RuntimeError, match="own"):
        analyze(Raising(in_place=True), [x])
    assert torch.equal(x, kept)


def test_a_model_that_begins_to_write_later_is_refused():
    class Late(Standardising):
        def forward(self, x: Tensor) -> Tensor:
            self.in_place = len(x) < 10
            return super().forward(x)

    with pytest.raises(ValueError, match="^model: expected one that leaves its inputs alone"):
        analyze(Late(in_place=False), [rows(12, 3), rows(8, 3)])


def test_predictions_training_and_widths():
    x, y = rows(60, 3), labels(60)
    kept, found = x.clone(), []
    for model in pair():
        before = outputs_of(model, x)
        assert torch.equal(outputs_of(model, x), before)
        for _ in fit(model, (x, y), functional.cross_entropy, Budget(epochs=3, batch_size="full"),
                     generator=torch.Generator()):
            pass
        widths = recommend_widths(model, (x, y), method="rank").widths
        found.append((outputs_of(model, x), widths))
        assert torch.equal(x, kept)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert found[0][1] == found[1][1]
