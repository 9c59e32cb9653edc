"""What a pipeline found: the widths as JSON and back, names of metrics, the order of variants."""

import json
from dataclasses import replace

from tests.report.cases import round_of, variant, verdict, widths_of_a_search
from wua_mlflow.results import Slimmed, TargetWidths, WidthParameter
from wua_mlflow.tracking.log import verdict_metrics


def test_widths_come_back_from_the_artifact():
    widths = widths_of_a_search()
    assert TargetWidths.from_json(widths.to_json()) == widths
    given = replace(widths, method="given", recommendation=None, searched=None)
    assert TargetWidths.from_json(given.to_json()) == given
    assert given.keep == {"fc1": 16}
    # as the first version wrote it, with fewer entries
    record = json.loads(widths_of_a_search().to_json())
    del record["widths"][0]["layers"], record["recommendation"]["joint"]
    record["search"]["rule"] = "non_inferior"
    for trial, outcome in zip(record["search"]["trials"], ("original", "non_inferior", "inferior"),
                              strict=True):
        trial["outcome"] = outcome
        del trial["seeds"]
    widths = TargetWidths.from_json(json.dumps(record))
    assert widths.dimensions[0].layers == ()
    assert widths.searched.trials == widths_of_a_search().searched.trials


def test_widths_of_several_groups_each_come_back_too():
    blocks = WidthParameter("h.*.up", 256, ("h.0.up", "h.1.up"), ("h.0.up", "h.1.up"), 8)
    widths = replace(widths_of_a_search(), dimensions=(blocks, WidthParameter("out", 16, ("out",))),
                     widths=(72, 9))
    assert TargetWidths.from_json(widths.to_json()) == widths
    assert widths.keep == {"h.0.up": 72, "h.1.up": 72, "out": 9}
    assert widths.total == (2 * 256 + 16, 2 * 72 + 9)
    assert widths.rounding == "Widths above 64 units were rounded up to multiples of 8."
    for other in (replace(widths, method="given"), replace(widths, widths=(64, 9)),
                  replace(widths, widths=(256, 9)),
                  replace(widths, dimensions=(replace(blocks, multiple_of=1),
                                              widths.dimensions[1]))):
        assert other.rounding == ""


def test_metrics_of_a_verdict_and_the_result_which_is_the_last_good_round_and_comes_last():
    """A control that two rounds share is there once."""
    for kind in ("artifact", "recipe"):
        judged = verdict(kind=kind, delta=-0.01, low=-0.015, high=0.002)
        assert verdict_metrics(judged) == {
            f"compare/{kind}_delta": -0.01, f"compare/{kind}_delta_low": -0.015,
            f"compare/{kind}_delta_high": 0.002, "compare/margin": 0.02}
    control = variant("oversized-same-budget 10", (10,))
    outcomes = ("non_inferior", "non_inferior", "inferior")
    rounds = tuple(
        replace(round_of(f"slim-{i}", (9 - i,), verdict(outcome), 2.0), controls=(control,))
        for i, outcome in enumerate(outcomes))
    slimmed = Slimmed(variant("oversized 10", (10,)), rounds)
    assert slimmed.result is rounds[1]
    assert [each.name for each in slimmed.variants] == [
        "oversized 10", "oversized-same-budget 10", "slim-0", "slim-2", "slim-1"]
    assert replace(slimmed, rounds=rounds[2:]).result is rounds[2]
    assert replace(slimmed, rounds=()).variants == (slimmed.original,)
