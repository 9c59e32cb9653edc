"""Training a variant: the plan's name, the status of a step on its run."""

from __future__ import annotations

import pytest

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.train import TrainingPlan, step_status
from wua_mlflow.tracking.store import connect


def test_plans_are_named_by_widths_and_budget() -> None:
    make = from_scratch(load_recipe(load_settings(None, {"seeds": 1})), (7,), 60)
    assert TrainingPlan("oversized", (64, 32), 5, make).name == "oversized 64-32"
    assert TrainingPlan("slim", (7,), 60, make).name == "slim 7"
    assert TrainingPlan("oversized-same-budget", (10,), 60, make).name == "oversized 10, 60 epochs"


def test_a_step_that_fails_says_so_on_its_run(store_uri: str) -> None:
    store = connect("steps")
    run = store.client.create_run(store.experiment_id)
    with (
        pytest.raises(RuntimeError, match="broken"),
        step_status(store, run.info.run_id, "analyze"),
    ):
        raise RuntimeError("broken")
    store.client.set_terminated(run.info.run_id)
    tags = store.client.get_run(run.info.run_id).data.tags
    assert tags["wua.step.analyze"] == "failed"
