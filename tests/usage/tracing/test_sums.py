"""Sums of outputs and of |x|^p over random geometries, masks and layouts, by autograd.

What a weight met, summed, is the gradient of the sum of all outputs by that weight.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.data.batches import mask_of
from wua_mlflow.usage.tracing.calls import CALL_PARSERS, ConvGeometry, WeightCall
from wua_mlflow.usage.tracing.layer import RequiredStats, RunningSum, TracedLayer
from wua_mlflow.usage.tracing.sums import ValidPositions, by_unit, input_sums, masked_rows

ALL = ValidPositions()
GIVEN = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
REAL = GIVEN.bool()


def sums_of_outputs(call: WeightCall, output: Tensor, positions: ValidPositions) -> RunningSum:
    """As a layer adds them up."""
    spatial = call.weight.dim() - 2 if call.geometry else 0
    units = by_unit(output, spatial, -2 if call.operation == "left_matmul" else -1).shape[1]
    layer = TracedLayer("name", "kind", "module", call.operation, units, spatial)
    layer.add_call(call, output, RequiredStats(), positions)
    return layer.output


def assert_sums(
    call: WeightCall, run: Callable[..., Tensor], unit_dim: int, valid: Tensor | None = None,
    positions: ValidPositions = ALL,
) -> None:
    """Of a call that is ``run(*inputs, weight)``; ``valid`` says which of its outputs count."""
    output = run(*call.inputs, call.weight)
    factor = torch.ones(()) if valid is None else valid
    for power in (1, 2):
        weight = call.weight.double().requires_grad_()
        inputs = [x.double().abs() ** power if x.is_floating_point() else x for x in call.inputs]
        met, = torch.autograd.grad((run(*inputs, weight) * factor).sum(), weight)
        if call.operation == "embedding" or (call.geometry and call.geometry.transposed):
            met = met.transpose(0, 1)
        groups = call.geometry.groups if call.geometry else 1
        if call.geometry and call.geometry.transposed:
            met = met[0].unflatten(0, (groups, -1))  # the inputs of one unit of each group
        else:
            met = met.unflatten(0, (groups, -1))[:, 0]
        sums, count = input_sums(call, output, power, positions)
        torch.testing.assert_close(sums.double(), met.flatten(1), rtol=1e-5, atol=1e-6)
        moving = call.inputs[0] if call.geometry and call.geometry.transposed else output
        assert count == int((torch.ones_like(moving) * factor).sum()) / moving.shape[unit_dim]
    total, kept = sums_of_outputs(call, output, positions), (output * factor).double()
    expected = kept.transpose(unit_dim, -1).reshape(-1, output.shape[unit_dim]).sum(0)
    torch.testing.assert_close(total.sums, expected, rtol=1e-4, atol=1e-5)


def random_convolution(seed: int) -> tuple[WeightCall, Callable[..., Tensor]]:
    """Plain or transposed, with a batch or none."""
    pick = random.Random(seed)
    dims, transposed = pick.choice([1, 1, 2, 2, 3]), pick.random() < 0.4
    groups = pick.choice([1, 1, 2, 3])
    kernel, stride, dilation, padding = (
        tuple(pick.randint(low, high) for _ in range(dims))
        for low, high in ((1, 3), (1, 3), (1, 2), (0, 2)))
    x = torch.randn(*([] if pick.random() < 0.25 else [pick.choice([1, 3])]), 2 * groups,
                    *(pick.randint(5, 6) for _ in range(dims)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options["output_padding"] = tuple(pick.randrange(max(s, d)) for s, d in
                                          zip(stride, dilation, strict=True))
    run = getattr(functional, f"conv{'_transpose' * transposed}{dims}d")
    weight = torch.randn((2 if transposed else 3) * groups, 2, *kernel)
    return WeightCall("conv", weight, (x,), geometry=ConvGeometry(
        stride, padding, dilation, groups, transposed)), partial(run, **options)


@pytest.mark.parametrize("seed", range(20))
def test_a_convolution_of_any_geometry(seed):
    call, run = random_convolution(seed)
    assert_sums(call, run, 1 - call.weight.dim())


@pytest.mark.parametrize("shape", [(3,), (2, 5, 3), (2, 0, 3), (50_000, 3)])
def test_rows_of_any_shape(shape):
    call = WeightCall("linear", torch.randn(4, 3), (torch.randn(shape),))
    assert_sums(call, functional.linear, -1)


def test_rows_wider_than_a_block():
    x = torch.randn(3, 2**17 + 5)
    sums, _ = input_sums(WeightCall("linear", x, (x,)), x, 2, ALL)
    torch.testing.assert_close(sums[0], x.square().sum(0))


@pytest.mark.parametrize(("dtype", "summed"), [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float64, torch.float64)])
def test_no_sum_is_in_half_precision(dtype, summed):
    x = torch.full((5000, 2), 0.1).to(dtype)
    call = WeightCall("linear", x, (x,))
    sums, count = input_sums(call, x, 1, ALL)
    total = sums_of_outputs(call, x, ALL)
    assert sums.dtype == summed
    for mean in (sums[0] / count, total.mean().to(summed)):
        torch.testing.assert_close(mean, x[0].to(summed), rtol=1e-5, atol=0)


TABLE, FORM, KERNEL = torch.ones(5, 2), torch.ones(5, 2, 3), torch.ones(6, 2, 5)
PADDED = {
    "linear": (functional.linear, TABLE, [(3, 4, 2)], REAL[..., None], -1),
    "time first": (functional.linear, TABLE, [(4, 3, 2)], REAL.T[..., None], -1),
    "left_matmul": (lambda x, w: w @ x, TABLE, [(3, 2, 4)], REAL[:, None], -2),
    "bilinear": (functional.bilinear, FORM, [(3, 4, 2), (3, 4, 3)], REAL[..., None], -1),
    "conv": (partial(functional.conv1d, padding=4, dilation=2, groups=2), KERNEL, [(3, 4, 4)],
             REAL[:, None], -2)}


@pytest.mark.parametrize("name", PADDED)
def test_padding_counts_nowhere(name):
    run, weight, shapes, valid, unit_dim = PADDED[name]
    geometry = ConvGeometry((1,), (4,), (2,), 2, False) if name == "conv" else None
    call = WeightCall("linear" if name == "time first" else name, weight,
                      tuple(torch.randn(shape) for shape in shapes), geometry=geometry)
    positions = ValidPositions(mask_of(GIVEN), name == "time first")
    assert_sums(call, run, unit_dim, valid, positions)
    if name == "linear":  # whatever stands there
        broken = WeightCall(name, weight, (call.inputs[0].masked_fill(~valid, torch.inf),))
        assert input_sums(broken, torch.empty(0), 2, positions)[0].equal(
            input_sums(call, torch.empty(0), 2, positions)[0])


@pytest.mark.parametrize("positions", [ALL, ValidPositions(mask_of(GIVEN))], ids=["all", "padded"])
def test_lookups_are_counted(positions):
    call = WeightCall("embedding", torch.randn(5, 2), (torch.randint(5, (3, 4)),))
    valid = None if positions.mask is None else REAL[..., None]
    assert_sums(call, functional.embedding, -1, valid, positions)


def test_lookups_are_counted_where_float64_is_the_default():
    call = WeightCall("embedding", torch.randn(3, 2), (torch.tensor([[2, 0], [2, 2]]),))
    torch.set_default_dtype(torch.float64)
    try:
        sums, count = input_sums(call, torch.empty(2, 2, 2), 1, ALL)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (sums.tolist(), count) == ([[1, 0, 3]], 4)


def test_a_convolution_that_changes_the_length_knows_nothing_of_padding():
    x = torch.randn(3, 4, 9)
    rows, count = masked_rows(x, (3, 4), ValidPositions(mask_of(GIVEN)))
    assert rows is x
    assert count == 27


@pytest.mark.parametrize(("options", "shape"), [
    ({"stride": 2, "padding": 2}, (16, 2, 40, 40)),
    ({"dilation": 2, "padding": (2, 0), "bias": False}, (4, 2, 40, 40)),
    ({"padding": "same"}, (2, 80, 80))])
def test_outputs_of_a_convolution_that_makes_much_of_little_come_from_its_inputs(options, shape):
    """The outputs' values are not read: with NaN in their place the sums are the same."""
    layer, x = nn.Conv2d(2, 40, 3, **options), torch.randn(shape)
    output = layer(x).detach()
    assert output.numel() >= 4 * x.numel()
    spatial = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    call, = CALL_PARSERS[functional.conv2d]((x, layer.weight, layer.bias), spatial)
    total = sums_of_outputs(call, torch.full_like(output, math.nan), ALL)
    expected = by_unit(output, 2).double().sum((0, 2))
    torch.testing.assert_close(total.sums, expected, rtol=1e-4,
                               atol=1e-6 * float(output.abs().sum()))
    assert total.count == output.numel() // 40


@pytest.mark.parametrize(("lead", "time_first", "expected"), [
    ((3, 4), False, GIVEN), ((12,), False, GIVEN), ((4, 3), True, GIVEN.T),
    ((12,), True, GIVEN.T), ((3, 4, 2), False, GIVEN[..., None].expand(3, 4, 2)),
    ((4, 3), False, GIVEN.T), ((3, 4), True, GIVEN),  # the one order that fits
    *(((lead), first, None) for first in (False, True)
      for lead in [(), (3,), (4,), (3, 5), (5, 4), (24,)])])
def test_the_rows_that_are_real(lead, time_first, expected):
    valid = mask_of(GIVEN).rows(lead, time_first=time_first)
    assert (valid is None) == (expected is None)  # None: no samples and positions
    if valid is not None:
        assert valid[0].tolist() == expected.bool().flatten().tolist()
        assert valid[1] == int(expected.sum())


def test_a_square_mask_is_read_as_it_is_said_to_lie():
    square = GIVEN[:, :3]
    mask = mask_of(square)
    assert mask.rows((3, 3), time_first=False)[0].tolist() == square.bool().flatten().tolist()
    assert mask.rows((3, 3), time_first=True)[0].tolist() == square.T.bool().flatten().tolist()


def test_columns_of_a_convolution():
    mask = mask_of(GIVEN.float())
    assert (mask.count, mask.keep.dtype) == (6, torch.bool)
    assert mask.columns((3, 7, 4)).tolist() == GIVEN.bool().unsqueeze(1).tolist()
    assert mask.columns((4, 7, 3)) is None and mask.columns((3, 7, 4, 4)) is None


@pytest.mark.parametrize("mask", [torch.ones(3, 4), torch.ones(4), torch.zeros(2, 1, 4, 4)])
def test_masks_that_pad_nothing(mask):
    assert mask_of(mask) is None
