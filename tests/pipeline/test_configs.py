"""The shipped configurations end with a sensible accuracy and a verdict."""

from __future__ import annotations

import pytest

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.chain import run_pipeline
from wua_mlflow.tracking.store import connect


@pytest.mark.parametrize("config", ["digits", "breast_cancer"])
def test_a_shipped_configuration_out_of_the_box(store_uri: str, config: str) -> None:
    """As it is but for fewer replicates: five seeds are enough for a recipe verdict."""
    store = connect("configs")
    outcome = run_pipeline(store, load_settings(config, {"seeds": 5, "null_draws": 2}))
    original, slim = (store.client.get_run(one.run_id).data for one in outcome.variants)
    assert original.metrics["accuracy/test"] >= 0.95
    assert slim.tags["wua.verdict"] in ("non_inferior", "inferior", "inconclusive")
    assert slim.tags["wua.verdict"] == slim.tags["wua.verdict.recipe"]
    assert slim.metrics["flops/forward"] < original.metrics["flops/forward"]
    assert slim.metrics["params/total"] < original.metrics["params/total"]
