"""FLOPs by layer, summed as the data pass, against ``count_flops`` and against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.example_modules import Conv1D
from wua_mlflow.flops import count_flops
from wua_mlflow.usage.analyze import analyze

MODULES = {
    "linear": (nn.Linear(6, 5), (4, 3, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 5)),
    "depthwise, strided": (nn.Conv1d(4, 8, 3, groups=4, stride=2), (2, 4, 11)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_flops_are_those_that_are_counted(name: str) -> None:
    module, shape = MODULES[name]
    model, x = nn.Sequential(module, nn.Tanh()), torch.rand(shape)
    usage = analyze(model, [x, x[:1]], criterion="magnitude")
    samples = shape[0] + 1
    assert usage.layers["0"].forward_flops == count_flops(model, x).by_module["0"] / shape[0]
    assert usage.samples == samples


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Bilinear(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x[..., :4], x[..., 4:])


def test_bilinear() -> None:
    x = torch.rand(2, 7, 9)
    (layer,) = analyze(Pair(), x, criterion="magnitude").layers.values()
    assert layer.forward_flops == count_flops(Pair(), x).forward_flops / 2


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), [
    (nn.LSTM, {"bidirectional": True, "num_layers": 2}), (nn.GRU, {"batch_first": True}),
    (nn.LSTM, {"proj_size": 3, "num_layers": 2}), (nn.RNN, {})])
def test_the_weights_of_a_recurrent_module_share_its_flops(kind: type, options: dict) -> None:
    module, x = kind(5, 6, **options), torch.rand(4, 4, 5)
    usage = analyze(module, x, criterion="magnitude")
    assert sum(one.forward_flops for one in usage.layers.values()) == \
        count_flops(module, x).forward_flops / 4


def test_packed_steps_count_once() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), torch.tensor([4, 1]))
            return self.rnn(packed)[1]

    usage = analyze(Packing(), torch.rand(2, 4, 5), criterion="magnitude")
    assert usage.layers["rnn.weight_hh_l0"].forward_flops == 2 * (18 * 6) * 5 / 2


def test_projections_of_attention_and_an_embedding_that_multiplies_nothing() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 8), nn.Linear(8, 2)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.block(self.embed(tokens)).mean(1))

    usage = analyze(Reader(), torch.randint(9, (3, 6)))
    flops = {name: layer.forward_flops for name, layer in usage.layers.items()}
    projection, forward = 2 * 6 * 8 * 8, 2 * 6 * 8 * 16
    parts = {f"block.self_attn.{part}": projection
             for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert flops == {"embed": 0, **parts, "block.linear1": forward, "block.linear2": forward}


def test_transformers_conv1d_and_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = Conv1D(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.mix(x).relu())

    x = torch.rand(3, 5, 4)
    (layer,) = analyze(Twice(), x).layers.values()
    assert layer.forward_flops == 2 * (2 * 5 * 4 * 4)
    assert layer.forward_flops == count_flops(Twice(), x).forward_flops / 3
