"""The callback in transformers' own ``Trainer``, on a small BERT with random weights."""

from __future__ import annotations

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch.utils.data import Dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default:::accelerate"),
    pytest.mark.filterwarnings("default:::transformers"),
    pytest.mark.filterwarnings("default:::torch"),
]

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from wua_mlflow.integrations.transformers import WuaCallback  # noqa: E402

ALWAYS = 1e9
CONFIG = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=16, num_labels=2)


class Sentences(Dataset):
    """32 of 8 words, of which the last two are padding."""

    def __init__(self) -> None:
        self.words = torch.randint(1, 50, (32, 8), generator=torch.Generator().manual_seed(0))
        self.mask = (torch.arange(8) < 6).long()

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int):
        return {"input_ids": self.words[i], "attention_mask": self.mask,
                "labels": int(self.words[i].sum() % 2)}


def trainer(tmp_path, *callbacks, report_to="none", **options):
    torch.manual_seed(0)
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=3, per_device_train_batch_size=8, use_cpu=True,
        save_strategy="no", report_to=report_to, disable_tqdm=True, logging_steps=2, **options)
    return transformers.Trainer(transformers.BertForSequenceClassification(CONFIG), arguments,
                                train_dataset=Sentences(), callbacks=list(callbacks))


def test_training_is_in_the_run_of_transformers_own_callback(store_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    training = trainer(tmp_path, WuaCallback(every=1, null=2, budget=ALWAYS), report_to="mlflow")
    training.train()
    client = MlflowClient()
    run, = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FINISHED"
    assert "loss" in run.data.metrics
    assert run.data.metrics["flops/training"] > 2 * 3 * run.data.metrics["flops/inference"] > 0
    assert run.data.metrics["flops/inference"] == 32 * run.data.metrics["flops/forward"]
    assert run.data.metrics["params/total"] == training.model.num_parameters()
    points = client.get_metric_history(run.info.run_id, "usage/effective_weights")
    assert sorted({point.step for point in points}) == [0, 1, 2, 3]
    assert "plots/layers.png" in {
        file.path for file in client.list_artifacts(run.info.run_id, "plots")}


def test_without_that_it_is_in_the_active_run_or_in_one_of_its_own(store_uri, tmp_path):
    client = MlflowClient()
    with mlflow.start_run() as active:
        trainer(tmp_path, WuaCallback(null=0)).train()
        assert mlflow.active_run().info.run_id == active.info.run_id
    trainer(tmp_path, WuaCallback(null=0), max_steps=2).train()
    runs = client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    half, three = (run.data.metrics["flops/training"] for run in runs)
    assert three == 6 * half, "two batches of four, and three epochs"
    assert all("usage/entropy" in run.data.metrics for run in runs)


def test_the_weights_are_the_same_without_it(store_uri, tmp_path):
    weights = []
    with mlflow.start_run():
        for callbacks in ((), (WuaCallback(every=1, budget=ALWAYS),)):
            training = trainer(tmp_path, *callbacks)
            training.train()
            weights.append(training.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_server_that_is_gone_stops_no_training(store_uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with pytest.warns(UserWarning, match="^wua: nothing of this fit is logged: Mlflow"):
        assert trainer(tmp_path, WuaCallback(every=1)).train().global_step == 12
    mlflow.set_tracking_uri(store_uri)


def test_other_ranks_log_nothing(store_uri, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "is_world_process_zero", lambda self: False)
    training = trainer(tmp_path, WuaCallback(every=1))
    training.train()
    assert not training.state.is_world_process_zero
    assert MlflowClient().search_runs(["0"]) == []
