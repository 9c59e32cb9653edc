"""A model that writes into what it is given: the data stay, and every pass sees the same ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import Layers, labels, rows
from wua_mlflow.training.evaluation import outputs_of
from wua_mlflow.training.fit import Budget, fit
from wua_mlflow.training.latency import measure_latency
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import recommend_widths


def standardise(model: Layers, x: Tensor) -> Tensor:
    """Shifts and scales its input, in place or not: twice is not once."""
    x = x.sub_(0.5).mul_(3) if model.in_place(x) else (x - 0.5) * 3
    return model.head(model.first(x).relu())


def pair(in_place=lambda x: True) -> tuple[Layers, Layers]:
    """A model that writes into its inputs, and one that does not."""
    writing = Layers(standardise, first=nn.Linear(3, 6), head=nn.Linear(6, 2))
    plain = copy.deepcopy(writing)
    writing.in_place, plain.in_place = in_place, lambda x: False
    return writing, plain


@pytest.mark.parametrize("in_place", [lambda x: True, lambda x: len(x) < 20],
                         ids=["every batch", "some batches"])
def test_an_analysis_with_its_nulls_and_ranks(in_place):
    x, y = rows(40, 3), labels(40)
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]
    before = copy.deepcopy(batches)
    usages, expected = (analyze(model, batches, criterion=["output", "wanda", "taylor"], null=3,
                                effective_rank=True, loss=functional.cross_entropy)
                        for model in pair(in_place))
    assert len({analyze(model, x).layers["first"].entropy for model in pair(in_place)}) == 1
    for name, usage in usages.items():
        layer, other = usage.layers["first"], expected[name].layers["first"]
        assert (layer.entropy, layer.effective_rank, layer.null) == (
            other.entropy, other.effective_rank, other.null)
    assert all(torch.equal(a, b) for pair_before, pair_after in zip(before, batches, strict=True)
               for a, b in zip(pair_before, pair_after, strict=True))


def test_the_batch_is_as_it_was_where_the_forward_raises():
    def run(model: Layers, x: Tensor) -> Tensor:
        x.sub_(0.5)
        raise RuntimeError("own")

    x = rows(10, 3)
    with pytest.raises(RuntimeError, match="own"):
        analyze(Layers(run, first=nn.Linear(3, 4)), [x])
    assert torch.equal(x, rows(10, 3))


def test_targets_that_are_the_inputs_themselves():
    """An autoencoder's: however the batches are cut."""
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets[:, :2]).square().mean()

    x = rows(20, 3)
    for size in (20, 5):
        batches = [(batch, batch) for batch in x.split(size)]
        entropies = {analyze(model, batches, criterion="taylor", loss=loss).layers["first"].entropy
                     for model in pair()}
        assert len(entropies) == 1


def test_expanded_and_sparse_tensors_are_given_to_the_model_too():
    def run(model: Layers, x: Tensor, adjacency: Tensor, step: Tensor) -> Tensor:
        step += 1
        x[0] += 1
        return model.head(adjacency @ model.first(x).relu())

    graph = Layers(run, first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    step, x = torch.zeros(()), torch.ones(1, 3).expand(6, 3)
    for adjacency in (torch.eye(6), torch.eye(6).to_sparse()):
        batches = [{"x": x, "adjacency": adjacency, "step": step}]
        assert list(analyze(graph, batches).layers) == ["first"]
    assert step == 0
    assert bool((x == 1).all())


def test_latency_predictions_training_and_widths():
    x, y = rows(60, 3), labels(60)
    outputs, widths = [], []
    for model in pair():
        measure_latency({"a": model}, x, rounds=3)
        assert torch.equal(outputs_of(model, x), outputs_of(model, x))
        for _ in fit(model, (x, y), functional.cross_entropy, Budget(epochs=3, batch_size="full"),
                     generator=torch.Generator()):
            pass
        widths.append(recommend_widths(model, (x, y), method="rank").widths)
        outputs.append(outputs_of(model, x))
        assert torch.equal(x, rows(60, 3))
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert widths[0] == widths[1]
