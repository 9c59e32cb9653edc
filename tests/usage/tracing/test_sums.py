"""Sums of outputs and of |x|^p, by brute force over random geometries, masks and layouts."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.usage.tracing.calls import CALL_PARSERS, ConvGeometry, WeightCall
from wua_mlflow.usage.tracing.layer import RequiredStats, TracedLayer
from wua_mlflow.usage.tracing.sums import (
    PaddingMask,
    ValidPositions,
    by_unit,
    input_sums,
    mask_of,
    masked_rows,
)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def sums_of_inputs(
    call: WeightCall, output: Tensor, power: int, mask: PaddingMask | None = None, *,
    time_first: bool = False,
) -> tuple[Tensor, int]:
    return input_sums(call, output, power, ValidPositions(mask, time_first))


def sums_of_outputs(
    call: WeightCall, output: Tensor, mask: PaddingMask | None = None
) -> tuple[Tensor, int]:
    """As a layer adds them up."""
    spatial = call.weight.dim() - 2 if call.geometry else 0
    unit_dim = -2 if call.operation == "left_matmul" else -1
    units = by_unit(output, spatial, unit_dim).shape[1]
    layer = TracedLayer("name", "kind", "module", call.operation, units, spatial)
    layer.add_call(call, output, RequiredStats(), ValidPositions(mask))
    return layer.output.sums, layer.output.count


def brute(
    x: Tensor, weight: Tensor, at: ConvGeometry, out_shape: tuple[int, ...], power: int
) -> Tensor:
    """Σ |x|^power by (group, channel of the group, *kernel), entry by entry."""
    batched = x if x.dim() == weight.dim() else x.unsqueeze(0)
    channels, kernel = batched.shape[1], weight.shape[2:]
    sums = torch.zeros(channels, *kernel, dtype=torch.float64)
    ends = batched.shape[2:]
    moving = ends if at.transposed else out_shape
    for offset in itertools.product(*map(range, kernel)):
        for place in itertools.product(*map(range, moving)):
            other = tuple(p * s + o * d - pad for p, s, o, d, pad in zip(
                place, at.stride, offset, at.dilation, at.padding, strict=True))
            limits = out_shape if at.transposed else ends
            if all(0 <= o < size for o, size in zip(other, limits, strict=True)):
                source = place if at.transposed else other
                sums[(slice(None), *offset)] += batched[(..., *source)].double().abs().pow(
                    power).sum(0)
    return sums.reshape(at.groups, -1)


def random_case(seed: int) -> tuple[Tensor, Tensor, ConvGeometry, Tensor]:
    """(x, weight, geometry, output) of a convolution, plain or transposed, with a batch or none."""
    pick = random.Random(seed)
    dims, transposed = pick.choice([1, 1, 2, 2, 3]), pick.random() < 0.4
    groups = pick.choice([1, 1, 2, 3])
    kernel, stride, dilation, padding = (
        tuple(pick.randint(low, high) for _ in range(dims))
        for low, high in ((1, 3), (1, 3), (1, 2), (0, 2)))
    size = [pick.randint(5, 7 if dims < 3 else 6) for _ in range(dims)]
    lead = [] if pick.random() < 0.25 else [pick.choice([1, 3])]
    x = torch.randn(*lead, 2 * groups, *size)
    if transposed:
        weight = torch.randn(2 * groups, 2, *kernel)
        extra = tuple(pick.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        function = (functional.conv_transpose1d, functional.conv_transpose2d,
                    functional.conv_transpose3d)[dims - 1]
        output = function(x, weight, None, stride, padding, extra, groups, dilation)
    else:
        weight = torch.randn(3 * groups, 2, *kernel)
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
        output = function(x, weight, None, stride, padding, dilation, groups)
    return x, weight, ConvGeometry(stride, padding, dilation, groups, transposed), output


@pytest.mark.parametrize("seed", range(24))
def test_a_convolution_of_any_geometry(seed):
    x, weight, at, output = random_case(seed)
    product = WeightCall("conv", weight, (x,), geometry=at)
    spatial = output.shape[2 - weight.dim():]
    moving = x.shape[2 - weight.dim():] if at.transposed else spatial
    samples = len(x) if x.dim() == weight.dim() else 1
    for power in (1, 2):
        sums, count = sums_of_inputs(product, output, power)
        torch.testing.assert_close(sums.double(), brute(x, weight, at, tuple(spatial), power),
                                   rtol=1e-5, atol=1e-6)
        assert count == samples * torch.Size(moving).numel()
    sums, count = sums_of_outputs(product, output)
    expected = output.reshape(samples, -1, torch.Size(spatial).numel()).double().sum((0, 2))
    torch.testing.assert_close(sums.double(), expected, rtol=1e-4, atol=1e-5)
    assert count == samples * torch.Size(spatial).numel()


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3), (2, 0, 3), (70_000, 3)])
def test_rows_of_any_shape(shape):
    x, weight = torch.randn(shape), torch.randn(4, 3)
    product, rows = WeightCall("linear", weight, (x,)), x.reshape(-1, 3).double()
    output = x @ weight.T
    for power in (1, 2):
        sums, count = sums_of_inputs(product, output, power)
        torch.testing.assert_close(sums.double(), rows.abs().pow(power).sum(0, keepdim=True),
                                   rtol=1e-5, atol=1e-6)
        assert count == len(rows)
    sums, count = sums_of_outputs(product, output)
    torch.testing.assert_close(sums, output.reshape(-1, 4).double().sum(0), rtol=1e-3, atol=1e-2)
    assert count == len(rows)


def test_rows_wider_than_a_block():
    x = torch.randn(3, 2**17 + 5)
    sums, _ = sums_of_inputs(WeightCall("linear", x, (x,)), x, 2)
    torch.testing.assert_close(sums[0], x.square().sum(0))


@pytest.mark.parametrize(("dtype", "summed"), [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_no_sum_is_in_half_precision(dtype, summed):
    x = torch.full((5000, 2), 0.1).to(dtype)
    product = WeightCall("linear", x, (x,))
    assert sums_of_inputs(product, x, 1)[0].dtype == summed
    for sums, count in (sums_of_inputs(product, x, 1), sums_of_outputs(product, x)):
        sums = sums.to(summed)
        torch.testing.assert_close(sums.flatten() / count, x[0].to(summed), rtol=1e-5, atol=0)


GIVEN = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])
REAL = GIVEN.bool()


def test_padding_counts_in_no_linear_layer():
    x, weight = torch.randn(3, 4, 2), torch.randn(5, 2)
    x[~REAL] = torch.inf
    output, mask = x @ weight.T, mask_of(GIVEN)
    product = WeightCall("linear", weight, (x,))
    sums, count = sums_of_inputs(product, output, 2, mask)
    torch.testing.assert_close(sums[0], x[REAL].square().sum(0))
    assert count == 6
    sums, count = sums_of_outputs(product, output, mask)
    torch.testing.assert_close(sums, output[REAL].double().sum(0))
    assert count == 6
    first = WeightCall("linear", weight, (x.transpose(0, 1),))
    sums, _ = sums_of_inputs(first, output.transpose(0, 1), 1, mask, time_first=True)
    torch.testing.assert_close(sums[0], x[REAL].abs().sum(0))


def test_padding_counts_in_no_product_from_the_left():
    x, weight = torch.randn(3, 2, 4), torch.randn(5, 2)
    product, output, mask = WeightCall("left_matmul", weight, (x,)), weight @ x, mask_of(GIVEN)
    sums, count = sums_of_inputs(product, output, 1, mask)
    torch.testing.assert_close(sums[0], x.mT[REAL].abs().sum(0))
    assert count == 6
    sums, count = sums_of_outputs(product, output, mask)
    torch.testing.assert_close(sums, output.mT[REAL].double().sum(0))
    assert count == 6


def test_padding_counts_in_no_lookup_and_no_form():
    ids, table = torch.randint(5, (3, 4)), torch.randn(5, 2)
    product = WeightCall("embedding", table, (ids,))
    for mask, real in ((None, torch.ones(3, 4, dtype=torch.bool)), (mask_of(GIVEN), REAL)):
        sums, count = sums_of_inputs(product, table[ids], 1, mask)
        assert sums.tolist() == [torch.bincount(ids[real], minlength=5).tolist()]
        assert count == real.sum()
    a, b, form = torch.randn(3, 4, 2), torch.randn(3, 4, 3), torch.randn(5, 2, 3)
    product = WeightCall("bilinear", form, (a, b))
    sums, count = sums_of_inputs(product, torch.empty(0), 2, mask_of(GIVEN))
    expected = torch.einsum("ni,nj->ij", a[REAL].square(), b[REAL].square())
    torch.testing.assert_close(sums, expected.reshape(1, -1).double())
    assert count == 6


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    (1, 1, 0, 1), (3, 1, 1, 1), (5, 1, 4, 2), (9, 1, 4, 1)])
def test_padding_counts_in_no_convolution_of_a_sequence(kernel, stride, padding, dilation):
    x, weight = torch.randn(3, 4, 4), torch.randn(6, 2, kernel)
    output = functional.conv1d(x, weight, None, stride, padding, dilation, 2)
    assert output.shape[2] == 4
    product = WeightCall("conv", weight, (x,), geometry=ConvGeometry(
        (stride,), (padding,), (dilation,), 2, False))
    columns = functional.unfold(x.unsqueeze(2), (1, kernel), dilation=(1, dilation),
                                padding=(0, padding), stride=(1, stride))
    met = columns.transpose(1, 2)[REAL]
    sums, count = sums_of_inputs(product, output, 2, mask_of(GIVEN))
    torch.testing.assert_close(sums.flatten(), met.square().sum(0), rtol=1e-5, atol=1e-6)
    assert count == 6
    sums, count = sums_of_outputs(product, output, mask_of(GIVEN))
    torch.testing.assert_close(sums, output.transpose(1, 2)[REAL].double().sum(0),
                               rtol=1e-4, atol=1e-5)
    assert count == 6


def test_a_convolution_that_changes_the_length_knows_nothing_of_padding():
    x = torch.randn(3, 4, 9)
    rows, count = masked_rows(x, (3, 4), ValidPositions(mask_of(GIVEN)))
    assert rows is x
    assert count == 27


def test_by_unit():
    x = torch.randn(2, 3, 4, 5)
    assert by_unit(x, 2).equal(x.flatten(2))
    assert by_unit(x[0], 2).equal(x[0].flatten(1).unsqueeze(0))
    assert by_unit(x, 0).equal(x.reshape(-1, 5))
    assert by_unit(x, 0, -2).equal(x.mT.reshape(-1, 4))
    assert by_unit(x[0, 0], 2).equal(x[0, 0])  # flattened since


@pytest.mark.parametrize(("options", "shape"), [
    ({"padding": 1}, (4, 2, 40, 40)), ({"stride": 2, "padding": 2}, (16, 2, 40, 40)),
    ({"dilation": 2, "padding": (2, 0), "bias": False}, (4, 2, 40, 40)),
    ({"padding": "same"}, (2, 80, 80)),
])
def test_outputs_of_a_convolution_that_makes_much_of_little_are_summed_by_its_inputs(
    options: dict, shape: tuple[int, ...]
):
    """The outputs' values are not read: with NaN in their place the sums are the same."""
    layer, x = nn.Conv2d(2, 40, 3, **options), torch.randn(shape)
    output = layer(x).detach()
    assert output.numel() >= 4 * x.numel()
    spatial = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    product, = CALL_PARSERS[functional.conv2d]((x, layer.weight, layer.bias), spatial)
    expected = output.double().sum((-1, -2))
    expected = expected.sum(0) if expected.dim() == 2 else expected
    sums, count = sums_of_outputs(product, torch.full_like(output, math.nan))
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-6 * float(output.abs().sum()))
    assert count == output.numel() // 40


@pytest.mark.parametrize(("lead", "time_first", "expected"), [
    ((3, 4), False, GIVEN.flatten()),
    ((12,), False, GIVEN.flatten()),
    ((3, 4, 2), False, GIVEN.flatten().repeat_interleave(2)),
    ((4, 3), True, GIVEN.T.flatten()),
    ((12,), True, GIVEN.T.flatten()),
    ((4, 3), False, GIVEN.T.flatten()),  # the one order that fits
    ((3, 4), True, GIVEN.flatten()),
])
def test_the_rows_that_are_real(lead, time_first, expected):
    mask = mask_of(GIVEN)
    keep, count = mask.rows(lead, time_first=time_first)
    assert keep.tolist() == expected.bool().tolist()
    assert count == int(expected.sum())


@pytest.mark.parametrize("lead", [(), (3,), (4,), (3, 5), (5, 4), (24,)])
def test_leading_dimensions_that_are_no_samples_and_positions(lead):
    assert mask_of(GIVEN).rows(lead, time_first=False) is None
    assert mask_of(GIVEN).rows(lead, time_first=True) is None


def test_a_square_mask_is_read_as_it_is_said_to_lie():
    square = GIVEN[:, :3]
    mask = mask_of(square)
    assert mask.rows((3, 3), time_first=False)[0].tolist() == square.bool().flatten().tolist()
    assert mask.rows((3, 3), time_first=True)[0].tolist() == square.T.bool().flatten().tolist()


def test_columns_of_a_convolution():
    mask = mask_of(GIVEN)
    assert mask.columns((3, 7, 4)).tolist() == GIVEN.bool().unsqueeze(1).tolist()
    assert mask.columns((4, 7, 3)) is None
    assert mask.columns((3, 7, 4, 4)) is None


@pytest.mark.parametrize("given", [torch.ones(3, 4), torch.ones(4), torch.zeros(2, 1, 4, 4)])
def test_masks_that_pad_nothing(given):
    assert mask_of(given) is None


@pytest.mark.parametrize("given", [GIVEN.bool(), GIVEN.float(), GIVEN.int()])
def test_a_mask_of_any_type(given):
    mask = mask_of(given)
    assert (mask.count, mask.keep.dtype) == (6, torch.bool)
