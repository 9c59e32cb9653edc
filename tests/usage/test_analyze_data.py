"""What ``analyze`` takes as data: whole, in batches, of any dtype; against the whole and NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import mlp, numpys, rows
from wua_mlflow.usage.analyze import analyze, layer_importance

PLAIN = mlp(3, 4, 2)


def test_a_single_image_without_a_batch_dimension():
    torch.manual_seed(4)
    conv = nn.Conv2d(2, 3, 3)
    images = rows(4, 2, 5, 5)
    whole = layer_importance(nn.Sequential(conv), images, ["0"])["0"]
    one_by_one = layer_importance(nn.Sequential(conv), list(images), ["0"])["0"]
    torch.testing.assert_close(one_by_one, whole, rtol=1e-6, atol=1e-9)


BATCHINGS = {
    "batches of 1": lambda x: x.split(1),
    "batches of 7": lambda x: x.split(7),
    "uneven": lambda x: x.split([1, 200, 99, 300]),
    "generator": lambda x: (part for part in x.split(33)),
    "numpy": lambda x: x.numpy(),
    "numpy, read-only, float64": lambda x: np.broadcast_to(x.double().numpy(), x.shape),
    "numpy, back to front": lambda x: x.numpy()[::-1],
    "numpy batches": lambda x: np.array_split(x.numpy(), 9),
    "with targets": lambda x: [(part, torch.zeros(len(part))) for part in x.split(100)],
    "loader": lambda x: DataLoader(TensorDataset(x, x), batch_size=64),
    "shuffling loader": lambda x: DataLoader(TensorDataset(x), batch_size=64, shuffle=True),
    "dataset": lambda x: TensorDataset(x, x),
}


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_is_summed_in_float32(dtype):
    model, inputs = mlp(3, 8, 2), rows(1024, 3)
    model[0].bias.data += 100.0  # 1024 of these are more than float16 can hold
    half = copy.deepcopy(model).to(dtype)
    expected = analyze(model, inputs).layers["0"].unit_importance
    assert analyze(half, inputs).layers["0"].unit_importance == pytest.approx(expected, rel=0.01)


def test_a_float64_model_takes_float32_data():
    model, inputs = mlp(3, 8, 2).double(), rows(50, 3)
    found = layer_importance(model, inputs, ["0"])["0"].numpy()
    mean = (numpys(inputs) @ numpys(model[0].weight).T + numpys(model[0].bias)).mean(0)
    np.testing.assert_allclose(found, np.abs(numpys(model[0].weight) * mean[:, None]), rtol=1e-12)


def test_token_numbers_stay_whole_numbers():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    tokens = torch.randint(10, (12, 3), generator=torch.Generator().manual_seed(7))
    usage = analyze(model, tokens)
    assert list(usage.layers) == ["0", "1"]
    embedded = model[0](tokens).detach().double()
    importance = model[0].weight.detach().double().T.abs() * embedded.mean((0, 1)).abs()[:, None]
    assert usage.layers["0"].unit_importance == pytest.approx(importance.sum(1).numpy(), rel=1e-6)
    assert (usage.layers["0"].weights, usage.layers["0"].units) == (40, 4)


def test_the_random_stream_is_left_alone_by_batches_that_draw():
    class Drawn:
        def __iter__(self):
            for _ in range(3):
                yield torch.rand(10, 3)

    torch.manual_seed(11)
    stream = torch.get_rng_state()
    analyze(PLAIN, iter(Drawn()))
    analyze(PLAIN, Drawn(), null=2)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("layout", [None, "batches", "loader"])
def test_a_null_sees_the_same_inputs(layout):
    inputs = rows(60, 3)
    data = {None: inputs, "batches": inputs.split(7),
            "loader": DataLoader(TensorDataset(inputs), batch_size=7)}[layout]
    usage, whole = analyze(PLAIN, data, null=3, seed=5), analyze(PLAIN, inputs, null=3, seed=5)
    assert usage.null.draws == 3
    assert usage.layers["0"].null.share == pytest.approx(whole.layers["0"].null.share, rel=1e-6)
    assert usage.layers["0"].null_share == usage.layers["0"].null.share


def test_a_null_needs_data_that_can_be_gone_over_again():
    inputs = rows(60, 3)
    for once in ((part for part in inputs.split(7)), iter([inputs])):
        with pytest.raises(ValueError, match="^data: expected batches that can be gone over again, "
                                             "since null asks for more passes, but got an iterator"
                                             "; give a DataLoader or a list$"):
            analyze(PLAIN, once, null=1)
        assert torch.equal(torch.cat(list(once)), inputs)  # nothing of it was used up


def test_a_loader_that_is_exhausted_in_a_nulls_pass():
    class Tired:
        def __init__(self) -> None:
            self.left = iter(rows(60, 3).split(7))

        def __iter__(self):
            return self.left

    assert analyze(PLAIN, Tired()).samples == 60
    with pytest.raises(ValueError, match="^data: expected batches .* got none in a later pass"):
        analyze(PLAIN, Tired(), null=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.empty(0, 3), "at least one sample, but got none"),
        ([], "at least one sample, but got none"),
        (5, "an iterable of batches, but got int"),
        ("data.csv", "an iterable of batches, but got str"),
        ({"x": torch.rand(2, 3)}, "an iterable of batches, but got dict"),
        (torch.tensor(1.0), "an iterable of batches, but got Tensor"),
        ([[1.0, 2.0, 3.0]], "expected batches of tensors or arrays .* but got 1.0"),
        ([{"x": 1}], r"expected keys that the model's forward takes \(input\), but got x"),
        ([{"input": 1}], "expected batches of tensors or arrays .* but got {'input': 1}"),
        ([[]], r"expected batches of tensors or arrays .* but got \[\]"),
    ],
)
def test_data_of_another_kind(data, message):
    with pytest.raises(ValueError, match=f"data: .*{message}"):
        analyze(PLAIN, data)
