"""What a raw row goes through before a saved model, from the file beside it alone."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest

from tests.pipeline.slimming_cases import store  # noqa: F401 - a fixture
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.chain import run_pipeline
from wua_mlflow.pipeline.data import load_data
from wua_mlflow.tracking.store import Store


def raw(path: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = np.c_[rng.normal(100, 20, 300), rng.normal(-3, 0.1, 300), np.full(300, 7.0)]
    amounts = 5000 + 30 * inputs[:, 0] + 200 * inputs[:, 1]
    targets = amounts if task == "regression" else np.where(amounts > 7400, "much", "little")
    lines = [",".join([*(f"{x:.6f}" for x in row), str(y)])
             for row, y in zip(inputs, targets, strict=True)]
    path.write_text("\n".join(["a,b,c,y", *lines]))
    return np.round(inputs, 6), targets


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_raw_rows_by_the_file_beside_the_model(
    store: Store, tmp_path: Path, task: str  # noqa: F811
) -> None:
    path = tmp_path / "rows.csv"
    inputs, targets = raw(path, task)
    outcome = run_pipeline(store, load_settings(None, {
        "data": str(path), "target": "y", "task": task, "model": "mlp", "hidden": "8", "epochs": 60,
        "lr": 0.01, "seeds": 1, "null_draws": 0, "slim_hidden": "6"}))
    run = outcome.variants[-1].run_id
    folder = Path(store.client.download_artifacts(run, "state", str(tmp_path)))
    scaling = json.loads((folder / "scaling.json").read_text())

    def scaled(values: np.ndarray, by: dict[str, list[float | None]]) -> np.ndarray:
        scale = np.array([np.inf if one is None else one for one in by["scale"]])
        return ((values - np.array(by["mean"])) / scale).astype(np.float32)

    split = load_data(str(path), target="y", task=task, seed=42)
    rows = scaled(inputs, scaling["inputs"])
    known = {row.tobytes() for row in split.test.inputs.numpy()}
    assert sum(row.tobytes() in known for row in rows) >= len(known) - 1
    model = mlflow.pyfunc.load_model(
        f"models:/{store.client.get_run(run).outputs.model_outputs[0].model_id}")
    answers = np.asarray(model.predict(rows)).ravel()
    if task == "regression":
        assert scaling["classes"] == []
        by = scaling["targets"]
        found = answers * by["scale"][0] + by["mean"][0]
        assert np.corrcoef(found, targets)[0, 1] > 0.95
        assert abs(found.mean() - targets.mean()) < 0.1 * targets.std()
    else:
        assert scaling["targets"] is None
        named = np.array(scaling["classes"])[(answers > 0.5).astype(int)]
        assert (named == targets).mean() > 0.9
