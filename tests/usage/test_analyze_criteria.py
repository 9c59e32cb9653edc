"""Every criterion over whole networks: by NumPy, however batches are cut, and in one pass."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy as loss

from tests.networks import NETWORKS, Layers, labels, mlp, numpys, rows
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA
from wua_mlflow.usage.results import ModelUsage


def everything(model: nn.Module, data, **options) -> dict[str, ModelUsage]:
    return analyze(model, data, criterion=list(CRITERIA), loss=loss, **options)


def by_numpy(model: nn.Sequential, inputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    """The importance of the second layer of an MLP, by matrices of its activations."""
    x = numpys(model[:2](inputs))
    weight, bias = numpys(model[2].weight), numpys(model[2].bias)
    z = x @ weight.T + bias
    head, offset = numpys(model[4].weight), numpys(model[4].bias)
    logits = np.maximum(z, 0) @ head.T + offset
    wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[targets.numpy()]
    gradient = ((wrong @ head) * (z > 0)).T @ x / len(x)
    return {
        "output": np.abs(weight) * np.abs(z.mean(0))[:, None],
        "input": np.abs(weight) * np.abs(x).mean(0),
        "wanda": np.abs(weight) * np.sqrt((x ** 2).sum(0)), "magnitude": np.abs(weight),
        "taylor": np.abs(weight * gradient)}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_second_layer_of_an_mlp_by_numpy(name):
    model, inputs, targets = mlp(3, 8, 6, 2), rows(40, 3), labels(40)
    model[2].weight.data[:, 0] *= 1e-4
    expected = by_numpy(model, inputs, targets)[name]
    batches = [(inputs[:33], targets[:33]), (inputs[33:], targets[33:])]
    importance = layer_importance(model, batches, ["2"], name, loss=loss)["2"]
    np.testing.assert_allclose(importance.numpy(), expected, rtol=2e-5, atol=1e-7)
    layer = analyze(model, batches, criterion=name, loss=loss).layers["2"]
    entropy = scipy.stats.entropy(expected.ravel())
    assert layer.entropy == pytest.approx(entropy, rel=1e-5)
    assert layer.effective_weights == pytest.approx(math.exp(entropy), rel=1e-5)
    low = 0.01 if name == "output" else 0.01 * expected.mean()
    assert layer.low_share == pytest.approx((expected < low).mean()) and layer.low_share > 0.1
    if name != "taylor":  # whose units have a measure of their own
        np.testing.assert_allclose(layer.unit_importance, expected.sum(1), rtol=1e-5)


def assert_same(usage: ModelUsage, expected: ModelUsage, relative: float = 1e-6) -> None:
    assert list(usage.layers) == list(expected.layers) and usage.skipped == expected.skipped
    assert usage.samples == expected.samples
    for name, layer in expected.layers.items():
        other = usage.layers[name]
        for figure in ("entropy", "effective_weights", "top90_share", "low_share"):
            assert getattr(other, figure) == pytest.approx(getattr(layer, figure), rel=relative), \
                name
        np.testing.assert_allclose(other.unit_importance, layer.unit_importance, rtol=relative,
                                   atol=relative * layer.unit_importance.max(), err_msg=name)
        assert other.unit_usage.entropy == pytest.approx(layer.unit_usage.entropy, rel=relative)
        assert (other.dead, other.dead_units) == (layer.dead, layer.dead_units)


@pytest.mark.parametrize("network", NETWORKS)
def test_cuts_and_order_of_batches_do_not_matter(network):
    """In float64 no figure changes; in float32 none where nothing cancels, and no entropy."""
    make, inputs_of = NETWORKS[network]
    model, inputs, targets = make(), inputs_of(60), labels(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    cuts = list(zip(inputs[order].split([1, 40, 19]), targets[order].split([1, 40, 19]),
                    strict=True))
    whole, usages = (everything(model, data) for data in ([(inputs, targets)], cuts))
    for name, usage in usages.items():
        if name in ("input", "wanda", "magnitude"):
            assert_same(usage, whole[name])
        for layer, other in zip(usage.layers.values(), whole[name].layers.values(), strict=True):
            assert layer.entropy == pytest.approx(other.entropy, rel=1e-6), (name, layer.name)
    model = model.double()
    whole, usages = (everything(model, data) for data in ([(inputs, targets)], cuts))
    for name, usage in usages.items():
        assert_same(usage, whole[name])


def attend(model: Layers, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
    """Attention over padded sequences; the mean over what is real."""
    x = model.embed(input_ids)
    x, _weights = model.attention(x, x, x, key_padding_mask=attention_mask == 0)
    x = model.inner(x).relu() * attention_mask.unsqueeze(-1)
    return model.head(x.sum(1) / attention_mask.sum(1, keepdim=True))


def test_padding_changes_no_figure():
    model = Layers(attend, embed=nn.Embedding(20, 8),
                   attention=nn.MultiheadAttention(8, 2, batch_first=True),
                   inner=nn.Linear(8, 12), head=nn.Linear(12, 2)).double()
    lengths = torch.arange(24) % 6 + 1
    ids = torch.randint(1, 20, (24, 6), generator=torch.Generator().manual_seed(6))
    mask = (torch.arange(6) < lengths[:, None]).long()
    targets = labels(24)

    def padded(width: int, chosen: Tensor) -> dict[str, Tensor]:
        ids_of, mask_of = (functional.pad(tensor[chosen], (0, 5))[:, :width]
                           for tensor in (ids * mask, mask))
        return {"input_ids": ids_of, "attention_mask": mask_of, "labels": targets[chosen]}

    whole = everything(model, [padded(6, torch.arange(24))])
    wider = everything(model, [padded(11, torch.arange(24))])
    by_length = everything(model, [padded(n, torch.arange(24)[lengths == n]) for n in range(1, 7)])
    for name in CRITERIA:
        assert_same(wider[name], whole[name])
        assert_same(by_length[name], whole[name])


def test_permuted_units_have_permuted_importance():
    model, data = mlp(3, 8, 5, 2).double(), [(rows(40, 3), labels(40))]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(7))
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned[0].weight.copy_(model[0].weight[order])
        turned[0].bias.copy_(model[0].bias[order])
        turned[2].weight.copy_(model[2].weight[:, order])
    usages = everything(turned, data)
    for name, usage in everything(model, data).items():
        first, second = usage.layers.values()
        turned_first, turned_second = usages[name].layers.values()
        np.testing.assert_allclose(turned_first.unit_importance,
                                   first.unit_importance[order.numpy()], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(turned_second.unit_importance, second.unit_importance,
                                   rtol=1e-9, atol=1e-15)
        assert turned_first.entropy == pytest.approx(first.entropy, rel=1e-9)


def test_a_rescaling_that_leaves_the_function_alone():
    """The first half of the hidden units takes in c times as much and gives a c-th of it."""
    c, model, data = 16.0, mlp(3, 16, 8, 2).double(), [(rows(60, 3).double(), labels(60))]
    scaled = copy.deepcopy(model)
    scaled[0].weight.data[:8] *= c
    scaled[0].bias.data[:8] *= c
    scaled[2].weight.data[:, :8] /= c
    torch.testing.assert_close(scaled(data[0][0]), model(data[0][0]), rtol=1e-12, atol=1e-12)
    before, after = everything(model, data), everything(scaled, data)
    for name in CRITERIA:
        layer, other = (usage[name].layers["0"] for usage in (before, after))
        power = {"output": 2, "input": 1, "wanda": 1, "magnitude": 1, "taylor": 0}[name]
        grown = layer.unit_importance * np.where(np.arange(16) < 8, c ** power, 1)
        np.testing.assert_allclose(other.unit_importance, grown, rtol=1e-9, atol=1e-15)
        unchanged = name == "taylor"
        assert (other.entropy == pytest.approx(layer.entropy, rel=1e-9)) is unchanged
        assert (abs(other.effective_share - layer.effective_share) < 0.05) is unchanged
        shares = [usage.unit_usage.effective_share for usage in (layer, other)]
        assert (shares[0] == pytest.approx(shares[1], rel=1e-9)) is unchanged
        assert (abs(shares[0] - shares[1]) < 0.05) is unchanged


class Counted(nn.Module):
    """Counts its forwards and those of its copies, and the losses taken of them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.net = mlp(3, 8, 6, 2)
        self.count: Callable[[str], None] = lambda what: counts.update([what])

    def forward(self, x: Tensor) -> Tensor:
        self.count("forward")
        return self.net(x)


@pytest.mark.parametrize("criteria", ["output", "taylor", list(CRITERIA),
                                      ["taylor", lambda weight, gradient: weight.abs()]])
@pytest.mark.parametrize("null", [0, 3])
def test_one_pass_for_all_criteria_and_one_for_each_null(criteria, null):
    counts: Counter[str] = Counter()
    model, data = Counted(counts), [(rows(4, 3, seed=n), labels(4)) for n in range(5)]

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        model.count("loss")
        return loss(outputs, targets)

    analyze(model, data, criterion=criteria, loss=counting, null=null, effective_rank=True)
    passes = 1 + null
    assert counts["forward"] == 5 * passes
    assert counts["loss"] == (5 * passes if "taylor" in criteria else 0)


def test_several_criteria_give_what_each_gives_alone():
    model, data = mlp(3, 8, 6, 2), [(rows(40, 3), labels(40))]
    together = everything(model, data, null=2, seed=3)
    assert list(together) == list(CRITERIA)
    for name in CRITERIA:
        alone = analyze(model, data, criterion=name, loss=loss, null=2, seed=3)
        assert together[name].criterion == alone.criterion == name
        assert_same(together[name], alone, relative=1e-12)
        assert together[name].null == alone.null
        assert together[name].layers["2"].null == alone.layers["2"].null
