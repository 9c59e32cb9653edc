"""Convolutions of every geometry, by unfolding and by loops, for each criterion."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import Layers, rows
from tests.references import assert_importance
from wua_mlflow.usage.analyze import analyze, layer_importance

SIZES = {1: (9,), 2: (7, 6), 3: (4, 5, 4)}
CONVOLUTIONS = {
    "1d strided": (nn.Conv1d, {"kernel_size": 4, "stride": 3, "padding": 2}),
    "1d dilated": (nn.Conv1d, {"kernel_size": 3, "dilation": 2, "padding": 1, "groups": 2}),
    "2d": (nn.Conv2d, {"kernel_size": 3, "bias": False}),
    "2d strided": (nn.Conv2d, {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)}),
    "2d dilated": (nn.Conv2d, {"kernel_size": 2, "dilation": (3, 2), "padding": 1}),
    "2d same": (nn.Conv2d, {"kernel_size": 3, "padding": "same"}),
    "2d same, even kernel": (nn.Conv2d, {"kernel_size": 2, "padding": "same", "dilation": 3}),
    "2d valid": (nn.Conv2d, {"kernel_size": 3, "padding": "valid"}),
    "2d circular": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
    "2d replicate, same": (nn.Conv2d, {"kernel_size": 2, "padding": "same",
                                       "padding_mode": "replicate"}),
    "2d groups": (nn.Conv2d, {"kernel_size": 3, "groups": 2, "padding": 1}),
    "2d depthwise": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "padding": 1, "bias": False}),
    "2d kernel over the edge": (nn.Conv2d, {"kernel_size": 5, "padding": 4, "stride": 4}),
    "3d all at once": (nn.Conv3d, {"kernel_size": (1, 3, 2), "stride": (1, 2, 3), "groups": 2,
                                   "padding": (1, 0, 1), "dilation": (1, 1, 2)})}
TRANSPOSED = {
    "1d padded": (nn.ConvTranspose1d, {"kernel_size": 4, "stride": 3, "padding": 2,
                                       "output_padding": 1, "groups": 2}),
    "2d strided": (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "padding": 1,
                                        "output_padding": (1, 0)}),
    "2d dilated groups": (nn.ConvTranspose2d, {"kernel_size": 2, "dilation": 3, "groups": 2,
                                               "padding": 2}),
    "2d depthwise": (nn.ConvTranspose2d, {"kernel_size": 3, "groups": 4}),
    "2d mostly cut off": (nn.ConvTranspose2d, {"kernel_size": 5, "padding": 4}),
    "3d": (nn.ConvTranspose3d, {"kernel_size": 2, "stride": (1, 2, 1), "padding": 1,
                                "groups": 2})}


def padded(conv: nn.Module, x: Tensor) -> Tensor:
    """The input with what the module pads it with."""
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    elif conv.padding == "valid":
        sides = [(0, 0)] * len(conv.kernel_size)
    else:
        sides = [(pad, pad) for pad in conv.padding]
    flat = [side for pair in reversed(sides) for side in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return functional.pad(x, flat, mode=mode)


def unfolded(conv: nn.Module, x: Tensor) -> Tensor:
    """What each weight met, shape (times, units, weights of a unit), by loops over positions."""
    x = padded(conv, x)
    spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    starts = [range(0, size - span + 1, step)
              for size, span, step in zip(x.shape[2:], spans, conv.stride, strict=True)]
    times = []
    for corner in itertools.product(*starts):
        window = x[(..., *(slice(at, at + span, step) for at, span, step in
                           zip(corner, spans, conv.dilation, strict=True)))]
        times.append(of_units(conv, window.flatten(2)).flatten(2))
    return torch.cat(times)


def of_units(conv: nn.Module, by_channel: Tensor) -> Tensor:
    """From (samples, channels, ...) to (samples, units, channels of the unit's group, ...)."""
    groups = by_channel.unflatten(1, (conv.groups, -1))
    return groups.repeat_interleave(conv.out_channels // conv.groups, 1)


def outputs_by_unit(output: Tensor) -> Tensor:
    return output.flatten(2).transpose(1, 2).flatten(0, 1)


EVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@EVEN
@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_by_unfolding(kind, options):
    conv = kind(4, 6 if options.get("groups") == 2 else 8, **options)
    x = rows(3, 4, *SIZES[conv.weight.dim() - 2])
    met, gave = unfolded(conv, x), outputs_by_unit(conv(x))
    weight = conv.weight.flatten(1)
    bias = 0 if conv.bias is None else conv.bias
    torch.testing.assert_close((met * weight).sum(2).mean(0) + bias, gave.mean(0), rtol=1e-4,
                               atol=1e-6)
    assert_importance(nn.Sequential(conv), x, "0", weight, met, gave)


def met_by_transposed(conv: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """(samples · input positions, units, weights of a unit): inputs whose product lands outside
    of the output count as zero."""
    times = []
    for at in itertools.product(*map(range, x.shape[2:])):
        value = x[(..., *at)]  # (samples, channels)
        inside = torch.stack([torch.tensor(all(
            0 <= i * s + k * d - p < size for i, s, k, d, p, size in zip(
                at, conv.stride, offset, conv.dilation, conv.padding, output.shape[2:],
                strict=True))) for offset in itertools.product(*map(range, conv.kernel_size))])
        times.append(of_units(conv, value[..., None] * inside).flatten(2))
    return torch.cat(times)


@pytest.mark.parametrize(("kind", "options"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution_by_loops(kind, options):
    conv = kind(4, 4 if options.get("groups") == 4 else 6, **options)
    x = rows(3, 4, *SIZES[conv.weight.dim() - 2])
    output = conv(x)
    weight = torch.cat([part.transpose(0, 1) for part in conv.weight.chunk(conv.groups)])
    met = met_by_transposed(conv, x, output)
    total = (met * weight.flatten(1)).sum((0, 2))
    by_channel = output.sum((0, *range(2, output.dim())))
    torch.testing.assert_close(
        total + conv.bias * output[:, 0].numel(), by_channel, rtol=1e-4, atol=1e-4)
    assert_importance(nn.Sequential(conv), x, "0", weight.flatten(1), met, outputs_by_unit(output))
    shape = layer_importance(nn.Sequential(conv), x, ["0"])["0"].shape
    assert shape == (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def test_a_kernel_that_is_also_the_decoders_is_counted_at_its_first_use():
    model = Layers(lambda model, x: functional.conv_transpose1d(
        model.encoder(x).relu(), model.encoder.weight), encoder=nn.Conv1d(2, 3, 3))
    x = rows(4, 2, 8)
    met, gave = unfolded(model.encoder, x), outputs_by_unit(model.encoder(x))
    assert_importance(model, x, "encoder", model.encoder.weight.flatten(1), met, gave)
    assert list(analyze(model, x).layers) == ["encoder"]


@pytest.mark.parametrize("function", [
    lambda x, w: torch.convolution(x, w, None, [2], [1], [3], False, [0], 1),
    lambda x, w: torch.ops.aten.conv1d.default(x, w, None, [2], [1], [3]),
    lambda x, w: torch.ops.aten.conv1d.padding(x, w, None, [1], "same")])
def test_functions_that_no_module_calls(function):
    conv = nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=3, bias=False)
    model, x = Layers(lambda model, x: function(x, model.conv.weight), conv=conv), rows(4, 2, 9)
    if len(function(x, conv.weight)[0, 0]) == 9:
        conv = nn.Conv1d(2, 3, 3, padding="same")
    assert_importance(model, x, "conv", model.conv.weight.flatten(1), unfolded(conv, x),
                      outputs_by_unit(model(x)))


def test_one_image_without_a_batch_dimension():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), rows(4, 2, 5, 6)
    assert_importance(model, list(x), "0", model[0].weight.flatten(1), unfolded(model[0], x),
                      outputs_by_unit(model(x)))


@EVEN
@pytest.mark.parametrize(("kernel", "samples"), [(1, 3), (3, 8), (4, 8)])  # 8 as positions, too
def test_padded_positions_of_a_sequence_count_in_no_convolution(kernel, samples):
    model = Layers(lambda model, x, attention_mask=None: model.conv(x.transpose(1, 2)).transpose(
        1, 2), conv=nn.Conv1d(2, 3, kernel, padding="same"))
    x = rows(samples, 8, 2)
    mask = torch.arange(8) < torch.tensor([2, 8, 5, *[7] * (samples - 3)])[:, None]
    met = unfolded(model.conv, x.transpose(1, 2)).unflatten(0, (8, samples)).transpose(0, 1)[mask]
    gave = model(x)[mask]
    assert_importance(model, [{"x": x, "attention_mask": mask}], "conv",
                      model.conv.weight.flatten(1), met, gave)


def test_what_was_cut_off_below_zero_and_then_changed_in_place():
    model = Layers(lambda model, x: model.conv(torch.relu(x).sub_(0.5)), conv=nn.Conv1d(2, 3, 2))
    x = rows(4, 2, 6)
    inputs = x.relu() - 0.5
    assert (inputs < 0).any()
    assert_importance(model, x, "conv", model.conv.weight.flatten(1), unfolded(model.conv, inputs),
                      outputs_by_unit(model(x)))
