"""MLproject, conda.yaml, pyproject.toml and constraints.txt agree with the package; real runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import warnings
from functools import partial
from pathlib import Path

import mlflow
import mlflow.projects
import numpy as np
import pytest
import torch
import yaml
from mlflow.exceptions import ExecutionException
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement
from packaging.version import Version
from safetensors.torch import save_file

from wua_mlflow.config import COMMAND_FIELDS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRY_POINTS = {"main": "run"} | {name: name for name in COMMAND_FIELDS if name != "run"}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_entry_points_are_the_commands_with_their_fields_as_parameters(entry):
    """And only ``config`` has a default: any other default would override a YAML file."""
    assert set(PROJECT["entry_points"]) == set(ENTRY_POINTS)
    point = PROJECT["entry_points"][entry]
    fields = COMMAND_FIELDS[ENTRY_POINTS[entry]]
    assert list(point["parameters"]) == ["config", *fields]
    assert {name: spec["default"] for name, spec in point["parameters"].items()} == {
        "config": "usecase", **dict.fromkeys(fields, "")}
    options = " ".join(["--config {config}", *(
        f"--{field.replace('_', '-')} {{{field}}}" for field in fields)])
    assert point["command"].split() == f"python pipelines/{entry}.py {options}".split()
    script = (ROOT / "pipelines" / f"{entry}.py").read_text()
    assert f'entry(["{ENTRY_POINTS[entry]}", *sys.argv[1:]])' in script
    assert len(script.splitlines()) <= 10


def test_every_dependency_is_pinned_within_its_range_which_stays_open_for_users():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines()
             if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.\-+!]+", line) for line in lines), lines
    pins = {re.sub(r"[-_.]+", "-", name).lower(): Version(version)
            for name, version in (line.split("==") for line in lines)}
    extras = PYPROJECT["optional-dependencies"].values()
    for text in [*PYPROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert pins[name] in requirement.specifier, text
    assert (pins["torch"], pins["mlflow"]) == (Version("2.13.0"), Version("3.17.2"))
    assert [text for text in PYPROJECT["dependencies"] if "==" in text] == []


def test_conda_environment_is_the_project_under_the_constraints():
    assert PROJECT["conda_env"] == "conda.yaml" and "python_env" not in PROJECT
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    python, pip, packages = conda["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["-c constraints.txt", "-e ."]}
    assert Version("3.11") in Requirement(f"x{PYPROJECT['requires-python']}").specifier


@pytest.fixture
def project(store_uri, tmp_path, monkeypatch):
    """What ``mlflow run`` calls: it starts a process, from the folder that the test runs in."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("TQDM_DISABLE", "MKL_CBWR"):  # the project sets what it needs by itself
        monkeypatch.delenv(name, raising=False)
    return partial(mlflow.projects.run, str(ROOT), env_manager="local", experiment_name="project")


def _runs(kind: str | None = None) -> list:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("project")
    return client.search_runs([experiment.experiment_id],
                              f"tags.`wua.kind` = '{kind}'" if kind else "")


@pytest.mark.project
def test_main_tells_the_whole_story(project, capfd):
    project(parameters={"seeds": 1, "null_draws": 2})
    printed = capfd.readouterr()
    assert "FLOPs, training: 12,200,000" in printed.out
    assert "Effective weights: 15.7751" in printed.out
    assert "Verdict: " in printed.out
    assert "viewStateShareKey=" in printed.out
    assert "epoch/s" not in printed.err, "a progress bar in a log file"
    (pipeline,) = _runs("pipeline")
    assert pipeline.info.status == "FINISHED"
    assert pipeline.data.tags["mlflow.project.entryPoint"] == "main"
    variants = {run.data.tags["wua.variant"]: run for run in _runs("variant")}
    assert variants["slim"].data.metrics["accuracy/train"] == pytest.approx(0.8730, abs=1e-9)
    assert {run.data.tags["mlflow.parentRunId"] for run in variants.values()} == {
        pipeline.info.run_id}


@pytest.mark.project
@pytest.mark.slow
def test_steps_one_by_one_of_a_users_file(project, tmp_path):
    """train's own run is the variant; analyze's own run is a step that points to it.

    Relative paths mean what they mean to the person who typed them.
    """
    rows = np.random.default_rng(0).normal(size=(200, 3)).round(4)
    lines = [f"{a},{b},{c},{'yes' if a + b > 0 else 'no'}" for a, b, c in rows]
    (tmp_path / "some.csv").write_text("\n".join(["a,b,c,y", *lines]))
    project("train", parameters={
        "data": "some.csv", "target": "y", "hidden": "8,4", "epochs": 10, "seeds": 1})
    (variant,) = _runs("variant")
    assert variant.data.tags["mlflow.project.entryPoint"] == "train"
    assert variant.info.run_name == "oversized 8-4"
    assert (tmp_path / "mlruns").is_dir(), "artifacts lie beside the store, not in the project"
    project("analyze", parameters={"run_id": variant.info.run_id, "null_draws": 1})
    (step,) = _runs("step")
    assert step.info.status == "FINISHED"
    assert step.data.tags["wua.target_run"] == variant.info.run_id
    (variant,) = _runs("variant")
    assert variant.data.tags["wua.step.analyze"] == "done"
    assert 1 < variant.data.metrics["usage/effective_weights"] < 3 * 8 + 8 * 4 + 4


@pytest.mark.project
@pytest.mark.slow
def test_analyze_of_a_registered_model_that_others_logged(project, tmp_path):
    """Through ``mlflow run -e analyze -P model_uri=…``: a run of its own, and the model's page."""
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    lines = [f"{a},{b},{c},{int(a + b > 0)}" for a, b, c in rows.tolist()]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,y", *lines]))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on logging models
        theirs = mlflow.pytorch.log_model(
            net.eval(), name="theirs", input_example=rows[:4], serialization_format="pt2",
            pip_requirements=["torch"], registered_model_name="churn")
    before = {run.info.run_id for run in MlflowClient().search_runs(["0"])}
    done = subprocess.run(
        ["mlflow", "run", str(ROOT), "-e", "analyze", "--env-manager=local", "--experiment-name",
         "project", "-P", "model_uri=models:/churn/1", "-P", "data=rows.csv", "-P", "target=y",
         "-P", "null_draws=2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (run,) = _runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.entryPoint"] == "analyze"
    assert 1 < run.data.metrics["usage/effective_weights"] < 3 * 8 + 8
    inputs = MlflowClient().get_run(run.info.run_id).inputs  # a search gives no models
    assert [each.model_id for each in inputs.model_inputs] == [theirs.model_id]
    (part,) = [each.dataset for each in inputs.dataset_inputs]
    of_model = {metric.key: metric for metric in
                MlflowClient().get_logged_model(theirs.model_id).metrics}
    usage = of_model["usage/effective_weights"]
    assert usage.value == run.data.metrics["usage/effective_weights"]
    assert (usage.dataset_name, usage.dataset_digest) == (part.name, part.digest)
    assert {run.info.run_id for run in MlflowClient().search_runs(["0"])} == before


@pytest.mark.project
@pytest.mark.slow
def test_slim_of_a_model_trained_elsewhere(project, tmp_path):
    """Its weights from a file; several slim seeds against it, and the artifact verdict for the
    registry.
    """
    (tmp_path / "parts.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net(): return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))\n"
        "def data(seed):\n"
        "    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))\n"
        "    y = (x[:, 0] > 0).long()\n"
        "    return (x[:500], y[:500]), (x[500:1000], y[500:1000]), (x[1000:], y[1000:])\n")
    weight = torch.zeros(16, 4)
    weight[0, 0], weight[1, 0] = 1.0, -1.0
    state = {"0.weight": weight, "0.bias": torch.zeros(16), "2.bias": torch.zeros(2),
             "2.weight": torch.tensor([[-9.0, 9.0], [9.0, -9.0]]).repeat(1, 8)}
    save_file(state, tmp_path / "weights.safetensors")
    project("slim", parameters={
        "model": "parts:net", "state": "weights.safetensors", "data": "parts:data",
        "slim_hidden": 2, "slim_epochs": 2, "null_draws": 2, "register": "narrow",
        "task": "multiclass"})
    runs = {run.data.tags["wua.variant"]: run for run in _runs("variant")}
    assert set(runs) == {"oversized", "oversized-same-budget", "slim"}
    assert runs["oversized"].data.metrics["accuracy/test"] == 1.0
    assert runs["oversized"].data.tags["wua.adopted"].endswith("weights.safetensors")
    slim = runs["slim"].data
    assert (slim.tags["wua.widths"], slim.tags["wua.structure"]) == ("2", "0 2")
    assert slim.tags["wua.verdict"] == slim.tags["wua.verdict.recipe"] == "non_inferior"
    assert slim.tags["wua.verdict.artifact"] == "non_inferior"
    version = MlflowClient().get_model_version_by_alias("narrow", "slim")
    assert version.tags["wua.verdict.artifact"] == "non_inferior"
    assert version.tags["wua.comparison"] == runs["slim"].info.run_id
    (pipeline,) = _runs("pipeline")
    assert pipeline.data.tags["wua.result"] == runs["slim"].info.run_id


@pytest.mark.slow
@pytest.mark.project
def test_digits_by_search(project, tmp_path):
    """By the command itself. A slim network, and a verdict that is not worse than the margin."""
    given = {"config": "digits", "slim_hidden": "search", "epochs": 20, "seeds": 5}
    done = subprocess.run(
        ["mlflow", "run", str(ROOT), "--env-manager=local", "--experiment-name", "project",
         *(word for name, value in given.items() for word in ("-P", f"{name}={value}"))],
        cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    runs = {run.data.tags["wua.variant"]: run for run in _runs("variant")}
    slim = runs["slim"].data
    assert slim.tags["wua.verdict"] == slim.tags["wua.verdict.recipe"] == "non_inferior"
    assert slim.metrics["compare/recipe_delta_low"] > -0.02
    assert slim.metrics["compare/flops_ratio"] > 4
    assert runs["oversized"].data.metrics["flops/forward"] / slim.metrics["flops/forward"] == \
        pytest.approx(slim.metrics["compare/flops_ratio"])


@pytest.mark.slow
@pytest.mark.project
def test_a_bad_parameter_fails_the_run_with_one_line(project, capfd):
    with pytest.raises(ExecutionException):
        project(parameters={"lr": "abc"})
    stderr = capfd.readouterr().err
    assert "lr: expected a number above 0, but got 'abc'" in stderr
    assert "Traceback" not in stderr
    (run,) = _runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["wua.error"] == "lr: expected a number above 0, but got 'abc'"
