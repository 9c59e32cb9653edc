"""The run that ``mlflow run`` makes before it starts the command: what becomes of it."""

import os
import subprocess
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests import mistakes
from wua_mlflow.cli.main import main


@pytest.fixture
def inherited(store_uri, monkeypatch):
    client = MlflowClient()
    experiment = client.create_experiment("of mlflow run")
    run = client.create_run(experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    return str(run.info.run_id)


@pytest.mark.parametrize("words", [
    "run --epohcs 5", "run --epochs", "run --lr abc", "run --config no.yaml",
    "train --data no.csv", "analyze", "compare --baseline a.csv --candidate b.csv"])
def test_an_error_ends_the_run_of_mlflow_run(words, inherited, capsys):
    assert main(words.split()) in (1, 2)
    run = MlflowClient().get_run(inherited)
    assert run.info.status == "FAILED"
    assert capsys.readouterr().err == f"wua: {run.data.tags['wua.error']}\n"
    assert len(mistakes.all_runs()) == 1


def test_the_run_of_mlflow_run_is_the_pipelines(inherited):
    assert main(["run", "--data", "iris", "--hidden", "6", "--slim-hidden", "3", "--epochs", "1",
                 "--seeds", "1", "--null-draws", "0"]) == 0
    run = MlflowClient().get_run(inherited)
    assert (run.info.status, run.data.tags["wua.kind"]) == ("FINISHED", "pipeline")
    assert {variant.data.tags["mlflow.parentRunId"]
            for variant in mistakes.all_runs("variant")} == {inherited}


def test_the_run_of_mlflow_run_is_a_step_where_two_models_are_compared(inherited, tmp_path):
    lines = ["prediction,target", *(f"{n % 2},{n % 2}" for n in range(400))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert main(["compare", "--baseline", "a.csv", "--candidate", "a.csv"]) == 0
    run = MlflowClient().get_run(inherited)
    assert (run.info.status, run.data.tags["wua.kind"]) == ("FINISHED", "step")


def test_mlflow_run_works_in_the_folder_where_it_was_typed(tmp_path, monkeypatch):
    """The parent's folder, if this one is a project's; else MLFLOW_RUN_ID came otherwise."""
    from wua_mlflow.cli import main as main_module

    typed, project = tmp_path / "typed", tmp_path / "project"
    typed.mkdir()
    project.mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=typed) as parent:
        try:
            monkeypatch.setattr(os, "getppid", lambda: parent.pid)
            monkeypatch.setenv("MLFLOW_RUN_ID", "of mlflow run")
            monkeypatch.chdir(project)
            main_module._go_where_asked()
            assert Path.cwd() == project
            (project / "MLproject").write_text("name: x\n")
            main_module._go_where_asked()
            assert Path.cwd() == typed
        finally:
            parent.kill()
