"""What a network's scores say of itself."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.cautions import (
    cautions,
    cautions_elsewhere,
    constant_answer,
    constant_score,
    shown_score,
)
from wua_mlflow.pipeline.workflow import slim_run
from wua_mlflow.training.evaluation import Evaluation

DRAW = np.random.default_rng(0)


def classes(right: float, n: int = 400, share: float = 0.5) -> Evaluation:
    """A classifier that answers so many rightly, where the commonest class has ``share``."""
    truth = (np.arange(n) >= share * n).astype(float)
    wrong = np.random.default_rng(1).permutation(n) >= round(right * n)
    return Evaluation("binary", np.where(wrong, 1 - truth, truth), truth, wrong.astype(float))


def amounts(r2: float, n: int = 400) -> Evaluation:
    truth = np.linspace(0, 1, n)
    errors = np.where(np.arange(n) % 2, 1, -1) * np.sqrt(1 - r2) * truth.std()
    return Evaluation("regression", truth + errors, truth, errors ** 2)


@pytest.mark.parametrize(("test", "train", "options", "expected"), [
    (classes(0.6875), 0.914, {}, ["accuracy 0.914 on the training data against 0.688 on the test "
     "part: it overfits; `--patience 10` stops in time, by the validation part"]),
    (classes(0.6875), 0.914, {"patience": 3}, ["accuracy 0.914 on the training data against 0.688 "
     "on the test part: it overfits; fewer epochs, a smaller network or more data"]),
    (classes(0.6875), 0.75, {}, []), (classes(0.7, n=20), 0.9, {}, []), (classes(0.9), 0.9, {}, []),
    (classes(0.75, share=0.8), 0.76, {}, ["accuracy 0.750 on the test part, where the commonest "
     "answer alone gets 0.800: what was learned is of no use there; more epochs, another lr, or "
     "inputs that say more"]),
    (classes(0.8, share=0.8), 0.8, {}, ["accuracy 0.800 on the test part, where the commonest "
     "answer alone gets 0.800: what was learned is of no use there; more epochs, another lr, or "
     "inputs that say more"]),
    (classes(1.0), 1.0, {}, ["accuracy 1.0000 on the test part, next to no error: is the answer "
     "among the inputs, or are the test examples among the training ones?"]),
    (classes(1.0, n=50), 1.0, {}, []),
    (amounts(-0.5), -0.4, {}, ["R² -0.500 on the test part, where the mean alone gets 0.000: what "
     "was learned is of no use there; more epochs, another lr, or inputs that say more"]),
    (amounts(0.5), 0.9, {}, ["R² 0.900 on the training data against 0.500 on the test part: it "
     "overfits; `--patience 10` stops in time, by the validation part"]),
    (amounts(0.9999), 1.0, {}, ["R² 0.9999 on the test part, next to no error: is the answer among "
     "the inputs, or are the test examples among the training ones?"]),
])
def test_cautions(test, train, options, expected):
    assert cautions(test, train, load_settings(None, options)) == expected


SEEN = np.arange(300) < 257
"""Right on 0.857 of 300 validation examples."""


@pytest.mark.parametrize(("test", "train", "validation", "expected"), [
    (classes(0.67, n=1500), 0.72, SEEN, ["accuracy 0.857 on the validation part against 0.670 on "
     "the test part: it was probably trained on the validation part, which then chooses widths "
     "that are too wide or too narrow; give it rows that it has not seen"]),
    (classes(0.67, n=1500), 0.845, np.empty(0), ["accuracy 0.845 on the training data against "
     "0.670 on the test part: it overfits; it did where it was trained, and fine-tuning may "
     "change it by more than its size does"]),
    (classes(0.7, n=1500), 0.7, SEEN[230:][:34], []),  # 0.09 more
    (classes(0.7, n=1500), 0.7, SEEN[248:][:11], []),  # 0.12 more, but of 11 examples
    (classes(0.8, n=1500), 0.8, SEEN, []),
    (amounts(0.5), 0.5, 1 - 0.2 * (np.arange(300) % 2), [
     "R² 0.900 on the validation part against 0.500 on the test part: it was probably trained on "
     "the validation part, which then chooses widths that are too wide or too narrow; give it rows "
     "that it has not seen"]),
])
def test_cautions_of_a_network_that_was_trained_elsewhere(test, train, validation, expected):
    found = cautions_elsewhere(test, train, validation.astype(float))
    assert found == expected


def trained_on_all(x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    steps = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
    return model


def noisy(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A third of the labels are chance."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(900, 20, generator=draw)
    y = torch.where(torch.rand(900, generator=draw) < 0.33,
                    torch.randint(2, (900,), generator=draw), (x[:, 0] > 0).long())
    return [(x[rows], y[rows]) for rows in (slice(200), slice(200, 300), slice(300, 900))]


def leaked() -> nn.Sequential:
    """Trained on the training and the validation part."""
    (x, y), (more_x, more_y), _ = noisy(0)
    return trained_on_all(torch.cat([x, more_x]), torch.cat([y, more_y]))


def test_a_validation_part_that_the_network_has_seen_is_told_before_and_after(store, capsys):
    here = "tests.pipeline.test_cautions"
    result = slim_run(store, load_settings(None, {
        "model": f"{here}:leaked", "data": f"{here}:noisy", "slim_hidden": "16", "seeds": 1,
        "slim_epochs": 1, "null_draws": 0}))
    early, _, _ = capsys.readouterr().err.partition("wua: analysing")
    said = " ".join(result.comparison.cautions)
    for words in ("it was probably trained on the validation part", "it overfits; it did where"):
        assert words in early and words in said


def test_scores_where_less_is_better_have_no_word_on_overfitting():
    test = amounts(0.5)
    by_rmse = Evaluation(test.task, test.predictions, test.targets, test.losses, score_name="rmse")
    assert cautions(by_rmse, 0.1, load_settings(None, {})) == []
    assert shown_score(by_rmse) == f"rmse {np.sqrt(test.losses.mean()):.4f}"


def test_the_constant_answer():
    assert constant_score(classes(0.5, share=0.8)) == 0.8
    assert constant_score(amounts(0.3)) == 0.0


@pytest.mark.slow
def test_cautions_stand_beside_the_verdict(store_uri, tmp_path, capsys):
    """In what is printed, in the report and in MLflow's description."""
    draw = np.random.default_rng(0)
    grade = draw.integers(0, 2, 300)
    pd.DataFrame({"a": draw.normal(size=300), "grade <b>": grade * 7, "y": grade}).to_csv(
        "rows.csv", index=False)
    words = "run --data rows.csv --target y --hidden 8 --slim-hidden 4 --seeds 1 --epochs 20"
    assert main([*words.split(), "--null-draws", "0", "--lr", "0.05"]) == 0
    printed = capsys.readouterr()
    assert "wua: data: 'grade <b>': alone predicts y nearly perfectly" in printed.err
    said = " ".join(printed.out.split())
    assert "Caution: 'grade <b>': alone predicts y nearly perfectly" in said
    client = mlflow.MlflowClient()
    run, = client.search_runs(["1"], "tags.`wua.kind` = 'pipeline'")
    report = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert "Caution: &#39;grade &lt;b&gt;&#39;: alone predicts y" in report


def test_a_slim_classifier_that_always_says_the_same_is_named():
    truth = np.arange(300) % 3.0
    same = Evaluation("multiclass", np.full(300, 2.0), truth, truth)
    assert constant_answer(same, ("ant", "bee", "cat")) == (
        "The saved slim model answers 'cat' to each of 300 test examples.")
    assert "'2' to each" in constant_answer(same)
    one_other = np.where(np.arange(300) == 7, 1.0, 2.0)
    for other in (Evaluation("multiclass", one_other, truth, truth),
                  Evaluation("regression", np.ones(300), truth, truth),
                  Evaluation("binary", np.ones(300), np.ones(300), truth)):
        assert constant_answer(other) == ""
