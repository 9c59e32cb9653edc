"""A store that an earlier version wrote is read, judged again and added to.

The store is ``tests/old_store/store.zip``, as ``tests/old_store/make.py`` made it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from tests.old_store.make import ARCHIVE, DATABASE, ROOT, move_root
from wua_mlflow.cli.main import main
from wua_mlflow.tracking.runs import best, compare_runs, runs

REBUILT, PRUNED = "rebuilt", "pruned"
"""The two experiments, with a pipeline each."""
PIPELINES = {REBUILT: "136f2c7a026f49a7ac5b8c8aaf7dac00",
             PRUNED: "e1480c15947e47a28cf14ae0daceb4b5"}
NAMES = {
    "e2d8cef514a04d39b671f388c71e3e37": "oversized 10",
    "4602bab95b7146a3977135e3752714b8": "oversized 10, 60 epochs",
    "14dc1caf702643b3926892e11d665189": "slim 7",
    "c9c607bb18e64fb79b80e78d06819090": "oversized 12-8",
    "a6d707f8972a4717a74f6e310536b00f": "oversized 12-8, 25 epochs",
    "efbff62c1b114031a3cf4d63a5a40aac": "from-scratch 8-4",
    "54a2067621f1445891e29fc5711b7e2c": "slim 8-4",
}
"""The variants, oldest first."""
IDS = list(NAMES)
ORIGINALS, SLIM = {REBUILT: IDS[0], PRUNED: IDS[3]}, {REBUILT: IDS[2], PRUNED: IDS[6]}
CONTROLS = {REBUILT: IDS[1:2], PRUNED: IDS[4:6]}
FIGURES = ("accuracy/train", "accuracy/test", "accuracy/test_mean", "flops/forward",
           "flops/training", "flops_ptflops/training", "params/total", "size/bytes",
           "usage/effective_weights", "usage/null_share", "latency/p50_ms")
COMPARED = ("compare/artifact_delta", "compare/artifact_delta_low", "compare/artifact_delta_high",
            "compare/margin", "compare/flops_ratio", "compare/params_ratio", "compare/churn")


@pytest.fixture(scope="module")
def stored():
    """The metrics in the archive's database by run and name, as SQLite gives them."""
    with zipfile.ZipFile(ARCHIVE) as archive, closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(archive.read(DATABASE))
        metrics = connection.execute("SELECT run_uuid, key, value FROM latest_metrics")
        return {(run_id, name): value for run_id, name, value in metrics}


@pytest.fixture
def old_store(store_uri, tmp_path):
    """The store, unpacked where the test runs."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    move_root(tmp_path / DATABASE, ROOT, str(tmp_path))
    yield MlflowClient(store_uri)


def _printed(capsys, *arguments, code=0):
    """What a command prints to standard output, and nothing else."""
    capsys.readouterr()
    assert main(list(arguments)) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "wua: error" not in err
    return out


def test_the_archive_holds_no_path_of_a_machine():
    """A path of the database or of a file in it; saved models hold neutral ones."""
    foreign = re.compile(rb"/(?:home|root|tmp|usr|opt|Users)/[\w.-]+")
    with zipfile.ZipFile(ARCHIVE) as archive:
        hits = {name: foreign.findall(archive.read(name)) for name in archive.namelist()}
    assert len(hits) > 80
    assert {name: paths for name, paths in hits.items() if paths} == {}
    assert ARCHIVE.stat().st_size < 2**20


def test_runs_pipelines_and_the_best(old_store, stored, capsys):
    table = runs(order_by="attributes.start_time ASC")
    assert dict(zip(table["run_id"], table["name"], strict=True)) == NAMES
    figures = {name: [stored[run_id, name] for run_id in IDS] for name in FIGURES}
    assert figures["flops/forward"] == [60, 60, 42, 928, 928, 552, 552]
    assert {name: table[name].tolist() for name in FIGURES} == figures
    assert table["wua.verdict"].dropna().tolist() == ["non_inferior", "non_inferior"]
    assert table["wua.structure"].dropna().tolist() == ["fc1 8, fc2 4"]
    assert table["hidden"].tolist() == ["10", "10", "7", "12,8", "12,8", "8,4", "12,8"]
    printed = json.loads(_printed(capsys, "runs", "--json"))
    assert {name: [row[name] for row in reversed(printed)] for name in FIGURES} == figures
    shown = _printed(capsys, "runs").splitlines()
    assert shown[1].split() == [
        SLIM[PRUNED], "slim", "8-4", "non_inferior", "breast_cancer", "0.9532", "552", "289",
        "209.4", "0.02819"]
    table = runs(kind="pipeline", order_by="attributes.start_time ASC")
    assert table["run_id"].tolist() == list(PIPELINES.values())
    assert table["name"].tolist() == ["usecase 10 → 7", "breast_cancer 12-8 → 8-4"]
    assert table["wua.result"].tolist() == list(SLIM.values())
    assert table["compare/artifact_delta"].tolist() == [-0.0019, 0.0]
    assert table["compare/flops_ratio"].tolist() == [60 / 42, 928 / 552]
    assert best(PRUNED)["run_id"] == SLIM[PRUNED]
    printed = json.loads(_printed(capsys, "best", "--json"))
    assert (printed["run_id"], printed["flops/forward"]) == (SLIM[REBUILT], 42)
    _printed(capsys, "best", "--where", "metrics.`accuracy/test` > 0.99", code=1)


@pytest.mark.parametrize(("experiment", "flops"), [
    (REBUILT, ["60", "42", "1.4286"]), (PRUNED, ["928", "552", "1.6812"])])
def test_show(old_store, stored, capsys, experiment, flops):
    slim, original = SLIM[experiment], ORIGINALS[experiment]
    one = json.loads(_printed(capsys, "show", slim, "--json"))
    assert {name: one[name] for name in COMPARED} == {name: stored[slim, name] for name in COMPARED}
    assert one["wua.verdict"] == one["wua.verdict.artifact"] == "non_inferior"
    assert one["wua.baseline"] == original
    assert one["wua.controls"].split(",") == CONTROLS[experiment]
    assert f"name                          {NAMES[slim]}\n" in _printed(capsys, "show", slim[:8])
    two = json.loads(_printed(capsys, "show", original, slim, "--json"))
    assert [run["name"] for run in two["runs"]] == [NAMES[original], NAMES[slim]]
    assert two["ratio"]["flops/forward"] == stored[slim, "compare/flops_ratio"]
    table = compare_runs(original, slim)
    assert table.loc["accuracy/test", NAMES[slim]] == stored[slim, "accuracy/test"]
    assert table.loc["params/total", "ratio"] == stored[slim, "compare/params_ratio"]
    shown = [line.split() for line in _printed(capsys, "show", original, slim).splitlines()]
    assert ["flops/forward", *flops] in shown


OUTPUTS = [[0.30084, 0.649034], [0.249656, 0.658679], [0.353684, 0.584972], [0.00019, 0.905154],
           [0.000039, 0.944246], [0.000079, 0.803765], [0.003847, 0.953129]]
"""Of the variants' models on two samples."""


def test_saved_models_answer_as_they_did(old_store, monkeypatch):
    import mlflow
    from sklearn.datasets import load_breast_cancer

    points, cells = torch.tensor([[0.2, 0.3], [0.6, 0.5]]), load_breast_cancer().data[[0, 20]]
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    for number, (run_id, outputs) in enumerate(zip(NAMES, OUTPUTS, strict=True)):
        (logged,) = old_store.get_run(run_id).outputs.model_outputs
        model = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
        answers = model(points if number < 3 else torch.tensor(cells)).flatten().tolist()
        assert answers == pytest.approx(outputs, abs=1e-5), NAMES[run_id]


def _report(client: MlflowClient, run_id: str) -> str:
    return Path(client.download_artifacts(run_id, "report.md")).read_text(encoding="utf-8")


@pytest.mark.parametrize(("experiment", "width_rows"), [
    (REBUILT, {("fc1", "10", "7")}),
    (PRUNED, {("fc1", "12", "8"), ("fc2", "8", "4"), ("12-8", "928", "0.9825", "–"),
              ("9-6", "660", "1.0000", "+0.0175 (−0.0467 to +0.0929)"),
              ("**8-4**", "**552**", "**1.0000**", "**+0.0175 (−0.0467 to +0.0929)**"),
              ("6-3", "402", "0.9474", "−0.0351 (−0.1192 to +0.0303)")})])
def test_compare_judges_the_slim_variant_again(old_store, stored, capsys, experiment, width_rows):
    """``width_rows`` are those of the report, of at most four cells, from ``widths.json``."""
    slim = SLIM[experiment]
    before = _report(old_store, PIPELINES[experiment])
    _printed(capsys, "compare", "--run-id", slim)
    run = old_store.get_run(slim).data
    assert {name: run.metrics[name] for name in COMPARED} == pytest.approx(
        {name: stored[slim, name] for name in COMPARED}, abs=1e-12)
    assert run.tags["wua.verdict"] == run.tags["wua.verdict.artifact"] == "non_inferior"
    pipeline = old_store.get_run(PIPELINES[experiment])
    assert (pipeline.info.status, pipeline.data.tags["wua.result"]) == ("FINISHED", slim)
    report = _report(old_store, PIPELINES[experiment])
    assert report != before, "no report of this verdict"
    rows = {tuple(cell.strip() for cell in line.split("|")[1:-1][:4])
            for line in report.splitlines() if line.startswith("|")}
    assert width_rows <= rows


@pytest.mark.parametrize(("experiment", "arguments", "code", "expected"), [
    (REBUILT, ("--how", "rebuild", "--slim-hidden", "4"), 3,
     {"wua.verdict": "inferior", "name": "slim 4", "wua.epochs_trained": "2",
      "accuracy/test": 0.5067, "compare/artifact_delta": -0.3718, "compare/margin": 0.02,
      "flops/forward": 24, "params/total": 17}),
    pytest.param(
        PRUNED, ("--how", "prune", "--slim-hidden", "6,3", "--fold", "false"), 0,
        {"wua.verdict": "non_inferior", "name": "slim 6-3", "wua.epochs_trained": "22",
         "wua.structure": "fc1 6, fc2 3", "compare/margin": 0.1, "flops/forward": 402,
         "params/total": 211}, marks=pytest.mark.slow)])
def test_slim_derives_another_variant(old_store, capsys, experiment, arguments, code, expected):
    """The margin is the pipeline's own."""
    _printed(capsys, "slim", "--run-id", ORIGINALS[experiment], *arguments, "--slim-epochs", "2",
             "--null-draws", "1", "--gate", code=code)
    slimmer = runs(experiment, where="tags.`wua.variant` = 'slim'", limit=1).iloc[0]
    assert {name: slimmer[name] for name in expected} == pytest.approx(expected)
    assert slimmer["wua.baseline"] == ORIGINALS[experiment]
    assert slimmer["compare/looks"] == 2, "the look of the stored verdict counts"
    pipeline = old_store.get_run(PIPELINES[experiment])
    assert pipeline.data.tags["wua.result"] == slimmer["run_id"]
    assert pipeline.data.metrics["compare/artifact_delta"] == slimmer["compare/artifact_delta"]
