"""Weights made in the forward: weight norm, spectral norm, low-rank adapters, one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from tests.networks import Layers, rows
from tests.references import CRITERIA, assert_importance, flat, unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance


def two(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRISED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)).eval(),
    "one's own": lambda: parametrize.register_parametrization(
        nn.Linear(3, 4), "weight", Doubled())}


@pytest.mark.parametrize("make", PARAMETRISED.values(), ids=PARAMETRISED)
def test_a_parametrised_layer_has_the_weight_that_it_makes(make):
    model, x = two(make()), rows(6, 3)
    model.eval()
    weight = model[0].weight.detach()
    assert_importance(model, x, "0", weight, x, x @ weight.T + model[0].bias)
    usage = analyze(model, x)
    assert (usage.layers["0"].kind, usage.layers["0"].units) == ("Linear", 4)
    assert unnamed(model, usage) == []


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_the_weight_norm_of_old():
    model, x = two(nn.utils.weight_norm(nn.Linear(3, 4))), rows(6, 3)
    g, v = model[0].weight_g, model[0].weight_v
    weight = g * v / v.norm(dim=1, keepdim=True)
    assert_importance(model, x, "0", weight, x, x @ weight.T + model[0].bias)
    assert unnamed(model, analyze(model, x), computed=("0",)) == []


def test_the_spectral_norm_of_old():
    model, x = two(nn.utils.spectral_norm(nn.Linear(3, 4))), rows(6, 3)
    model.eval()
    weight = model[0].weight_orig / torch.linalg.norm(model[0].weight_orig, 2)
    for _ in range(60):  # its power iteration comes to rest
        model[0].train()(x)
    model.eval()(x)
    assert_importance(model, x, "0", weight, x, x @ weight.T + model[0].bias, relative=1e-3)
    assert unnamed(model, analyze(model, x), computed=("0",)) == []


def test_a_parametrised_convolution():
    model, x = nn.Sequential(parametrizations.weight_norm(nn.Conv1d(2, 4, 3))), rows(5, 2, 8)
    weight = model[0].weight.detach().flatten(1)
    met = functional.unfold(x.unsqueeze(2), (1, 3)).transpose(1, 2).flatten(0, 1)
    assert_importance(model, x, "0", weight, met, model[0](x).transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize(("apart", "sizes"), [
    (False, {"attn": 64, "attn[2]": 128}), (True, {"attn": 64, "attn[2]": 64, "attn[3]": 64})])
def test_parametrised_attention_keeps_all_of_its_weights(apart, sizes):
    def run(model: Layers, x: Tensor) -> Tensor:
        keys = x[:, :2]
        return model.head(model.attn(x, keys, keys * 2 if apart else keys)[0])

    model = Layers(run, attn=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 2))
    parametrize.register_parametrization(model.attn, "in_proj_weight", Doubled())
    x = rows(5, 4, 8)
    weight = model.attn.in_proj_weight.detach()
    usage = analyze(model, x, criterion="magnitude")
    assert {name: layer.weights for name, layer in usage.layers.items()} == {
        **sizes, "attn.out_proj": 64}
    assert_importance(model, x, "attn", weight[:8], flat(x), flat(x @ weight[:8].T))
    assert unnamed(model, usage) == []


def adapter(*, merged: bool) -> Layers:
    """W x + B A x, beside the layer or merged into its weight."""
    def run(layer: Layers, x: Tensor) -> Tensor:
        if merged:
            return functional.linear(x, layer.base.weight + layer.B @ layer.A, layer.base.bias)
        return layer.base(x) + (x @ layer.A.T) @ layer.B.T

    return Layers(run, base=nn.Linear(3, 4), A=nn.Parameter(torch.randn(2, 3)),
                  B=nn.Parameter(torch.zeros(4, 2)))


def test_an_adapter_beside_its_layer_is_two_layers_more_and_b_is_dead_before_training():
    model, x = two(adapter(merged=False)), rows(6, 3)
    inner = x @ model[0].A.T
    assert_importance(model, x, "0.A", model[0].A, x, inner)
    assert_importance(model, x, "0.B", model[0].B, inner, torch.zeros(6, 4))
    for criterion in CRITERIA:
        usage = analyze(model, x, criterion=criterion)
        assert list(usage.layers) == ["0.base", "0.A", "0.B"] and usage.layers["0.B"].dead
        assert usage.layers["0.B"].effective_weights == 0 and not usage.layers["0.A"].dead
    assert unnamed(model, usage) == []


def test_a_merged_adapter_is_one_layer_with_the_weight_that_it_makes():
    model, x = two(adapter(merged=True)), rows(6, 3)
    nn.init.normal_(model[0].B)
    weight = (model[0].base.weight + model[0].B @ model[0].A).detach()
    assert_importance(model, x, "0", weight, x, x @ weight.T + model[0].base.bias)
    usage = analyze(model, x)
    assert list(usage.layers) == ["0"] and unnamed(model, usage, computed=("0",)) == []


def scaled(*shapes: tuple[int, int]) -> Layers:
    """Two weights of one module, both made in its forward."""
    def run(layer: Layers, x: Tensor) -> Tensor:
        for part in layer.parts:
            x = functional.linear(x, part * layer.scale)
        return x

    return Layers(run, scale=nn.Parameter(torch.tensor(0.5)), spare=nn.Parameter(torch.ones(2, 2)),
                  parts=nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes]))


def test_weights_of_other_shapes_made_in_one_module_are_layers_of_their_own():
    model, x = two(scaled((5, 3), (4, 5))), [rows(6, 3), rows(4, 3, seed=4)]
    usage = analyze(model, x, criterion="wanda")
    first, second = (part.detach() * 0.5 for part in model[0].parts)
    assert {name: layer.weights for name, layer in usage.layers.items()} == {"0": 15, "0[2]": 20}
    joined = torch.cat(x)
    assert_importance(model, x, "0", first, joined, joined @ first.T)
    expected = second.abs() * (joined @ first.T).square().sum(0).sqrt()
    torch.testing.assert_close(torch.from_numpy(usage.layers["0[2]"].unit_importance),
                               expected.double().sum(1), rtol=1e-5, atol=0)
    assert usage.skipped["0.spare"] == "never used in the forward"


def test_weights_of_one_shape_that_differ_by_call_are_named():
    usage = analyze(two(scaled((3, 3), (4, 3))), rows(6, 3))
    assert "0" in usage.layers
    model = nn.Sequential(scaled((3, 3), (3, 3)), nn.Linear(3, 2))
    usage = analyze(model, rows(6, 3), layers=["0", "1"])
    assert usage.skipped["0"] == "its weight is computed anew from the data"


def test_a_weight_that_the_data_make_is_named():
    def run(layer: Layers, x: Tensor) -> Tensor:
        return functional.linear(x, layer.maker(x.mean(0)).reshape(4, 3), layer.bias)

    model = two(Layers(run, maker=nn.Linear(3, 12), bias=nn.Parameter(torch.zeros(4))))
    x = rows(11, 3)
    for batches in ([x[:6], x[6:]], [x], x, [x[:1]]):  # however the data are cut
        usage = analyze(model, batches)
        assert list(usage.layers) == ["0.maker"]
        assert usage.skipped["0"] == "its weight is computed anew from the data"
    with pytest.raises(ValueError, match="^layer 0: .* computed anew from the data$"):
        layer_importance(model, x, ["0"])


def gated(samples: int, *, by_data: bool) -> nn.Sequential:
    """A weight times what the data say of it on average, for one size of batch alone."""
    def run(layer: Layers, x: Tensor) -> Tensor:
        gate = x.mean() if by_data else 2
        return functional.linear(x.reshape(*x.shape[:-2], samples, 3),
                                 layer.weight * layer.scale * gate)

    layer = Layers(run, weight=nn.Parameter(torch.randn(4, 3)), scale=nn.Parameter(torch.ones(())))
    return nn.Sequential(layer, nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("samples", [1, 6])
def test_a_gate_of_a_model_that_takes_one_size_of_batch_alone(samples):
    for by_data in (True, False):
        usage = analyze(gated(samples, by_data=by_data), rows(samples, 3))
        assert ("0" in usage.skipped) is by_data and ("0" in usage.layers) is not by_data
    assert usage.layers["0"].forward_flops == 2 * 12


def test_a_gate_over_data_whose_time_comes_first():
    usage = analyze(gated(4, by_data=True), [(rows(9, 4, 3), torch.zeros(4))])
    assert usage.skipped["0"] == "its weight is computed anew from the data"


def test_a_weight_that_is_made_only_for_some_batches():
    x = rows(6, 3)

    def run(layer: Layers, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, layer.weight * 2 if torch.equal(inputs, x)
                                 else layer.weight)

    assert "0" in analyze(two(Layers(run, weight=nn.Parameter(torch.randn(4, 3)))), x).layers


def test_a_weight_that_was_made_once_and_kept_is_one_layer():
    model, x = two(parametrizations.weight_norm(nn.Linear(3, 4))), rows(6, 3)
    with parametrize.cached():
        importance = layer_importance(model, x, ["0"], "wanda")["0"]
    torch.testing.assert_close(importance, layer_importance(model, x, ["0"], "wanda")["0"])
