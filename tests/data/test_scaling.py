"""A saved model takes rows as they were read; the file beside it says what it does to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.pipeline.slimming_cases import store  # noqa: F401 - a fixture
from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.data.scaling import Scaler, Scaling, WithInputScaling, WithoutInputScaling, raw_rows
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline.compare_external import (
    ComparedModel,
    choose_test_sets,
    evaluate_model,
    open_model,
)
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import run_pipeline, train_run
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation, outputs_of


def raw(path: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = np.c_[rng.normal(100, 20, 300), rng.normal(-3, 0.1, 300), np.full(300, 7.0)]
    amounts = 5000 + 30 * inputs[:, 0] + 200 * inputs[:, 1]
    targets = amounts if task == "regression" else np.where(amounts > 7400, "much", "little")
    lines = [",".join([*(f"{x:.6f}" for x in row), str(y)])
             for row, y in zip(inputs, targets, strict=True)]
    path.write_text("\n".join(["a,b,c,y", *lines]))
    return np.round(inputs, 6), targets


def evaluations(
    models: list[ComparedModel], settings: Settings, *, data_given: bool
) -> list[Evaluation]:
    tests = choose_test_sets(models, settings, data_given=data_given)
    return [evaluate_model(model, test, data_given=data_given)
            for model, test in zip(models, tests, strict=True)]


def trained_on(store: Store, path: Path, task: str) -> tuple[str, str]:  # noqa: F811
    """An original's run, and the address of its saved model."""
    run = train_run(store, load_settings(None, {
        "data": str(path), "target": "y", "task": task, "model": "mlp", "hidden": "8", "epochs": 40,
        "lr": 0.01, "seeds": 1, "null_draws": 0})).run_id
    return run, f"models:/{store.client.get_run(run).outputs.model_outputs[0].model_id}"


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # MLflow's, of a table
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
    uri = f"models:/{store.client.get_run(run).outputs.model_outputs[0].model_id}"
    model = mlflow.pyfunc.load_model(uri)
    answers = np.asarray(model.predict(inputs)).ravel()
    by_table = np.asarray(model.predict(pd.DataFrame(inputs))).ravel()
    np.testing.assert_array_equal(by_table, answers)
    network = load_variant(store, run).trained.model
    plain = outputs_of(network, torch.from_numpy(rows)).numpy().ravel()
    if task == "regression":
        by = scaling["targets"]
        assert scaling["classes"] == []
        np.testing.assert_allclose(answers, plain * by["scale"][0] + by["mean"][0], rtol=1e-4)
        assert np.corrcoef(answers, targets)[0, 1] > 0.95
        assert abs(answers.mean() - targets.mean()) < 0.1 * targets.std()
    else:
        assert scaling["targets"] is None
        np.testing.assert_allclose(answers, plain, atol=1e-4)
        named = np.array(scaling["classes"])[(answers > 0.5).astype(int)]
        assert (named == targets).mean() > 0.9


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_saved_model_is_compared_as_its_run_is(
    store: Store, tmp_path: Path, task: str  # noqa: F811
) -> None:
    path, fresh = tmp_path / "rows.csv", tmp_path / "fresh.csv"
    raw(path, task)
    raw(fresh, task)
    run, uri = trained_on(store, path, task)
    for given in ({}, {"data": str(fresh), "target": "y"}):
        settings = load_settings(None, {"task": task, **given})
        models = [open_model(reference, store, settings) for reference in (run, uri)]
        scores = evaluations(models, settings, data_given=bool(given))
        np.testing.assert_allclose(scores[1].losses, scores[0].losses, rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(scores[1].scores, scores[0].scores, rtol=1e-2, atol=1e-5)


def test_constant_columns_and_large_offsets_survive_the_way_back() -> None:
    rng = np.random.default_rng(0)
    rows = np.c_[rng.normal(1.7e9, 300, 50), np.full(50, 3.0)]
    scaling = Scaling(Scaler.fit(rows), Scaler.fit(rows[:, 1:] + rng.normal(size=(50, 1))))
    scaled = torch.from_numpy(scaling.inputs.scale(rows))
    torch.testing.assert_close(raw_rows(scaled, scaling), torch.from_numpy(rows), rtol=1e-9, atol=0)
    network = nn.Linear(2, 1)
    served = WithInputScaling(network, scaling)
    by = scaling.targets
    expected = network(scaled).detach().numpy() * by.deviation + by.mean
    np.testing.assert_allclose(served(torch.from_numpy(rows)).detach(), expected, rtol=1e-5)
    torch.testing.assert_close(
        WithoutInputScaling(served, scaling)(scaled), network(scaled), rtol=1e-4, atol=1e-5
    )
    without = Scaling(None, None)
    assert not without
    for none in (without, None):
        plain = WithoutInputScaling(WithInputScaling(network, without), none)
        assert torch.equal(plain(scaled), network(scaled))


def test_a_saved_model_of_another_store_is_not_given_scaled_rows(
    store: Store, tmp_path: Path  # noqa: F811
) -> None:
    """Its run is not known here, so its data are not: the test part is that of the other side."""
    path = tmp_path / "rows.csv"
    raw(path, "regression")
    run, uri = trained_on(store, path, "regression")
    settings = load_settings(None, {"task": "regression"})
    models = [open_model(reference, store, settings) for reference in (run, uri)]
    models[1] = replace(models[1], variant=None)
    found = evaluations(models, settings, data_given=False)
    assert found[1].score == pytest.approx(found[0].score, abs=1e-3)
    (test, _) = choose_test_sets(models, settings, data_given=False)
    network = models[1].network(test.scaling)
    assert count_flops(network, test.part.inputs[:2]).forward_flops > 0


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_saved_model_whose_run_is_gone_on_fresh_rows(
    store: Store, tmp_path: Path, task: str  # noqa: F811
) -> None:
    path, fresh = tmp_path / "rows.csv", tmp_path / "fresh.csv"
    raw(path, task)
    raw(fresh, task)
    _, uri = trained_on(store, path, task)
    settings = load_settings(None, {"task": task, "data": str(fresh), "target": "y"})
    model = replace(open_model(uri, store, settings), variant=None)
    found = evaluations([model] * 2, settings, data_given=True)
    assert min(evaluation.score for evaluation in found) > 0.8
