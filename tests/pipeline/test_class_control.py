"""A class that the original answered too often: what fine-tuning alone takes of it is told."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow.store.artifact.cli import commands as artifacts
from torch import nn

from wua_mlflow.cli.commands import Shown
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import workflow
from wua_mlflow.report.answer import answer_text, next_step

HERE = "tests.pipeline.test_class_control"
OPTIONS = {"model": f"{HERE}:skewed", "data": f"{HERE}:overlapping", "slim_hidden": "6",
           "slim_epochs": 8, "lr": 0.01, "null_draws": 0, "seeds": 1}


def overlapping(seed: int) -> list[tuple[Any, Any]]:
    """Two classes that no line divides; the order of their means is that of their numbers."""
    draw = np.random.default_rng(seed)
    return [(torch.tensor(draw.normal(size=(size, 4)) + np.arange(size)[:, None] % 2 * 0.7).float(),
             torch.arange(size) % 2) for size in (600, 300, 1500)]


def skewed() -> nn.Sequential:
    """A network that somebody trained to say 1 more often than it is so."""
    torch.manual_seed(1)
    model, (x, y) = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), overlapping(0)[0]
    steps, weights = torch.optim.Adam(model.parameters(), 0.02), torch.tensor([1.0, 3.0])
    for _ in range(60):
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y, weight=weights).backward()
        steps.step()
    return model


@pytest.mark.slow
def test_where_the_original_trained_on_loses_the_class_too_the_next_step_is_that_original(
    store, monkeypatch, capsys
):
    """And its commands run."""
    result = workflow.slim_run(store, load_settings(None, OPTIONS))
    assert "of the class 1 (750 test examples) the slim model finds " in result.verdict.guard
    original, control, slim = result.variants
    falls = [float(np.mean(each.test.predictions[each.test.targets == 1] == 1)
                   - np.mean(original.test.predictions[original.test.targets == 1] == 1))
             for each in (slim, control)]
    found = result.comparison.class_control
    assert (found.name, found.slim, found.control) == ("1", *map(pytest.approx, falls))
    assert falls[1] < falls[0] / 2 < 0 and found.of_training
    said = " ".join(answer_text(result.report).split())
    assert (f"Of the class 1 the original, trained on for as long, finds {-100 * falls[1]:.1f} "
            "points fewer than before, too: it is the training, not the size.") in said
    assert "Of the two saved models alone, single classes lose more than the margin: 1 (750" in said
    step = next_step(result.slimmed, Shown(command="slim", given=OPTIONS).again)
    load, again, *remark = step.removeprefix("Next: ").splitlines()
    assert control.run_id in load and control.run_id in " ".join(remark)
    assert CliRunner().invoke(artifacts, shlex.split(load)[2:]).exit_code == 0
    assert main(shlex.split(again)[1:]) == 0
    assert capsys.readouterr().out.startswith("Verdict: As good within the margin")


def test_where_the_original_trained_on_keeps_the_class_it_is_not_the_training(store):
    """One unit is left, without the weights that compensate, and nothing is learned any more."""
    result = workflow.slim_run(store, load_settings(None, {
        **OPTIONS, "slim_hidden": "1", "fold": "false", "lr": 1e-30, "optimizer": "sgd"}))
    found = result.comparison.class_control
    assert found is not None and found.slim < 0 == found.control and not found.of_training
    assert "it is the training" not in answer_text(result.report)
    assert "mlflow artifacts" not in next_step(result.slimmed, Shown(given=OPTIONS).again)
