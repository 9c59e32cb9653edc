"""What the tests of ``wua compare A B`` share: a store with trained variants, and the command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file
from torch import nn

import wua_mlflow as wua
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import workflow
from wua_mlflow.tracking.store import connect

EXIT = {"non_inferior": 0, "inferior": 3, "inconclusive": 4}
FEATURES = ["a", "b", "c"]
FRESH = ("--data", "fresh.csv", "--target", "y")
FRESH_AMOUNTS = ("--data", "amounts.parquet", "--target", "z")


def rows(seed: int, count: int = 300) -> pd.DataFrame:
    """Three columns of unlike scales; ``y`` is text, ``z`` an amount in a unit of its own."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, 3)) * [1, 50, 0.01] + [5, -200, 0]
    score = (values - [5, -200, 0]) / [1, 50, 0.01] @ [1, 1, -1] + draw.normal(size=count) / 2
    return pd.DataFrame(values, columns=FEATURES).assign(
        y=np.where(score > 0, "yes", "no"), z=1000 + 300 * score)


@dataclass(frozen=True)
class Made:
    """A store with trained variants in it: their runs by a letter."""

    folder: Path
    runs: dict[str, str]


_KEPT: list[Made] = []


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Made:
    """A and B have one test part, C another; P and Q are regressions; D and E have images.

    Made once, for every module that takes the fixture.
    """
    if not _KEPT:
        folder = tmp_path_factory.mktemp("outside")
        shutil.copy(migrated_database, folder / "mlflow.db")
        _KEPT.append(_trained(folder))
    return _KEPT[0]


def _trained(folder: Path) -> Made:
    rows(0).drop(columns="z").to_csv(folder / "classes.csv", index=False)
    rows(0).drop(columns="y").to_csv(folder / "amounts.csv", index=False)
    common = {"seeds": 1, "epochs": 20, "lr": 0.02, "batch_size": 32}
    classes = {"data": str(folder / "classes.csv"), "target": "y", **common}
    amounts = {"data": str(folder / "amounts.csv"), "target": "z", **common}
    recipes = {
        "A": {**classes, "hidden": 6, "seed": 1}, "B": {**classes, "hidden": 3, "seed": 1},
        "C": {**classes, "hidden": 3, "seed": 2}, "P": {**amounts, "hidden": 6},
        "Q": {**amounts, "hidden": 2}, "D": {"data": "digits", **common, "hidden": 16, "epochs": 3},
        "E": {"data": "digits", "model": "cnn", **common, "hidden": 4, "epochs": 1},
    }
    before = os.getcwd(), mlflow.get_tracking_uri()
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    try:
        store = connect("variants")
        return Made(folder, {letter: workflow.train_run(store, load_settings(None, recipe)).run_id
                             for letter, recipe in recipes.items()})
    finally:
        os.chdir(before[0])
        mlflow.set_tracking_uri(before[1])


@pytest.fixture
def runs(made: Made, store_uri: str, tmp_path: Path) -> dict[str, str]:
    """The runs, in a copy of the store for the test to work in, and fresh rows beside it."""
    shutil.copy(made.folder / "mlflow.db", tmp_path / "mlflow.db")
    rows(7, 400).drop(columns="z").to_csv(tmp_path / "fresh.csv", index=False)
    rows(7, 400).drop(columns="y").to_parquet(tmp_path / "amounts.parquet")
    return made.runs


Compare = Callable[..., dict]
Refused = Callable[..., str]


def compared(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """What ``wua compare`` gives as JSON; its exit code is the verdict's, stderr is empty."""
    code = main(["compare", *words, "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    found = json.loads(said.out)
    assert code == EXIT[found["verdict"]]
    return dict(found)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that ``wua compare`` ends with."""
    assert main(["compare", *words]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err.removeprefix("wua: ").rstrip("\n")


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    return partial(compared, capsys)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return partial(refusal, capsys)


def assert_same_verdict(found: dict, old: np.ndarray, new: np.ndarray, margin: float) -> None:
    """``found`` is what ``wua.compare`` says of these scores."""
    expected = wua.compare(old, new, margin=margin, seed=42)
    assert found["artifact"]["outcome"] == found["verdict"] == expected.outcome
    for name in ("delta", "low", "high"):
        assert found["artifact"][name] == pytest.approx(getattr(expected, name), abs=1e-5)
    assert (found["artifact"]["examples"], found["recipe"]) == (expected.examples, None)


def forward(run_id: str, inputs: np.ndarray) -> np.ndarray:
    """The kept network's output before a sigmoid, in NumPy."""
    state = load_file(MlflowClient().download_artifacts(run_id, "state/model.safetensors"))
    hidden = np.maximum(inputs @ state["fc1.weight"].T + state["fc1.bias"], 0)
    return np.asarray(hidden @ state["fc2.weight"].T + state["fc2.bias"])[:, 0]


def scaling(made: Made, letter: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of a run's columns, from the extremes of its parts and of the file."""
    from wua_mlflow.pipeline.variant import load_variant

    split = load_variant(connect("variants"), made.runs[letter]).recipe.split
    raw = pd.read_csv(made.folder / f"{name}.csv")
    parts = (split.train, split.validation, split.test)
    scaled = np.concatenate([part.inputs.numpy() for part in parts]).astype(np.float64)
    values = raw[FEATURES].to_numpy()
    if name == "amounts":
        targets = np.concatenate([part.targets.numpy() for part in parts]).astype(np.float64)
        scaled, values = np.hstack([scaled, targets]), np.column_stack([values, raw["z"]])
    scale = np.ptp(values, axis=0) / np.ptp(scaled, axis=0)
    return values.min(axis=0) - scaled.min(axis=0) * scale, scale


def fresh_scores(made: Made, letter: str, frame: pd.DataFrame) -> np.ndarray:
    """Which fresh rows a run's network gets right, by hand."""
    mean, scale = scaling(made, letter, "classes")
    logits = forward(made.runs[letter], (frame[FEATURES].to_numpy() - mean) / scale)
    return np.asarray(np.where(logits > 0, "yes", "no") == frame["y"], dtype=float)


def log_model(model: nn.Module, inputs: torch.Tensor) -> tuple[str, str]:
    """A model from elsewhere, exported as pt2: its ``models:/`` and its ``runs:/`` address."""
    with mlflow.start_run() as run:
        info = mlflow.pytorch.log_model(
            model.eval(), name="net", input_example=inputs.numpy(), serialization_format="pt2",
            pip_requirements=["torch"])
    return info.model_uri, f"runs:/{run.info.run_id}/net"


class Weighing(nn.Module):
    """Classes by a weighted sum of the raw columns: one logit, or one a class."""

    def __init__(self, weights: list[float], outputs: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(3, outputs)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()
            self.layer.weight[-1] = torch.tensor([weights[0], weights[1] / 50, weights[2] * 100])
            self.layer.bias[-1] = -5 * weights[0] + 4 * weights[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def by_weights(weights: list[float], frame: pd.DataFrame) -> np.ndarray:
    """Which rows ``Weighing`` gets right."""
    shifted = (frame[FEATURES].to_numpy() - [5, -200, 0]) / [1, 50, 0.01]
    return np.asarray(np.where(shifted @ weights > 0, "yes", "no") == frame["y"], dtype=float)


WHOLE, PARTIAL = [1.0, 1.0, -1.0], [1.0, 0.8, 0.0]


def raw(count: int = 4) -> torch.Tensor:
    return torch.tensor(rows(7, 400)[FEATURES].to_numpy()[:count], dtype=torch.float32)


def model_of(run_id: str) -> str:
    (output,) = MlflowClient().get_run(run_id).outputs.model_outputs
    return f"models:/{output.model_id}"
