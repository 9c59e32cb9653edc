"""What a report is made from: names, units before and after, how the network was slimmed."""

from dataclasses import replace

import pytest

from tests.plots.usages import layer, model
from tests.report.cases import round_of, variant, verdict
from wua_mlflow.config import load_settings
from wua_mlflow.report.build import report_of, title_of
from wua_mlflow.results import Slimmed
from wua_mlflow.widths.results import LayerChange

ORIGINAL = variant("oversized 10", (10,), layer_units={"fc1": 10, "fc2": 1},
                   metrics={"latency/p50_ms": -1.0, "params/total": 41.0})
SLIM = variant("slim 7", (7,), layer_units={"fc1": 7, "fc2": 1},
               settings=load_settings(None, {"epochs": 60, "hidden": "7"}))
ROUND = replace(round_of("slim 7", (7,), verdict(), 1.4), variant=SLIM)


def test_of_a_network_that_was_rebuilt():
    """Latencies are those of the comparison's turns."""
    for data, title in (("usecase", "usecase"), ("/some/where/rows.v2.csv", "rows.v2"),
                        ("mine.data:load", "mine.data:load")):
        assert title_of(load_settings(None, {"data": data}), (10,), (7,)) == f"{title} 10 → 7"
    control = variant("oversized-same-budget 10", (10,))
    timed = replace(ROUND.comparison, timed={ORIGINAL.run_id: {"latency/p50_ms": 2.5}})
    report = report_of(Slimmed(ORIGINAL, (replace(ROUND, controls=(control,), comparison=timed),)))
    assert report.names == ["oversized 10", "oversized-same-budget 10", "slim 7"]
    assert report.metrics[0] == {"latency/p50_ms": 2.5, "params/total": 41.0}
    assert report.slimmed_by == (
        "Rebuilt: `mlp` with the new widths, trained from scratch for 60 epochs (60 updates); the "
        "original for 50 epochs (50 updates).")
    assert report.measured_on == "a CPU (1 thread)"


def test_units_are_those_analysed_where_both_networks_were():
    usages = {"oversized 10": model([layer("fc1")])}
    changes = [LayerChange("fc1", 10, 7), LayerChange("fc2", 1, 1)]
    assert report_of(Slimmed(ORIGINAL, (ROUND,), usages)).layers == changes
    usages["slim 7"] = usages["oversized 10"]
    assert report_of(Slimmed(ORIGINAL, (ROUND,), usages)).layers == [LayerChange("fc1", 10, 10)]


@pytest.mark.parametrize(("folded", "phrases"), [
    ("true", ["and the weights that read them were fitted by least squares to make up for",
              "equal those of the uncut network, fitted likewise, with the removed units masked"]),
    ("false, chosen", ["|mean of activation × gradient|). The cut was verified",
                       "equal those of the original with the removed units masked",
                       "a network with that fit was fine-tuned too, and was not better on"]),
])
def test_of_a_network_that_was_cut(folded, phrases):
    slim = replace(SLIM, tags={**SLIM.tags, "wua.structure": "cut", "wua.folded": folded},
                   settings=load_settings(None, {"epochs": 60, "distill": True}))
    words = report_of(Slimmed(ORIGINAL, (replace(ROUND, variant=slim),))).slimmed_by
    assert words.startswith("Cut from oversized 10: in every group of units those were kept")
    assert "Then fine-tuned for 10 epochs (10 updates), aimed at the original's outputs" in words
    assert not [phrase for phrase in phrases if phrase not in words]
