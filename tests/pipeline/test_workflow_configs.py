"""The shipped configurations end with a sensible accuracy and a verdict."""

from __future__ import annotations

import pytest

from tests.pipeline.slimming_cases import without_pictures
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.workflow import run_pipeline
from wua_mlflow.tracking.store import connect


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def test_a_shipped_configuration_with_a_short_search(store_uri: str) -> None:
    """As it is but for fewer replicates, epochs and widths."""
    store = connect("configs")
    outcome = run_pipeline(store, load_settings("digits", {
        "seeds": 1, "epochs": 10, "null_draws": 0, "search_runs": 2}))
    original, slim = (store.client.get_run(one.run_id).data for one in outcome.variants)
    assert original.metrics["accuracy/test"] >= 0.95
    assert slim.tags["wua.verdict"] in ("non_inferior", "inferior", "inconclusive")
    assert slim.tags["wua.verdict"] == slim.tags["wua.verdict.artifact"]
    assert slim.metrics["flops/forward"] < original.metrics["flops/forward"]
    assert slim.metrics["params/total"] < original.metrics["params/total"]
    assert outcome.slimmed.result.goal.searched.looks == 1


def test_a_shipped_configuration_that_is_cut(store_uri: str) -> None:
    store = connect("configs")
    outcome = run_pipeline(store, load_settings("breast_cancer", {
        "seeds": 5, "null_draws": 0, "how": "prune", "width_method": "rank",
        "fold": "false"}))
    original, scratch, slim = (
        next(store.client.get_run(one.run_id).data for one in outcome.variants
             if one.variant == name) for name in ("oversized", "from-scratch", "slim"))
    assert original.metrics["accuracy/test"] >= 0.95
    assert slim.tags["wua.verdict.recipe"] in ("non_inferior", "inconclusive")
    assert slim.metrics["params/total"] == scratch.metrics["params/total"]
    assert slim.metrics["params/total"] < original.metrics["params/total"]
