"""Every criterion over whole networks: by NumPy, however batches are cut, and in one pass."""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import NETWORKS, labels, mlp, numpys, rows
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA
from wua_mlflow.usage.results import ModelUsage


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def everything(model: nn.Module, data, **options) -> dict[str, ModelUsage]:
    return analyze(model, data, criterion=list(CRITERIA), loss=loss, **options)


def by_numpy(model: nn.Sequential, inputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    """The importance of the second layer of an MLP, by matrices of its activations."""
    x = numpys(model[:2](inputs))
    weight, bias = numpys(model[2].weight), numpys(model[2].bias)
    z = x @ weight.T + bias
    head, offset = numpys(model[4].weight), numpys(model[4].bias)
    logits = np.maximum(z, 0) @ head.T + offset
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = p - np.eye(2)[targets.numpy()]
    back = (wrong @ head) * (z > 0)
    gradient = back.T @ x / len(x)
    return {
        "output": np.abs(weight) * np.abs(z.mean(0))[:, None],
        "input": np.abs(weight) * np.abs(x).mean(0),
        "wanda": np.abs(weight) * np.sqrt((x ** 2).sum(0)),
        "magnitude": np.abs(weight),
        "taylor": np.abs(weight * gradient),
    }


@pytest.mark.parametrize("name", CRITERIA)
def test_the_second_layer_of_an_mlp_by_numpy(name):
    model, inputs, targets = mlp(3, 8, 6, 2), rows(40, 3), labels(40)
    expected = by_numpy(model, inputs, targets)[name]
    batches = [(inputs[:33], targets[:33]), (inputs[33:], targets[33:])]
    found = layer_importance(model, batches, ["2"], name, loss=loss)["2"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-7)
    layer = analyze(model, batches, criterion=name, loss=loss).layers["2"]
    entropy = scipy.stats.entropy(expected.ravel())
    assert layer.entropy == pytest.approx(entropy, rel=1e-5)
    assert layer.effective_weights == pytest.approx(math.exp(entropy), rel=1e-5)
    low = 0.01 if name == "output" else 0.01 * expected.mean()
    assert layer.low_share == pytest.approx((expected < low).mean())
    if name != "taylor":  # whose units have a measure of their own
        np.testing.assert_allclose(layer.unit_importance, expected.sum(1), rtol=1e-5)


@pytest.mark.parametrize("name", ["input", "wanda"])
def test_the_inputs_of_a_convolution_by_unfolding(name):
    torch.manual_seed(2)
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2)
    inputs = rows(5, 4, 8, 9)
    patches = functional.unfold(inputs.double(), (3, 2), (1, 2), (1, 0), 2)  # (5, 4 · 6, places)
    patches = numpys(patches.transpose(1, 2).reshape(-1, 2, 2 * 6))  # (rows, groups, in)
    met = np.abs(patches).mean(0) if name == "input" else np.sqrt((patches ** 2).sum(0))
    weight = numpys(conv.weight).reshape(2, 3, 12)
    expected = (np.abs(weight) * met[:, None]).reshape(conv.weight.shape)
    found = layer_importance(nn.Sequential(conv), inputs, ["0"], name)["0"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


def compared(found: ModelUsage, expected: ModelUsage, relative: float = 1e-6) -> None:
    assert list(found.layers) == list(expected.layers)
    assert found.skipped == expected.skipped
    assert found.samples == expected.samples
    for name, layer in expected.layers.items():
        other = found.layers[name]
        for what in ("entropy", "effective_weights", "top90_share", "low_share"):
            assert getattr(other, what) == pytest.approx(getattr(layer, what), rel=relative), name
        size = layer.unit_importance.max()
        np.testing.assert_allclose(other.unit_importance, layer.unit_importance, rtol=relative,
                                   atol=relative * size, err_msg=name)
        assert other.unit_usage.entropy == pytest.approx(layer.unit_usage.entropy, rel=relative)
        assert (other.dead, other.dead_units) == (layer.dead, layer.dead_units)


@pytest.mark.parametrize("network", NETWORKS)
def test_cuts_and_order_of_batches_do_not_matter(network):
    make, inputs_of = NETWORKS[network]
    model, inputs, targets = make().double(), inputs_of(28), labels(28)
    order = torch.randperm(28, generator=torch.Generator().manual_seed(4))
    whole = everything(model, [(inputs, targets)])
    for cut in ([1] * 28, [7] * 4, [1, 20, 7]):
        cuts = list(zip(inputs[order].split(cut), targets[order].split(cut), strict=True))
        found = everything(model, cuts)
        for name in CRITERIA:
            compared(found[name], whole[name])


@pytest.mark.parametrize("network", NETWORKS)
def test_cuts_in_float32_where_nothing_cancels(network):
    make, inputs_of = NETWORKS[network]
    model, inputs = make(), inputs_of(70)
    names = ["input", "wanda", "magnitude"]
    whole = analyze(model, [inputs], criterion=names)
    found = analyze(model, inputs.split(9), criterion=names)
    for name in names:
        compared(found[name], whole[name])


@pytest.mark.parametrize("network", NETWORKS)
def test_cuts_in_float32(network):
    make, inputs_of = NETWORKS[network]
    model, inputs, targets = make(), inputs_of(300), labels(300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4))
    whole = everything(model, [(inputs, targets)])
    cuts = list(zip(inputs[order].split(11), targets[order].split(11), strict=True))
    found = everything(model, cuts)
    for name in CRITERIA:
        assert found[name].effective_share == pytest.approx(whole[name].effective_share, rel=1e-6)
        for layer, usage in whole[name].layers.items():
            other = found[name].layers[layer]
            assert other.entropy == pytest.approx(usage.entropy, rel=1e-6), (name, layer)
            assert other.effective_weights == pytest.approx(usage.effective_weights, rel=1e-6)


class Padded(nn.Module):
    """Attention over padded sequences; the mean over what is real."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.head = nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0)
        x = self.inner(x).relu() * attention_mask.unsqueeze(-1)
        return self.head(x.sum(1) / attention_mask.sum(1, keepdim=True))


def test_padding_changes_no_figure():
    torch.manual_seed(5)
    model = Padded().double()
    lengths = torch.arange(24) % 6 + 1
    ids = torch.randint(1, 20, (24, 6), generator=torch.Generator().manual_seed(6))
    mask = (torch.arange(6) < lengths[:, None]).long()
    targets = labels(24)

    def padded(width: int, chosen: Tensor) -> dict[str, Tensor]:
        more = width - 6
        return {"input_ids": functional.pad(ids[chosen] * mask[chosen], (0, max(0, more)))
                [:, :width], "attention_mask": functional.pad(mask[chosen], (0, max(0, more)))
                [:, :width], "labels": targets[chosen]}

    whole = everything(model, [padded(6, torch.arange(24))])
    wider = everything(model, [padded(11, torch.arange(24))])
    by_length = everything(model, [padded(n, torch.arange(24)[lengths == n]) for n in range(1, 7)])
    for name in CRITERIA:
        compared(wider[name], whole[name])
        compared(by_length[name], whole[name])


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_permuted_units_have_permuted_importance(network):
    make, inputs_of = NETWORKS[network]
    model, data = make().double(), [(inputs_of(40), labels(40))]
    reader = 2 if network == "mlp" else None
    units = len(model[0].weight)
    order = torch.randperm(units, generator=torch.Generator().manual_seed(7))
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned[0].weight.copy_(model[0].weight[order])
        turned[0].bias.copy_(model[0].bias[order])
        if reader:
            turned[reader].weight.copy_(model[reader].weight[:, order])
        else:  # batch norm, and a depthwise convolution that is permuted itself
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                getattr(turned[1], tensor).copy_(getattr(model[1], tensor)[order])
            turned[3].weight.copy_(model[3].weight[order])
            turned[3].bias.copy_(model[3].bias[order])
            back = torch.zeros(6, 8, 1, 1, dtype=torch.float64)
            back[:3, :4], back[3:, 4:] = model[5].weight.chunk(2)
            turned[5] = nn.Conv2d(8, 6, 1).double()
            turned[5].weight.copy_(back[:, order])
            turned[5].bias.copy_(model[5].bias)
    before, after = everything(model, data), everything(turned, data)
    for name in CRITERIA:
        one, other = before[name].layers["0"], after[name].layers["0"]
        np.testing.assert_allclose(other.unit_importance, one.unit_importance[order.numpy()],
                                   rtol=1e-9, atol=1e-15)
        assert other.entropy == pytest.approx(one.entropy, rel=1e-9)


@pytest.mark.parametrize("c", [4.0, 16.0])
def test_a_rescaling_that_leaves_the_function_alone(c):
    """The first half of the hidden units takes in c times as much and gives a c-th of it."""
    model, data = mlp(3, 16, 8, 2).double(), [(rows(60, 3).double(), labels(60))]
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight[:8] *= c
        scaled[0].bias[:8] *= c
        scaled[2].weight[:, :8] /= c
    torch.testing.assert_close(scaled(data[0][0]), model(data[0][0]), rtol=1e-12, atol=1e-12)
    before, after = everything(model, data), everything(scaled, data)
    for name in CRITERIA:
        one, other = (usage[name].layers["0"] for usage in (before, after))
        power = {"output": 2, "input": 1, "wanda": 1, "magnitude": 1, "taylor": 0}[name]
        grown = one.unit_importance * np.where(np.arange(16) < 8, c ** power, 1)
        np.testing.assert_allclose(other.unit_importance, grown, rtol=1e-9, atol=1e-15)
        if name == "taylor":
            assert other.entropy == pytest.approx(one.entropy, rel=1e-9)
            assert other.unit_usage.effective == pytest.approx(one.unit_usage.effective, rel=1e-9)
        else:
            assert abs(other.effective_share - one.effective_share) > 0.05
            assert abs(other.unit_usage.effective_share - one.unit_usage.effective_share) > 0.05


class Counted(nn.Module):
    """Counts its forwards, and the losses taken of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.counts = mlp(3, 8, 6, 2), Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.counts["forward"] += 1
        return self.net(x)

    def __deepcopy__(self, memo: dict) -> Counted:
        copied = Counted()
        copied.load_state_dict(self.state_dict())
        copied.counts = self.counts
        return copied


@pytest.mark.parametrize("criteria", ["output", "taylor", ["wanda"], list(CRITERIA),
                                      ["taylor", lambda weight, gradient: weight.abs()]])
@pytest.mark.parametrize("null", [0, 3])
def test_one_pass_for_all_criteria_and_one_for_each_null(criteria, null):
    model = Counted()
    data = [(rows(4, 3, seed=n), labels(4)) for n in range(5)]

    def counting(outputs: Tensor, targets: Tensor) -> Tensor:
        model.counts["loss"] += 1
        return loss(outputs, targets)

    analyze(model, data, criterion=criteria, loss=counting, null=null, effective_rank=True)
    passes = 1 + null
    assert model.counts["forward"] == 5 * passes
    assert model.counts["loss"] == (5 * passes if "taylor" in criteria else 0)


def test_several_criteria_give_what_each_gives_alone():
    model, data = mlp(3, 8, 6, 2), [(rows(40, 3), labels(40))]
    together = everything(model, data, null=2, seed=3)
    assert list(together) == list(CRITERIA)
    for name in CRITERIA:
        alone = analyze(model, data, criterion=name, loss=loss, null=2, seed=3)
        assert together[name].criterion == alone.criterion == name
        compared(together[name], alone, relative=1e-12)
        assert together[name].null == alone.null
        assert together[name].layers["2"].null == alone.layers["2"].null


def test_weights_of_an_embedding_that_no_index_meets():
    torch.manual_seed(8)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    ids = torch.tensor([[0, 1, 1], [4, 1, 0]])
    found = layer_importance(model, ids, ["0"], "input")["0"]
    share = np.array([2, 3, 0, 0, 1]) / 6
    np.testing.assert_allclose(found.numpy(), np.abs(numpys(model[0].weight)).T * share, rtol=1e-6)
