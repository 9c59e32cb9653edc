"""Each step on its own: the same figures as in the chain, restored from the runs between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import load_recipe, train_one
from wua_mlflow.pipeline.train import TrainingPlan, step_status
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import connect

QUICK = {"seeds": 1, "null_draws": 1}


def test_steps_days_apart_give_the_tutorials_figures(store_uri: str) -> None:
    """``slim`` goes on from the random stream that ``train`` kept, whatever was drawn since."""
    store = connect("steps")
    settings = load_settings(None, QUICK)
    original = workflow.train_run(store, settings)
    torch.manual_seed(0)
    torch.rand(1000)
    named = load_settings(None, {"run_id": original.run_id})
    found = workflow.analyze_run(store, named)
    assert found.run_id == original.run_id
    assert f"{found.usage.layers['fc1'].effective_weights:.4f}" == "15.7751"
    _, control, slim = workflow.slim_run(store, named).variants
    assert (control.variant, slim.name) == ("oversized-same-budget", "slim 7")
    assert f"{slim.metrics['accuracy/train']:.4f}" == "0.8730"
    old, new, comparison = workflow.compare_run(
        store, load_settings(None, {"run_id": slim.run_id, "margin": 0.05}))
    assert (old.run_id, new.run_id) == (original.run_id, slim.run_id)
    assert comparison.recipe is None
    run = store.client.get_run(slim.run_id)
    assert run.data.tags["wua.verdict"] == comparison.artifact.outcome
    assert run.data.metrics["compare/margin"] == 0.05
    before = comparison.looks
    for margin, more in ((0.05, 0), (0.2, 1), (0.2, 1)):  # another margin is another look
        comparison = workflow.compare_run(store, load_settings(
            None, {"run_id": slim.run_id, "margin": margin}))[2]
        assert comparison.looks == before + more
        assert count_looks(store.client, str(run.data.tags["wua.test_digest"])) == before + more
    assert run.data.tags["wua.baseline"] == original.run_id
    assert {run.info.status for run in store.client.search_runs([store.experiment_id])} == {
        "FINISHED"}


@pytest.mark.parametrize(("stray", "accuracy"), [
    (lambda: None, "0.8730"),
    (lambda: torch.randn(1), "0.9120"),
    (lambda: list(DataLoader([1, 2])), "0.9460"),
    (lambda: torch.manual_seed(42), "0.9220"),
], ids=["the tutorial's", "a stray draw", "a pass over a loader", "seeded again"])
def test_the_slim_accuracy_hangs_on_the_random_stream(
    stray: Callable[[], object], accuracy: str
) -> None:
    """The tutorial's 0.8730, and what anything between the two trainings makes of it."""
    recipe = load_recipe(load_settings(None, QUICK))
    original = train_one(recipe, (10,), 50, seed=42)
    with torch.random.fork_rng():
        torch.set_rng_state(original.stream["cpu"])
        stray()
        stream = {"cpu": torch.get_rng_state()}
    slim = train_one(recipe, (7,), 60, seed=42, stream=stream)
    found = recipe.evaluate(slim.model, recipe.split.train, slim.kind)
    assert f"{found.score:.4f}" == accuracy


def test_a_step_keeps_the_runs_settings_unless_told_otherwise(store_uri: str) -> None:
    store = connect("steps")
    original = workflow.train_run(
        store, load_settings(None, {**QUICK, "epochs": 2, "criterion": "magnitude"}))
    found = workflow.analyze_run(store, load_settings(None, {"run_id": original.run_id}))
    assert found.usage.criterion == "magnitude"
    given = {"run_id": original.run_id, "criterion": "output"}
    found = workflow.analyze_run(store, load_settings(None, given))
    assert found.usage.criterion == "output"


def test_equal_budgets_need_no_control(store_uri: str) -> None:
    store = connect("steps")
    outcome = workflow.run_pipeline(
        store, load_settings(None, {**QUICK, "epochs": 2, "slim_epochs": 2}))
    assert [variant.variant for variant in outcome.variants] == ["oversized", "slim"]
    assert "Budgets differ" not in outcome.report.comparison.budget
    note = store.client.get_run(outcome.run_id).data.tags["mlflow.note.content"]
    assert "No recipe verdict: it needs at least 5 seeds" in note


@pytest.mark.parametrize(("widths", "message"), [
    ("7,3", r"slim_hidden: expected 1 widths, as the original has \(10\), but got 2 \(7,3\)"),
    ("11", r"slim_hidden: expected widths of at most the original's \(10\), but got 11"),
    ("10", r"slim_hidden: expected at least one width below the original's \(10\), but got 10"),
])
def test_given_widths_are_checked_against_the_original(
    store_uri: str, widths: str, message: str
) -> None:
    store = connect("steps")
    original = workflow.train_run(store, load_settings(None, {**QUICK, "epochs": 1}))
    given = {"run_id": original.run_id, "slim_hidden": widths}
    with pytest.raises(ValueError, match=f"^{message}$"):
        workflow.slim_run(store, load_settings(None, given))


def test_plans_are_named_by_widths_and_budget() -> None:
    make = from_scratch(load_recipe(load_settings(None, QUICK)), (7,), 60)
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


def test_a_second_pipeline_on_the_same_test_set_is_a_second_look(store_uri: str) -> None:
    store = connect("steps")
    settings = load_settings(None, {**QUICK, "epochs": 1, "slim_epochs": 1})
    looks = [workflow.run_pipeline(store, settings).report.comparison.looks for _ in range(2)]
    assert looks == [1, 2]
    other = load_settings(None, {**QUICK, "epochs": 1, "slim_epochs": 1, "seed": 7})
    assert workflow.run_pipeline(store, other).report.comparison.looks == 1
