"""What is alike among the positions of a dimension, and how views join and divide dimensions."""

import numpy as np
import pytest
import torch

from wua_mlflow.pruning.labels import (
    ANY,
    FREE,
    alike,
    any_,
    free,
    is_free,
    joined,
    outer,
    pattern,
    pattern_of_slices,
    ranks,
    stacked,
    view_blocks,
)


def test_what_keeps_its_size_is_free():
    assert free(3).shape == (3, 0) and is_free(free(3))
    assert is_free(np.full((2, 1), FREE)) and not is_free(any_(2))
    assert not is_free(np.array([[4], [FREE]]))


def test_patterns_are_numbered_in_the_order_in_which_they_come():
    assert pattern(np.array([7, 7, 2, 9, 2])).tolist() == [0, 0, 1, 2, 1]
    assert pattern_of_slices(np.array([[1, 2], [3, 4], [1, 2]]), 0).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("left", "right", "expected"), [
    ([5, 5, 8], [1, 1, 3], True), ([5, 5, 8], [1, 2, 3], False),
    ([5, FREE, 8], [1, 2, 3], True), ([5, 5, 8], [ANY, ANY, ANY], True)])
def test_which_columns_are_alike(left, right, expected):
    left, right = np.array(left), np.array(right)
    assert alike(pattern(left), pattern(right), left, right) is expected


def test_the_number_of_a_place_within_its_head():
    """Two heads of three places, the heads' positions not next to each other."""
    heads, places = np.array([0, 1, 0, 1, 0, 1]), np.arange(6)
    assert ranks(places, heads).tolist() == [0, 0, 1, 1, 2, 2]
    assert ranks(heads, places) is None, "heads are not within places"
    assert ranks(places, np.array([0, 0, 0, 0, 1, 1])) is None, "heads of different sizes"
    assert joined([heads, places]).tolist() == [0, 7, 2, 9, 4, 11]


@pytest.mark.parametrize(("shape", "wanted"), [
    ((2, 3, 4), (6, 4)), ((2, 12), (2, 3, 4)), ((2, 3, 4), (4, 3, 2)), ((6,), (1, 6, 1)),
    ((2, 1, 6), (2, 2, 3)), ((24,), (24,))])
def test_the_runs_of_dimensions_that_a_view_turns_into_each_other(shape, wanted):
    """Each run has as many numbers before as after, and no run could be divided further."""
    runs = list(view_blocks(shape, wanted))
    assert [dim for before, _ in runs for dim in before] == list(range(len(shape)))
    assert [dim for _, after in runs for dim in after] == list(range(len(wanted)))
    for before, after in runs:
        assert np.prod([shape[dim] for dim in before]) == np.prod([wanted[dim] for dim in after])
        assert min(len(before), len(after)) <= 1 or shape != wanted


def test_several_dimensions_as_one_have_the_labels_of_all():
    """As a view of a tensor whose entries are the labels themselves."""
    rows, columns = np.array([[1], [2]]), np.array([[10], [20], [30]])
    expected = torch.stack(torch.meshgrid(torch.tensor([1, 2]), torch.tensor([10, 20, 30]),
                                          indexing="ij"), -1).reshape(6, 2)
    assert outer([rows, columns]).tolist() == expected.tolist()


def test_shorter_rows_are_filled_up_where_dimensions_are_joined():
    assert stacked([np.array([[1, 2]]), np.array([[3], [4]])]).tolist() == [
        [1, 2], [3, FREE], [4, FREE]]
