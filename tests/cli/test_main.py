"""The command ``wua``: words in; exit code, text and JSON out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.conftest import MLFLOW_VARIABLES, blank_pictures
from tests.mistakes import all_runs, line_of
from tests.report.cases import round_of, variant, verdict
from wua_mlflow.cli import commands
from wua_mlflow.cli.main import main
from wua_mlflow.config import COMMAND_FIELDS, Settings
from wua_mlflow.pipeline.trust import remember
from wua_mlflow.pipeline.workflow import SlimmingResult
from wua_mlflow.results import Slimmed
from wua_mlflow.tracking.store import Store

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
EXIT_CODES = {"non_inferior": 0, "inferior": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Made:
    """A store with one pipeline in it, what the command printed, and the ids of the runs."""

    database: Path
    code: int
    out: str
    err: str
    ids: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_database):
    """``wua run --json --gate`` with five seeds."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "cli_parts.py").write_text(PARTS)
    database = Path(shutil.copy(migrated_database, folder / "mlflow.db"))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
            contextlib.redirect_stderr(err):
        for name in MLFLOW_VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        blank_pictures(patch)
        code = main(["run", *WHOLE, "--seeds", "5", "--json", "--gate"])
        ids = {run.data.tags.get("wua.variant", "pipeline"): run.info.run_id for run in all_runs()}
    sys.modules.pop("cli_parts")
    return Made(database, code, out.getvalue(), err.getvalue(), ids)


@pytest.fixture
def parts(store_uri, tmp_path):
    (tmp_path / "cli_parts.py").write_text(PARTS)
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("cli_parts", None)


@pytest.fixture
def store(parts, made, tmp_path):
    """A copy of the store, for the test to work in; the ids of its runs."""
    shutil.copy(made.database, tmp_path / "mlflow.db")
    remember(Settings(data="cli_parts:data"))  # it was named in the folder that this is a copy of
    return made.ids


def test_help_is_light():
    script = ("import sys\nfrom wua_mlflow.cli.main import main\nassert main(['--help']) == 0\n"
              "assert main(['run', '--help']) == 0\nassert main(['run', '--epohcs', '1']) == 2\n"
              "print(sorted({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=600)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


@pytest.mark.slow
def test_a_new_store_makes_no_noise(tmp_path):
    """In a process of its own: no migrations, no warnings of third parties."""
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    done = subprocess.run([sys.executable, "-m", "wua_mlflow", "analyze"], cwd=tmp_path,
                          env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true"},
                          capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("wua: run_id: expected the id of a variant's run, .*\n", done.stderr)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_experiment_by_name("wua") is not None


@pytest.mark.slow
def test_a_server_makes_no_noise(server, tmp_path):
    """MLflow prints an address for each run that ends; JSON would not be JSON any more."""
    done = subprocess.run(
        [sys.executable, "-m", "wua_mlflow", "run", "--data", "iris", "--hidden", "6", "--epochs",
         "1", "--seeds", "1", "--null-draws", "1", "--json", "--margin", "0.2"], cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": server}, capture_output=True, text=True,
        timeout=600)
    noise = [line for line in done.stderr.splitlines() if not line.startswith("wua: note: ")]
    assert (done.returncode, noise) == (0, [])
    assert json.loads(done.stdout)["artifact"]["examples"] == 45


def test_run_in_json_and_the_gates_exit_code(made, store):
    """Sixty test examples are too few for a margin of two points, whatever the networks do."""
    result = json.loads(made.out)
    (pipeline,) = all_runs("pipeline")
    assert result["run_id"] == pipeline.info.run_id
    assert result["verdict"] == pipeline.data.tags["wua.verdict"] != "non_inferior"
    assert made.code == EXIT_CODES[result["verdict"]]
    assert set(result["variants"]) == {run.info.run_name for run in all_runs("variant")}
    assert (result["artifact"]["examples"], result["recipe"]["seeds"]) == (60, 5)
    users_line, note = made.err.splitlines()
    assert users_line == "a line of the user's own"
    assert note.startswith("wua: note: test data: expected at least 189 examples")


def test_run_for_a_person(parts, capsys):
    """With the gate open, whatever the verdict."""
    assert main(["run", *WHOLE, "--gate", "false"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("wua: note: test data: expected at least 189 examples to show "
                                  "even")
    assert printed.err.count("\n") == 1
    (pipeline,) = all_runs("pipeline")
    assert pipeline.data.tags["wua.verdict"] != "non_inferior"
    for phrase in ("Verdict: ", "viewStateShareKey=", pipeline.info.run_id,
                   "No recipe verdict: it needs at least 5 seeds (setting `seeds`)."):
        assert phrase in printed.out
    assert "No recipe verdict" in pipeline.data.tags["mlflow.note.content"]


def test_steps_of_the_command_line(store, capsys):
    assert main(["analyze", "--run-id", store["oversized"], "--null-draws", "0"]) == 0
    assert re.search("oversized 5: .*  fc2: not analysed: ", capsys.readouterr().out, re.S)
    assert main(["slim", "--run_id", store["oversized"], "--slim_hidden", "2", "--slim_epochs",
                 "2", "--null-draws", "0", "--verbose"]) == 0
    text = capsys.readouterr().out
    slim = next(run for run in all_runs("variant") if run.info.run_name == "slim 2")
    for phrase in ("\nslim 2: ", f"run {slim.info.run_id}\n", "\nIn short: ",
                   "Artifact verdict (these two saved models, ", f"/runs/{store['pipeline']}?",
                   "\nThe slim model: 2.5× fewer FLOPs, "):
        assert phrase in text
    assert main(["compare", "--run-id", slim.info.run_id, "--margin", "0.2"]) == 4
    assert "\nslim 2 against oversized 5\n" in capsys.readouterr().out
    assert MlflowClient().get_run(slim.info.run_id).data.metrics["compare/margin"] == 0.2


def test_what_a_configuration_says_holds_for_a_step_too(store, tmp_path, capsys):
    """Also beside settings of the recipe, which the run was made by; the pipeline's own stay."""
    client = MlflowClient()

    def pipelines_settings() -> dict:
        path = client.download_artifacts(store["pipeline"], "config.yaml")
        return yaml.safe_load(Path(path).read_text())

    before = pipelines_settings()
    assert before["hidden"] == [5]
    (tmp_path / "strict.yaml").write_text("margin: 0.3\ndata: digits\nepochs: 7\n")
    main(["compare", "--run-id", store["slim"], "--config", "strict.yaml"])
    assert client.get_run(store["slim"]).data.metrics["compare/margin"] == 0.3
    capsys.readouterr()
    code = main(["compare", "--run-id", store["slim"][:8], "--config", "usecase", "--json"])
    result = json.loads(capsys.readouterr().out)
    slim = client.get_run(store["slim"]).data
    assert slim.metrics["compare/margin"] == result["metrics"]["compare/margin"] == 0.02
    assert result["verdict"] == slim.tags["wua.verdict"]
    assert code == EXIT_CODES[result["verdict"]]
    assert pipelines_settings() == before


def test_empty_values_mean_as_configured(parts, tmp_path, capsys):
    """As ``mlflow run`` passes them: every option, most of them empty."""
    (tmp_path / "mine.yaml").write_text(
        "data: cli_parts:data\nhidden: [4]\nepochs: 2\nlr: 0.5\nseeds: 1\nbatch_size: full\n")
    empty = [word for field in COMMAND_FIELDS["train"] for word in (f"--{field}", "")]
    assert main(["train", "--config", "mine.yaml", *empty]) == 0
    (variant,) = all_runs()
    assert variant.info.status == "FINISHED"
    *_, score, following = capsys.readouterr().out.splitlines()
    assert score.endswith(f" on the test part; run {variant.info.run_id}")
    assert following == f"Next: wua analyze --run-id {variant.info.run_id}"
    params = variant.data.params
    assert {name: params[name] for name in ("hidden", "epochs", "lr", "seeds", "batch_size")} == {
        "hidden": "4", "epochs": "2", "lr": "0.5", "seeds": "1", "batch_size": "full"}
    assert MlflowClient().get_experiment(variant.info.experiment_id).name == "wua"


def test_debug_shows_the_traceback_and_the_line(store_uri, capsys):
    words = ["train", "--data", "nowhere.csv"]
    line = line_of(words, 1, capsys)
    for with_debug in (["--debug", *words], [*words, "--debug"]):
        assert main(with_debug) == 1
        text = capsys.readouterr().err
        assert text.startswith("Traceback (most recent call last):")
        assert text.endswith(f"wua: {line}\n")


@pytest.mark.parametrize(("uri", "variables", "base"), [
    ("sqlite:///a.db", {}, "http://127.0.0.1:5000"),
    ("sqlite:///a.db", {"MLFLOW_PORT": "5051", "MLFLOW_HOST": "0.0.0.0"}, "http://127.0.0.1:5051"),
    ("postgresql://ann:se/cret@db/x", {"MLFLOW_HOST": "gpu7"}, "http://gpu7:5000"),
    ("http://ann:s@cret@host:81/sub", {"MLFLOW_PORT": "5051"}, "http://host:81/sub"),
])
def test_addresses_fit_the_server_and_show_no_password(uri, variables, base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_HOST", "MLFLOW_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = round_of("slim 7", (7,), verdict(), 1.4)
    outcome = SlimmingResult(Slimmed(variant("oversized 10", (10,)), (found,)), {}, run_id="ab")
    text = commands._to_look(Store(None, "0", uri), outcome)
    assert [line.strip().partition("/#/")[0] for line in text.splitlines()
            if "/#/" in line] == [base] * 2
    assert "cret" not in text and ("start the UI" in text) != uri.startswith("http")
