"""The smallest width within a margin, against every width tried."""

from __future__ import annotations

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
        (name, width), = widths.items()
        tried.append(width)
        return float(scores[width - 1])

    search = MarginSearch(probe, float(scores[-1]), margin, "accuracy")
    (found,), joint = search.search([group("a", len(scores))], jointly=True)
    assert joint is None
    assert len(tried) == len(set(tried))
    assert set(found.curve.widths) == {*tried, len(scores)}
    return found


@pytest.mark.parametrize("units", [1, 2, 3, 15, 16, 17, 64, 257])
@pytest.mark.parametrize("seed", range(4))
def test_of_a_rising_score_the_smallest_of_all(units, seed):
    scores = np.sort(np.random.default_rng(seed).random(units))
    exact = 1 + int(np.flatnonzero(scores >= scores[-1] - 0.1)[0])
    assert alone(scores).width == exact


@pytest.mark.parametrize("seed", range(20))
def test_of_up_to_16_units_each_is_tried_and_the_rule_is_exact(seed):
    scores = np.random.default_rng(seed).random(GRID_SIZE) * 0.15
    within = scores >= scores[-1] - 0.1
    exact = next(k for k in range(1, 17) if within[k - 1:].all())
    found = alone(scores)
    assert found.curve.widths == tuple(range(1, 17))
    assert found.width == exact


@pytest.mark.parametrize("seed", range(20))
def test_of_a_score_that_goes_up_and_down_all_larger_that_were_tried_are_within(seed):
    scores = np.random.default_rng(seed).random(100) * 0.15
    found = alone(scores)
    tried = dict(zip(found.curve.widths, found.curve.scores, strict=True))
    assert all(tried[k] >= found.curve.threshold for k in tried if k >= found.width)
    if found.width > 1:  # the next smaller one was tried, and is not
        assert tried[found.width - 1] < found.curve.threshold
    assert found.curve.scores == tuple(scores[k - 1] for k in found.curve.widths)
    assert len(tried) <= GRID_SIZE + math.ceil(math.log2(100))


def test_a_margin_is_met_exactly_in_spite_of_rounding():
    assert 19 / 40 < 21 / 40 - 0.05  # by rounding alone
    assert alone([19 / 40, 21 / 40], margin=0.05).width == 1
    assert alone([18 / 40, 21 / 40], margin=0.05).width == 2


def test_a_baseline_is_its_own_when_nothing_may_be_lost():
    assert alone([0.1, 0.5, 0.9, 0.9], margin=0.0).width == 3


def test_the_way_from_all_units_to_what_each_keeps_alone():
    ways = width_path(
        {"a": 4, "b": 2, "c": 3}, [group("a", 16), group("b", 32), group("c", 3)]
    )
    assert ways[0] == {"a": 4, "b": 2, "c": 3}
    assert ways[-1] == {"a": 16, "b": 32, "c": 3}
    for narrow, wide in zip(ways, ways[1:], strict=False):
        assert all(narrow[name] <= wide[name] for name in wide) and narrow != wide
    for way in ways:  # 16 to 4 is two halvings, 32 to 2 four: b goes twice as fast
        low, high = math.log2(16 / way["a"]) / 2, math.log2(32 / way["b"]) / 4
        step = max(math.log2(way["a"] / max(4, way["a"] - 1)) / 2,
                   math.log2(way["b"] / max(2, way["b"] - 1)) / 4)
        assert abs(low - high) <= step + 1e-12
    assert {"a": 8, "b": 8, "c": 3} in ways


def test_the_way_of_groups_that_cannot_shrink():
    assert width_path({"a": 2}, [group("a", 2)]) == [{"a": 2}]


def additive(lost):
    """A probe whose losses add up: ``lost[name](width)``."""
    return lambda widths: 1.0 - sum(lost[name](width) for name, width in widths.items())


def test_together_the_losses_add_up():
    spans = [group("a", 64, ("a", "norm")), group("b", 64)]
    lost = {"a": lambda k: 0.9 * (1 - k / 64) ** 2, "b": lambda k: 0.3 * (1 - k / 64) ** 2}
    descent = MarginSearch(additive(lost), 1.0, 0.1, "accuracy")
    layers, joint = descent.search(spans, jointly=True)
    by_hand = [next(k for k in range(1, 65) if lost[name](k) <= 0.1) for name in "ab"]
    assert [one.alone for one in layers] == by_hand
    widths = {one.layer: one.width for one in layers}
    assert additive(lost)(widths) >= 0.9 > additive(lost)(dict(zip("ab", by_hand, strict=True)))
    ways = width_path(dict(zip("ab", by_hand, strict=True)), spans)
    best = next(way for way in ways if additive(lost)(way) >= 0.9)
    assert widths == best
    assert joint.widths[-1] == 128 and joint.scores[-1] == 1.0
    assert layers[0].layers == ("a", "norm")


def test_together_they_are_what_they_are_alone_where_nothing_adds_up():
    lost = {"a": lambda k: 0.2 * (k < 3), "b": lambda k: 0.2 * (k < 5)}
    layers, joint = MarginSearch(additive(lost), 1.0, 0.1, "x").search(
        [group("a", 8), group("b", 8)], jointly=True)
    assert [(one.alone, one.width) for one in layers] == [(3, 3), (5, 5)]
    assert joint.widths[0] == 8


def test_alone_where_it_is_asked_for_or_there_is_one_group():
    lost = {"a": lambda k: 0.06 * (k < 3), "b": lambda k: 0.06 * (k < 5)}
    descent = MarginSearch(additive(lost), 1.0, 0.1, "x")
    layers, joint = descent.search([group("a", 8), group("b", 8)], jointly=False)
    assert [one.width for one in layers] == [1, 1] and joint is None
    assert descent.search([group("a", 8)], jointly=True)[1] is None
