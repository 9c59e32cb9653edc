"""The effective rank, against NumPy's singular values of all rows, however the batches are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import NETWORKS, Layers, cnn, mlp, numpys, rows
from wua_mlflow.usage.activation_sample import MOST_ROWS, effective_rank
from wua_mlflow.usage.analyze import analyze


def numpys_rank(activations: np.ndarray, scale: np.ndarray | float = 1.0) -> float:
    """Roy & Vetterli 2007, equations 2 and 3."""
    values = np.linalg.svd((activations - activations.mean(0)) * scale, compute_uv=False)
    p = values / values.sum()
    p = p[p > 1e-12]
    return float(np.exp(-(p * np.log(p)).sum()))


def ranks(model: nn.Module, data, **options) -> dict[str, float | None]:
    usage = analyze(model, data, criterion="magnitude", effective_rank=True, **options)
    return {name: layer.effective_rank for name, layer in usage.layers.items()}


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (50, 1)])
def test_the_rank_of_rows_is_numpys(shape):
    activations = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.rand(shape[1], generator=torch.Generator().manual_seed(1))
    assert effective_rank(activations) == pytest.approx(numpys_rank(activations.numpy()), rel=1e-12)
    assert effective_rank(activations, scale) == pytest.approx(
        numpys_rank(activations.numpy(), scale.double().numpy()), rel=1e-12)


def test_the_rank_of_directions_of_equal_strength_is_their_number():
    orthogonal, _ = torch.linalg.qr(torch.randn(64, 9, generator=torch.Generator().manual_seed(2)))
    both = torch.cat([orthogonal, -orthogonal])
    assert effective_rank(both) == pytest.approx(9, rel=1e-6)
    assert effective_rank(both[:, :4] * 7) == pytest.approx(4, rel=1e-6)
    assert effective_rank(torch.ones(5, 3)) == effective_rank(both[:1]) == 0.0


@pytest.mark.parametrize("shape", [(800, 600), (600, 800)])
@pytest.mark.parametrize("rank", [9, 600])
def test_the_rank_of_many_rows_and_units_is_the_same(shape, rank):
    """Strengths from 1 down to a thousandth; in float32, whose rounding counts as no direction."""
    draw = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(size, rank, generator=draw))[0] for size in shape)
    activations = (left * torch.logspace(0, -3, rank)) @ right.T
    exact = activations.double()
    values = torch.linalg.svdvals(exact - exact.mean(0))
    shares = values[values > 1e-6 * values.max()]
    shares = shares / shares.sum()
    assert effective_rank(activations) == pytest.approx(
        float((-shares * shares.log()).sum().exp()), rel=1e-6)


def outgoing(weight: Tensor, units: int) -> np.ndarray:
    """The norm of the weights that read each unit; inputs in blocks of equal length a unit."""
    return np.sqrt((numpys(weight).reshape(len(weight), units, -1) ** 2).sum((0, 2)))


def test_an_mlp_by_numpy():
    model, inputs = mlp(3, 12, 8, 2), rows(500, 3)
    first, second = (numpys(model[:n](inputs)) for n in (2, 4))  # what the next layer takes in
    outputs = numpys(model(inputs))  # which nothing reads: not scaled
    assert analyze(model, inputs).layers["0"].effective_rank is None, "it was not asked for"
    assert ranks(model, inputs, layers=["0", "2", "4"]) == pytest.approx({
        "0": numpys_rank(first, outgoing(model[2].weight, 12)),
        "2": numpys_rank(second, outgoing(model[4].weight, 8)), "4": numpys_rank(outputs)},
        rel=1e-5)


def as_rows(images: Tensor) -> np.ndarray:
    """(samples, units, ...) as (samples · positions, units)."""
    return numpys(images.flatten(2).transpose(1, 2).flatten(0, 1))


def test_convolutions_by_numpy():
    """Readers scale, whatever was asked for; the last one reads flattened images."""
    model, inputs = cnn().eval(), rows(20, 3, 8, 8)
    depthwise, grouped = model[3].weight, model[5].weight  # (8, 1, 3, 3), (6, 4, 1, 1) in 2 groups
    assert ranks(model, inputs, layers=["0", "3", "5"]) == pytest.approx({
        "0": numpys_rank(as_rows(model[:3](inputs)),
                         np.sqrt((numpys(depthwise) ** 2).sum((1, 2, 3)))),
        "3": numpys_rank(as_rows(model[:5](inputs)),
                         np.concatenate([outgoing(part, 4) for part in grouped.chunk(2)])),
        "5": numpys_rank(as_rows(model[:7](inputs)), outgoing(model[8].weight, 6))}, rel=1e-5)


def test_pooling_before_the_reader():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(5, 2))
    inputs = rows(60, 2, 7, 7)
    expected = numpys_rank(numpys(model[:4](inputs)), outgoing(model[4].weight, 5))
    assert ranks(model, inputs)["0"] == pytest.approx(expected, rel=1e-5)


def test_units_that_are_not_read_in_place_are_taken_as_they_are():
    model = Layers(lambda model, x: model.head(model.left(x) * model.right(x)),
                   left=nn.Linear(3, 6), right=nn.Linear(3, 6), head=nn.Linear(6, 2))
    inputs = rows(80, 3)
    expected = numpys_rank(numpys(model.left(inputs)))
    assert ranks(model, inputs)["left"] == pytest.approx(expected, rel=1e-4)


def test_several_readers_add_up():
    def run(model: Layers, x: Tensor) -> Tensor:
        hidden = model.stem(x).relu()
        return torch.cat([model.a(hidden), model.b(hidden)], 1)

    model = Layers(run, stem=nn.Linear(3, 6), a=nn.Linear(6, 2), b=nn.Linear(6, 3))
    inputs = rows(80, 3)
    both = torch.cat([model.a.weight, model.b.weight])
    expected = numpys_rank(numpys(model.stem(inputs).relu()), outgoing(both, 6))
    assert ranks(model, inputs)["stem"] == pytest.approx(expected, rel=1e-5)


def two(prepare=lambda x, **_: x) -> Layers:
    """``first``, a ReLU and ``head``, over what a function makes of the inputs."""
    return Layers(lambda model, *args, **named: model.head(model.first(
        prepare(*args, **named)).relu()), first=nn.Linear(3, 6), head=nn.Linear(6, 2))


def assert_rank(model: Layers, data, real: Tensor, **options) -> None:
    """The rank of ``first`` is that of these inputs of it."""
    expected = numpys_rank(numpys(model.first(real).relu()), outgoing(model.head.weight, 6))
    assert ranks(model, data, **options)["first"] == pytest.approx(expected, rel=1e-5)


def test_a_padded_sequence_counts_its_real_positions_only():
    x, mask = rows(30, 5, 3), torch.arange(5) < torch.arange(30)[:, None] % 5 + 1
    data = [{"x": x[a:b], "attention_mask": mask[a:b]} for a, b in ((0, 11), (11, 30))]
    assert_rank(two(), data, x[mask])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("few", [True, False])
def test_cuts_and_order_do_not_matter(name, few):
    """Of few rows all are taken, of many 2,048."""
    make, inputs_of = NETWORKS[name]
    samples = 40 if few else 2500 if name == "mlp" else 400
    model, inputs = make().eval(), inputs_of(samples)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(8))
    whole = ranks(model, [inputs])
    assert any(rank is not None for rank in whole.values())
    for data in ([*inputs[order].split(samples // 5)], inputs[order].split([1, samples - 1])):
        for layer, rank in ranks(model, data).items():
            assert (rank is None) == (whole[layer] is None), layer
            assert rank is None or rank == pytest.approx(whole[layer], rel=1e-6), layer


def test_at_most_2048_rows_and_the_same_ones_each_time():
    model, inputs = mlp(3, 12, 2), rows(6000, 3)
    loader = DataLoader(TensorDataset(inputs), batch_size=333, shuffle=True)
    rank = ranks(model, loader)["0"]
    assert ranks(model, loader)["0"] == pytest.approx(rank, rel=1e-6)
    assert ranks(model, inputs)["0"] == pytest.approx(rank, rel=1e-6)
    scale = outgoing(model[2].weight, 12)
    everything = numpys_rank(numpys(model[:2](inputs)), scale)
    assert rank == pytest.approx(everything, rel=0.02)
    assert rank != pytest.approx(everything, rel=1e-6)  # a sample, not all of them
    generator = np.random.default_rng(9)
    drawn = [numpys_rank(numpys(model[:2](inputs))[generator.permutation(6000)[:MOST_ROWS]],
                         scale) for _ in range(30)]
    assert abs(rank - np.mean(drawn)) < 4 * np.std(drawn)


def test_duplicates_count_as_often_as_they_come():
    inputs = rows(50, 3).repeat_interleave(torch.arange(50) * 2 + 1, 0)  # 2,500 rows
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(10))
    for data in ([inputs], [*inputs[order].split(100)]):
        assert_rank(two(), data, inputs)


def test_duplicates_of_a_sample_push_no_other_out():
    model, inputs = mlp(3, 12, 2), rows(1000, 3)
    for number in range(3):
        copied = torch.cat([inputs, inputs[number].expand(2000, 3)])
        expected = numpys_rank(numpys(model[:2](copied)), outgoing(model[2].weight, 12))
        assert ranks(model, copied)["0"] == pytest.approx(expected, rel=1e-4)


def test_all_inputs_of_a_sample_tell_it_from_others():
    x, same_kind = rows(90, 3), torch.zeros(90, dtype=torch.int64)
    assert_rank(two(lambda kind, x: x), [{"kind": same_kind, "x": x}], x)
    assert_rank(two(lambda kind, x: x), [0], x, batch_to_inputs=lambda _: (same_kind, x))


def test_rows_that_are_no_samples_positions():
    inputs = rows(100, 3)
    for data in ([inputs], [*inputs.split(9)]):
        assert_rank(two(lambda x: x[x[:, 0] > 0]), data, inputs[inputs[:, 0] > 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model, inputs = mlp(3, 12, 2).to(dtype), rows(400, 3).to(dtype)
    expected = numpys_rank(numpys(model[:2](inputs)), outgoing(model[2].weight, 12))
    assert ranks(model, inputs)["0"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values", [torch.bool, torch.int64, torch.uint8, torch.complex64])
def test_inputs_of_any_kind_have_keys(values):
    def real(x: Tensor) -> Tensor:
        return (x.abs() if x.is_complex() else x).float()

    inputs = (rows(70, 3) * 9).clamp(min=0).floor().to(values)
    assert_rank(two(real), inputs, real(inputs))


UNITS, STEPS = 5, 6


class Reader(nn.Module):
    """What reads a recurrent layer's last step."""

    def __init__(self, rnn: nn.RNNBase, lengths: Tensor | None = None) -> None:
        super().__init__()
        self.rnn, self.lengths = rnn, lengths
        width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
        self.head = nn.Linear(rnn.proj_size or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.lengths is None:
            return self.head(self.rnn(x)[0].mean(1 if self.rnn.batch_first else 0))
        packed = pack_padded_sequence(x, self.lengths[:len(x)], batch_first=True,
                                      enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].sum(1))


def states(rnn: nn.RNNBase, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return rnn(x)[0].reshape(-1, rnn.hidden_size * (2 if rnn.bidirectional else 1)).numpy()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_all_steps_of_all_samples(kind, batch_first):
    rnn, x = kind(3, UNITS, batch_first=batch_first), rows(40, STEPS, 3)
    x = x if batch_first else x.transpose(0, 1).contiguous()
    expected = numpys_rank(states(rnn, x))
    by_layer = ranks(Reader(rnn), [x] if batch_first else [(x, torch.zeros(40))])
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        assert by_layer[name] == pytest.approx(expected, rel=1e-5)


def test_each_layer_and_direction_has_its_own():
    rnn, x = nn.LSTM(3, UNITS, 2, batch_first=True, bidirectional=True), rows(40, STEPS, 3)
    by_layer = ranks(Reader(rnn), x)
    last = states(rnn, x)
    for way, suffix in enumerate(("", "_reverse")):
        expected = numpys_rank(last[:, way * UNITS:(way + 1) * UNITS])
        assert by_layer[f"rnn.weight_ih_l1{suffix}"] == pytest.approx(expected, rel=1e-5)
        assert by_layer[f"rnn.weight_ih_l0{suffix}"] != pytest.approx(expected, rel=1e-3)


def test_packed_sequences_have_their_own_steps_alone_however_they_are_cut():
    lengths = torch.tensor([6, 2, 4, 3] * 8)
    model, x = Reader(nn.GRU(3, UNITS, batch_first=True), lengths), rows(32, STEPS, 3)
    whole = states(model.rnn, x).reshape(32, STEPS, UNITS)
    real = [steps[:n] for steps, n in zip(whole, lengths, strict=True)]
    expected = numpys_rank(np.concatenate(real))
    for size in (32, 8, 4):  # the lengths come again every four
        assert ranks(model, list(x.split(size)))["rnn.weight_hh_l0"] == \
            pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_that_hides_the_states():
    rnn = nn.LSTM(3, UNITS, batch_first=True, proj_size=2)
    usage = analyze(Reader(rnn), rows(40, STEPS, 3), criterion="magnitude", effective_rank=True)
    assert usage.layers["rnn.weight_ih_l0"].effective_rank is None
    with torch.no_grad():
        outputs = rnn(rows(40, STEPS, 3))[0].reshape(-1, 2).numpy()
    assert usage.layers["rnn.weight_hr_l0"].effective_rank == \
        pytest.approx(numpys_rank(outputs), rel=1e-5)
