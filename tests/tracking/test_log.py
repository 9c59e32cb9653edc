"""What is written to runs, against hand counts, and read back from a real store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from mlflow.utils import validation

from wua_mlflow.flops import FlopCount
from wua_mlflow.tracking import log
from wua_mlflow.training.latency import Latency
from wua_mlflow.usage.results import Histogram, LayerUsage, ModelUsage, NullUsage


@pytest.fixture
def open_run(store_uri, monkeypatch):
    """A client, the id of a run that is open, and what reaches the store, in its order."""
    client, sent = MlflowClient(store_uri), []
    run_id = client.create_run("0").info.run_id
    store, files = client._tracking_client.store, client.log_artifacts
    batch = store.log_batch
    monkeypatch.setattr(store, "log_batch", lambda **entities: sent.append(entities)
                        or batch(**entities))
    monkeypatch.setattr(client, "log_artifacts", lambda *args: sent.append("files") or files(*args))
    yield client, run_id, sent
    client.set_terminated(run_id)


def _layer(name: str = "fc1", *, weights: int = 20, effective: float = 16.0,
           null: NullUsage | None = None) -> LayerUsage:
    return LayerUsage(name=name, kind="Linear", weights=weights, units=10,
                      entropy=math.log(effective), effective_weights=effective, top90_share=0.65,
                      low_share=0.25, unit_importance=np.ones(10),
                      histogram=Histogram(np.zeros(2), np.zeros(1), 0.0), null=null)


def _usage(*layers: LayerUsage, null: NullUsage | None = None) -> ModelUsage:
    return ModelUsage("output", 1000, {layer.name: layer for layer in layers},
                      {"fc2": "the output layer"}, null)


NULL = NullUsage("re-initialised", 20, share=0.75, low=0.7, high=0.8, shift=-0.1)


def test_the_limits_are_mlflows():
    assert log.ENTITIES_A_BATCH == validation.MAX_ENTITIES_PER_BATCH \
        == validation.MAX_METRICS_PER_BATCH
    assert log.PARAMS_A_BATCH == validation.MAX_PARAMS_TAGS_PER_BATCH
    assert log.PARAM_CHARACTERS == validation.MAX_PARAM_VAL_LENGTH
    assert log.TAG_CHARACTERS == validation.MAX_TAG_VAL_LENGTH


def test_2500_metrics_are_three_calls_and_the_files_one(open_run):
    client, run_id, sent = open_run
    metrics = {f"m/{number}": float(number) for number in range(500)}
    curve = [1 / (epoch + 1) for epoch in range(2000)]
    log.write(client, run_id, metrics=metrics, curves={"loss/train": curve},
              tags={"wua.step.train": "done"}, params={"lr": 0.01},
              files={"a/b/text.md": "§ text", "bytes.bin": lambda path: path.write_bytes(b"\0\1")})
    files, *batches = sent
    assert files == "files"
    assert [len(entities["metrics"]) for entities in batches] == [1000, 1000, 500]
    run = client.get_run(run_id)
    assert {key: run.data.metrics[key] for key in metrics} == metrics
    assert run.data.params == {"lr": "0.01"}
    assert run.data.tags["wua.step.train"] == "done"
    history = client.get_metric_history(run_id, "loss/train")
    assert sorted((point.step, point.value) for point in history) == list(enumerate(curve, 1))
    assert [point.step for point in client.get_metric_history(run_id, "m/7")] == [0]
    folder = Path(client.download_artifacts(run_id, ""))
    assert (folder / "a/b/text.md").read_text(encoding="utf-8") == "§ text"
    assert (folder / "bytes.bin").read_bytes() == b"\0\1"


def test_a_batch_holds_no_more_than_mlflow_takes_and_the_tags_are_last(open_run):
    client, run_id, sent = open_run
    metrics = {f"m/{number}": 1.0 for number in range(1000)}
    params = {f"p{number}": number for number in range(250)}
    tags = {f"t{number}": str(number) for number in range(130)}
    log.write(client, run_id, metrics=metrics, tags={"wua.step.train": "done"})
    log.write(client, run_id, params=params, tags=tags)
    assert [tuple(len(entities[kind]) for kind in ("metrics", "params", "tags"))
            for entities in sent] == [
        (1000, 0, 0), (0, 0, 1), (0, 100, 0), (0, 100, 0), (0, 50, 100), (0, 0, 30)]
    data = client.get_run(run_id).data
    assert data.params == {key: str(value) for key, value in params.items()}
    assert {key: data.tags[key] for key in tags} == tags


def test_what_is_no_number_or_cannot_be_made_raises_before_anything_is_sent(open_run):
    """And nothing to write is no call."""
    client, run_id, sent = open_run
    for value in (math.nan, -math.inf, torch.tensor(math.nan)):
        for numbers in ({"curves": {"loss/train": [0.5, value]}},
                        {"metrics": {"loss/train": value}}):
            with pytest.raises(ValueError, match="^metric loss/train: expected a finite number, "):
                log.write(client, run_id, **numbers, tags={"done": "yes"}, files={"a.txt": "a"})
    with pytest.raises(ZeroDivisionError):
        log.write(client, run_id, tags={"wua.step.train": "done"}, files={"a.png": lambda _: 1 / 0})
    log.write(client, run_id, metrics={}, curves={"loss/train": []}, params={}, tags={}, files={})
    assert sent == []


def test_what_mlflow_would_cut_is_a_file_that_the_value_names(open_run):
    client, run_id, _ = open_run
    params, tags = {"layers": "1," * 3001}, {"wua.a": "2," * 4001, "mlflow.runName": "3" * 300}
    log.write(client, run_id, params=params, tags=tags, files={"a.txt": "a"})
    data = client.get_run(run_id).data
    for values, value, limit, path in (
            (data.params, "layers", 6000, "long/param_layers.txt"),
            (data.tags, "wua.a", 8000, "long/tag_wua.a.txt")):
        whole = {**params, **tags}[value]
        assert len(values[value]) == limit
        assert values[value].endswith(f"… (cut: {len(whole):,} characters, whole in this run's "
                                      f"{path})")
        assert client.download_artifacts(run_id, path) and whole == Path(
            client.download_artifacts(run_id, path)).read_text()
    assert data.tags["mlflow.runName"] == client.get_run(run_id).info.run_name == "3" * 249 + "…"


def test_numbers_of_any_kind_and_values_as_long_as_mlflow_takes(open_run):
    client, run_id, _ = open_run
    log.write(client, run_id, params={"p": "x" * 6000}, tags={"t": "y" * 8000}, metrics={
        "a": np.float32(0.5), "b": torch.tensor([2.0]), "c": True, "d": np.int64(2**40)})
    data = client.get_run(run_id).data
    assert (len(data.params["p"]), len(data.tags["t"])) == (6000, 8000)
    assert data.metrics == {"a": 0.5, "b": 2.0, "c": 1.0, "d": 2**40}


@pytest.mark.parametrize("line", ["| a row of a table |\n", "x"])
def test_a_description_that_is_too_long_says_that_it_is_cut(open_run, line):
    client, run_id, _ = open_run

    def stored(text: str) -> str:
        log.write(client, run_id, tags={"mlflow.note.content": text})
        return client.get_run(run_id).data.tags["mlflow.note.content"]

    text = line * (9000 // len(line))
    description = stored(text)
    beginning, _, note = description.rpartition("\n\n")
    assert 7800 < len(description) <= 8000
    assert text.startswith(beginning) and beginning.endswith(line.rstrip())
    assert note == "… cut here: MLflow keeps 8,000 characters of a description."
    assert stored("z" * 8000) == "z" * 8000


def test_metrics_of_a_model_are_shown_with_it_but_not_its_curves(open_run):
    client, run_id, _ = open_run
    model = client.create_logged_model("0", name="model", source_run_id=run_id)
    log.write(client, run_id, metrics={"accuracy/test": 0.75}, curves={"loss/train": [2.0, 1.0]},
              model_id=model.model_id)
    metrics = client.get_logged_model(model.model_id).metrics
    assert [(metric.key, metric.value) for metric in metrics] == [("accuracy/test", 0.75)]
    assert client.get_run(run_id).data.metrics == {"accuracy/test": 0.75, "loss/train": 1.0}


def test_a_point_of_a_model_names_its_data_set_and_later_points_are_a_history(open_run):
    client, run_id, sent = open_run
    model = client.create_logged_model("0", name="model", source_run_id=run_id)
    data = SimpleNamespace(name="digits test", digest="0123456789ab")
    log.write(client, run_id, metrics={"accuracy/test": 0.75, "params/total": 9}, step=4,
              model_id=model.model_id, datasets={"accuracy/test": data})
    shown = {metric.key: (metric.step, metric.dataset_name, metric.dataset_digest)
             for metric in client.get_logged_model(model.model_id).metrics}
    assert shown == {"accuracy/test": (4, data.name, data.digest), "params/total": (4, None, None)}
    assert [log.last_step(client, run_id, name) for name in ("accuracy/test", "other")] == [4, 0]
    sent.clear()
    log.write_history(client, run_id, {0: {"a": 1.0, "b": 2.0}, 5: {"a": 3.0}})
    assert len(sent) == 1
    points = {(point.step, point.value) for point in client.get_metric_history(run_id, "a")}
    assert points == {(0, 1.0), (5, 3.0)}
    with pytest.raises(ValueError, match="^metric b: expected a finite number, but got nan"):
        log.write_history(client, run_id, {6: {"a": 1.0, "b": math.nan}})
    assert log.last_step(client, run_id, "a") == 5


def test_usage_of_two_layers_by_hand():
    metrics = log.usage_metrics(_usage(_layer(null=NULL), _layer("fc2", weights=10, effective=5.0),
                                       null=NULL))
    assert metrics.pop("usage/entropy") == pytest.approx(math.log(21))
    assert metrics.pop("layers/fc1/entropy") == pytest.approx(4 * math.log(2))
    assert metrics.pop("layers/fc2/entropy") == pytest.approx(math.log(5))
    assert metrics == {
        "usage/effective_weights": 21.0, "usage/effective_share": 0.7, "usage/top90_share": 0.65,
        "usage/low_share": 0.25, "params/analyzed": 30, "usage/null_share": 0.75,
        "usage/null_low": 0.7, "usage/null_high": 0.8, "usage/shift": -0.1,
        "layers/fc1/effective_weights": 16.0, "layers/fc1/top90_share": 0.65,
        "layers/fc1/low_share": 0.25, "layers/fc1/weights": 20, "layers/fc1/units": 10,
        "layers/fc2/effective_weights": 5.0, "layers/fc2/top90_share": 0.65,
        "layers/fc2/low_share": 0.25, "layers/fc2/weights": 10, "layers/fc2/units": 10}


def test_the_table_of_layers_where_alone_those_of_a_deep_model_are():
    for layers, of_layers in ((20, 120), (21, 0)):
        usage = _usage(*(_layer(f"fc{number}") for number in range(layers)))
        assert sum(key.startswith("layers/") for key in log.usage_metrics(usage)) == of_layers
        assert len(json.loads(log.layers_table(usage))["data"]) == layers
    table = json.loads(log.layers_table(_usage(_layer(null=NULL), _layer("fc2"), null=NULL)))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows[0] == {
        "layer": "fc1", "kind": "Linear", "weights": 20, "units": 10, "entropy": math.log(16),
        "effective_weights": 16.0, "effective_share": 0.8, "null_share": 0.75, "null_low": 0.7,
        "null_high": 0.8, "shift": -0.1, "null_kind": "re-initialised", "top90_share": 0.65,
        "low_share": 0.25, "dead": False, **dict.fromkeys((
            "unit_entropy", "unit_top90_share", "unit_low_share", "effective_units", "dead_units",
            "effective_rank", "forward_flops")), "key": "fc1"}
    assert (rows[1]["layer"], rows[1]["null_share"], rows[1]["shift"]) == ("fc2", None, None)
    assert table["skipped"] == [{"layer": "fc2", "reason": "the output layer"}]
    assert (table["criterion"], table["samples"]) == ("output", 1000)


def test_flops_of_the_tutorials_network_and_latency_by_hand():
    """Linear(2, 10), Linear(10, 1) on batches of 5: 30 multiply-accumulates a sample forward.

    Backward: the weights' gradients 30 again, and that of the hidden layer 10.
    """
    count = FlopCount(forward_flops=5 * 60, backward_flops=5 * 80, by_module={}, by_operator={},
                      uncounted={}, samples=5)
    assert log.flop_metrics(count, train_samples=1000, epochs=50) == {
        "flops/forward": 60, "flops/inference": 60_000, "flops/training": 140 * 1000 * 50}
    assert log.flop_metrics(count, train_samples=1000) == {
        "flops/forward": 60, "flops/inference": 60_000}
    assert log.flop_metrics(count, epochs=50) == {"flops/forward": 60}
    assert log.latency_metrics(Latency(p50_ms=0.5, p95_ms=2.0, samples_per_s=64.0, rounds=10)) == {
        "latency/p50_ms": 0.5, "latency/p95_ms": 2.0, "latency/samples_per_s": 64.0}
