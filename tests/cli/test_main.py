"""The command ``wua``: words in; exit code, text and JSON out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from wua_mlflow.cli.main import main
from wua_mlflow.config import COMMAND_FIELDS, load_settings

PARTS = """
import numpy as np
from torch import nn

def data(seed):
    print("a line of the user's own")
    draw = np.random.default_rng(seed)
    def part(n):
        x = draw.normal(size=(n, 2)).astype("float32")
        return x, (x.sum(1) > 0).astype("int64")
    return part(100), part(40), part(60)
"""
QUICK = ["--data", "cli_parts:data", "--hidden", "5", "--epochs", "1", "--seeds", "1"]
WHOLE = [*QUICK, "--null-draws", "1", "--slim-hidden", "3"]


@dataclass(frozen=True)
class Made:
    """A store with one pipeline in it, and the ids of its runs."""

    folder: Path
    pipeline: str
    oversized: str
    slim: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``wua run`` in a process of its own, on a store that is not there yet.

    It prints its JSON and nothing else: no migrations, no warnings of third parties.
    """
    folder = tmp_path_factory.mktemp("made")
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "wua_mlflow", "run", "--seeds", "1", "--epochs", "2",
         "--slim-epochs", "2", "--null-draws", "1", "--json"],
        cwd=folder, env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"}, capture_output=True,
        text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["artifact"]["seeds"], result["recipe"]) == (1, None)
    ids = {run.data.tags.get("wua.variant", "pipeline"): run.info.run_id
           for run in MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_runs(["1"])}
    assert result["run_id"] == ids["pipeline"]
    return Made(folder, ids["pipeline"], ids["oversized"], ids["slim"])


@pytest.fixture
def store(store_uri: str, made: Made, tmp_path: Path) -> Made:
    """A copy of the store, for the test to work in."""
    shutil.copy(made.folder / "mlflow.db", tmp_path / "mlflow.db")
    return made


@pytest.fixture
def parts(store_uri: str, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "cli_parts.py").write_text(PARTS)
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("cli_parts", None)


def all_runs(kind: str = "") -> list[Run]:
    client = MlflowClient()
    everywhere = [result.experiment_id for result in client.search_experiments()]
    clause = f"tags.`wua.kind` = '{kind}'" if kind else ""
    return list(client.search_runs(everywhere, clause, order_by=["attributes.start_time DESC"]))


def test_help_is_light() -> None:
    script = ("import sys\nfrom wua_mlflow.cli.main import main\nassert main(['--help']) == 0\n"
              "assert main(['run', '--help']) == 0\nassert main(['run', '--epohcs', '1']) == 2\n"
              "print(sorted({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=600)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "wua_mlflow", "rnu"], capture_output=True,
                          text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("wua: command: expected one of run, train, analyze, slim, compare, "
                           "runs, best, show, but got 'rnu'; did you mean 'run'?\n")


def test_run_in_json_and_the_gates_exit_code(
    parts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixty test examples are too few for a margin of two points, whatever the networks do."""
    code = main(["run", *WHOLE, "--seeds", "5", "--json", "--gate"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    (pipeline,) = all_runs("pipeline")
    assert result["run_id"] == pipeline.info.run_id
    assert result["verdict"] == pipeline.data.tags["wua.verdict"] != "non_inferior"
    assert code == {"inferior": 3, "inconclusive": 4}[result["verdict"]]
    assert set(result["variants"]) == {run.info.run_name for run in all_runs("variant")}
    assert (result["artifact"]["examples"], result["recipe"]["seeds"]) == (60, 5)
    users_line, note = printed.err.splitlines()
    assert users_line == "a line of the user's own"
    assert note.startswith("wua: note: test data: expected at least 189 examples")


@pytest.mark.parametrize("gate", ["false", ""])
def test_a_gate_that_is_open(gate: str) -> None:
    assert not load_settings(None, {"gate": gate}, "run").gate


def test_run_for_a_person(parts: None, capsys: pytest.CaptureFixture[str]) -> None:
    """With the gate open, whatever the verdict."""
    assert main(["run", *WHOLE, "--gate", "false"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("wua: note: test data: expected at least 189 examples to show "
                                  "even")
    assert printed.err.count("\n") == 1
    assert "Verdict: " in printed.out
    assert "No recipe verdict: it needs at least 5 seeds (setting `seeds`)." in printed.out
    assert "viewStateShareKey=" in printed.out
    (pipeline,) = all_runs("pipeline")
    assert pipeline.data.tags["wua.verdict"] != "non_inferior"
    assert pipeline.info.run_id in printed.out
    assert "No recipe verdict" in pipeline.data.tags["mlflow.note.content"]


def test_steps_of_the_command_line(store: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--run-id", store.oversized, "--null-draws", "0"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("oversized 10: ")
    assert "  fc2: not analysed: " in text
    assert main(["slim", "--run_id", store.oversized, "--slim_hidden", "3", "--slim_epochs", "2",
                 "--null-draws", "0"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("slim 3: ")
    slim = next(run for run in all_runs("variant") if run.info.run_name == "slim 3")
    assert f"run {slim.info.run_id}\n" in text
    assert "Artifact verdict (these two saved models, " in text
    assert "\nThe slim model: 3.3× fewer FLOPs, " in text
    assert "\nIn short: " in text
    assert f"/runs/{store.pipeline}?" in text
    code = main(["compare", "--run-id", slim.info.run_id, "--margin", "0.9"])
    assert code == 0
    text = capsys.readouterr().out
    assert text.startswith("slim 3 against oversized 10\n")
    assert "No recipe verdict" in text
    assert MlflowClient().get_run(slim.info.run_id).data.metrics["compare/margin"] == 0.9


def test_train_alone(parts: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK]) == 0
    (variant,) = all_runs("variant")
    assert f"Next: wua analyze --run-id {variant.info.run_id}" in capsys.readouterr().out
    assert (variant.info.status, len(all_runs())) == ("FINISHED", 1)


@pytest.mark.parametrize("words", [
    ["--data", "digits"], ["--task", "binary"], ["a.csv", "b.csv"], ["--candidate", "b.csv"]])
def test_a_run_is_compared_on_its_own_test_part(
    words: list[str], store: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--run-id", store.slim, *words]) == 2
    assert capsys.readouterr().err.startswith("wua: run_id: a variant is compared with its "
                                              "original on their own test part, so expected ")


def test_what_a_configuration_says_holds_for_a_step_too(
    store: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside settings of the recipe, which the run was made by; the pipeline's own stay."""
    client = MlflowClient()

    def pipelines_settings() -> dict:
        path = client.download_artifacts(store.pipeline, "config.yaml")
        return yaml.safe_load(Path(path).read_text())

    before = pipelines_settings()
    assert before["hidden"] == [10]
    (tmp_path / "strict.yaml").write_text("margin: 0.3\ndata: digits\nepochs: 7\n")
    main(["compare", "--run-id", store.slim, "--config", "strict.yaml"])
    assert client.get_run(store.slim).data.metrics["compare/margin"] == 0.3
    main(["compare", "--run-id", store.slim, "--config", "strict.yaml", "--margin", "0.4"])
    assert client.get_run(store.slim).data.metrics["compare/margin"] == 0.4
    capsys.readouterr()
    code = main(["compare", "--run-id", store.slim[:8], "--config", "usecase", "--json"])
    result = json.loads(capsys.readouterr().out)
    slim = client.get_run(store.slim).data
    assert slim.metrics["compare/margin"] == result["metrics"]["compare/margin"] == 0.02
    assert result["verdict"] == slim.tags["wua.verdict"]
    assert code == {"non_inferior": 0, "inferior": 3, "inconclusive": 4}[result["verdict"]]
    assert pipelines_settings() == before


def test_empty_values_mean_as_configured(parts: None, tmp_path: Path) -> None:
    """As ``mlflow run`` passes them: every option, most of them empty."""
    (tmp_path / "mine.yaml").write_text(
        "data: cli_parts:data\nhidden: [4]\nepochs: 2\nlr: 0.5\nseeds: 1\nbatch_size: full\n")
    empty = [word for field in COMMAND_FIELDS["train"] for word in (f"--{field}", "")]
    assert main(["train", "--config", "mine.yaml", *empty]) == 0
    (variant,) = all_runs("variant")
    params = variant.data.params
    assert {name: params[name] for name in ("hidden", "epochs", "lr", "seeds", "batch_size")} == {
        "hidden": "4", "epochs": "2", "lr": "0.5", "seeds": "1", "batch_size": "full"}
    client = MlflowClient()
    assert client.get_experiment(variant.info.experiment_id).name == "wua"


def test_queries(store: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {row["run_id"] for row in result} == {run.info.run_id for run in all_runs("variant")}
    assert main(["show", store.slim, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == store.slim
    verdict = MlflowClient().get_run(store.slim).data.tags["wua.verdict"]
    assert main(["best"]) == (0 if verdict == "non_inferior" else 1)


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_and_the_line(
    place: str, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", "nowhere.csv"]
    code = main(words)
    line = capsys.readouterr().err
    assert "Traceback" not in line
    assert line.count("\n") == 1
    debug = ["--debug", *words] if place == "before" else [*words, "--debug"]
    assert main(debug) == code == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):")
    assert text.endswith(line)
