"""What is printed of a pipeline: the answer first, short; all else where it is asked for."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.report.cases import (
    NEW,
    OLD,
    SAVES,
    comparison,
    report_with,
    round_of,
    variant,
    verdict,
    widths_of_a_search,
)
from wua_mlflow.cli.commands import Shown
from wua_mlflow.report.answer import (
    answer_text,
    details_text,
    figures_text,
    next_step,
    tutorial_text,
    widths_sentence,
)
from wua_mlflow.results import ClassControl, Slimmed
from wua_mlflow.verdict.recipe import SeedCounts
from wua_mlflow.verdict.sample_size import RequiredRange

COSTS = ({"size/bytes": 9000.0, "latency/p50_ms": 2.0, "accuracy/test_mean": 0.91},
         {"size/bytes": 3000.0, "latency/p50_ms": 1.9, "accuracy/test_mean": 0.905})
RECIPE = verdict(kind="recipe", seeds=5, counts=SeedCounts(5, 5, 0, 0, 0.0, 0.5))
REPORT = replace(
    report_with(SAVES, looks=3), metrics=[{**OLD, **COSTS[0]}, {**NEW, **COSTS[1]}],
    widths=widths_of_a_search(),
    comparison=comparison(RECIPE, recipe=RECIPE, looks=3, ratios=SAVES, budget="All on budgets.",
                          latency_ratio=(1.05, 0.98, 1.12), equal_budget="Trained for longer.",
                          class_loss="One class loses."))


def words(text: str) -> str:
    """On one line, however it was broken."""
    return " ".join(text.split())


def test_the_verdict_comes_first_then_five_figures_then_what_they_rest_on():
    blocks = answer_text(REPORT).split("\n\n")
    assert [block.partition(" ")[0] for block in blocks] == ["Verdict:", "", "The"]
    assert words(blocks[0]) == f"Verdict: {REPORT.headline} In short: {words(REPORT.in_short)}"
    rows = {label: cells for label, *cells in (
        re.split(r"  +", line) for line in blocks[1].splitlines()[1:])}
    assert rows == {
        "accuracy, test, mean over seeds": ["0.9100", "0.9050", "−0.0050"],
        "FLOPs, one sample": ["60", "42", "1.43×"], "parameters": ["41", "29", "1.41×"],
        "bytes on disk": ["9,000", "3,000", "3.00×"],
        "latency, median at batch 1, ms": ["2.0000", "1.9000", "not measurably faster"]}
    assert max(map(len, answer_text(REPORT).splitlines())) <= 100
    for figure in ("0.9000", "0.8900", "0.9500", "0.9300"):
        assert figure in blocks[2], "the figures that differ are explained"
    for sentence in ("One class loses.", "64 → 16", "for 3 verdicts"):
        assert sentence in words(blocks[2])
    assert "All on budgets." not in answer_text(REPORT)


@pytest.mark.parametrize(("names", "head"), [
    (["old", "new"], ["old", "new"]),
    (["oversized " + "32-" * 20, "slim 7"], ["original", "slim"])])
def test_long_names_of_networks_do_not_widen_the_table(names, head):
    table = answer_text(replace(REPORT, names=names)).split("\n\n")[1]
    assert table.split()[:2] == head


def test_in_short_names_the_largest_saving_and_the_equal_budget():
    for ratios, saving in ((SAVES, "1.4× fewer FLOPs"),
                           ({**SAVES, "compare/params_ratio": 9.0}, "9.0× fewer parameters"),
                           ({}, "")):
        judged = replace(REPORT.comparison, ratios=ratios)
        short = replace(REPORT, comparison=judged).in_short
        assert (saving in short) and short.endswith("Trained for longer.")
        assert ("needs" in short) == bool(saving)


@pytest.mark.parametrize("outcome", ["", "non_inferior", "inconclusive", "inferior"])
def test_the_place_that_a_slim_one_takes_is_of_the_original_as_far_as_it_was_trained(outcome):
    faster = {**NEW, **COSTS[1], "latency/p50_ms": 1.0}
    judged = comparison(verdict(), ratios=SAVES, equal_budget_outcome=outcome,
                        constant="It answers 'no' to all.")
    short = replace(REPORT, comparison=judged, metrics=[{**OLD, **COSTS[0]}, faster]).in_short
    assert short.startswith("It answers 'no' to all. The slim model answers as well")
    assert ("take the original's place" in short) == (outcome in ("", "non_inferior"))
    assert ("the place of the original as it was trained" in short) == outcome.startswith("in")


def test_a_table_s_slim_model_is_asked_by_wua_predict():
    found = round_of("slim 7", (7,), verdict(), 1.4)
    settings = found.variant.settings.model_copy(update={"data": "rows.csv"})
    found = replace(found, variant=replace(found.variant, settings=settings))
    step = next_step(Slimmed(variant("oversized 10", (10,)), (found,)), str)
    assert step.startswith("Next: wua predict slim-7 NEW.csv --out answers.csv\n(the slim model's")
    assert "load_model" not in step


def test_another_reading_of_the_saved_models_is_told():
    told = "of the two saved models alone"
    assert told not in words(answer_text(REPORT))
    other = replace(REPORT.comparison, artifact=verdict("inconclusive"))
    assert f"{told} it is inconclusive" in words(answer_text(replace(REPORT, comparison=other)))


def test_scores_are_explained_by_what_there_is():
    single = replace(REPORT, comparison=comparison(verdict()))
    assert "0.9500 and 0.9300 on the training data" in words(answer_text(single))
    assert "of one seed" not in answer_text(single)
    counts = SeedCounts(5, 5, 1, 0, 0.0, 0.5)
    collapsed = replace(REPORT, comparison=replace(
        REPORT.comparison, recipe=replace(RECIPE, counts=counts)))
    assert "without the 1 that collapsed" in words(answer_text(collapsed))
    bare = replace(REPORT, metrics=[{}, {}], comparison=comparison(verdict()), widths=None)
    assert answer_text(bare).startswith("Verdict: ")


def test_many_widths_are_summed():
    found = widths_of_a_search()
    many = replace(found, dimensions=found.dimensions * 30, widths=found.widths * 30)
    assert "fc1 64 → 16." in widths_sentence(found)
    assert "1,920 → 480 units or heads in 30 groups" in widths_sentence(many)
    numbered = replace(found, dimensions=[replace(found.dimensions[0], name="0"),
                                          *found.dimensions[1:]])
    assert "Widths: layer 0: 64 → 16" in widths_sentence(numbered)


def needing(kind: str, **fields):
    return verdict("inconclusive", kind="recipe", settle="More of it would do.",
                   needed=RequiredRange(kind, (7,), (90,), (5,), **fields))


@pytest.mark.parametrize(("judged", "recipe", "method", "step"), [
    (verdict(), None, "rank", "models:/m-slim"),
    (verdict("inferior"), None, "rank", "--data x --slim-hidden search"),
    (verdict("inferior"), None, "given", "wua run --data x --slim-hidden auto"),
    (verdict("inferior"), None, "search", "keep the original"),
    (verdict("inconclusive", settle="More."), None, "rank", "--data x --slim-hidden 7 --seeds 5"),
    (verdict("inconclusive", settle="Train it.", guard="blind"), None, "rank", "Next: Train it."),
    (verdict(), needing("seeds", as_seen=(43,)), "rank", "--data x --slim-hidden 7 --seeds 43"),
    (verdict(), needing("seeds"), "rank", "More of it would do."),
    (verdict(), needing("examples", as_seen=(400,)), "rank", "More of it would do."),
    (verdict(), replace(needing("seeds", as_seen=(43,)), guard="blind"), "rank", "More of it"),
])
def test_what_to_do_next(judged, recipe, method, step):
    found = round_of("slim 7", (7,), judged, 1.4)
    found = replace(found, goal=replace(widths_of_a_search(), method=method),
                    comparison=replace(found.comparison, recipe=recipe))
    slimmed = Slimmed(variant("oversized 10", (10,)), (found,))
    again = Shown(given={"data": "x", "slim_hidden": "7"}).again
    said = next_step(slimmed, again)
    assert step in words(said)
    if "wua run" in said:
        assert step.removeprefix("--data x ") in said.splitlines()[0], "a command is not broken"


@pytest.mark.parametrize(("elsewhere", "step"), [
    (True, "Next: mlflow artifacts download --run-id oversized-same-budget-10 --artifact-path "
     "state/model.safetensors --dst-path trained_on\n      wua slim --data x --state "
     "trained_on/model.safetensors\n(the original trained on for as long, run "
     "oversized-same-budget-10,"),
    (False, "Next: wua slim --data x --epochs 50\n(the original trained for as long loses as")])
def test_a_class_that_training_loses_is_no_reason_to_keep_the_original(elsewhere, step):
    found = round_of("slim 7", (7,), verdict("inferior", guard="of the class 1"), 1.4)
    judged = replace(found.comparison, class_control=ClassControl("1", -0.175, -0.139, True))
    tags = {"wua.adopted": "w.pt"} if elsewhere else {}
    slimmed = Slimmed(variant("oversized 10", (10,), tags=tags), (replace(
        found, comparison=judged, goal=widths_of_a_search(),
        controls=(variant("oversized-same-budget 10", (10,)),)),))
    again = Shown(command="slim", given={"data": "x"}).again
    assert next_step(slimmed, again).startswith(step)
    kept = replace(judged, class_control=ClassControl("1", -0.175, -0.01, False))
    other = replace(slimmed, rounds=(replace(slimmed.rounds[0], comparison=kept),))
    assert next_step(other, again).startswith("Next: keep the original")


def test_the_file_that_was_saved_is_not_promised_what_its_recipe_holds():
    """It may stay outside the margin where the mean of many seeds is within."""
    alone = verdict("inconclusive", low=-0.03, high=-0.004, settle="More examples would do.")
    judged = comparison(alone, recipe=RECIPE, ratios=SAVES, churn=0.125)
    faster = {**NEW, **COSTS[1], "latency/p50_ms": 1.0}
    report = replace(REPORT, comparison=judged, metrics=[{**OLD, **COSTS[0]}, faster])
    told = words(answer_text(report))
    assert "networks of its recipe can take the original's place" in told
    assert "of the one that was saved alone this is not shown" in told
    assert "of the two saved models alone it is inconclusive (accuracy " in told
    assert "Their answers differ on 12.5% of these." in told
    found = replace(round_of("slim 7", (7,), verdict(), 1.4), comparison=judged)
    slimmed = Slimmed(variant("oversized 10", (10,)), (found,))
    step = words(next_step(slimmed, str))
    assert "only once the verdict on it alone is non_inferior too. More examples would do." in step
    agreed = Slimmed(variant("oversized 10", (10,)), (round_of("slim 7", (7,), verdict(), 1.4),))
    assert "--register NAME puts it into the registry" in words(next_step(agreed, str))
    assert "--register" not in next_step(agreed, str, registered=True)


def test_a_model_that_was_not_exported_is_not_said_to_load():
    found = round_of("slim 7", (7,), verdict(), 1.4)
    unexported = {"wua.unexported": "model: it takes a dict"}
    found = replace(found, variant=variant("slim 7", (7,), tags=unexported))
    said = words(next_step(Slimmed(variant("oversized 10", (10,)), (found,)), str))
    assert "load_model" not in said
    assert "wua_mlflow.load_slim loads them" in said
    assert "state/model.safetensors of run slim-7" in said and said.endswith(": it takes a dict")


def test_the_whole_table_is_aligned_and_details_hold_what_the_answer_leaves_out():
    lines = figures_text(report_with(SAVES)).splitlines()
    ends = {line.rindex("0.8900") + 6 for line in lines if "0.8900" in line}
    ends |= {line.rindex(" 42") + 3 for line in lines if line.startswith("FLOPs, one")}
    assert len(ends) == 1
    cut = replace(round_of("slim 7", (7,), verdict(), 1.4), variant=variant(
        "slim 7", (7,), units_left={"up": 4}, uncut={"head": "the outputs"}))
    details = details_text(REPORT, Slimmed(variant("oversized 10", (10,)), (cut,)))
    for part in ("All on budgets.", RECIPE.sentence, "up: 4 left", "not cut: head: the outputs."):
        assert part in details


def test_the_tutorials_figures_are_of_each_variant():
    text = tutorial_text(report_with(SAVES))
    assert text.count("Accuracy: 0.9500 on the training data, 0.9000 on data") == 1
