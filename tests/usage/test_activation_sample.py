"""The effective rank, against NumPy's singular values of all rows, however the batches are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import NETWORKS, cnn, mlp, numpys, rows
from wua_mlflow.usage.activation_sample import MOST_ROWS, effective_rank
from wua_mlflow.usage.analyze import analyze


def numpys_rank(activations: np.ndarray, scale: np.ndarray | float = 1.0) -> float:
    """Roy & Vetterli 2007, equations 2 and 3."""
    centred = (activations - activations.mean(0)) * scale
    values = np.linalg.svd(centred, compute_uv=False)
    p = values / values.sum()
    p = p[p > 1e-12]
    return float(np.exp(-(p * np.log(p)).sum()))


def ranks(model: nn.Module, data, **options) -> dict[str, float | None]:
    usage = analyze(model, data, criterion="magnitude", effective_rank=True, **options)
    return {name: layer.effective_rank for name, layer in usage.layers.items()}


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (1, 5), (50, 1)])
def test_the_rank_of_rows_is_numpys(shape):
    activations = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.rand(shape[1], generator=torch.Generator().manual_seed(1))
    if shape[0] == 1:
        assert effective_rank(activations) == effective_rank(activations, scale) == 0.0
        return
    assert effective_rank(activations) == pytest.approx(numpys_rank(activations.numpy()), rel=1e-12)
    assert effective_rank(activations, scale) == pytest.approx(
        numpys_rank(activations.numpy(), scale.double().numpy()), rel=1e-12)


def test_the_rank_of_directions_of_equal_strength_is_their_number():
    orthogonal, _ = torch.linalg.qr(torch.randn(64, 9, generator=torch.Generator().manual_seed(2)))
    both = torch.cat([orthogonal, -orthogonal])
    assert effective_rank(both) == pytest.approx(9, rel=1e-6)
    assert effective_rank(both[:, :4] * 7) == pytest.approx(4, rel=1e-6)
    assert effective_rank(torch.ones(5, 3)) == 0.0


def test_counts_stand_for_repeated_rows():
    activations = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    counts = torch.tensor([1, 4, 1, 2, 9, 1, 3])
    scale = torch.arange(1.0, 6.0)
    repeated = activations.repeat_interleave(counts, 0)
    assert effective_rank(activations, scale, counts=counts) == pytest.approx(
        numpys_rank(repeated.double().numpy(), scale.numpy()), rel=1e-12)


def outgoing(weight: Tensor, units: int) -> np.ndarray:
    """The norm of the weights that read each unit; inputs in blocks of equal length a unit."""
    return np.sqrt((numpys(weight).reshape(len(weight), units, -1) ** 2).sum((0, 2)))


def test_an_mlp_by_numpy():
    model, inputs = mlp(3, 12, 8, 2), rows(500, 3)
    first, second = (numpys(model[:n](inputs)) for n in (2, 4))  # what the next layer takes in
    found = ranks(model, inputs, layers=["0", "2", "4"])
    assert found["0"] == pytest.approx(numpys_rank(first, outgoing(model[2].weight, 12)), rel=1e-5)
    assert found["2"] == pytest.approx(numpys_rank(second, outgoing(model[4].weight, 8)), rel=1e-5)
    outputs = numpys(model(inputs))  # which nothing reads: not scaled
    assert found["4"] == pytest.approx(numpys_rank(outputs), rel=1e-5)


def test_the_rank_does_not_change_when_the_network_is_rescaled():
    model, inputs = mlp(3, 12, 2), rows(300, 3)
    before = ranks(model, inputs)["0"]
    scale = torch.linspace(0.1, 10, 12)
    with torch.no_grad():
        model[0].weight *= scale[:, None]
        model[0].bias *= scale
        model[2].weight /= scale
    assert ranks(model, inputs)["0"] == pytest.approx(before, rel=1e-5)


def test_flattened_images_before_the_reader():
    model, inputs = cnn().eval(), rows(20, 3, 8, 8)
    expected = numpys_rank(as_rows(model[:7](inputs)), outgoing(model[8].weight, 6))
    assert ranks(model, inputs)["5"] == pytest.approx(expected, rel=1e-5)


def as_rows(images: Tensor) -> np.ndarray:
    """(samples, units, ...) as (samples · positions, units)."""
    return numpys(images.flatten(2).transpose(1, 2).flatten(0, 1))


def test_convolutions_by_numpy():
    model, inputs = cnn().eval(), rows(20, 3, 8, 8)
    found = ranks(model, inputs, layers=["0", "3"])  # whatever was asked for, readers scale
    into = {name: model[:place](inputs) for name, place in (("0", 3), ("3", 5))}
    depthwise, grouped = model[3].weight, model[5].weight  # (8, 1, 3, 3), (6, 4, 1, 1) in 2 groups
    scales = {
        "0": np.sqrt((numpys(depthwise) ** 2).sum((1, 2, 3))),
        "3": np.concatenate([outgoing(part, 4) for part in grouped.chunk(2)]),
    }
    assert list(found) == list(scales)
    for name, scale in scales.items():
        assert found[name] == pytest.approx(numpys_rank(as_rows(into[name]), scale), rel=1e-5), name


def test_pooling_before_the_reader():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(5, 2))
    inputs = rows(60, 2, 7, 7)
    expected = numpys_rank(numpys(model[:4](inputs)), outgoing(model[4].weight, 5))
    assert ranks(model, inputs)["0"] == pytest.approx(expected, rel=1e-5)


def test_units_that_are_not_read_in_place_are_taken_as_they_are():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.left(x) * self.right(x))

    torch.manual_seed(5)
    model, inputs = Sum(), rows(80, 3)
    expected = numpys_rank(numpys(model.left(inputs)))
    assert ranks(model, inputs)["left"] == pytest.approx(expected, rel=1e-4)


def test_several_readers_add_up():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x).relu()
            return torch.cat([self.a(hidden), self.b(hidden)], 1)

    torch.manual_seed(6)
    model, inputs = Fork(), rows(80, 3)
    both = torch.cat([model.a.weight, model.b.weight])
    expected = numpys_rank(numpys(model.stem(inputs).relu()), outgoing(both, 6))
    assert ranks(model, inputs)["stem"] == pytest.approx(expected, rel=1e-5)


def test_a_padded_sequence_counts_its_real_positions_only():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.head(self.first(x).relu())

    torch.manual_seed(7)
    model, x = Padded(), rows(30, 5, 3)
    mask = torch.arange(5) < torch.arange(30)[:, None] % 5 + 1
    real = numpys(model.first(x[mask]).relu())
    expected = numpys_rank(real, outgoing(model.head.weight, 6))
    data = [{"x": x[a:b], "attention_mask": mask[a:b]} for a, b in ((0, 11), (11, 30))]
    assert ranks(model, data)["first"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("samples", [60, 5000])
def test_cuts_and_order_do_not_matter(name, samples):
    make, inputs_of = NETWORKS[name]
    samples = samples if name == "mlp" else samples // 5
    model, inputs = make().eval(), inputs_of(samples)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(8))
    whole = ranks(model, [inputs])
    assert any(rank is not None for rank in whole.values())
    few = max(7, samples // 20)
    for data in ([*inputs.split(few)], [inputs[order]], [*inputs[order].split(100)],
                 inputs[order].split([1, samples - 1])):
        for layer, rank in ranks(model, data).items():
            assert (rank is None) == (whole[layer] is None), layer
            assert rank is None or rank == pytest.approx(whole[layer], rel=1e-6), layer


def test_at_most_2048_rows_and_the_same_ones_each_time():
    model, inputs = mlp(3, 12, 2), rows(20_000, 3)
    loader = DataLoader(TensorDataset(inputs), batch_size=333, shuffle=True)
    torch.manual_seed(0)
    found = [ranks(model, loader)["0"] for _ in range(2)] + [ranks(model, inputs)["0"]]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)
    scale = outgoing(model[2].weight, 12)
    everything = numpys_rank(numpys(model[:2](inputs)), scale)
    assert found[0] == pytest.approx(everything, rel=0.02)
    assert found[0] != pytest.approx(everything, rel=1e-6)  # a sample, not all of them
    generator = np.random.default_rng(9)
    drawn = [numpys_rank(numpys(model[:2](inputs))[generator.permutation(20_000)[:MOST_ROWS]],
                         scale) for _ in range(100)]
    assert abs(found[0] - np.mean(drawn)) < 4 * np.std(drawn)


def test_duplicates_count_as_often_as_they_come():
    model, few = mlp(3, 12, 2), rows(50, 3)
    inputs = few.repeat_interleave(torch.arange(50) * 8 + 1, 0)  # 9,850 rows, 50 of them different
    expected = numpys_rank(numpys(model[:2](inputs)), outgoing(model[2].weight, 12))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(10))
    for data in ([inputs], [*inputs[order].split(100)]):
        assert ranks(model, data)["0"] == pytest.approx(expected, rel=1e-5)


def test_duplicates_of_a_sample_push_no_other_out():
    model, inputs = mlp(3, 12, 2), rows(1000, 3)
    for number in range(3):
        copied = torch.cat([inputs, inputs[number].expand(5000, 3)])
        expected = numpys_rank(numpys(model[:2](copied)), outgoing(model[2].weight, 12))
        assert ranks(model, copied)["0"] == pytest.approx(expected, rel=1e-4)


def test_all_inputs_of_a_sample_tell_it_from_others():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, kind: Tensor, x: Tensor) -> Tensor:
            return self.head(self.first(x).relu())

    torch.manual_seed(11)
    model, x = Two(), rows(90, 3)
    expected = numpys_rank(numpys(model.first(x).relu()), outgoing(model.head.weight, 6))
    same_kind = torch.zeros(90, dtype=torch.int64)
    assert ranks(model, [{"kind": same_kind, "x": x}])["first"] == pytest.approx(expected, rel=1e-5)
    found = analyze(model, [0], criterion="magnitude", effective_rank=True,
                    batch_to_inputs=lambda _: (same_kind, x))
    assert found.layers["first"].effective_rank == pytest.approx(expected, rel=1e-5)


def test_rows_that_are_no_samples_positions():
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            chosen = x[x[:, 0] > 0]
            return self.head(self.expert(chosen).relu())

    torch.manual_seed(12)
    model, inputs = Routed(), rows(100, 3)
    expected = numpys_rank(numpys(model.expert(inputs[inputs[:, 0] > 0]).relu()),
                           outgoing(model.head.weight, 6))
    for data in ([inputs], [*inputs.split(9)]):
        assert ranks(model, data)["expert"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model, inputs = mlp(3, 12, 2).to(dtype), rows(400, 3).to(dtype)
    expected = numpys_rank(numpys(model[:2](inputs)), outgoing(model[2].weight, 12))
    assert ranks(model, inputs)["0"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values", [torch.bool, torch.int64, torch.uint8, torch.complex64])
def test_inputs_of_any_kind_have_keys(values):
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            real = x.abs() if x.is_complex() else x
            return self.head(self.first(real.float()).relu())

    torch.manual_seed(13)
    model, inputs = Cast(), (rows(70, 3) * 9).clamp(min=0).floor().to(values)
    real = inputs.abs() if inputs.is_complex() else inputs
    expected = numpys_rank(numpys(model.first(real.float()).relu()),
                           outgoing(model.head.weight, 6))
    assert ranks(model, inputs)["first"] == pytest.approx(expected, rel=1e-5)


def test_it_is_there_only_where_it_was_asked_for():
    model, inputs = mlp(3, 12, 2), rows(40, 3)
    assert analyze(model, inputs).layers["0"].effective_rank is None
    found = ranks(model, inputs)["0"]
    assert 0 < found <= 12
    assert math.isfinite(found)


def test_units_that_are_constant_have_rank_zero():
    model = mlp(3, 12, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    assert ranks(model, rows(40, 3))["0"] == 0.0
