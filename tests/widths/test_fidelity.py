"""Fidelity of importances, against units deleted by hand, NumPy's ranks and orders by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.networks import snapshot
from tests.pruning.cutting_cases import Stream
from tests.widths.network_cases import trained, without
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.rng import Purpose, numpy_generator
from wua_mlflow.widths import fidelity as fidelity_module
from wua_mlflow.widths.fidelity import Fidelity, GroupFidelity, fidelity

STRUCTURES = {}


def loss_of(model, data, removed=()):
    """The loss, with units of the first layer removed."""
    return nn.functional.cross_entropy(without(model, {0: list(removed)})(data[0]), data[1]).item()


def by_deleting(model, data, index, units):
    whole = loss_of(model, data)
    return [loss_of(without(model, {index: [unit]}), data) - whole for unit in range(units)]


def ranks(values):
    """How many are smaller, and half of those that are equal; rounding of losses is let go."""
    values = np.round(np.asarray(values, dtype=np.float64), 7)
    return ((values[:, None] > values) + (values[:, None] == values) / 2).sum(1)


def correlation(left, right):
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def judged(model, data, importances, **options):
    if str(model) not in STRUCTURES:  # the same for networks of the same layers
        STRUCTURES[str(model)] = unit_groups(model, data[0][:2])
    options = {"halves": 1, "orders": 0, **options}
    return fidelity(model, data, STRUCTURES[str(model)], importances, **options)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_exact_changes_by_hand_and_spearmans_correlation(criterion):
    model, data = trained(9, 7)
    structure = unit_groups(model, data[0][:2])
    importance = unit_importance(model, structure, data, nn.functional.cross_entropy,
                                 criterion=criterion)
    result, by_hand = judged(model, data, {criterion: importance}), []
    assert [group.name for group in result.groups] == ["0", "2"]
    for group, index in zip(result.groups, (0, 2), strict=True):
        exact = by_deleting(model, data, index, group.units)
        assert group.changes == pytest.approx(exact, abs=1e-6)
        by_hand.append(correlation(importance[group.name].numpy(), exact))
        assert group.spearman[criterion] == pytest.approx(by_hand[-1], abs=1e-9)
    assert result.spearman[criterion] == pytest.approx((9 * by_hand[0] + 7 * by_hand[1]) / 16)
    assert result.metrics()[f"fidelity/{criterion}"] == result.spearman[criterion]


def test_reliability_is_the_correlation_of_halves():
    model, data = trained(10)
    same = {"same": {"0": torch.ones(10)}}  # importances that are all alike tell nothing
    result = judged(model, data, same, halves=3, seed=5)
    draw, by_hand = numpy_generator(5, Purpose.RESAMPLING), []
    for _ in range(3):
        order = torch.from_numpy(draw.permutation(len(data[0])))
        by_hand.append(correlation(*(by_deleting(model, (data[0][half], data[1][half]), 0, 10)
                                     for half in (order[:60], order[60:]))))
    mean = np.mean(by_hand)
    assert result.reliability == pytest.approx(mean, abs=1e-9)
    assert result.reliability_of_whole == pytest.approx(2 * mean / (1 + mean))
    assert result.metrics() == {"fidelity/reliability": result.reliability}
    assert math.isnan(result.spearman["same"])


@pytest.mark.parametrize("points", [(1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 5, 9)], ids=["each", "three"])
def test_the_area_between_random_and_greedy(points, monkeypatch):
    """Of large groups several units are removed at a time."""
    monkeypatch.setattr(fidelity_module, "MAX_POINTS", len(points))
    model, data = trained(10)
    importance = torch.tensor([0.3, 0.1, 0.5, 0.9, 0.2, 0.4, 0.8, 0.6, 0.0, 0.7])

    def area(order):
        return np.mean([loss_of(model, data, order[:count]) for count in points])

    removed = []
    for count in points:
        costs = {unit: loss_of(model, data, [*removed, unit])
                 for unit in range(10) if unit not in removed}
        removed += sorted(costs, key=costs.get)[:count - len(removed)]
    draw = numpy_generator(2, Purpose.RESAMPLING)
    draw.permutation(len(data[0]))  # the one division in halves
    chance = np.mean([area(draw.permutation(10).tolist()) for _ in range(3)])
    places = torch.empty(10)
    places[[*removed, *set(range(10)) - set(removed)]] = torch.arange(10.0)
    result = judged(model, data, {"own": {"0": importance}, "greedy": {"0": places}}, orders=3,
                    seed=2)
    assert result.area["own"] == pytest.approx(
        (area(importance.argsort().tolist()) - chance) / (area(removed) - chance), abs=1e-4)
    assert result.area["greedy"] == pytest.approx(1.0)


def group(units, *, spearman=math.nan, reliability=math.nan):
    return GroupFidelity("a", units, (0.0,) * units, {"own": spearman}, reliability, {})


def test_means_leave_out_what_cannot_be_told():
    result = Fidelity((group(2), group(10, spearman=0.5, reliability=0.4),
                       group(30, spearman=0.9, reliability=0.8)))
    assert result.spearman == {"own": pytest.approx((10 * 0.5 + 30 * 0.9) / 40)}
    assert result.reliability == pytest.approx((10 * 0.4 + 30 * 0.8) / 40)
    assert math.isnan(result.area["own"])
    nothing = Fidelity((group(2),))
    assert math.isnan(nothing.spearman["own"]) and nothing.metrics() == {}
    assert math.isnan(nothing.reliability_of_whole)


def test_model_and_streams_are_left_alone():
    model, data = trained(9, 7)
    model.train()
    before = snapshot(model)
    data = data[0][:9], data[1][:9]
    judged(model, data, {"own": {"0": torch.arange(9), "2": torch.arange(7)}}, orders=1)
    assert snapshot(model) == before


@pytest.mark.parametrize(("importances", "options", "message"), [
    ({"own": {}}, {}, "importances: expected one of every group, but own lacks 0"),
    ({"own": {"0": torch.ones(5)}}, {}, r"importances: expected 10 finite numbers for 0, but own "
                                        r"gave shape \(5,\)"),
    ({"own": {"0": torch.full((10,), torch.nan)}}, {}, "but own gave NaN or infinity"),
    ({}, {"halves": 0}, "halves: expected a whole number of at least 1, but got 0"),
    ({}, {"orders": -1}, "orders: expected a whole number of at least 0, but got -1"),
    ({}, {"halves": True}, "halves: expected a whole number of at least 1, but got True"),
    ({}, {"seed": -1}, "seed: expected a whole number")])
def test_what_is_wrong_in_one_line(importances, options, message):
    model, data = trained(10)
    with pytest.raises(ValueError, match=message) as raised:
        judged(model, data, importances, **options)
    assert "\n" not in str(raised.value)


def test_without_a_unit_of_the_models_width_the_norms_go_over_the_others():
    """The exact changes are those of networks that are really cut."""
    torch.manual_seed(0)
    model, x, y = Stream(5, 6).eval(), torch.randn(30, 4), torch.randint(3, (30,))
    structure = unit_groups(model, x[:2], ("units", "stream"))
    importances = {"magnitude": unit_importance(model, structure, criterion="magnitude")}
    result = fidelity(model, [(x[:20], y[:20]), (x[20:], y[20:])], structure, importances,
                      task="multiclass", halves=1, orders=2)
    assert [group.name for group in structure.groups] == ["stem", "blocks.0.1", "blocks.1.1"]
    for group, found in zip(structure.groups, result.groups, strict=True):
        losses = [nn.functional.cross_entropy(
            cut(model, x[:4], {group.name: group.others([unit])}, structure).model(x), y).item()
            for unit in range(group.units)]
        whole = nn.functional.cross_entropy(model(x), y).item()
        assert found.changes == pytest.approx([loss - whole for loss in losses], abs=1e-5)
        assert found.area.keys() == {"magnitude"}
