"""How concentrated the original's importance is: a description, and no more than was seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.plots.usages import layer, model
from wua_mlflow.report.content import Bullets, Report, Table
from wua_mlflow.report.sections import CAUTION, _permuted_layers, usage_section
from wua_mlflow.results import Comparison
from wua_mlflow.usage.results import PERMUTED
from wua_mlflow.verdict.compare import compare

NULL = (0.6, 0.7)


def _section(*layers, slim=None):
    verdict = compare(np.ones(400), np.ones(400), margin=0.02)
    usages = {"old": model(list(layers))} | ({"new": model(list(slim))} if slim else {})
    return usage_section(Report("t", ["old", "new"], [{}, {}],
                                Comparison(verdict, None, None, None, 1, {}), usages=usages))


def _points(section):
    return next(one for one in section.blocks if isinstance(one, Bullets)).points


def _of(name, share, *, null=NULL, dead=0):
    return layer(name, share, null, dead_units=dead)


def test_layers_below_the_nulls_range_the_most_concentrated_first():
    said, dead, caution = _points(_section(_of("a", 0.55), _of("b", 0.3, dead=2), _of("c", 0.65)))
    assert said == (
        "By the criterion output, importance is more concentrated than in networks that learned "
        "nothing in b (30% of its weights are effective; 60% to 70% in networks that learned "
        "nothing) and a (55% of its weights are effective; 60% to 70% in networks that learned "
        "nothing).")
    assert "b (2 of 10)" in dead
    assert caution == CAUTION


def test_layers_that_could_not_be_reinitialised_are_named():
    layers = [_of("a", 0.65), _of("b", 0.65), _of("c", 0.65, null=None)]
    layers[1] = replace(layers[1], null=replace(layers[1].null, kind=PERMUTED))
    section = _section(*layers)
    assert _points(section)[1] == (
        "Compared with their own weights in another order, since they could not be "
        "re-initialised: b.")
    assert not any("Not compared" in point for point in _points(section))
    usage = replace(model(layers), null=layers[0].null)
    assert _permuted_layers(usage)[1] == (
        "Not compared with networks that learned nothing, since they could not be "
        "re-initialised: c.")


def test_no_layer_below_it():
    assert _points(_section(_of("a", 0.65), _of("b", 0.8)))[0] == (
        "By the criterion output, importance is nowhere more concentrated than in networks that "
        "learned nothing: all 2 layers lie within their range or above it.")


def test_without_a_null():
    assert _points(_section(_of("a", 0.65, null=None), _of("b", 0.4, null=None)))[0] == (
        "By the criterion output, importance is most concentrated in b: 40% of its weights are "
        "effective. It was not compared with networks that learned nothing.")


def test_the_table_has_the_slim_ones_share_beside_it():
    section = _section(_of("a", 0.55), slim=[_of("a", 0.8)])
    table = next(one for one in section.blocks if isinstance(one, Table))
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert (row["layer"], row["effective share"], row["slim: effective share"]) == (
        "a", "55.0%", "80.0%")
    assert row["learned nothing"] == "60.0% to 70.0%"


def test_many_layers_are_counted_not_listed():
    said = _points(_section(*(_of(f"l{i}", 0.1) for i in range(9))))[0]
    assert said.endswith(" and 4 more.")


def test_what_was_not_analysed_has_no_section():
    verdict = compare(np.ones(400), np.ones(400), margin=0.02)
    report = Report("t", ["old", "new"], [{}, {}], Comparison(verdict, None, None, None, 1, {}))
    assert usage_section(report) is None
