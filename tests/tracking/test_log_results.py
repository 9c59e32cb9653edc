"""Results of the library, logged from a script of one's own and read back from a real store."""

from __future__ import annotations

import inspect
import json
import math
import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient, fluent
from torch import nn

import wua_mlflow as wua
from tests.networks import mlp, rows
from wua_mlflow.flops import CONVENTION, FlopCount
from wua_mlflow.tracking import (
    UsageMonitor,
    log_flops,
    log_latency,
    log_model,
    log_usage,
    log_verdict,
)
from wua_mlflow.tracking.store import connect, ended, new_run
from wua_mlflow.training.latency import Latency
from wua_mlflow.verdict.compare import Verdict, compare

COUNT = FlopCount(120, 160, {}, {}, {}, samples=2)
LATENCY = Latency(p50_ms=0.5, p95_ms=2.0, samples_per_s=64.0, rounds=10)


@pytest.fixture
def calls(store_uri, monkeypatch):
    """Names of the client's methods that are called, but not by one another."""
    made: list[str] = []
    inside: list[str] = []

    def noted(name, method):
        def call(self, *args, **options):
            if not inside:
                made.append(name)
            inside.append(name)
            try:
                return method(self, *args, **options)
            finally:
                inside.pop()
        return call

    for name, method in inspect.getmembers(MlflowClient, inspect.isfunction):
        if not name.startswith("_"):
            monkeypatch.setattr(MlflowClient, name, noted(name, method))
    return made


@pytest.fixture
def usage():
    torch.manual_seed(0)
    return wua.analyze(mlp(2, 10, 1), torch.rand(50, 2), null=2, effective_rank=True)


def _verdict(kind: str = "artifact") -> Verdict:
    right = np.ones((5, 400) if kind == "recipe" else 400)
    wrong = right.copy()
    wrong[..., :3] = 0
    return compare(right, wrong, margin=0.05)


def _paths(client: MlflowClient, run_id: str, folder: str = "plots") -> set[str]:
    return {file.path for file in client.list_artifacts(run_id, folder)}


def test_two_lines_give_metrics_table_and_pictures(store_uri, usage):
    model = mlp(2, 10, 1)
    with mlflow.start_run() as active:
        log_usage(usage, model)
        log_flops(wua.count_flops(model, torch.rand(5, 2)))
    client = MlflowClient()
    data = client.get_run(active.info.run_id).data
    assert data.metrics["flops/forward"] == 2 * (2 * 10 + 10)
    assert "flops/inference" not in data.metrics
    assert data.metrics["layers/0/weights"] == 20
    assert data.metrics["params/total"] == 41
    assert data.metrics["usage/effective_weights"] == pytest.approx(
        math.exp(data.metrics["layers/0/entropy"]))
    assert data.metrics["usage/effective_rank"] == usage.layers["0"].effective_rank
    assert data.metrics["usage/dead_units"] == usage.layers["0"].dead_units
    tags = {key: value for key, value in data.tags.items() if key.startswith("wua.")}
    assert tags == {"wua.null_kind": "re-initialised", "wua.criterion": "output",
                    "wua.flop_convention": CONVENTION}
    table = client.download_artifacts(active.info.run_id, "usage/layers.json")
    assert json.loads(Path(table).read_text())["data"][0][0] == "0"
    assert _paths(client, active.info.run_id) == {
        f"plots/{name}.png" for name in ("layers", "units", "importance_0", "network")}


def test_each_takes_few_calls_and_leaves_mlflow_as_it_was(calls, usage):
    """No run is active, begun or ended, and no other experiment is chosen."""
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    calls.clear()
    expected = {
        log_usage: (usage, ["get_metric_history", "log_artifacts", "log_batch"]),
        log_flops: (COUNT, ["log_batch"]),
        log_latency: (LATENCY, ["log_batch"]),
        log_verdict: (_verdict(), ["get_run", "log_artifacts", "log_batch"]),
    }
    for log, (result, needed) in expected.items():
        log(result, run_id=run_id)
        assert (log.__name__, calls) == (log.__name__, needed)
        calls.clear()
    assert mlflow.active_run() is None
    assert fluent._active_experiment_id is None
    assert len(client.search_runs(["0"])) == 1
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_terminated(run_id)


def test_metrics_are_a_models_too_with_the_data_set_that_they_were_measured_on(calls, usage):
    client = MlflowClient()
    model = mlp(2, 10, 1)
    data = mlflow.data.from_numpy(np.zeros((3, 2)), name="flowers")
    with mlflow.start_run() as active:
        model_id = log_model(model, rows(5, 2), name="net-10", model_type="classifier",
                             params={"hidden": 10})
    calls.clear()
    log_usage(usage, model, model_id=model_id, dataset=data, step=0)
    assert calls == ["get_logged_model", "log_inputs", "log_artifacts", "log_batch"]
    log_flops(COUNT, train_samples=10, epochs=3, model_id=model_id, dataset=data)
    log_latency(LATENCY, model_id=model_id)
    log_verdict(_verdict(), model_id=model_id, baseline="b" * 32)
    logged = client.get_logged_model(model_id)
    assert (logged.name, logged.model_type, logged.params) == (
        "net-10", "classifier", {"hidden": "10"})
    of_data = {metric.key: (metric.dataset_name, metric.dataset_digest)
               for metric in logged.metrics}
    named = (data.name, data.digest)
    assert of_data["usage/entropy"] == of_data["flops/training"] == named
    assert of_data["latency/p50_ms"] == of_data["compare/artifact_delta"] == (None, None)
    run = client.get_run(active.info.run_id)
    assert run.data.metrics.keys() == of_data.keys()
    assert run.data.metrics["flops/training"] == 140 * 10 * 3
    assert run.data.metrics["size/bytes"] > 0
    assert run.data.tags["wua.baseline"] == "b" * 32
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["flowers"]
    found = client.search_logged_models(
        ["0"], "metrics.`usage/entropy` > 0",
        datasets=[{"dataset_name": data.name, "dataset_digest": data.digest}])
    assert [each.model_id for each in found] == [model_id]


def test_the_active_run_goes_before_the_models_own_and_a_named_one_before_both(store_uri):
    client, store = MlflowClient(), connect()
    with ended(store, new_run(store, "a", {})) as source:
        model_id = client.create_logged_model("0", name="m", source_run_id=source).model_id
        with mlflow.start_run() as active:
            log_latency(LATENCY, model_id=model_id)
            log_flops(COUNT, model_id=model_id, run_id=source)
    assert client.get_run(source).data.metrics == {"flops/forward": 60}
    assert client.get_run(active.info.run_id).data.metrics.keys() == {
        "latency/p50_ms", "latency/p95_ms", "latency/samples_per_s"}


@pytest.mark.parametrize("order", [("recipe", "artifact"), ("artifact", "recipe")])
def test_the_recipes_verdict_decides_whichever_came_first(store_uri, order):
    with mlflow.start_run() as active:
        for kind in order:
            log_verdict(_verdict(kind))
    run = MlflowClient().get_run(active.info.run_id)
    recipe = _verdict("recipe")
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("wua.")}
    assert tags == {
        "wua.verdict": recipe.outcome, "wua.verdict.recipe": recipe.outcome,
        "wua.verdict.artifact": _verdict().outcome, "wua.verdict.method": recipe.method,
        "wua.verdict.seeds": "5", "wua.score": "accuracy", "wua.confidence": "0.95"}
    assert run.data.metrics["compare/recipe_delta_low"] == recipe.low
    assert run.data.metrics["compare/artifact_delta"] == pytest.approx(-3 / 400)
    assert _paths(MlflowClient(), active.info.run_id) == {"plots/comparison.png"}


def test_what_cannot_be_logged_is_said_in_a_line(store_uri, usage):
    with pytest.raises(ValueError, match="^run_id: expected a run's id or an active run, but got"):
        log_flops(COUNT)
    with pytest.raises(ValueError, match="^train_samples: expected their number beside epochs=3"):
        log_flops(COUNT, epochs=3)
    with mlflow.start_run():
        with pytest.raises(ValueError, match="^model_id: expected the id of a Logged"):
            log_usage(usage, model_id="no")
        with pytest.raises(ValueError, match="^name: expected at least one character, and none of"):
            log_model(nn.Linear(2, 1), rows(3, 2), name="v1.2")


@pytest.mark.slow
def test_a_server_gets_the_same(server, usage):
    """Its artifacts too, which it passes on."""
    mlflow.set_tracking_uri(server)
    model, data = mlp(2, 10, 1), torch.rand(50, 2)
    with mlflow.start_run() as active:
        watch = UsageMonitor(model, data, every=1, budget=1e9)
        watch.step(1)
        model_id = log_model(model, data, name="net")
        log_usage(usage, model, model_id=model_id)
        log_flops(COUNT, model_id=model_id)
        log_verdict(_verdict(), model_id=model_id)
    client = MlflowClient()
    run = client.get_run(active.info.run_id)
    assert {point.step for point in client.get_metric_history(run.info.run_id, "usage/entropy")} \
        == {0, 1}
    assert run.data.metrics["usage/entropy"] == usage.entropy
    assert _paths(client, run.info.run_id) >= {"plots/layers.png", "plots/comparison.png"}
    shown = {metric.key for metric in client.get_logged_model(model_id).metrics}
    assert {"usage/entropy", "flops/forward", "compare/artifact_delta", "size/bytes"} <= shown
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
