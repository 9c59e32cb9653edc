"""The tutorial's rule, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import Reader, mlp, tokens
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import Histogram, LayerUsage, ModelUsage
from wua_mlflow.widths.factory import layers_by_width
from wua_mlflow.widths.recommend import effective_widths


def usage_of(**effective: tuple[float, int]) -> ModelUsage:
    """A usage whose layers have so many effective weights of so many."""
    layers = {
        name: LayerUsage(name=name, kind="Linear", weights=weights, units=2,
                         entropy=math.log(count), effective_weights=count, top90_share=1.0,
                         low_share=0.0, unit_importance=np.ones(2),
                         histogram=Histogram(np.zeros(2), np.zeros(1), 0.0))
        for name, (count, weights) in effective.items()}
    return ModelUsage("output", 10, layers, {})


@pytest.mark.parametrize(("count", "weights", "original", "expected"), [
    (15.7751, 20, 10, 7),  # the tutorial's: 15.7751 / 20 * 10 = 7.89
    (15.0, 20, 8, 6), (14.99, 20, 8, 5), (1.0, 1000, 4, 1), (20.0, 20, 10, 10), (0.5, 100, 1, 1),
    (7.0, 10, 10, 7), (0.3, 1, 10, 3)])
def test_the_share_is_rounded_down_to_at_least_one(count, weights, original, expected):
    assert effective_widths(usage_of(a=(count, weights)), [original], [["a"]]) == (expected,)


@pytest.mark.parametrize(("units", "value", "expected"), [
    *((units, 0.37, units) for units in (3, 7, 20, 33)), (8, 0.0, 1)])
def test_equally_important_weights_lose_no_unit_and_a_dead_layer_keeps_one(units, value, expected):
    model = mlp(6, units, 1)
    nn.init.constant_(model[0].weight, value)
    usage = analyze(model, torch.rand(9, 6), criterion="magnitude")
    assert effective_widths(usage, [units], [["0"]]) == (expected,)


def test_an_entry_that_sets_several_layers_takes_the_largest():
    usage = usage_of(left=(3.0, 20), right=(12.0, 20), out=(2.0, 4))
    assert effective_widths(usage, (10, 6), (("left", "right", "not analysed"), ("out",))) == (6, 3)


def test_no_width_from_layers_that_were_not_analysed_or_of_another_number():
    usage = usage_of(fc1=(10.0, 20))
    for names in (["lstm"], []):
        with pytest.raises(ValueError, match="slim_hidden: no width can be derived for entry 2, .*"
                                             "give the widths, e.g. slim_hidden=10,4"):
            effective_widths(usage, (10, 4), (["fc1"], names))
    with pytest.raises(ValueError, match="layers: expected 2 entries, one a width, but got 1"):
        effective_widths(usage, (10, 4), [["fc1"]])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hidden_units_by_the_weights_of_their_layer(kind):
    def factory(widths):
        model = Reader(kind)
        model.rnn = kind(5, widths[0], batch_first=True)
        model.head = nn.Linear(widths[0], 2)
        return model

    torch.manual_seed(0)
    usage = analyze(factory([12]), tokens(40))
    names = layers_by_width(factory, [12])
    assert names == (("rnn",),)
    share = max(usage.layers[f"rnn.weight_{part}_l0"].effective_share for part in ("ih", "hh"))
    assert effective_widths(usage, [12], names) == (max(1, int(share * 12)),)
