"""The callback in Lightning's own ``Trainer``, on a small network with random weights."""

from __future__ import annotations

import warnings

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = [
    pytest.mark.slow,  # for the import of Lightning
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("default:::lightning"),
    pytest.mark.filterwarnings("default:::torch"),
]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.loggers import MLFlowLogger
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from wua_mlflow.integrations.lightning import WuaCallback

ALWAYS = 1e9


class Net(lightning.LightningModule):
    """Two layers; it raises in the epoch ``breaks_in``."""

    def __init__(self, breaks_in: int | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2, self.breaks_in = nn.Linear(6, 16), nn.Linear(16, 2), breaks_in

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

    def training_step(self, batch, _):
        if self.current_epoch == self.breaks_in:
            raise RuntimeError("out of luck")
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader() -> DataLoader:
    x = torch.rand(100, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x.sum(1) > 3).long()), 20, shuffle=True)


def fit(callback=None, *, breaks_in: int | None = None, **options) -> Net:
    torch.manual_seed(0)
    model = Net(breaks_in)
    trainer = lightning.Trainer(
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
        callbacks=[callback] if callback else None, **{"max_epochs": 3, **options})
    trainer.fit(model, loader())
    return model


def test_a_fit_is_in_the_run_of_its_logger(store_uri):
    logger = MLFlowLogger("mine", tracking_uri=store_uri)
    fit(WuaCallback(every=1, null=2, budget=ALWAYS), logger=logger)
    client = MlflowClient()
    run, = client.search_runs([logger.experiment_id])
    assert (run.info.run_id, run.info.status) == (logger.run_id, "FINISHED")
    flops = 2 * (6 * 16 + 16 * 2)
    assert run.data.metrics["flops/forward"] == flops
    assert run.data.metrics["flops/training"] == 100 * 3 * (2 * flops + 2 * 16 * 2)
    assert run.data.metrics["params/analyzed"] == 96
    assert run.data.tags["wua.null_kind"] == "re-initialised"
    points = client.get_metric_history(run.info.run_id, "usage/effective_weights")
    assert sorted({point.step for point in points}) == [0, 1, 2, 3]
    plots = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/layers.png", "plots/importance_fc1.png"} <= plots


def test_without_a_logger_it_is_in_the_active_run_or_in_one_of_its_own(store_uri):
    client = MlflowClient()
    with mlflow.start_run() as active:
        fit(WuaCallback(null=0), logger=False)
        assert mlflow.active_run().info.run_id == active.info.run_id
    assert "usage/entropy" in client.get_run(active.info.run_id).data.metrics
    callback = WuaCallback(null=0)
    fit(callback, logger=False)
    fit(callback, logger=False)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(callback, logger=False, breaks_in=1)
    runs = client.search_runs(["0"], order_by=["attributes.start_time ASC"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3 + ["FAILED"]
    assert ["usage/entropy" in run.data.metrics for run in runs] == [True] * 3 + [False]


def test_training_that_stops_within_an_epoch_is_counted_by_batches(store_uri):
    with mlflow.start_run() as active:
        fit(WuaCallback(null=0), logger=False, max_steps=7)
    metrics = MlflowClient().get_run(active.info.run_id).data.metrics
    assert metrics["flops/training"] == 7 * 20 * (4 * (6 * 16 + 16 * 2) + 2 * 16 * 2)


def test_the_weights_are_the_same_without_it(store_uri):
    with mlflow.start_run():
        models = [fit(callback, logger=False)
                  for callback in (None, WuaCallback(every=1, budget=ALWAYS))]
    for without, with_it in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(without, with_it)


def test_a_server_that_is_gone_stops_no_training(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with pytest.warns(UserWarning, match="^wua: nothing of this fit is logged: Mlflow"):
        fit(WuaCallback(every=1), logger=False)
    mlflow.set_tracking_uri(store_uri)


def test_other_ranks_log_nothing(store_uri, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "is_global_zero", False)
    fit(WuaCallback(every=1), logger=False)
    assert MlflowClient().search_runs(["0"]) == []


def test_of_two_processes_one_logs_its_own_copy(store_uri):
    """Started by Lightning, speaking through gloo; each has a half of every batch."""
    options = {"strategy": "ddp_spawn", "devices": 2}
    logger = MLFlowLogger("mine", tracking_uri=store_uri)
    fit(WuaCallback(every=1, null=2, budget=ALWAYS), logger=logger, **options)
    client = MlflowClient()
    run, = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "usage/entropy")
    assert sorted(point.step for point in points) == [0, 1, 2, 3, 3]
