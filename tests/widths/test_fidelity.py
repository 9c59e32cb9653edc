"""Fidelity of importances, against units deleted by hand, NumPy's ranks and all orders."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import kept_streams, snapshot
from tests.widths.network_cases import trained, without
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.rng import Purpose, numpy_generator
from wua_mlflow.widths import fidelity as fidelity_module
from wua_mlflow.widths.fidelity import Fidelity, GroupFidelity, fidelity


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        torch.manual_seed(0)
        yield


def loss_of(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1]).item()


def by_deleting(model, data, index, units):
    return [loss_of(without(model, {index: [unit]}), data) - loss_of(model, data)
            for unit in range(units)]


def ranks(values):
    """How many are smaller, and half of those that are equal; rounding of losses is let go."""
    values = np.round(np.asarray(values, dtype=np.float64), 7)
    return ((values[:, None] > values) + (values[:, None] == values) / 2).sum(1)


def correlation(left, right):
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def judged(model, data, importances, **options):
    return fidelity(model, data, unit_groups(model, data[0][:2]), importances, **options)


def test_exact_changes_are_those_of_units_deleted_by_hand():
    model, data = trained(8, 6)
    found = judged(model, data, {}, halves=1, orders=0)
    assert [group.name for group in found.groups] == ["0", "2"]
    for group, index in zip(found.groups, (0, 2), strict=True):
        assert group.changes == pytest.approx(by_deleting(model, data, index, group.units),
                                              abs=1e-6)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_the_correlation_is_spearmans(criterion):
    model, data = trained(9, 7)
    structure = unit_groups(model, data[0][:2])
    importance = unit_importance(model, structure, data, nn.functional.cross_entropy,
                                 criterion=criterion)
    found = judged(model, data, {criterion: importance}, halves=1, orders=0)
    by_hand = []
    for group, index in zip(found.groups, (0, 2), strict=True):
        exact = by_deleting(model, data, index, group.units)
        by_hand.append(correlation(importance[group.name].numpy(), exact))
        assert group.spearman[criterion] == pytest.approx(by_hand[-1], abs=1e-9)
    assert found.spearman[criterion] == pytest.approx((9 * by_hand[0] + 7 * by_hand[1]) / 16)
    assert found.metrics()[f"fidelity/{criterion}"] == found.spearman[criterion]


def test_reliability_is_the_correlation_of_halves():
    model, data = trained(9)
    found = judged(model, data, {}, halves=3, orders=0, seed=5)
    draw = numpy_generator(5, Purpose.RESAMPLING)
    by_hand = []
    for _ in range(3):
        order = torch.from_numpy(draw.permutation(len(data[0])))
        left, right = order[:60], order[60:]
        by_hand.append(correlation(
            by_deleting(model, (data[0][left], data[1][left]), 0, 9),
            by_deleting(model, (data[0][right], data[1][right]), 0, 9)))
    assert found.reliability == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert found.reliability_of_whole == pytest.approx(
        2 * np.mean(by_hand) / (1 + np.mean(by_hand)))
    assert found.metrics() == {"fidelity/reliability": found.reliability}


def area_by_hand(model, data, order):
    """The mean loss with one, two, … of the first units of an order gone, but not all."""
    return float(np.mean([loss_of(without(model, {0: list(order[:count])}), data)
                          for count in range(1, len(order))]))


def greedy_by_hand(model, data, units):
    gone = []
    while len(gone) < units - 1:
        left = [unit for unit in range(units) if unit not in gone]
        gone.append(min(left, key=lambda unit: loss_of(without(model, {0: [*gone, unit]}), data)))
    return gone + [unit for unit in range(units) if unit not in gone]


def test_the_area_between_random_and_greedy():
    model, data = trained(5)
    importance = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4])
    order = importance.argsort().tolist()
    best = greedy_by_hand(model, data, 5)
    draw = numpy_generator(2, Purpose.RESAMPLING)
    draw.permutation(len(data[0]))  # the one division in halves
    chance = np.mean([area_by_hand(model, data, draw.permutation(5).tolist()) for _ in range(4)])
    greedy = area_by_hand(model, data, best)
    places = torch.empty(5)
    places[best] = torch.arange(5.0)
    found = judged(model, data, {"own": {"0": importance}, "greedy": {"0": places}}, halves=1,
                   orders=4, seed=2)
    assert found.area["own"] == pytest.approx(
        (area_by_hand(model, data, order) - chance) / (greedy - chance), abs=1e-4)
    assert found.area["greedy"] == pytest.approx(1.0)


def test_random_orders_lie_around_zero():
    model, data = trained(4)
    every = list(itertools.permutations(range(4)))
    chance = np.mean([area_by_hand(model, data, list(order)) for order in every])
    greedy = area_by_hand(model, data, greedy_by_hand(model, data, 4))
    importances = {str(i): {"0": torch.tensor(order).argsort().double()}
                   for i, order in enumerate(every)}
    found = judged(model, data, importances, halves=1, orders=100)
    assert np.mean(list(found.area.values())) == pytest.approx(0.0, abs=0.1)
    exact = [(area_by_hand(model, data, list(order)) - chance) / (greedy - chance)
             for order in every]
    assert list(found.area.values()) == pytest.approx(exact, abs=0.25)


def test_large_groups_are_removed_several_at_a_time(monkeypatch):
    monkeypatch.setattr(fidelity_module, "MAX_POINTS", 3)
    model, data = trained(9)
    importance = torch.arange(9.0)
    places = torch.empty(9)

    def area(order):
        return np.mean([loss_of(without(model, {0: list(order[:count])}), data)
                        for count in (1, 4, 8)])

    removed = []
    for count in (1, 4, 8):
        costs = {unit: loss_of(without(model, {0: [*removed, unit]}), data)
                 for unit in range(9) if unit not in removed}
        removed += sorted(costs, key=costs.get)[:count - len(removed)]
    draw = numpy_generator(2, Purpose.RESAMPLING)
    draw.permutation(len(data[0]))
    chance = np.mean([area(draw.permutation(9).tolist()) for _ in range(2)])
    places[[*removed, *set(range(9)) - set(removed)]] = torch.arange(9.0)
    found = judged(model, data, {"own": {"0": importance}, "greedy": {"0": places}}, halves=1,
                   orders=2, seed=2)
    assert found.area["own"] == pytest.approx(
        (area(range(9)) - chance) / (area(removed) - chance), abs=1e-4)
    assert found.area["greedy"] == pytest.approx(1.0)


def group(units, *, spearman=math.nan, reliability=math.nan):
    return GroupFidelity("a", units, (0.0,) * units, {"own": spearman}, reliability, {})


def test_means_leave_out_what_cannot_be_told():
    found = Fidelity((group(2), group(10, spearman=0.5, reliability=0.4),
                      group(30, spearman=0.9, reliability=0.8)))
    assert found.spearman == {"own": pytest.approx((10 * 0.5 + 30 * 0.9) / 40)}
    assert found.reliability == pytest.approx((10 * 0.4 + 30 * 0.8) / 40)
    assert math.isnan(found.area["own"])
    nothing = Fidelity((group(2),))
    assert math.isnan(nothing.spearman["own"]) and nothing.metrics() == {}
    assert math.isnan(nothing.reliability_of_whole)


def test_importances_that_are_all_alike_tell_nothing():
    model, data = trained(6)
    found = judged(model, data, {"same": {"0": torch.ones(6)}}, halves=1, orders=0)
    assert math.isnan(found.spearman["same"])
    assert found.metrics().keys() == {"fidelity/reliability"}


def test_model_and_streams_are_left_alone():
    model, data = trained(6, 5)
    model.train()
    before = snapshot(model)
    judged(model, data, {"own": {"0": torch.arange(6), "2": torch.arange(5)}}, halves=2, orders=2)
    assert snapshot(model) == before


@pytest.mark.parametrize(("importances", "options", "message"), [
    ({"own": {}}, {}, "importances: expected one of every group, but own lacks 0"),
    ({"own": {"0": torch.ones(5)}}, {}, r"importances: expected 6 finite numbers for 0, but own "
                                        r"gave shape \(5,\)"),
    ({"own": {"0": torch.full((6,), torch.nan)}}, {}, "but own gave NaN or infinity"),
    ({}, {"halves": 0}, "halves: expected a whole number of at least 1, but got 0"),
    ({}, {"orders": -1}, "orders: expected a whole number of at least 0, but got -1"),
    ({}, {"halves": True}, "halves: expected a whole number of at least 1, but got True"),
    ({}, {"seed": -1}, "seed: expected a whole number"),
])
def test_what_is_wrong_in_one_line(importances, options, message):
    model, data = trained(6, steps=1)
    with pytest.raises(ValueError, match=message) as raised:
        judged(model, data, importances, **options)
    assert "\n" not in str(raised.value)
