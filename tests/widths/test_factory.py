"""Which layers each width sets, against networks whose shapes are known."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from wua_mlflow.pipeline.models import cnn, mlp
from wua_mlflow.widths.factory import layers_by_width


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def perceptron(widths):
    return mlp(widths, [5], 3, "multiclass")


class TwoOfAWidth(nn.Module):
    """One width sets two layers, the other one; layers in between have widths of their own."""

    def __init__(self, widths) -> None:
        super().__init__()
        inner, outer = widths
        self.left = nn.Linear(4, inner)
        self.right = nn.Linear(4, inner)
        self.join = nn.Linear(inner, 7)
        self.out = nn.Conv1d(1, outer, 3)


def even(widths):
    if any(width % 2 for width in widths):
        raise ValueError("even widths only")
    return nn.Sequential(nn.Linear(3, widths[0]), nn.Linear(widths[0], widths[1]))


def in_pairs(widths):
    units = widths[0] // 2 * 2
    return nn.Sequential(nn.Linear(3, units), nn.ReLU(), nn.Linear(units, 1))


def heads(widths):
    return nn.Sequential(nn.Linear(3, widths[0]),
                         nn.MultiheadAttention(widths[0], 4), nn.Linear(widths[0], 1))


def at_most_eight(widths):
    if widths[0] > 8:
        raise ValueError("at most 8")
    return nn.Linear(3, widths[0])


@pytest.mark.parametrize(
    ("factory", "widths", "expected"),
    [
        (perceptron, (10,), (("fc1",),)),
        (perceptron, (64, 32, 16), (("fc1",), ("fc2",), ("fc3",))),
        (lambda w: cnn(w, [1, 8, 8], 10, "multiclass"), (4, 6), (("conv1",), ("conv2",))),
        (TwoOfAWidth, (5, 6), (("left", "right"), ("out",))),
        (even, (4, 6), (("0",), ("1",))),
        (even, [8, 2], (("0",), ("1",))),
        (in_pairs, (6,), (("0",),)),
        (heads, (8,), (("0", "1.out_proj"),)),
        (at_most_eight, (8,), (("",),)),
        (lambda w: nn.Sequential(nn.Linear(2, 4 * w[0]), nn.Linear(4 * w[0], 1)), (3,), (("0",),)),
        (lambda w: nn.Sequential(nn.LSTM(2, w[0]), nn.Linear(w[0], 1)), (3,), (("0",),)),
        (lambda w: nn.Sequential(nn.Embedding(9, w[0]), nn.Linear(w[0], 1)), (3,), (("0",),)),
        (lambda w: nn.Sequential(nn.ConvTranspose1d(2, w[0], 2), nn.Flatten()), (3,), (("0",),)),
        (lambda w: nn.Linear(2, w[0]), (1,), (("",),)),
    ],
)
def test_layers_that_a_width_sets(factory, widths, expected):
    assert layers_by_width(factory, widths) == expected


def test_a_factory_that_ignores_a_width():
    with pytest.raises(ValueError, match=r"model: expected a factory that builds the widths it is "
                                         r"given, but width 2 of 2 \(7\) changes no layer"):
        layers_by_width(lambda widths: nn.Linear(3, widths[0]), (5, 7))


def test_a_factory_that_refuses_every_other_width():
    def fixed(widths):
        if widths != (5,):
            raise RuntimeError("five it is")
        return nn.Linear(3, 5)

    with pytest.raises(ValueError, match="model: the factory refuses every width near 5: five it"):
        layers_by_width(fixed, (5,))


def test_the_factorys_own_error_at_the_original_widths_comes_through():
    with pytest.raises(ValueError, match="even widths only"):
        layers_by_width(even, (3, 4))


def test_the_global_streams_are_left_alone():
    def drawing(widths):
        np.random.rand()
        random.random()
        return nn.Linear(3, widths[0])

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    layers_by_width(drawing, (5,))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
