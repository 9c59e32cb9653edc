"""What a callback logs of a fit, to which run, who ends it, and that it never stops a training.

The trainers themselves: ``tests/integrations``.
"""

from __future__ import annotations

import gc

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import mlp
from wua_mlflow.flops import FlopCount
from wua_mlflow.tracking import log_flops
from wua_mlflow.tracking.fit_log import FitLog, FitOptions

ALWAYS = 1e9
OPTIONS = FitOptions(every=1, null=2, budget=ALWAYS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp(4, 6, 2)


@pytest.fixture
def loader():
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(40, 4), torch.zeros(40)), 8, shuffle=True)


def fit(log: FitLog, model: nn.Module, loader: DataLoader, **target) -> None:
    log.begin(model, loader, **target)
    for epoch in (1, 2):
        log.step(epoch)
    log.end(model, loader, epochs=2)


def test_a_fit_is_in_the_run_of_the_logger_or_in_the_active_one(store_uri, model, loader):
    client = MlflowClient()
    loggers = client.create_run("0").info.run_id
    with mlflow.start_run() as active:
        fit(FitLog(OPTIONS), model, loader)
        fit(FitLog(OPTIONS), model, loader, client=client, run_id=loggers)
    assert len(client.search_runs(["0"])) == 2
    for run_id, status in ((active.info.run_id, "FINISHED"), (loggers, "RUNNING")):
        run = client.get_run(run_id)
        assert run.info.status == status
        assert run.data.metrics["flops/training"] == 40 * 2 * (2 * 36 + 2 * 36 + 2 * 12)
        assert run.data.metrics["params/total"] == 44
        assert "usage/null_share" in run.data.metrics
        assert run.data.tags["wua.criterion"] == "output"
        points = client.get_metric_history(run_id, "usage/entropy")
        assert sorted({point.step for point in points}) == [0, 1, 2]
        assert "plots/layers.png" in {file.path for file in client.list_artifacts(run_id, "plots")}
    client.set_terminated(loggers)


def test_a_run_of_its_own_is_in_the_experiment_that_was_chosen(store_uri, model, loader):
    """By ``mlflow.set_experiment``; without one by MLflow's variables, else it is the default."""
    chosen = mlflow.set_experiment("mine").experiment_id
    fit(FitLog(FitOptions(null=0)), model, loader)
    run, = MlflowClient().search_runs([chosen])
    assert run.info.run_name == "fit"
    assert "usage/entropy" in run.data.metrics


def test_under_mlflow_run_it_is_in_the_projects_run_which_is_left_open(
        store_uri, model, loader, monkeypatch):
    client = MlflowClient()
    made = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    fit(FitLog(FitOptions(null=0)), model, loader)
    log_flops(FlopCount(120, 160, {}, {}, {}, samples=2))
    run, = client.search_runs(["0"])
    assert (run.info.run_id, run.info.status) == (made, "RUNNING")
    assert run.data.metrics["flops/forward"] == 60
    assert "usage/entropy" in run.data.metrics
    client.set_terminated(made)


@pytest.mark.parametrize(("ending", "status"), [
    ("end", "FINISHED"), ("close", "FAILED"), ("gone", "FAILED")])
def test_a_run_of_its_own_is_ended_whatever_happens(store_uri, model, loader, ending, status):
    client = MlflowClient()
    log = FitLog(FitOptions(null=0))
    log.begin(model, loader)
    run, = client.search_runs(["0"])
    assert run.info.status == "RUNNING"
    assert mlflow.active_run() is None
    if ending == "end":
        log.end(model)
    elif ending == "close":
        log.close()
        log.end(model)
    del log
    gc.collect()
    run, = client.search_runs(["0"])
    assert run.info.status == status


def test_what_fails_is_a_warning_and_the_rest_is_logged(store_uri, model, loader):
    """No data that can be gone over again: nothing. A forward that cannot be counted: no FLOPs."""
    with pytest.warns(UserWarning, match="^wua: nothing of this fit is logged: data: expected "):
        log = FitLog(OPTIONS)
        log.begin(model, iter(loader))
    log.step(1)
    log.end(model)
    assert MlflowClient().search_runs(["0"]) == []
    with mlflow.start_run() as active:
        log = FitLog(FitOptions(data=torch.rand(9, 4), null=0))
        log.begin(model, None)
        model[2].weight.data.fill_(float("nan"))
        with pytest.warns(UserWarning, match="^wua: usage and FLOPs are not logged: .*NaN"):
            log.end(model)
    assert MlflowClient().get_run(active.info.run_id).data.metrics == {}


def test_a_server_that_is_gone_is_asked_once(store_uri, model, loader, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with pytest.warns(UserWarning) as warned:
        fit(FitLog(OPTIONS), model, loader)
    assert [str(each.message)[:39] for each in warned] == [
        "wua: nothing of this fit is logged: Mlf"]
    mlflow.set_tracking_uri(store_uri)


@pytest.mark.parametrize("options", [{"every": -1}, {"samples": 0}, {"null": 1.5}])
def test_options_are_checked_before_training(options):
    name, = options
    with pytest.raises(ValueError, match=f"^{name}: expected a whole number of at least"):
        FitOptions(**options)
