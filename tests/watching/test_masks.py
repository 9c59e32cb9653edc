"""Which rows of activations are real, in every layout that a mask fits."""

from __future__ import annotations

import pytest
import torch

from wua_mlflow.usage.tracing.sums import mask_of

GIVEN = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])


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
    keep, kept = mask.rows(lead, time_first=time_first)
    assert keep.tolist() == expected.bool().tolist()
    assert kept == int(expected.sum())


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
    assert (mask.kept, mask.keep.dtype) == (6, torch.bool)
