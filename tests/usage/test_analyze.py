"""One pass over the data, against NumPy by hand, a convolution by loops, and itself in batches."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import mlp, numpys, rows
from wua_mlflow.usage.analyze import OUTPUT_LAYER, analyze, layer_importance


def two_layers_by_hand(model: nn.Sequential, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Importance of the two hidden layers; the second one sees what left the ReLU."""
    first, second = model[0], model[2]
    z1 = numpys(inputs) @ numpys(first.weight).T + numpys(first.bias)
    a1 = np.maximum(z1, 0)
    z2 = a1 @ numpys(second.weight).T + numpys(second.bias)
    return {
        "0": np.abs(numpys(first.weight)) * np.abs(z1.mean(0))[:, None],
        "2": np.abs(numpys(second.weight)) * np.abs(z2.mean(0))[:, None],
    }


def test_two_hidden_layers_by_hand():
    model, inputs = mlp(3, 8, 6, 2), rows(40, 3)
    expected = two_layers_by_hand(model, inputs)
    found = layer_importance(model, inputs, ["0", "2"])
    usage = analyze(model, inputs)
    assert list(usage.layers) == ["0", "2"]
    assert usage.skipped == {"4": OUTPUT_LAYER}
    assert usage.samples == 40
    for name, importance in expected.items():
        np.testing.assert_allclose(found[name].numpy(), importance, rtol=1e-5, atol=1e-8)
        layer = usage.layers[name]
        entropy = scipy.stats.entropy(importance.ravel())
        descending = np.sort(importance.ravel())[::-1].cumsum()
        count = np.searchsorted(descending, 0.9 * descending[-1]) + 1
        assert layer.entropy == pytest.approx(entropy, abs=1e-6)
        assert layer.effective_weights == pytest.approx(math.exp(entropy), rel=1e-6)
        assert layer.top90_share == pytest.approx(count / importance.size)
        assert layer.low_share == pytest.approx((importance < 0.01).mean())
        assert layer.unit_importance == pytest.approx(importance.sum(1), rel=1e-5)
        assert layer.histogram.counts.sum() == importance.size
        assert (layer.weights, layer.units, layer.kind, layer.dead) == (
            importance.size, len(importance), "Linear", False)
        assert layer.null is None


def test_it_is_not_the_pre_activation_that_is_fed_forward():
    model, inputs = mlp(3, 8, 6, 2), rows(40, 3)
    z1 = numpys(inputs) @ numpys(model[0].weight).T + numpys(model[0].bias)
    wrong = z1 @ numpys(model[2].weight).T + numpys(model[2].bias)
    wrong = np.abs(numpys(model[2].weight)) * np.abs(wrong.mean(0))[:, None]
    found = layer_importance(model, inputs, ["2"])["2"].numpy()
    assert np.abs(found - wrong).max() > 0.01


def test_a_convolution_by_loops():
    torch.manual_seed(2)
    conv = nn.Conv2d(2, 3, (2, 3), stride=2, padding=1)
    inputs = rows(5, 2, 6, 7)
    padded = np.pad(numpys(inputs), ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight, bias = numpys(conv.weight), numpys(conv.bias)
    outputs: list[list[float]] = [[], [], []]
    for image in padded:
        for unit in range(3):
            for top in range(0, image.shape[1] - 1, 2):
                for left in range(0, image.shape[2] - 2, 2):
                    patch = image[:, top:top + 2, left:left + 3]
                    outputs[unit].append((patch * weight[unit]).sum() + bias[unit])
    expected = np.abs(weight) * np.abs([np.mean(values) for values in outputs])[:, None, None, None]
    found = layer_importance(nn.Sequential(conv), inputs, ["0"])["0"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-8)
    usage = analyze(nn.Sequential(conv), inputs)
    assert usage.layers["0"].units == 3
    assert usage.layers["0"].unit_importance == pytest.approx(expected.sum((1, 2, 3)), rel=1e-5)


@pytest.mark.parametrize(("kind", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (3, 4, 5))])
def test_other_convolutions_mean_over_samples_and_positions(kind, shape):
    torch.manual_seed(3)
    conv = kind(4, 6, 3, padding=1, groups=2)
    inputs = rows(7, 4, *shape)
    mean = conv(inputs).detach().double().transpose(0, 1).flatten(1).mean(1)
    expected = conv.weight.detach().double().abs() * mean.abs().reshape(-1, *[1] * len(shape), 1)
    found = layer_importance(nn.Sequential(conv), inputs, ["0"])["0"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_sequence_means_over_samples_and_positions():
    model, inputs = mlp(3, 5, 2), rows(6, 4, 3)
    mean = np.abs((numpys(inputs) @ numpys(model[0].weight).T + numpys(model[0].bias)).mean((0, 1)))
    found = layer_importance(model, inputs, ["0"])["0"].numpy()
    np.testing.assert_allclose(found, np.abs(numpys(model[0].weight)) * mean[:, None], rtol=1e-5)


def test_permuted_units_have_permuted_importance():
    model, inputs = mlp(3, 8, 2), rows(50, 3)
    turned = copy.deepcopy(model)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    turned[0].weight.data, turned[0].bias.data = model[0].weight[order], model[0].bias[order]
    turned[2].weight.data = model[2].weight[:, order]
    before, after = analyze(model, inputs).layers["0"], analyze(turned, inputs).layers["0"]
    assert after.unit_importance == pytest.approx(before.unit_importance[order.numpy()])
    assert after.entropy == pytest.approx(before.entropy)


def test_magnitude_and_its_low_share():
    model, inputs = mlp(3, 8, 2), rows(50, 3)
    model[0].weight.data[:, 0] *= 1e-4
    weight = np.abs(numpys(model[0].weight))
    layer = analyze(model, inputs, criterion="magnitude").layers["0"]
    assert layer.entropy == pytest.approx(scipy.stats.entropy(weight.ravel()), abs=1e-9)
    assert layer.low_share == (weight < 0.01 * weight.mean()).mean()
    assert layer.low_share == pytest.approx(1 / 3)


class Branches(nn.Module):
    """Layers defined in another order than they are called in; one is called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.shared = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.stem = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.shared(self.shared(self.stem(x)))))


def test_the_order_is_that_of_the_forward_and_everything_left_out_is_named():
    torch.manual_seed(8)
    model = Branches()
    usage = analyze(model, rows(20, 3))
    assert list(usage.layers) == ["stem", "shared"]
    assert usage.skipped == {
        "norm": "LayerNorm is not a kind of layer that is analysed",
        "spare": "never called in the forward",
        "head": OUTPUT_LAYER,
    }
    stem = model.stem(rows(20, 3))
    once = model.shared(stem)
    both = torch.cat([once, model.shared(once)]).detach().double().mean(0)
    expected = model.shared.weight.detach().double().abs() * both.abs()[:, None]
    found = layer_importance(model, rows(20, 3), ["shared"])["shared"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_layers_asked_for_are_analysed_and_the_others_named():
    usage = analyze(mlp(3, 8, 6, 2), rows(20, 3), layers=["4", "0"])
    assert list(usage.layers) == ["0", "4"]
    assert usage.skipped == {"2": "not among the layers asked for"}


def test_an_only_layer_is_analysed_although_it_is_the_last():
    usage = analyze(nn.Sequential(nn.Linear(3, 2)), rows(20, 3))
    assert list(usage.layers) == ["0"]
    assert usage.skipped == {}


def test_the_fused_encoder_layer_hides_nothing():
    torch.manual_seed(9)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5)
    inputs = rows(6, 5, 8)
    seen: list[torch.Tensor] = []
    encoder.linear1.register_forward_hook(lambda module, args, output: seen.append(output))
    encoder.eval()(inputs)  # with a gradient to record, it takes the plain path
    mean = seen[0].detach().double().mean((0, 1))
    expected = encoder.linear1.weight.detach().double().abs() * mean.abs()[:, None]
    encoder.train().linear1._forward_hooks.clear()
    found = layer_importance(encoder, inputs, ["linear1"])["linear1"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_layer_that_never_fires_is_flagged_dead():
    model = mlp(3, 8, 2)
    model[0].weight.data.zero_()
    layer = analyze(model, rows(20, 3)).layers["0"]
    assert layer.dead
    assert (layer.effective_weights, layer.entropy, layer.effective_share) == (0.0, 0.0, 0.0)
    assert layer.top90_share == 0.0
    assert layer.low_share == 1.0


def test_the_model_is_left_as_found():
    torch.manual_seed(10)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    model[1].eval()
    model(rows(8, 3)).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    state, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    loader = DataLoader(TensorDataset(rows(50, 3)), batch_size=8, shuffle=True)
    analyze(model, loader, null=2)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), stream)


PLAIN = mlp(3, 4, 2)


def test_a_compiled_model_has_the_names_of_the_plain_one():
    compiled = torch.compile(PLAIN, backend="eager")
    usage, plain = analyze(compiled, rows(20, 3)), analyze(PLAIN, rows(20, 3))
    assert list(usage.layers) == list(plain.layers) == ["0"]
    assert usage.layers["0"].entropy == plain.layers["0"].entropy


def test_unknown_names_and_numbers():
    inputs = rows(4, 3)
    with pytest.raises(ValueError, match="criterion: expected one of output, input, wanda, "
                                         "magnitude, taylor, or a function, but got 'outputs'"):
        analyze(PLAIN, inputs, criterion="outputs")
    with pytest.raises(ValueError, match="criterion: expected one of output, input, wanda"):
        layer_importance(PLAIN, inputs, ["0"], "outputs")
    named = nn.Sequential()
    named.add_module("fc1", nn.Linear(3, 2))
    with pytest.raises(ValueError, match="layers: expected names among fc1, but got 'fc_1'; "
                                         r"did you mean 'fc1'\?"):
        analyze(named, inputs, layers=["fc_1"])
    for null in (-1, 1.5, "2", math.nan):
        with pytest.raises(ValueError, match=f"null: expected .*, but got {null}"):
            analyze(PLAIN, inputs, null=null)


def test_nothing_to_analyse():
    with pytest.raises(ValueError, match="^model: expected a layer whose weights the forward "
                                         "multiplies with activations, but found none$"):
        analyze(nn.Sequential(nn.ReLU()), rows(4, 3))
    with pytest.raises(ValueError, match=r"but found none \(0: LayerNorm is not a kind of layer"):
        analyze(nn.Sequential(nn.LayerNorm(3)), rows(4, 3))
    with pytest.raises(ValueError, match="^layer spare: expected one that can be analysed, but got:"
                                         " never called in the forward$"):
        layer_importance(Branches(), rows(4, 3), ["spare"])


def test_what_is_no_model():
    for model in (None, "model", lambda x: x, nn.Linear):
        with pytest.raises(ValueError, match=r"^model: expected a torch\.nn\.Module"):
            analyze(model, rows(4, 3))


def test_wrapped_models_go_by_the_names_of_what_is_inside():
    inner, inputs = mlp(3, 8, 6, 2), rows(20, 3)
    expected = analyze(inner, inputs)
    for wrapped in (nn.DataParallel(inner), torch.compile(inner, backend="eager")):
        found = analyze(wrapped, inputs)
        assert {name: layer.entropy for name, layer in found.layers.items()} == {
            name: layer.entropy for name, layer in expected.layers.items()}
        assert list(layer_importance(wrapped, inputs, ["2"])) == ["2"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(value):
    inputs = rows(4, 3)
    inputs[2, 1] = value
    with pytest.raises(ValueError, match="layer 0: expected a finite output, but got NaN or inf"):
        analyze(PLAIN, inputs)
    broken = copy.deepcopy(PLAIN)
    broken[0].weight.data[0, 0] = value
    with pytest.raises(ValueError, match="layer 0: expected a finite output, but got NaN or inf.*; "
                                         "parameter '0.weight' is not finite"):
        analyze(broken, rows(4, 3))


def test_the_models_own_error_comes_through():
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied .* \(in layer '0', batch "
                                           r"0\)$"):
        analyze(PLAIN, rows(4, 5))
    assert not any(module._forward_hooks for module in PLAIN.modules())
