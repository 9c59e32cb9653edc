"""A trainer that logs to MLflow finds its own network's run; others get child runs of it."""

from __future__ import annotations

import os
import random
import sys
from types import SimpleNamespace

import mlflow
import pytest
import torch
from mlflow.tracking import fluent
from torch import nn

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import trainer_runs
from wua_mlflow.pipeline.workflow import run_pipeline
from wua_mlflow.tracking import UsageMonitor
from wua_mlflow.tracking.names import Kind, Tag
from wua_mlflow.tracking.runs import runs

X = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 2).long()


def plain(model, data, budget, seed, widths):
    """It logs under names of ours, with values of its own."""
    mlflow.log_params({"epochs": budget, "lr": 0.05, "own_widths": widths})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for epoch in range(budget):
        x, y = data[0][:]
        loss = nn.functional.binary_cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        mlflow.log_metric("own_loss", loss.item(), step=epoch)


def in_a_block(model, data, budget, seed):
    with mlflow.start_run(tags={"mine": "yes"}):
        mlflow.log_metric("own_loss", seed)
    before = random.getstate()
    with mlflow.start_run(nested=True):
        mlflow.log_metric("below", 1)
    assert random.getstate() == before, "the seeded stream is not drawn from"


def left_open(model, data, budget, seed):
    mlflow.set_experiment("theirs")
    mlflow.end_run()
    mlflow.start_run()
    mlflow.log_metric("own_loss", seed)
    mlflow.start_run(nested=True)


def by_environment(model, data, budget, seed):
    mlflow.MlflowClient().log_metric(os.environ["MLFLOW_RUN_ID"], "own_loss", seed)


def silent(model, data, budget, seed):
    return model


def watched(model, data, budget, seed):
    monitor = UsageMonitor(model, data[0][:][0], every=1, samples=5, budget=1e9)
    for epoch in range(1, budget + 1):
        nn.init.normal_(model[0].weight)
        monitor.step(epoch)


TRAINERS = (plain, in_a_block, left_open, by_environment, silent, watched)


@pytest.fixture(autouse=True)
def module(monkeypatch):
    parts = {trainer.__name__: trainer for trainer in TRAINERS}
    parts["data"] = lambda seed: ((X[:100], Y[:100]), (X[100:140], Y[100:140]), (X[140:], Y[140:]))
    monkeypatch.setitem(sys.modules, "logging_trainers", SimpleNamespace(**parts))
    monkeypatch.setattr(trainer_runs, "_silent", set())


def pipeline(store, trainer, **options):
    settings = load_settings(None, {
        "data": "logging_trainers:data", "train": f"logging_trainers:{trainer}", "hidden": "8",
        "slim_hidden": "3", "epochs": 2, "seeds": 2, "null_draws": 1, **options})
    return run_pipeline(store, settings)


def metric_owners(store, name):
    found = store.client.search_runs([store.experiment_id], f"metrics.{name} > -1")
    return {run.info.run_id: run for run in found}


@pytest.mark.parametrize(("trainer", "under_mlflow_run"), [
    ("plain", False), ("plain", True), ("in_a_block", True), ("left_open", False),
    ("left_open", True), ("by_environment", False)])
def test_each_network_logs_to_a_run_of_its_own(trainer, under_mlflow_run, store, monkeypatch):
    if under_mlflow_run:
        made = store.client.create_run(store.experiment_id).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", made)
    theirs = fluent._active_experiment_id
    result = pipeline(store, trainer)
    assert fluent._active_experiment_id == theirs
    variants = {variant.run_id for variant in result.variants}
    owners = metric_owners(store, "own_loss")
    assert variants <= set(owners)
    children = [run for run_id, run in owners.items() if run_id not in variants]
    assert len(children) == 2, "the second seed of either network"
    for child in children:
        assert child.data.tags[Tag.KIND] == Kind.TRIAL and child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] in variants
    assert mlflow.active_run() is None
    assert os.environ.get("MLFLOW_RUN_ID") == (made if under_mlflow_run else None)
    assert set(runs(store.client.get_experiment(store.experiment_id).name)["run_id"]) == variants
    everything = store.client.search_runs([e.experiment_id
                                           for e in store.client.search_experiments()])
    assert {run.info.status for run in everything} == {"FINISHED"}
    assert all(run.info.experiment_id == store.experiment_id for run in everything
               if "own_loss" in run.data.metrics)
    if trainer == "in_a_block":
        names = [run.info.run_name for run in everything if "below" in run.data.metrics]
        assert len(set(names)) == len(names) == 4
    if trainer == "plain":
        original, slim = (store.client.get_run(variant.run_id) for variant in result.variants)
        assert original.data.params["lr"] == "0.05", "as the trainer says"
        assert "optimizer" not in original.data.params
        assert (original.data.params["own_widths"], slim.data.params["own_widths"]) == \
            ("(8,)", "(3,)")


def test_a_trainer_that_logs_nothing_gets_no_child_runs(store):
    pipeline(store, "silent")
    every = store.client.search_runs([store.experiment_id], run_view_type=3)
    assert not [run for run in every if run.data.tags.get(Tag.KIND) == Kind.TRIAL]


def test_what_fails_leaves_no_run_open_and_no_variable(store, monkeypatch):
    def fails(model, data, budget, seed):
        mlflow.log_metric("own_loss", 1)
        raise RuntimeError("out of luck")

    sys.modules["logging_trainers"].plain = fails
    with pytest.raises(ValueError, match="^train: logging_trainers:plain failed: .*out of luck"):
        pipeline(store, "plain")
    assert mlflow.active_run() is None and "MLFLOW_RUN_ID" not in os.environ
    statuses = {run.info.status for run in store.client.search_runs([store.experiment_id])}
    assert statuses == {"FAILED"}


def test_what_a_trainer_watched_ends_in_the_analysis_of_the_whole(store):
    """MLflow shows the point of the last step: the one on all of the training data."""
    result = pipeline(store, "watched", seeds=1)
    for name, usage in result.slimmed.usages.items():
        run_id, = (each.run_id for each in result.variants if each.name == name)
        history = store.client.get_metric_history(run_id, "usage/entropy")
        assert sorted(point.step for point in history) == [0, 1, 2, 2]
        assert store.client.get_run(run_id).data.metrics["usage/entropy"] == usage.entropy
