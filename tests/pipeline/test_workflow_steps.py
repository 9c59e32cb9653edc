"""Single steps: train, analyze, slim and compare on runs that exist; what they refuse and keep."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.pipeline.slimming_cases import store_at, tags_of, with_exports
from wua_mlflow.cli.main import main
from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline import analyze, workflow
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.replicates import train_one
from wua_mlflow.pipeline.train import TrainingPlan, step_status
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import connect

QUICK = {"seeds": 1, "null_draws": 0}


@pytest.fixture(scope="module")
def done(tmp_path_factory, migrated_database):
    """A short pipeline of the tutorial, and its store."""
    with store_at(tmp_path_factory.mktemp("steps"), migrated_database) as steps_store:
        settings = _settings(seeds=1, null_draws=1, epochs=2, slim_epochs=3)
        yield steps_store, workflow.run_pipeline(steps_store, settings)


def _settings(**values: object) -> Settings:
    return load_settings(None, values)


def test_plans_are_named_by_widths_and_budget():
    make = from_scratch(load_recipe(_settings(seeds=1)), (7,), 60)
    assert TrainingPlan("oversized", (64, 32), 5, make).name == "oversized 64-32"
    assert TrainingPlan("slim", (7,), 60, make).name == "slim 7"
    assert TrainingPlan("oversized-same-budget", (10,), 60, make).name == "oversized, 60 epochs"


class OfSignal(nn.Module):
    """Takes one tensor, by a name that its batches use."""

    def __init__(self, widths):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, *widths), nn.ReLU(), nn.Linear(*widths, 2))

    def forward(self, signal):
        return self.net(signal)


def dict_batches(seed):
    rows = [{"signal": torch.rand(3), "labels": torch.tensor(number % 2)} for number in range(60)]
    return [DataLoader(rows, batch_size=20) for _ in range(3)]


def test_a_model_of_one_tensor_is_exported_where_its_batches_are_dicts(store, monkeypatch):
    with_exports(monkeypatch)
    variant = workflow.train_run(store, _settings(
        data=f"{__name__}:dict_batches", model=f"{__name__}:OfSignal", hidden="4", epochs=1,
        **QUICK))
    assert "wua.unexported" not in variant.tags
    (output,) = store.client.get_run(variant.run_id).outputs.model_outputs
    rows = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    served = mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(rows)
    with torch.no_grad():
        np.testing.assert_allclose(served, variant.model(torch.tensor(rows)), rtol=1e-5)
    uri = f"models:/{output.model_id}"
    assert main(["compare", uri, uri, "--data", f"{__name__}:dict_batches", "--margin", "0.5"]) \
        in (0, 4), "a verdict"


def train_until_measured(model, data, budget, seed):
    """Returns once MLflow has measured the machine for the variant that is being trained."""
    client = mlflow.MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    for _ in range(6000):
        (run,) = client.search_runs(
            experiments, "attributes.status = 'RUNNING' AND tags.`wua.kind` = 'variant'")
        if any(name.startswith("system/") for name in run.data.metrics):
            break
        time.sleep(0.05)


def test_each_variant_of_a_pipeline_has_the_system_metrics_that_mlflows_variable_asks_for(
        store, monkeypatch):
    with_exports(monkeypatch)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    done = workflow.run_pipeline(store, _settings(
        train=f"{__name__}:train_until_measured", how="rebuild", epochs=1, slim_epochs=1, **QUICK))
    assert len(done.variants) == 2
    for variant in done.variants:
        run = store.client.get_run(variant.run_id)
        assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
        (model,) = run.outputs.model_outputs
        model = store.client.get_logged_model(model.model_id)
        assert not [each.key for each in model.metrics if each.key.startswith("system/")]


def test_a_step_that_fails_says_so_on_its_run(store):
    run_id = store.client.create_run(store.experiment_id).info.run_id
    with pytest.raises(RuntimeError, match="broken"), step_status(store, run_id, "analyze"):
        raise RuntimeError("broken")
    store.client.set_terminated(run_id)
    assert tags_of(store, run_id)["wua.step.analyze"] == "failed"


def test_steps_days_apart_give_the_tutorials_figures(store):
    """``slim`` goes on from the random stream that ``train`` kept, whatever was drawn since."""
    original = workflow.train_run(store, _settings(**QUICK))
    torch.manual_seed(0)
    torch.rand(1000)
    named = _settings(run_id=original.run_id)
    analysis = workflow.analyze_run(store, named)
    assert analysis.run_id == original.run_id
    assert f"{analysis.usage.layers['fc1'].effective_weights:.4f}" == "15.7751"
    _, control, slim = workflow.slim_run(store, named).variants
    assert (control.variant, slim.name) == ("oversized-same-budget", "slim 7")
    assert f"{slim.metrics['accuracy/train']:.4f}" == "0.8730"
    old, new, comparison = workflow.compare_run(store, _settings(run_id=slim.run_id, margin=0.05))
    assert (old.run_id, new.run_id) == (original.run_id, slim.run_id)
    assert comparison.recipe is None
    run = store.client.get_run(slim.run_id).data
    assert run.tags["wua.verdict"] == comparison.artifact.outcome
    assert run.metrics["compare/margin"] == 0.05
    before = comparison.looks
    for margin, more in ((0.05, 0), (0.2, 1)):  # another margin is another look
        comparison = workflow.compare_run(store, _settings(run_id=slim.run_id, margin=margin))[2]
        assert comparison.looks == before + more
        assert count_looks(store.client, run.tags["wua.test_digest"]) == before + more
    assert run.tags["wua.baseline"] == original.run_id
    assert {run.info.status for run in store.client.search_runs([store.experiment_id])} == {
        "FINISHED"}


@pytest.mark.parametrize(("stray", "accuracy"), [
    (lambda: None, "0.8730"),
    (lambda: torch.randn(1), "0.9120"),
    (lambda: list(DataLoader([1, 2])), "0.9460"),
    (lambda: torch.manual_seed(42), "0.9220"),
], ids=["the tutorial's", "a stray draw", "a pass over a loader", "seeded again"])
def test_the_slim_accuracy_hangs_on_the_random_stream(stray, accuracy):
    """The tutorial's 0.8730, and what anything between the two trainings makes of it."""
    recipe = load_recipe(_settings(**QUICK))
    original = train_one(recipe, (10,), 50, seed=42)
    with torch.random.fork_rng():
        torch.set_rng_state(original.stream["cpu"])
        stray()
        stream = {"cpu": torch.get_rng_state()}
    slim = train_one(recipe, (7,), 60, seed=42, stream=stream)
    assert f"{recipe.evaluate(slim.model, recipe.split.train, slim.kind).score:.4f}" == accuracy


def test_what_a_step_refuses(done):
    """A slim variant of a slim one would be judged against that, and margins would add up."""
    store, outcome = done
    original, control, slim = outcome.variants
    for step, settings, message in (
        (workflow.compare_run, {"run_id": original.run_id},
         f"run_id: expected the run of a slim variant, but {original.run_id} is oversized 10; "),
        (workflow.compare_run, {"run_id": control.run_id},
         f"run_id: expected the run of a slim variant, but {control.run_id} is oversized, 3 "),
        (workflow.slim_run, {"run_id": slim.run_id, "slim_hidden": "3"},
         "run_id: expected the run of an original"),
        (workflow.slim_run, {"run_id": original.run_id, "slim_hidden": "7,3"},
         "slim_hidden: expected 1 widths, as the original has (10), but got 2 (7,3)"),
        (workflow.slim_run, {"run_id": original.run_id, "slim_hidden": "11"},
         "slim_hidden: expected widths of at most the original's (10), but got 11"),
        (workflow.slim_run, {"run_id": original.run_id, "slim_hidden": "10"},
         "slim_hidden: expected at least one width below the original's (10), but got 10"),
        (workflow.analyze_run, {"run_id": original.run_id, "criterion": "wanda", "null_draws": 0},
         "null_draws: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            step(store, _settings(**settings))
    for variant in (original, control):
        assert "wua.verdict" not in tags_of(store, variant.run_id)


def test_a_later_slim_variant_reuses_the_control_and_takes_over_the_pipeline(done):
    """In the experiment of its original, whichever is the current one."""
    store, outcome = done
    original, control, first = outcome.variants
    before = store.client.get_run(original.run_id).data
    _, again, second = workflow.slim_run(
        connect("second"), _settings(run_id=original.run_id, slim_hidden="5")).variants
    assert again.run_id == control.run_id
    assert second.name == "slim 5"
    assert store.client.get_run(second.run_id).info.experiment_id == store.experiment_id
    workflow.compare_run(store, _settings(run_id=second.run_id))
    tags = tags_of(store, outcome.run_id)
    assert tags["mlflow.runName"] == "usecase 10 → 5"
    note = tags["mlflow.note.content"]
    assert control.name in note
    assert "Budgets differ: the original trained for 2 epochs, the slim one for 3 epochs." in note
    history = store.client.get_metric_history(original.run_id, "latency/p50_ms")
    assert [point.value for point in history] == [before.metrics["latency/p50_ms"]]
    workflow.compare_run(store, _settings(run_id=first.run_id))  # an older slim variant
    assert tags_of(store, outcome.run_id)["mlflow.runName"] == "usecase 10 → 5"


def test_a_null_is_not_kept_beside_a_criterion_that_has_none(done, monkeypatch):
    """And a step points to the whole id of the variant that the beginning of an id names."""
    store, outcome = done
    run_id = outcome.variants[0].run_id
    step = store.client.create_run(store.experiment_id).info.run_id
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", step)
        workflow.analyze_run(store, _settings(
            run_id=run_id[:12], criterion="magnitude", null_draws=1))
    assert tags_of(store, step)["wua.target_run"] == run_id
    assert tags_of(store, run_id)["wua.criterion"] == "magnitude"
    measured = analyze.analyze
    monkeypatch.setattr(analyze, "analyze", lambda *args, **options: {
        name: replace(usage, null=None) for name, usage in measured(*args, **options).items()})
    with pytest.raises(ValueError, match="criterion: .* holds the null of magnitude and has none "
                                         "under wanda; "):
        workflow.analyze_run(store, _settings(run_id=run_id, criterion="wanda", null_draws=1))
    assert tags_of(store, run_id)["wua.criterion"] == "magnitude"


def test_equal_budgets_need_no_control_and_the_same_test_set_is_another_look(done):
    store, outcome = done
    digest = tags_of(store, outcome.variants[0].run_id)["wua.test_digest"]
    before = count_looks(store.client, digest)
    equal = {**QUICK, "epochs": 1, "slim_epochs": 1}
    again = workflow.run_pipeline(store, _settings(**equal))
    assert [variant.variant for variant in again.variants] == ["oversized", "slim"]
    assert again.report.comparison.looks == before + 1 >= 2
    assert "Budgets differ" not in again.report.comparison.budget
    note = tags_of(store, again.run_id)["mlflow.note.content"]
    assert "No recipe verdict: it needs at least 5 seeds" in note
    other = load_recipe(_settings(**equal, seed=7)).split.test.digest
    assert other != digest and count_looks(store.client, other) == 0


def test_a_step_keeps_the_runs_settings_but_for_those_given(done):
    """Neither ``register`` nor ``gate``: what they asked for was done."""
    store, _ = done
    original = workflow.train_run(store, _settings(
        **QUICK, epochs=1, criterion="magnitude", register="house", gate=True, margin=0.03))
    for values, criterion, register in (({}, "magnitude", None),
                                        ({"criterion": "output"}, "output", None),
                                        ({"register": "flat"}, "magnitude", "flat")):
        settings = _settings(run_id=original.run_id, **values)
        assert workflow.analyze_run(store, settings).usage.criterion == criterion
        merged = workflow._variant_and_settings(store, settings, Trust())[2]
        assert (merged.register, merged.gate, merged.margin) == (register, False, 0.03)


def test_early_stopping_is_said(done):
    store, _ = done
    outcome = workflow.run_pipeline(store, _settings(
        **QUICK, epochs=30, slim_epochs=40, patience=1, lr=0.5))
    original, *_ = outcome.variants
    assert original.epochs_trained < 30
    run = store.client.get_run(original.run_id).data
    assert len(store.client.get_metric_history(original.run_id, "loss/train")) \
        == original.epochs_trained
    assert run.tags["wua.epochs_trained"] == str(original.epochs_trained)
    assert f"at most 30 epochs (stopped after {original.epochs_trained})" in \
        outcome.report.comparison.budget
    forward, backward = 60, 80
    assert run.metrics["flops/training"] == (forward + backward) * 1000 * original.epochs_trained
