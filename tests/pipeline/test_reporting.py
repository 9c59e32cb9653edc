"""What the report is made from: names, units before and after, how it was slimmed, the widths."""

from __future__ import annotations

import json

import pytest

from tests.pipeline.conftest import Finished
from wua_mlflow.config import load_settings
from wua_mlflow.plots.widths import LayerChange
from wua_mlflow.report.build import (
    ReportInputs,
    layer_changes,
    report_of,
    slimming_words,
    title_of,
    widths_found,
)

pytestmark = pytest.mark.xdist_group("usecase")


@pytest.mark.parametrize(("data", "title"), [
    ("usecase", "usecase 10 → 7"), ("/some/where/rows.v2.csv", "rows.v2 10 → 7"),
    ("mine.data:load", "mine.data:load 10 → 7")])
def test_the_title(data: str, title: str) -> None:
    assert title_of(load_settings(None, {"data": data}), (10,), (7,)) == title


def test_of_a_network_that_was_rebuilt(usecase: Finished) -> None:
    original, *_, slim = usecase.outcome.variants
    report = report_of((original, slim), usecase.outcome.comparison, ReportInputs())
    assert report.names == ["oversized 10", "slim 7"]
    assert report.title == "usecase 10 → 7"
    assert report.layers == [LayerChange("fc1", 10, 7), LayerChange("fc2", 1, 1)]
    assert report.slimmed_by == (
        "Rebuilt: `mlp` with the new widths, trained from scratch for 60 epochs (60 updates); the "
        "original for 50 epochs (50 updates).")
    assert report.measured_on == "a CPU (1 thread)"
    assert slimming_words(original, slim, original) == report.slimmed_by


def test_latencies_are_those_of_the_comparisons_turns(usecase: Finished) -> None:
    original, *_, slim = usecase.outcome.variants
    comparison = usecase.outcome.comparison
    kept = dict(original.metrics)
    original.metrics["latency/p50_ms"] = -1.0
    try:
        report = report_of((original, slim), comparison, ReportInputs())
    finally:
        original.metrics.update(kept)
    timed = comparison.timed[original.run_id]["latency/p50_ms"]
    assert report.metrics[0]["latency/p50_ms"] == timed > 0


def test_units_as_analysed_where_both_were(usecase: Finished) -> None:
    original, *_, slim = usecase.outcome.variants
    usages = {one.name: usage for one, usage in zip(
        (original, slim), [usecase.outcome.report.usages[name]
                           for name in (original.name, slim.name)], strict=True)}
    assert layer_changes(original, slim, usages) == [LayerChange("fc1", 10, 7)]


def test_widths_from_the_artifact() -> None:
    curve = {"widths": [2, 8], "scores": [0.8, 0.9], "baseline": 0.9, "threshold": 0.88,
             "axis": "accuracy"}
    bad = {**curve, "scores": [0.8, float("nan")]}
    layers = [{"layer": name, "units": 8, "width": 4, "alone": 3, "layers": [name], "curve": one}
              for name, one in (("fc1", curve), ("fc2", bad))]
    text = json.dumps({
        "method": "search", "widths": [{"name": "fc1", "layers": ["fc1"], "units": 8, "width": 2}],
        "recommendation": {"method": "rank", "layers": layers, "skipped": {"fc3": "why"},
                           "note": "of rank"},
        "search": {"note": "of search", "trials": [
            {"widths": [8], "cost": 10, "score": 0.9, "delta": 0, "low": 0, "high": 0,
             "outcome": "original"}]}})
    found = widths_found(text)
    assert (found.method, found.start) == ("search", "rank")
    assert found.chosen == [LayerChange("fc1", 8, 2)]
    assert [(one.layer, one.width, one.alone) for one in found.curves] == [("fc1", 4, 3)]
    assert [one.widths for one in found.trials] == [(8,)]
    assert found.skipped == {"fc3": "why"}
    assert found.notes == ["of rank", "of search"]
