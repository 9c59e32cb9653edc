"""The smallest width within a margin, against every width tried."""

import math

import numpy as np
import pytest

from wua_mlflow.pruning.unit_groups import UnitGroup
from wua_mlflow.widths.margin_search import GRID_SIZE, MarginSearch, width_path


def group(name, units, layers=()):
    return UnitGroup(name, layers, (), units)


def alone(scores, margin=0.1):
    """The width found where ``scores[k - 1]`` is the score of k units, and which k were tried."""
    tried = []

    def probe(widths):
        (_, width), = widths.items()
        tried.append(width)
        return float(scores[width - 1])

    search = MarginSearch(probe, float(scores[-1]), margin, "accuracy")
    (layer,), joint = search.search([group("a", len(scores))], jointly=True)
    assert joint is None
    assert len(tried) == len(set(tried)) and set(layer.curve.widths) == {*tried, len(scores)}
    return layer


@pytest.mark.parametrize("units", [1, 2, 3, 15, 16, 17, 64, 257])
def test_of_a_rising_score_the_smallest_of_all(units):
    for seed in range(3):
        scores = np.sort(np.random.default_rng(seed).random(units))
        assert alone(scores).width == 1 + int(np.flatnonzero(scores >= scores[-1] - 0.1)[0])


@pytest.mark.parametrize("seed", range(8))
def test_of_a_score_that_goes_up_and_down_all_larger_that_were_tried_are_within(seed):
    scores = np.random.default_rng(seed).random(GRID_SIZE) * 0.15  # each is tried
    layer, within = alone(scores), scores >= scores[-1] - 0.1
    assert layer.curve.widths == tuple(range(1, 17))
    assert layer.width == next(k for k in layer.curve.widths if within[k - 1:].all())
    scores = np.random.default_rng(seed).random(100) * 0.15
    layer = alone(scores)
    tried = dict(zip(layer.curve.widths, layer.curve.scores, strict=True))
    assert all(tried[k] >= layer.curve.threshold for k in tried if k >= layer.width)
    if layer.width > 1:  # the next smaller one was tried, and is not
        assert tried[layer.width - 1] < layer.curve.threshold
    assert layer.curve.scores == tuple(scores[k - 1] for k in layer.curve.widths)
    assert len(tried) <= GRID_SIZE + math.ceil(math.log2(100))


def test_a_margin_is_met_exactly_in_spite_of_rounding():
    assert 19 / 40 < 21 / 40 - 0.05  # by rounding alone
    assert alone([19 / 40, 21 / 40], margin=0.05).width == 1
    assert alone([18 / 40, 21 / 40], margin=0.05).width == 2
    assert alone([0.1, 0.5, 0.9, 0.9], margin=0.0).width == 3


def test_the_way_from_all_units_to_what_each_keeps_alone():
    ways = width_path({"a": 4, "b": 2, "c": 3}, [group("a", 16), group("b", 32), group("c", 3)])
    assert ways[0] == {"a": 4, "b": 2, "c": 3} and ways[-1] == {"a": 16, "b": 32, "c": 3}
    for narrow, wide in zip(ways, ways[1:], strict=False):
        assert all(narrow[name] <= wide[name] for name in wide) and narrow != wide
    for way in ways:  # 16 to 4 is two halvings, 32 to 2 four: b goes twice as fast
        low, high = math.log2(16 / way["a"]) / 2, math.log2(32 / way["b"]) / 4
        step = max(math.log2(way["a"] / max(4, way["a"] - 1)) / 2,
                   math.log2(way["b"] / max(2, way["b"] - 1)) / 4)
        assert abs(low - high) <= step + 1e-12
    assert {"a": 8, "b": 8, "c": 3} in ways
    assert width_path({"a": 2}, [group("a", 2)]) == [{"a": 2}]  # which cannot shrink


def additive(lost):
    """A probe whose losses add up: ``lost[name](width)``."""
    return lambda widths: 1.0 - sum(lost[name](width) for name, width in widths.items())


def test_together_the_losses_add_up():
    groups = [group("a", 64, ("a", "norm")), group("b", 64)]
    lost = {"a": lambda k: 0.9 * (1 - k / 64) ** 2, "b": lambda k: 0.3 * (1 - k / 64) ** 2}
    layers, joint = MarginSearch(additive(lost), 1.0, 0.1, "x").search(groups, jointly=True)
    by_hand = {name: next(k for k in range(1, 65) if lost[name](k) <= 0.1) for name in "ab"}
    assert {layer.layer: layer.alone for layer in layers} == by_hand
    assert additive(lost)(by_hand) < 0.9
    assert {layer.layer: layer.width for layer in layers} == next(
        way for way in width_path(by_hand, groups) if additive(lost)(way) >= 0.9)
    assert joint.widths[-1] == 128 and joint.scores[-1] == 1.0
    assert layers[0].layers == ("a", "norm")


def test_alone_where_nothing_adds_up_or_it_is_asked_for_or_there_is_one_group():
    groups = [group("a", 8), group("b", 8)]
    lost = {"a": lambda k: 0.06 * (k < 3), "b": lambda k: 0.06 * (k < 5)}
    layers, joint = MarginSearch(additive(lost), 1.0, 0.05, "x").search(groups, jointly=True)
    assert [(layer.alone, layer.width) for layer in layers] == [(3, 3), (5, 5)]
    assert joint.widths[0] == 8
    search = MarginSearch(additive(lost), 1.0, 0.1, "x")
    layers, joint = search.search(groups, jointly=False)
    assert [layer.width for layer in layers] == [1, 1] and joint is None
    assert search.search(groups[:1], jointly=True)[1] is None
