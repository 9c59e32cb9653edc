"""Replicates that are added until the recipe verdict is settled."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipeline import slimming_cases
from tests.pipeline.slimming_cases import HERE, original_in, same, settings_of, text_of
from wua_mlflow.cli.main import main
from wua_mlflow.config import ConfigError, load_settings
from wua_mlflow.pipeline import allowance
from wua_mlflow.pipeline import replicates as replicates_module
from wua_mlflow.pipeline import seeds as seeds_module
from wua_mlflow.pipeline.replicates import Replicate
from wua_mlflow.pipeline.seeds import (
    SeedHistory,
    SharedExamples,
    recipe_verdict,
    shared_examples,
)
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import compare_run, run_pipeline, slim_run, train_run
from wua_mlflow.report.answer import verdicts_text
from wua_mlflow.signals import Stopped
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.runs import history
from wua_mlflow.verdict.compare import compare
from wua_mlflow.verdict.text import short_verdict

CASES = {"rebuild": {}, "prune": {"how": "prune", "fold": "false"}}


@pytest.mark.parametrize("case", CASES)
def test_seeds_are_added_to_both_look_by_look(case, store, monkeypatch):
    """As far as planned where nothing settles it; each is the replicate that a fixed number has."""
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", 0.0)
    settings = {"slim_hidden": "7", "margin": 0.001, "epochs": 1, **CASES[case]}
    grown = run_pipeline(store, settings_of(**settings, seeds="5-7"))
    fixed = run_pipeline(store, settings_of(**settings, seeds=7))
    for place in (0, -1):  # controls between them keep the first five
        one, other = grown.variants[place], fixed.variants[place]
        assert [replicate.seed for replicate in one.replicates] == list(range(42, 49))
        assert np.array_equal(one.replicate_scores, other.replicate_scores)
        assert one.metrics[Metric.ACCURACY_TEST_STD] == other.metrics[Metric.ACCURACY_TEST_STD]
        again = load_variant(store, one.run_id)
        assert np.array_equal(again.replicate_scores, one.replicate_scores)
        table = json.loads(text_of(store, one.run_id, ArtifactPath.REPLICATES))
        assert len(table["data"]) == 7
        logged = store.client.get_run(one.run_id).data.metrics
        assert logged[Metric.ACCURACY_TEST_STD] == one.metrics[Metric.ACCURACY_TEST_STD]
        points = history(one.run_id, Metric.SCORE_TEST_BY_SEED)
        assert points["step"].tolist() == list(range(1, 8))
        assert points["value"].tolist() == [replicate.score for replicate in one.replicates]
        assert points["timestamp"].nunique() == 2, "those that are added are appended"
    read = compare_run(
        store, load_settings(None, {"run_id": grown.variants[-1].run_id}))[2].recipe
    assert (read.low, read.high, read.counts) == (
        grown.comparison.recipe.low, grown.comparison.recipe.high, grown.comparison.recipe.counts)
    counts = grown.comparison.recipe.counts
    assert (counts.candidate, counts.baseline, counts.look, counts.looks) == (7, 7, 2, 2)
    assert (fixed.comparison.recipe.counts.look, fixed.comparison.recipe.counts.looks) == (1, 1)
    wider = grown.comparison.recipe, fixed.comparison.recipe
    assert wider[0].high - wider[0].low > wider[1].high - wider[1].low


@pytest.mark.parametrize(("stop_at", "seeds"), [
    (("oversized 8", 6), (6, 5)), (("slim 7", 6), (8, 6)), (("slim 7", 3), (5, 3))])
def test_ctrl_c_among_the_seeds_ends_with_a_verdict_on_those_so_far(
        stop_at, seeds, store, monkeypatch, capsys):
    """The runs hold what was trained; of fewer than 5 it is these two models' verdict."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    _stop_at(monkeypatch, *stop_at)
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", 0.0)
    result = run_pipeline(store, settings_of(slim_hidden="7", margin=0.001, seeds="auto"))
    assert [len(variant.replicates) for variant in (result.variants[0], result.variants[-1])] == \
        [*seeds]
    of = 8 if min(seeds) >= 5 else 5
    assert f"interrupted: going on with {stop_at[1]} of {of} seeds" in capsys.readouterr().err
    again = load_variant(store, result.variants[-1].run_id)
    assert len(again.replicates) == seeds[1]
    assert store.client.get_run(result.run_id).info.status == "FINISHED"
    if of == 8:
        counts = result.comparison.recipe.counts
        assert (counts.baseline, counts.candidate) == seeds
    else:
        assert result.comparison.recipe is None
        told = verdicts_text(result.comparison)
        assert "interrupted after 3 seeds, and it needs at least 5." in told


def test_ctrl_c_before_the_original_has_enough_seeds_is_no_recipe_verdict(store, monkeypatch):
    """Nor one against a single given network: it was trained here."""
    original = train_run(store, settings_of(seeds=1))
    _stop_at(monkeypatch, "oversized 8", 3)
    result = slim_run(store, load_settings(None, {
        "run_id": original.run_id, "seeds": "auto", "slim_hidden": "7", "null_draws": 0}))
    assert [len(variant.replicates) for variant in result.variants] == [3, 1]
    assert result.comparison.recipe is None
    assert "interrupted after 1 seed, and it needs" in result.comparison.no_recipe


def test_the_original_with_the_same_budget_is_compared_over_its_fixed_number_of_seeds(
        store, monkeypatch):
    """As many of the slim one's; that there are looks at these is the other verdict's affair."""
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", 0.0)
    result = run_pipeline(store, settings_of(
        slim_hidden="7", slim_epochs=4, margin=0.001, seeds="5-8"))
    original, control, slim = result.variants
    assert [len(each.replicates) for each in (original, control, slim)] == [8, 5, 8]
    fixed = recipe_verdict(control.replicates, slim.replicates[:5], shared_examples(slim),
                           settings_of(seeds=5, margin=0.001))
    assert fixed.counts.looks == 1
    assert f"({short_verdict(fixed)})" in result.comparison.equal_budget
    assert result.comparison.equal_budget_outcome == fixed.outcome


@pytest.mark.parametrize(("name", "stop"), [
    ("oversized 8", KeyboardInterrupt()), ("slim 7", Stopped(signal.SIGTERM)),
    ("slim 7", Stopped(signal.SIGINT, count=2))])
def test_what_is_not_a_first_ctrl_c_or_has_nothing_to_go_on_with_ends_all(
        name, stop, store, monkeypatch):
    _stop_at(monkeypatch, name, 3, stop)
    with pytest.raises(KeyboardInterrupt) as raised:
        run_pipeline(store, settings_of(slim_hidden="7", seeds="auto"))
    assert raised.value is stop


def _stop_at(monkeypatch, name, number, stop=None):
    """Raise as the network of this name is about to train its replicate of this number."""
    bar = replicates_module.Bar

    def numbers_until(numbers, **options):
        if "total" in options:
            return bar(numbers, **options)
        return until(numbers, options["desc"])

    def until(numbers, desc):
        for each in numbers:
            if each == number and desc.endswith(name):
                raise stop or KeyboardInterrupt
            yield each

    monkeypatch.setattr(replicates_module, "Bar", numbers_until)


@pytest.mark.parametrize(("margin", "chance"), [(0.15, 0.0), (0.001, 1.0)])
def test_no_seed_is_added_where_it_is_settled_or_hardly_can_be(margin, chance, store, monkeypatch):
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", chance)
    result = run_pipeline(store, settings_of(slim_hidden="7", margin=margin, seeds="auto"))
    assert [len(variant.replicates) for variant in result.variants] == [5, 5]
    assert result.comparison.recipe.counts.looks == 5
    assert (result.verdict.outcome == "non_inferior") == (margin == 0.15)
    assert result.comparison.tags[Tag.VERDICT_METHOD] == result.verdict.method


def test_of_an_original_with_many_replicates_at_most_twice_as_many_count(store):
    result = run_pipeline(store, settings_of(slim_hidden="7", seeds=5))
    original, slim = (variant.replicates for variant in result.variants)
    settings, examples = settings_of(seeds="auto"), shared_examples(result.variants[-1])
    verdict = recipe_verdict(original * 3, slim, examples, settings)
    assert (verdict.counts.baseline, verdict.counts.candidate) == (10, 5)
    assert recipe_verdict(original[:4], slim, examples, settings) is None
    without = [replace(replicate, predictions=None) for replicate in original]
    earlier = recipe_verdict(without, slim, examples, settings)
    assert (earlier.low, earlier.guard) == (recipe_verdict(original, slim, examples, settings).low,
                                            "")


ELSEWHERE = {
    "cut": {"model": f"{HERE}:net", "optimizer": "sgd", "lr": 1e-3},
    "rebuilt": {"model": "mlp", "hidden": "8", "how": "rebuild", "epochs": 2},
    "by the user's trainer": {"model": f"{HERE}:net", "train": f"{HERE}:by_seed", "fold": "false"},
}


def slimmed_elsewhere(store, **options):
    """A module with its own weights, slimmed."""
    return slim_run(store, load_settings(None, {
        "data": f"{HERE}:blobs", "null_draws": 0, "slim_hidden": "4", "slim_epochs": 1,
        "margin": 0.001, "batch_size": 32, **options}))


def by_seed(model, data, epochs, seed):
    """A user's trainer: a few steps on rows that the seed chooses."""
    inputs, targets = data[0].tensors
    rows = torch.randint(len(inputs), (32,), generator=torch.Generator().manual_seed(seed))
    steps = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        steps.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        steps.step()
    return model


@pytest.mark.parametrize("case", ELSEWHERE)
def test_several_slim_seeds_against_a_network_that_was_trained_elsewhere(case, store, monkeypatch):
    """The original adds nothing, look by look; its run alone is enough to slim it again."""
    monkeypatch.setattr(slimming_cases, "by_seed", by_seed, raising=False)
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", 0.0)
    result = slimmed_elsewhere(store, seeds="5-7", **ELSEWHERE[case])
    original, control, slim = result.variants
    assert [len(variant.replicates) for variant in result.variants] == [1, 5, 7]
    assert [replicate.seed for replicate in slim.replicates] == list(range(42, 49))
    assert len({replicate.loss for replicate in slim.replicates}) == 7
    recipe = result.comparison.recipe
    expected = compare(original.test.scores, slim.replicate_scores, margin=0.001, seed=42,
                       planned_seeds=(5, 7))
    assert (recipe.low, recipe.high, recipe.counts) == (expected.low, expected.high,
                                                        expected.counts)
    assert (recipe.counts.baseline, recipe.counts.look, recipe.counts.looks) == (1, 2, 2)
    assert "seeds, against this network" in recipe.sentence
    for run_id in (slim.run_id, result.run_id):
        logged = store.client.get_run(run_id).data
        assert logged.tags[Tag.VERDICT_RECIPE] == logged.tags[Tag.VERDICT] == recipe.outcome
        assert logged.metrics[Metric.RECIPE_LOW] == recipe.low
    assert recipe.sentence in text_of(store, result.run_id, ArtifactPath.REPORT_MARKDOWN)
    assert compare_run(store, load_settings(None, {"run_id": slim.run_id}))[2].recipe == recipe
    again = load_variant(store, original.run_id)
    assert same(again.make(3, 45).model, original.model), "not one that was trained here"
    by_id = slim_run(store, load_settings(None, {"run_id": original.run_id, "seeds": "5-5"}))
    assert np.array_equal(by_id.variants[-1].replicate_scores, slim.replicate_scores[:5])


def test_a_training_that_does_not_use_the_seed_is_told(store, monkeypatch):
    """Full batches from given weights: five times the same network."""
    same_each_time, other = (slimmed_elsewhere(store, model=f"{HERE}:net", batch_size=size)
                             for size in ("full", "32"))
    assert same_each_time.comparison.seedless.startswith("All 5 seeds gave the same slim model")
    assert same_each_time.comparison.seedless in same_each_time.comparison.notes
    assert other.comparison.seedless == ""


def test_seeds_that_take_too_long_are_left_to_the_user(store, monkeypatch):
    """Of a model that was trained elsewhere; those that were asked for are trained."""
    monkeypatch.setattr(allowance, "FIRST_VERDICT_S", 0.0)
    options = {"model": f"{HERE}:net"}
    result = slimmed_elsewhere(store, **options)
    original = result.variants[0].run_id
    assert [len(variant.replicates) for variant in result.variants] == [1, 1, 1]
    assert result.comparison.recipe is None
    assert result.comparison.no_recipe == (
        f"No recipe verdict: 5 seeds would take about 0 minutes more (`wua slim --run-id "
        f"{original} --seeds 5`).")
    asked = slim_run(store, load_settings(None, {"run_id": original, "seeds": 5}))
    assert asked.comparison.recipe.seeds == 5
    longer = slimmed_elsewhere(store, **options, limit="1000s")
    assert longer.comparison.recipe.seeds == 5
    few = slimmed_elsewhere(store, **options, seeds=1)
    assert few.comparison.no_recipe.endswith("at least 5 seeds (setting `seeds`).")


@pytest.mark.parametrize(("options", "seeds", "judged", "beyond", "looks"), [
    ({"seeds": "5-20"}, 8, 0, 0, 5),
    ({"seeds": "5-5"}, 8, 0, 3, 2),  # more than the plan allowed
    ({"seeds": "5-20"}, 10, 0, 2, 6),  # between two looks
    ({"seeds": "5-8"}, 10, 0, 2, 3),  # after the last one
    ({"seeds": 5}, 5, 0, 0, 1),
    ({"seeds": 5}, 10, 0, 5, 2),
    ({"seeds": 10}, 8, 0, 0, 1),  # the other side has too few for all of them
    ({"seeds": 10}, 10, 5, 5, 1),  # after an earlier verdict on five
    ({"seeds": "5-20"}, 12, 5, 7, 5),
    ({"seeds": 5}, 5, 20, 0, 1),  # fewer than an earlier verdict's
])
def test_seeds_that_were_not_planned_are_exploratory(options, seeds, judged, beyond, looks):
    draw = np.random.default_rng(0)
    old, new = ((draw.random((seeds, 300)) < 0.9).astype(float) for _ in range(2))
    targets = np.arange(300) % 2
    sides = [[Replicate(0, row, 0.0, {}, predictions=np.where(row == 1, targets, 1 - targets))
              for row in side] for side in (old, new)]
    verdict = recipe_verdict(*sides, SharedExamples("multiclass", targets), settings_of(**options),
                             SeedHistory(judged=judged, screened=3))
    assert (verdict.counts.beyond_plan, verdict.counts.looks) == (beyond, looks)
    assert (f"exploratory: {beyond} seeds beyond the plan" in verdict.sentence) == (beyond > 0)
    assert (verdict.counts.candidate, verdict.counts.screened) == (seeds, 3)
    plain = compare(old, new, margin=0.1, seed=42)
    assert ((verdict.low, verdict.high) == (plain.low, plain.high)) == (looks == 1)


@pytest.mark.parametrize(("originals", "most", "judged", "beyond"), [
    (8, 20, 0, 0), (8, 20, 10, 6), (20, 20, 0, 0), (20, 20, 16, 4), (20, 16, 0, 4), (1, 20, 0, 0),
    (1, 20, 5, 15), (1, 16, 0, 4)])
def test_screened_networks_that_were_not_planned_are_exploratory(
    originals, most, judged, beyond
):
    """The slim one's 20 were all there beforehand; up to twice as many as of the original count."""
    draw = np.random.default_rng(1)
    old, new = ((draw.random((seeds, 300)) < 0.9).astype(float) for seeds in (originals, 20))
    old, new = ([Replicate(0, row, 0.0, {}) for row in side] for side in (old, new))
    verdict = recipe_verdict(old, new, SharedExamples("multiclass", np.empty(300)),
                             settings_of(seeds=f"5-{most}"),
                             SeedHistory(judged=judged, ahead=20))
    assert verdict.counts.beyond_plan == beyond
    assert (f"exploratory: {beyond} seeds beyond the plan" in verdict.sentence) == (beyond > 0)


def test_a_second_verdict_with_more_seeds_is_exploratory_everywhere(store, capsys):
    """Another run of the same recipe, in another pipeline too; the first one stays as it is."""
    first, same_plan, more, other = (
        run_pipeline(store, settings_of(slim_hidden=width, seeds=seeds, epochs=1))
        for width, seeds in ((7, 5), (7, 5), (7, 7), (6, 7)))
    assert [result.comparison.recipe.counts.beyond_plan
            for result in (first, same_plan, more, other)] == [0, 0, 2, 0]
    words = "exploratory: 2 seeds beyond the plan"
    run = more.variants[-1].run_id
    for run_id in (run, more.run_id):
        assert store.client.get_run(run_id).data.tags[Tag.VERDICT_SEEDS] == \
            "7, 2 beyond the plan"
    for report in (ArtifactPath.REPORT_MARKDOWN, ArtifactPath.REPORT_HTML):
        assert words in text_of(store, more.run_id, report)
    assert words in verdicts_text(more.report.comparison)
    capsys.readouterr()
    assert main(["compare", "--run-id", run, "--json"]) in (0, 3, 4)
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert words in recipe["sentence"]
    assert recipe["counts"]["beyond_plan"] == 2
    again = compare_run(store, load_settings(None, {"run_id": first.variants[-1].run_id}))[2]
    assert again.recipe == first.comparison.recipe


def test_more_seeds_than_the_original_has_are_trained_of_both(store):
    original = original_in(store)
    assert len(original.replicates) == 1
    result = slim_run(store, load_settings(None, {
        "run_id": original.run_id, "slim_hidden": "4", "seeds": 6}))
    assert [len(variant.replicates) for variant in result.variants] == [6, 6]
    counts = result.comparison.recipe.counts
    assert (counts.candidate, counts.baseline, counts.looks) == (6, 6, 1)
    assert len(load_variant(store, original.run_id).replicates) == 6


def test_seeds_as_a_setting():
    assert load_settings(None, {"data": "wine"}).first_seeds == 5
    assert load_settings(None, {"seeds": "12"}).first_seeds == 12
    assert load_settings("usecase").seeds == 20
    assert load_settings(None, {"seeds": "5 - 40"}).seeds == "5-40"
    assert load_settings(None, {"seeds": "5-20"}) == load_settings(None, {"seeds": "auto"})
    for value in ("many", "4-40", "5-4", "5-", "0"):
        with pytest.raises(ConfigError, match="^seeds: expected auto, a whole number of at least "
                           f"1, or a range from 5, e.g. 5-40, but got '{value}'$"):
            load_settings(None, {"seeds": value})


def test_the_share_that_may_collapse_is_a_part_of_the_verdict(store):
    """Five seeds without a collapse leave up to 52%; 10% takes 36 of them."""
    result = run_pipeline(store, settings_of(
        slim_hidden="7", seeds=5, margin=0.2, epochs=30, max_collapse=0.1))
    again = compare_run(store, load_settings(None, {
        "run_id": result.variants[-1].run_id, "max_collapse": 0.6}))[2]
    one, other = result.comparison.recipe, again.recipe
    assert (one.outcome, other.outcome) == ("inconclusive", "non_inferior")
    assert "takes 36 seeds without a collapse" in one.settle
    assert (one.low, one.high) == (other.low, other.high)
