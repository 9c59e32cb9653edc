"""Data of a model that was trained elsewhere: as they are; and what is asked for each time anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.pretrained import _low_score_warning
from wua_mlflow.pipeline.recipe import load_recipe


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two columns in the hundreds, a class, and an amount in the thousands."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(100, 20, 200), rng.normal(300, 5, 200)
    lines = [f"{x:.3f},{y:.3f},{'yes' if x > 100 else 'no'}" for x, y in zip(a, b, strict=True)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["a,b,bought", *lines]))
    return str(path)


@pytest.mark.parametrize("state", [None, "weights.safetensors"])
def test_files_are_standardised_but_for_a_model_with_weights_of_its_own(
    table: str, state: str | None
) -> None:
    recipe = load_recipe(load_settings(None, {
        "data": table, "target": "bought", "model": "mlp", "hidden": "4", "state": state}))
    means = recipe.split.train.inputs.mean(0)
    expected = pytest.approx([100, 300], abs=5) if state else pytest.approx([0, 0], abs=1e-5)
    assert means.tolist() == expected


def test_a_regressions_targets_as_they_are(table: str) -> None:
    numbers = Path(table).with_name("numbers.csv")
    numbers.write_text("\n".join(line.rpartition(",")[0] for line in
                                 Path(table).read_text().splitlines()))
    found = [load_data(str(numbers), target="b", task="regression", seed=1, standardise=one)
             for one in (True, False)]
    assert [float(one.train.targets.mean()) for one in found] == pytest.approx([0, 300], abs=5)
    assert found[0].test.inputs.shape == found[1].test.inputs.shape


@pytest.mark.parametrize(("task", "score", "said"), [
    ("binary", 0.7, False), ("binary", 0.55, True), ("regression", 0.1, False),
    ("regression", -0.2, True)])
def test_an_original_worse_than_no_model_gets_a_warning(
    task: str, score: float, said: bool
) -> None:
    targets = np.array([0, 0, 0, 1, 1])  # the more frequent class: 0.6
    variant = SimpleNamespace(test=SimpleNamespace(task=task, score=score, targets=targets))
    found = _low_score_warning(variant)  # type: ignore[arg-type]
    assert ("are these data what it was trained on" in found) == said
    assert "\n" not in found


def test_neither_registration_nor_gate_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings(register="house", gate=True, margin=0.03)
    variant = SimpleNamespace(settings=before, experiment_id="0", run_id="r")
    monkeypatch.setattr(workflow, "load_variant", lambda *_: variant)
    monkeypatch.setattr(workflow, "inherited_run", lambda: None)
    for asked in ({}, {"register": "flat"}):
        settings = Settings(run_id="r", experiment="wua", **asked)
        own = workflow._variant_and_settings(SimpleNamespace(), settings)[2]  # type: ignore[arg-type]
        assert (own.register, own.gate, own.margin) == (asked.get("register"), False, 0.03)
