"""Pipelines, runs and files of predictions that are judged by another score than accuracy."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

import wua_mlflow as wua
from tests.pipeline.comparing import EXIT, assert_same_verdict, refusal
from tests.pipeline.slimming_cases import settings_of
from wua_mlflow.cli.main import main
from wua_mlflow.config import SCORES as NAMES
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.replicates import train_one, train_replicate
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import compare_run, run_pipeline
from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.training.evaluation import evaluate, outputs_of
from wua_mlflow.verdict.scores import SCORES

REFERENCE = {
    "f1_macro": lambda y, p: metrics.f1_score(y, p, average="macro"),
    "log_loss": lambda y, p: metrics.log_loss(y, p, labels=range(p.shape[1])),
}


def test_the_settings_name_the_librarys_scores():
    assert tuple(SCORES) == NAMES


@pytest.mark.parametrize("score", REFERENCE)
def test_a_pipeline_is_judged_by_its_score_and_its_runs_keep_what_that_takes(score, store):
    result = run_pipeline(store, settings_of(slim_hidden="7", seeds=5, score=score, margin=0.2))
    verdict, slim = result.comparison.recipe, result.variants[-1]
    assert (verdict.score, result.comparison.artifact.score) == (score, score)
    assert result.comparison.tags[Tag.SCORE] == slim.tags[Tag.SCORE] == score
    targets = slim.test.targets.astype(int)
    for variant, shown in zip((result.variants[0], slim), (
            verdict.baseline_score, verdict.candidate_score), strict=True):
        values = [REFERENCE[score](targets, each.predictions) for each in variant.replicates]
        assert variant.metrics[Metric.SCORE_TEST] == pytest.approx(values[0], abs=1e-6)
        assert variant.metrics[Metric.SCORE_TEST_MEAN] == pytest.approx(np.mean(values), abs=1e-6)
        assert variant.metrics[Metric.ACCURACY_TEST] == pytest.approx(
            np.mean(variant.test.predictions == targets))
        if not verdict.counts.collapsed + verdict.counts.baseline_collapsed:
            assert shown == pytest.approx(np.mean(values), abs=1e-6)
    again = load_variant(store, slim.run_id)
    assert again.test.score == pytest.approx(slim.test.score, abs=1e-6)
    read = compare_run(store, load_settings(None, {"run_id": slim.run_id}))[2].recipe
    for name in ("delta", "low", "high"):
        assert getattr(read, name) == pytest.approx(getattr(verdict, name), abs=1e-6)
    assert read.outcome == verdict.outcome


def test_means_of_an_evaluations_scores_differ_as_margins_say():
    """A difference of the means is that of the score, or of the logarithm of the value."""
    split = load_data("digits", seed=1)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 10)
    part = split.test.inputs[:200], split.test.targets[:200]
    for score in ("balanced_accuracy", "roc_auc", "brier"):
        result = evaluate(model, *part, task="multiclass", kind="logits", score=score)
        assert result.scores.shape == (200,)
        expected = -np.log(result.score) if score == "brier" else result.score
        assert result.scores.mean() == pytest.approx(expected)


def test_early_stopping_waits_for_a_better_score():
    """The best epoch's weights are kept: no other epoch has a lower log-loss."""
    recipe = load_recipe(settings_of(score="log_loss", patience=3, epochs=8))
    trained = train_one(recipe, (7,), 8, seed=1)
    kept = recipe.evaluate(trained.model, recipe.split.validation, trained.kind)
    plain = load_recipe(settings_of(patience=3, epochs=8))
    same = train_one(plain, (7,), 8, seed=1)
    assert len(trained.records) == len(same.records)
    assert kept.loss == pytest.approx(min(
        record.validation_loss for record in trained.records), abs=1e-6)


def test_widths_are_looked_for_by_the_score(monkeypatch):
    """By ``ablation`` on outputs, by searches on the replicates' validation scores."""
    recipe = load_recipe(settings_of(score="log_loss"))
    trained = train_one(recipe, (7,), 1, seed=1)
    part = recipe.split.validation
    expected = recipe.evaluate(trained.model, part, trained.kind).scores
    found = recipe.example_scores(outputs_of(trained.model, part.inputs), part.targets,
                                  kind=trained.kind)
    assert found.numpy() == pytest.approx(expected)
    replicate = train_replicate(recipe, lambda number, seed: trained, 1)
    assert replicate.validation_scores == pytest.approx(expected)
    assert replicate.score == pytest.approx(recipe.evaluate(
        trained.model, recipe.split.test, trained.kind).score)


@pytest.mark.parametrize(("score", "task"), [("r2", "multiclass"), ("f1", "multiclass")])
def test_a_score_that_the_task_cannot_have(score, task):
    with pytest.raises(ValueError, match=f"^score: expected one of .* for a {task} task, but got"):
        load_recipe(settings_of(score=score))


N = 300
DRAW = np.random.default_rng(4)
TRUTH = (DRAW.random(N) < 0.4).astype(int)
GROUPS = np.arange(N) // 3
LOGIT = 3.0 * TRUTH - 1.5 + DRAW.normal(size=N)
PROBABILITIES = [1 / (1 + np.exp(-LOGIT + DRAW.normal(0, 0.2, N))) for _ in range(2)]


@pytest.fixture
def files(tmp_path, monkeypatch, store_uri):
    monkeypatch.chdir(tmp_path)
    names = np.array(["no", "yes"])
    for name, p in zip("ab", PROBABILITIES, strict=True):
        truth = {"target": names[TRUTH], "patient": GROUPS}
        pd.DataFrame({"probability": p, **truth}).to_csv(f"{name}.csv", index=False)
        pd.DataFrame({"probability_yes": p, "probability_no": 1 - p,
                      "prediction": names[(p > 0.5).astype(int)], **truth}).to_parquet(
            f"{name}2.parquet")
        np.savez(f"{name}.npz", probability=np.stack([1 - p, p], 1), target=names[TRUTH])


@pytest.mark.parametrize("words", ["a.csv b.csv", "a2.parquet b.csv", "a.npz b2.parquet"])
@pytest.mark.parametrize("score", ["roc_auc", "log_loss", "accuracy", "f1"])
def test_files_of_probabilities(files, words, score, capsys):
    code = main(["compare", *words.split(), "--score", score, "--margin", "0.1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == EXIT[result["verdict"]]
    sides = PROBABILITIES if SCORES[score].takes == "probabilities" else [
        (p > 0.5).astype(int) for p in PROBABILITIES]
    assert_same_verdict(result, *sides, margin=0.1, targets=TRUTH, score=score)
    assert result["artifact"]["score"] == score


def test_groups_of_files(files, capsys):
    main(["compare", "a.csv", "b.csv", "--score", "roc_auc", "--groups", "patient", "--json"])
    result = json.loads(capsys.readouterr().out)["artifact"]
    expected = wua.compare(*PROBABILITIES, targets=TRUTH, score="roc_auc", groups=GROUPS, seed=42)
    assert (result["groups"], result["low"]) == (100, pytest.approx(expected.low))


@pytest.mark.parametrize(("words", "message"), [
    ("a.csv b.csv --groups doctor", "groups: expected a column 'doctor' in the test data or in a"),
    ("a.csv b.csv --score rmse", "score: expected one of accuracy, balanced_accuracy, f1, f1_mac"),
    ("a.csv b.csv --score acuracy", "score: expected accuracy, balanced_accuracy, f1, f1_macro"),
    ("labels.csv b.csv --score roc_auc", "score: expected probabilities for roc_auc, but there a"),
    ("odd.csv b.csv", "compare: expected the columns 'probability_no', 'probability_yes' in odd."),
    ("a.csv b.csv --class-margin 2", "class_margin: expected none, or a number above 0"),
])
def test_refusals_in_one_line(files, words, message, capsys):
    pd.DataFrame({"prediction": np.array(["no", "yes"])[TRUTH]}).to_csv("labels.csv", index=False)
    pd.DataFrame({"probability_yes": PROBABILITIES[0], "probability_maybe": PROBABILITIES[0]}
                 ).to_csv("odd.csv", index=False)
    assert refusal(capsys, *words.split()).startswith(message)


def test_a_file_that_says_no_to_everything_is_not_as_good(store_uri, tmp_path, monkeypatch, capsys):
    """6,000 rows, 6.8% positive; the original finds one in five."""
    monkeypatch.chdir(tmp_path)
    truth = (np.arange(6000) < 408).astype(int)
    pd.DataFrame({"prediction": np.arange(6000) < 80, "target": truth == 1}).to_csv(
        "a.csv", index=False)
    pd.DataFrame({"prediction": np.zeros(6000, dtype=bool)}).to_csv("b.csv", index=False)
    assert main(["compare", "a.csv", "b.csv"]) == EXIT["inferior"]
    assert "of the class True (408 test examples)" in capsys.readouterr().out
    assert main(["compare", "a.csv", "b.csv", "--class-margin", "none"]) == EXIT["inconclusive"]
    assert "one and the same answer" in capsys.readouterr().out


def test_rows_of_one_group_are_in_one_part_and_a_single_draw(store, tmp_path):
    rng = np.random.default_rng(0)
    groups = rng.integers(60, size=400)
    x = rng.normal(size=(400, 3)) + rng.normal(size=(60, 3))[groups]
    frame = pd.DataFrame(x, columns=list("abc")).assign(
        patient=[f"p{group}" for group in groups], y=(x[:, 0] > 0).astype(int))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    split = load_data(str(tmp_path / "rows.csv"), target="y", groups="patient", seed=42)
    assert split.features == (3,)
    parts = [set(part.groups.tolist()) for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    result = run_pipeline(store, load_settings(None, {
        "data": str(tmp_path / "rows.csv"), "target": "y", "groups": "patient", "hidden": "8",
        "slim_hidden": "4", "epochs": "5", "seeds": "1", "null_draws": "0"}))
    assert result.verdict.groups == len(parts[2])
