"""A model that writes into what it is given: the data stay, and every pass sees the same ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import labels, rows
from wua_mlflow.training.evaluation import outputs_of
from wua_mlflow.training.fit import Budget, fit
from wua_mlflow.training.latency import measure_latency
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import recommend_widths


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


def test_a_model_that_writes_into_some_batches_alone():
    class Late(Standardising):
        def forward(self, x: Tensor) -> Tensor:
            self.in_place = len(x) < 10
            return super().forward(x)

    _, plain = pair()
    late = Late(in_place=False)
    late.load_state_dict(plain.state_dict())
    batches = [rows(12, 3), rows(8, 3, seed=1)]
    kept = copy.deepcopy(batches)
    found, expected = (analyze(model, batches, null=2).layers["first"] for model in (late, plain))
    assert (found.entropy, found.null) == (expected.entropy, expected.null)
    assert all(map(torch.equal, batches, kept))


def test_targets_that_are_the_inputs_themselves():
    """An autoencoder's: however the batches are cut."""
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets[:, :2]).square().mean()

    writing, plain = pair()
    x = rows(20, 3)
    for size in (20, 5):
        batches = [(one, one) for one in x.split(size)]
        found, expected = (analyze(model, batches, criterion="taylor", loss=loss).layers["first"]
                           for model in (writing, plain))
        assert found.entropy == expected.entropy


def test_expanded_and_sparse_tensors_are_given_to_the_model_too():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, adjacency: Tensor, step: Tensor) -> Tensor:
            step += 1
            x[0] += 1
            return self.head(adjacency @ self.first(x).relu())

    step, x = torch.zeros(()), torch.ones(1, 3).expand(6, 3)
    for adjacency in (torch.eye(6), torch.eye(6).to_sparse()):
        batches = [{"x": x, "adjacency": adjacency, "step": step}]
        assert list(analyze(Graph(), batches).layers) == ["first"]
    assert step == 0
    assert bool((x == 1).all())


def test_latency_is_measured_on_a_copy():
    x = rows(4, 3)
    kept = x.clone()
    measure_latency({"a": pair()[0]}, x, rounds=3)
    assert torch.equal(x, kept)


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
