"""Which layers each width sets, against networks whose shapes are known."""

import random

import numpy as np
import pytest
from torch import nn

from tests import networks
from wua_mlflow.pipeline.models import cnn, mlp
from wua_mlflow.widths.factory import layers_by_width


def two_of_a_width(widths):
    """One width sets two layers, the other one; layers in between have widths of their own."""
    inner, outer = widths
    return nn.ModuleDict({"left": nn.Linear(4, inner), "right": nn.Linear(4, inner),
                          "join": nn.Linear(inner, 7), "out": nn.Conv1d(1, outer, 3)})


def even(widths):
    if any(width % 2 for width in widths):
        raise ValueError("even widths only")
    return nn.Sequential(nn.Linear(3, widths[0]), nn.Linear(widths[0], widths[1]))


def at_most_eight(widths):
    if widths[0] > 8:
        raise ValueError("at most 8")
    return nn.Linear(3, widths[0])


def first(kind, *sizes):
    return lambda widths: nn.Sequential(kind(*(size or widths[0] for size in sizes)), nn.Flatten())


@pytest.mark.parametrize(("factory", "widths", "expected"), [
    (lambda widths: mlp(widths, [5], 3, "multiclass"), (64, 32, 16),
     (("fc1",), ("fc2",), ("fc3",))),
    (lambda widths: cnn(widths, [1, 8, 8], 10, "multiclass"), (4, 6), (("conv1",), ("conv2",))),
    (two_of_a_width, (5, 6), (("left", "right"), ("out",))), (even, [8, 2], (("0",), ("1",))),
    (lambda widths: networks.mlp(3, widths[0] // 2 * 2, 1), (6,), (("0",),)),  # in pairs
    (lambda widths: nn.Sequential(nn.Linear(3, widths[0]), nn.MultiheadAttention(widths[0], 4),
                                  nn.Linear(widths[0], 1)), (8,), (("0", "1.out_proj"),)),
    (at_most_eight, (8,), (("",),)), (lambda widths: nn.Linear(2, 4 * widths[0]), (1,), (("",),)),
    (first(nn.LSTM, 2, 0), (3,), (("0",),)), (first(nn.Embedding, 9, 0), (3,), (("0",),)),
    (first(nn.ConvTranspose1d, 2, 0, 2), (3,), (("0",),))])
def test_layers_that_a_width_sets(factory, widths, expected):
    assert layers_by_width(factory, widths) == expected


def fixed(widths):
    if widths != (5,):
        raise RuntimeError("five it is")
    return nn.Linear(3, 5)


@pytest.mark.parametrize(("factory", "widths", "message"), [
    (lambda widths: nn.Linear(3, widths[0]), (5, 7), "model: expected a factory that builds the "
     r"widths it is given, but width 2 of 2 \(7\) changes no layer"),
    (fixed, (5,), "model: the factory refuses every width near 5: five it"),
    (even, (3, 4), "^even widths only"),  # its own error at the original widths
])
def test_factories_that_do_not_build_other_widths(factory, widths, message):
    with pytest.raises(ValueError, match=message):
        layers_by_width(factory, widths)


def test_the_global_streams_are_left_alone():
    def drawing(widths):
        np.random.rand()
        random.random()
        return nn.Linear(3, widths[0])

    before = networks.snapshot(nn.Identity())
    layers_by_width(drawing, (5,))
    assert networks.snapshot(nn.Identity()) == before
