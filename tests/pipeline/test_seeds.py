"""Replicates that are added until the recipe verdict is settled."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.pipeline.slimming_cases import settings_of, text_of
from wua_mlflow.config import ConfigError, load_settings
from wua_mlflow.pipeline import seeds as seeds_module
from wua_mlflow.pipeline.seeds import recipe_verdict
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import compare_run, run_pipeline
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag

CASES = {"rebuild": {}, "prune": {"how": "prune", "fold": "false"}}


@pytest.mark.parametrize("case", CASES)
def test_seeds_are_added_to_both_look_by_look(case, store, monkeypatch):
    """As far as planned where nothing settles it; each is the replicate that a fixed number has."""
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", 0.0)
    settings = {"slim_hidden": "7", "margin": 0.001, **CASES[case]}
    grown = run_pipeline(store, settings_of(**settings, seeds="auto", max_seeds=7))
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
    read = compare_run(
        store, load_settings(None, {"run_id": grown.variants[-1].run_id}))[2].recipe
    assert (read.low, read.high, read.counts) == (
        grown.comparison.recipe.low, grown.comparison.recipe.high, grown.comparison.recipe.counts)
    counts = grown.comparison.recipe.counts
    assert (counts.candidate, counts.baseline, counts.look, counts.looks) == (7, 7, 2, 2)
    assert (fixed.comparison.recipe.counts.look, fixed.comparison.recipe.counts.looks) == (1, 1)
    wider = grown.comparison.recipe, fixed.comparison.recipe
    assert wider[0].high - wider[0].low > wider[1].high - wider[1].low


@pytest.mark.parametrize(("margin", "chance"), [(0.9, 0.0), (0.001, 1.0)])
def test_no_seed_is_added_where_it_is_settled_or_hardly_can_be(margin, chance, store, monkeypatch):
    monkeypatch.setattr(seeds_module, "LEAST_CHANCE", chance)
    result = run_pipeline(store, settings_of(slim_hidden="7", margin=margin, seeds="auto"))
    assert [len(variant.replicates) for variant in result.variants] == [5, 5]
    assert result.comparison.recipe.counts.looks == 5
    assert (result.verdict.outcome == "non_inferior") == (margin == 0.9)
    assert result.comparison.tags[Tag.VERDICT_METHOD] == result.verdict.method


def test_of_an_original_with_many_replicates_at_most_twice_as_many_count(store):
    result = run_pipeline(store, settings_of(slim_hidden="7", seeds=5))
    original, slim = (variant.replicate_scores for variant in result.variants)
    settings = settings_of(seeds="auto")
    verdict = recipe_verdict(np.tile(original, (3, 1)), slim, "multiclass", settings)
    assert (verdict.counts.baseline, verdict.counts.candidate) == (10, 5)
    assert recipe_verdict(original[:4], slim, "multiclass", settings) is None


def test_seeds_as_a_setting():
    assert load_settings(None, {"data": "wine"}).first_seeds == 5
    assert load_settings(None, {"seeds": "12"}).first_seeds == 12
    assert load_settings("usecase").seeds == 20
    for field, value, expected in (("seeds", "many", "auto, or a whole number of at least 1"),
                                   ("max_seeds", "4", "a whole number of at least 5")):
        with pytest.raises(ConfigError, match=f"^{field}: expected {expected}, but got '{value}'$"):
            load_settings(None, {field: value})
