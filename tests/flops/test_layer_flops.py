"""FLOPs by layer, summed as the data pass, against ``count_flops`` and against counts by hand."""

import pytest
import torch
from torch import nn

from tests.example_modules import Apply, Conv1D
from tests.networks import encoder, tokens
from wua_mlflow.flops import count_flops
from wua_mlflow.usage.analyze import analyze

MODULES = {
    "linear": (nn.Linear(6, 5), (4, 3, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 5)),
    "depthwise, strided": (nn.Conv1d(4, 8, 3, groups=4, stride=2), (2, 4, 11)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 3))}


@pytest.mark.parametrize(("module", "shape"), MODULES.values(), ids=MODULES)
def test_a_modules_flops_are_those_that_are_counted(module, shape):
    model, x = nn.Sequential(module, nn.Tanh()), torch.rand(shape)
    usage = analyze(model, [x, x[:1]], criterion="magnitude")
    assert usage.layers["0"].forward_flops == count_flops(model, x).by_module["0"] / shape[0]
    assert usage.samples == shape[0] + 1


MIX = Conv1D(4, 4)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("model", [
    Apply(lambda x, w: torch.nn.functional.bilinear(x[..., :2], x[..., 2:], w), (3, 2, 2)),
    nn.Sequential(MIX, nn.ReLU(), MIX),
    nn.LSTM(4, 6, bidirectional=True, num_layers=2), nn.GRU(4, 6, batch_first=True),
    nn.LSTM(4, 6, proj_size=3, num_layers=2), nn.RNN(4, 6)])
def test_the_layers_of_a_model_share_its_flops(model):
    x = torch.rand(4, 4, 4)
    usage = analyze(model, x, criterion="magnitude")
    assert sum(layer.forward_flops for layer in usage.layers.values()) == \
        count_flops(model, x).forward_flops / 4 > 0


def test_packed_steps_count_once():
    rnn = nn.GRU(5, 6)
    model = Apply(lambda x: rnn(nn.utils.rnn.pack_padded_sequence(
        x.transpose(0, 1), torch.tensor([4, 1])))[1], rnn=rnn)
    usage = analyze(model, torch.rand(2, 4, 5), criterion="magnitude")
    assert usage.layers["rnn.weight_hh_l0"].forward_flops == 2 * (18 * 6) * 5 / 2


def test_projections_of_attention_and_an_embedding_that_multiplies_nothing():
    usage = analyze(encoder(), tokens(2, length=6))
    flops = {name: layer.forward_flops for name, layer in usage.layers.items()}
    projection, forward = 2 * 6 * 8 * 8, 2 * 6 * 8 * 16
    parts = {f"block.self_attn.{part}": projection
             for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert flops == {"embed": 0, **parts, "block.linear1": forward, "block.linear2": forward}
