"""How concentrated the original's importance is: a description, and no more than was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.plots.usages import layer, model
from tests.report.cases import report_with, round_of, verdict
from wua_mlflow.report.content import Bullets, Table, Text
from wua_mlflow.report.sections import CAUTION, sections, usage_blocks
from wua_mlflow.usage.results import PERMUTED, LayerUsage

NULL = (0.6, 0.7)
BY = "By the criterion output, importance is "
RANGE = "60% to 70% in networks that learned nothing"


def _of(name: str, share: float, **options: object) -> LayerUsage:
    return layer(name, share, **{"null": NULL, "dead_units": 0, **options})  # type: ignore[arg-type]


def _permuted(name: str) -> LayerUsage:
    usage = _of(name, 0.65)
    return replace(usage, null=replace(usage.null, kind=PERMUTED))


def _blocks(original, slim=None):
    usages = {"old": original} | ({"new": slim} if slim else {})
    return usage_blocks(replace(report_with({}), usages=usages))


def _block(blocks, kind):
    (block,) = [block for block in blocks if isinstance(block, kind)]
    return block


@pytest.mark.parametrize(("layers", "points"), [
    ([_of("a", 0.55), _of("b", 0.3, dead_units=2), _of("c", 0.65)],
     [f"{BY}more concentrated than in networks that learned nothing in b (30% of its weights are "
      f"effective; {RANGE}) and a (55% of its weights are effective; {RANGE}).",
      "Dead units, zero on all of these data or never above zero before a ReLU: b (2 of 10). "
      "Other data may still activate them."]),
    ([_of("a", 0.65), _permuted("b"), _of("c", 0.65, null=None)],
     [f"{BY}nowhere more concentrated than in networks that learned nothing: all 2 layers lie "
      "within their range or above it.",
      "Compared with their own weights in another order, since they could not be re-initialised: "
      "b."]),
    ([_of("a", 0.65, null=None), _of("b", 0.4, null=None)],
     [f"{BY}most concentrated in b: 40% of its weights are effective. It was not compared with "
      "networks that learned nothing."]),
    ([_of("a", 0.0, null=None)], ["No importance at all: a."]),
])
def test_points(layers, points):
    assert _block(_blocks(model(layers)), Bullets).points == (*points, CAUTION)


def test_many_layers_are_counted_those_without_a_null_named_and_the_slim_ones_in_the_table():
    usage = replace(model([_of("a", 0.65), _of("c", 0.65, null=None)]), null=_of("a", 1).null)
    assert _block(_blocks(usage), Bullets).points[1] == (
        "Not compared with networks that learned nothing, since they could not be "
        "re-initialised: c.")
    blocks = _blocks(model([_of(f"l{i}", 0.55) for i in range(9)]), model([_of("l0", 0.8)]))
    assert _block(blocks, Bullets).points[0].endswith(" and 4 more.")
    table = _block(blocks, Table)
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["layer"], row["effective share"], row["slim: effective share"]) == (
        "l0", "55.0%", "80.0%")
    assert row["learned nothing"] == "60.0% to 70.0%"
    assert usage_blocks(report_with({})) == [], "of a model that was not analysed"


@pytest.mark.parametrize(("methods", "note"), [
    (("t", "t"), []), (("t", "Tango"), ["The verdicts do not compare, as their methods differ: t "
                                        "(slim 8); Tango (slim-2 6)."])])
def test_rounds_whose_verdicts_are_of_several_methods(methods, note):
    rounds = [round_of(name, (8,), verdict(method=method), 1.2)
              for name, method in zip(("slim 8", "slim-2 6"), methods, strict=True)]
    section = next(each for each in sections(replace(report_with({}), rounds=rounds))
                   if each.title == "Rounds")
    assert [block.words for block in section.blocks[1:] if isinstance(block, Text)] == note
