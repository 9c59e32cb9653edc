"""One pass over the data against NumPy, the forms of data, names of layers, what is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import Layers, mlp, numpys, rows, tokens
from wua_mlflow.usage.analyze import NOT_ASKED, analyze, layer_importance
from wua_mlflow.usage.tracing.skipped import OUTPUT_LAYER

PLAIN = mlp(3, 4, 2)


def test_two_hidden_layers_by_hand():
    model, inputs = mlp(3, 8, 6, 2), rows(40, 3)
    z1 = numpys(inputs) @ numpys(model[0].weight).T + numpys(model[0].bias)
    z2 = np.maximum(z1, 0) @ numpys(model[2].weight).T + numpys(model[2].bias)
    expected = {"0": np.abs(numpys(model[0].weight)) * np.abs(z1.mean(0))[:, None],
                "2": np.abs(numpys(model[2].weight)) * np.abs(z2.mean(0))[:, None]}
    importances = layer_importance(model, inputs, ["0", "2"])
    usage = analyze(model, inputs)
    assert list(usage.layers) == ["0", "2"] and usage.skipped == {"4": OUTPUT_LAYER}
    assert usage.samples == 40
    for name, importance in expected.items():
        np.testing.assert_allclose(importances[name].numpy(), importance, rtol=1e-5, atol=1e-8)
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


def test_the_order_is_that_of_the_forward_and_everything_left_out_is_named():
    """Layers defined in another order than they are called in; one is called twice, one never."""
    model = Layers(lambda model, x: model.head(model.norm(model.shared(model.shared(
        model.stem(x))))), head=nn.Linear(4, 2), shared=nn.Linear(4, 4), spare=nn.Linear(4, 4),
        stem=nn.Linear(3, 4), norm=nn.LayerNorm(4))
    usage = analyze(model, rows(20, 3))
    assert list(usage.layers) == ["stem", "shared"]
    assert usage.skipped == {
        "norm": "LayerNorm is not a kind of layer that is analysed",
        "spare": "never called in the forward", "head": OUTPUT_LAYER}
    with pytest.raises(ValueError, match="^layer spare: expected one that can be analysed, but got:"
                                         " never called in the forward$"):
        layer_importance(model, rows(4, 3), ["spare"])


def test_an_only_layer_is_analysed_although_it_is_the_last():
    usage = analyze(nn.Sequential(nn.Linear(3, 2)), rows(20, 3))
    assert list(usage.layers) == ["0"] and usage.skipped == {}
    assert list(analyze(nn.Linear(3, 2), rows(20, 3)).layers) == [""]


def test_what_cannot_be_analysed():
    for null in (-1, 1.5, "2", math.nan):
        with pytest.raises(ValueError, match=f"null: expected .*, but got {null}"):
            analyze(PLAIN, rows(4, 3), null=null)
    with pytest.raises(ValueError, match="^model: expected a layer whose weights the forward "
                                         "multiplies with activations, but found none$"):
        analyze(nn.Sequential(nn.ReLU()), rows(4, 3))
    with pytest.raises(ValueError, match=r"but found none \(0: LayerNorm is not a kind of layer"):
        analyze(nn.Sequential(nn.LayerNorm(3)), rows(4, 3))
    for model in (None, "model", lambda x: x, nn.Linear):
        with pytest.raises(ValueError, match=r"^model: expected a torch\.nn\.Module"):
            analyze(model, rows(4, 3))


BATCHINGS = {
    "batches of 5": lambda x: x.split(5), "uneven": lambda x: x.split([1, 200, 99, 300]),
    "shuffling loader": lambda x: DataLoader(TensorDataset(x), batch_size=64, shuffle=True)}


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS)
def test_batches_equal_the_whole(batching):
    model, inputs = mlp(3, 16, 8, 2), rows(600, 3)
    model[2].bias.data += 100  # sums that float32 alone would not hold
    mean = numpys(model[:3](inputs)).mean(0)
    usage, whole = analyze(model, batching(inputs)), analyze(model, inputs)
    assert usage.samples == 600
    for name, layer in whole.layers.items():
        assert usage.layers[name].entropy == pytest.approx(layer.entropy, abs=1e-6)
        np.testing.assert_allclose(usage.layers[name].unit_importance, layer.unit_importance,
                                   rtol=1e-6)
    exact = np.abs(numpys(model[2].weight)).sum(1) * np.abs(mean)
    np.testing.assert_allclose(usage.layers["2"].unit_importance, exact, rtol=1e-6)


def test_the_random_stream_is_left_alone_by_batches_that_draw():
    class Drawn:
        def __iter__(self):
            for _ in range(3):
                yield torch.rand(10, 3)

    stream = torch.get_rng_state()
    analyze(PLAIN, iter(Drawn()))
    analyze(PLAIN, Drawn(), null=2)
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_null_sees_the_same_inputs():
    inputs = rows(60, 3)
    loader = DataLoader(TensorDataset(inputs), batch_size=7)
    usage, whole = (analyze(PLAIN, data, null=3, seed=5) for data in (loader, inputs))
    assert usage.null.draws == 3
    assert usage.layers["0"].null.share == pytest.approx(whole.layers["0"].null.share, rel=1e-6)
    assert usage.layers["0"].null_share == usage.layers["0"].null.share
    assert analyze(PLAIN, inputs, null=3, seed=6).null.share != whole.null.share


def test_a_null_needs_data_that_can_be_gone_over_again():
    inputs = rows(60, 3)
    once = iter([inputs])
    with pytest.raises(ValueError, match="^data: expected batches that can be gone over again, "
                                         "since null asks for more passes, but got an iterator"
                                         "; give a DataLoader or a list$"):
        analyze(PLAIN, once, null=1)
    assert torch.equal(torch.cat(list(once)), inputs)  # nothing of it was used up


def stack(along: int = 0) -> Layers:
    """Three slices of one parameter, one after another."""
    def run(model: Layers, x: Tensor) -> Tensor:
        for number in range(3):
            x = (x @ model.up.select(along, number)).tanh()
        return model.head(x)

    return Layers(run, up=nn.Parameter(torch.randn((3, 4, 4) if along == 0 else (4, 4, 3))),
                  head=nn.Linear(4, 2))


@pytest.mark.parametrize("along", [0, 2])
def test_slices_that_lie_side_by_side_or_interleaved(along):
    names = [f"up[{number}]" if along == 0 else f"up[:, :, {number}]" for number in range(3)]
    usage = analyze(stack(along), rows(6, 4))
    assert list(usage.layers) == names and list(usage.skipped) == ["head"]
    usage = analyze(stack(along), rows(6, 4), layers=names[1:2])
    assert list(usage.layers) == names[1:2]
    assert usage.skipped == dict.fromkeys(["head", names[0], names[2]], NOT_ASKED)


@pytest.mark.parametrize("name", ["up[9]", "up[1", "head[0]", "nothing"])
def test_a_slice_that_there_is_not_is_an_error(name):
    with pytest.raises(ValueError, match=f"^layers: expected .*, but got '{re.escape(name)}"):
        analyze(stack(), rows(6, 4), layers=["head", name])


def parts() -> Layers:
    def run(model: Layers, x: Tensor) -> Tensor:
        h = model.rnn(model.embed(x))[0]
        h = h + model.at(h, h, h, need_weights=False)[0]
        return model.out((h + model.body(h)).mean(1))

    return Layers(run, embed=nn.Embedding(20, 8), rnn=nn.LSTM(8, 8, 2, batch_first=True),
                  at=nn.MultiheadAttention(8, 2, batch_first=True),
                  body=nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)),
                  out=nn.Linear(8, 2))


@pytest.mark.parametrize(("name", "layers"), [
    ("rnn", [f"rnn.weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")]),
    ("at", ["at.q_proj", "at.k_proj", "at.v_proj", "at.out_proj"]), ("body", ["body.0", "body.2"]),
    ("body.2", ["body.2"])])
def test_a_modules_name_stands_for_all_its_layers(name, layers):
    model, x = parts(), tokens(3)
    assert list(analyze(model, x, layers=[name]).layers) == layers
    assert list(layer_importance(model, x, [name])) == layers
    usage = analyze(model, x, layers=[name, "embed"])
    assert set(usage.layers) == {*layers, "embed"} and set(usage.skipped.values()) == {NOT_ASKED}


def test_the_fused_weight_of_attention_goes_by_its_parts():
    with pytest.raises(ValueError, match="did you mean|expected names among"):
        analyze(parts(), tokens(3), layers=["at.in_proj_weight"])
