"""``wua compare A B`` of runs, saved models, models from elsewhere and predictions of others."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file
from torch import nn

import wua_mlflow as wua
from tests.pipeline.comparing import assert_same_verdict
from tests.pipeline.slimming_cases import folder_with_store, without_exports
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import replicates, workflow
from wua_mlflow.tracking.store import connect

FEATURES = ["a", "b", "c"]
MEAN, SPREAD = [5, -200, 0], [1, 50, 0.01]
FRESH = ("--data", "fresh.csv", "--target", "y")
FRESH_AMOUNTS = ("--data", "amounts.parquet", "--target", "z")
WHOLE, PARTIAL = [1.0, 1.0, -1.0], [1.0, 0.8, 0.0]
"""Weights of two models from elsewhere: of one output, and of one output a class."""


def rows(seed: int, count: int = 300) -> pd.DataFrame:
    """Three columns of unlike scales; ``y`` is text, ``z`` an amount in a unit of its own."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(count, 3)) * SPREAD + MEAN
    score = (values - MEAN) / SPREAD @ WHOLE + draw.normal(size=count) / 2
    return pd.DataFrame(values, columns=FEATURES).assign(
        y=np.where(score > 0, "yes", "no"), z=1000 + 300 * score)


FRESH_ROWS = rows(7, 400)


@dataclass(frozen=True)
class Made:
    """A store: trained variants' runs by a letter, other models' ``models:/`` and ``runs:/``."""

    folder: Path
    runs: dict[str, str]
    models: list[tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_database):
    """A and B have one test part, C another; P and Q are regressions; D and E have images."""
    folder = tmp_path_factory.mktemp("outside")
    rows(0).drop(columns="z").to_csv(folder / "classes.csv", index=False)
    rows(0).drop(columns="y").to_csv(folder / "amounts.csv", index=False)
    common = {"seeds": 1, "epochs": 20, "lr": 0.02, "batch_size": 32}
    classes = {"data": str(folder / "classes.csv"), "target": "y", **common}
    amounts = {"data": str(folder / "amounts.csv"), "target": "z", **common}
    recipes = {"A": {**classes, "hidden": 6, "seed": 1}, "B": {**classes, "hidden": 3, "seed": 1},
               "C": {**classes, "hidden": 3, "seed": 2}, "P": {**amounts, "hidden": 6},
               "Q": {**amounts, "hidden": 2}}
    images = {"D": {"data": "digits", **common, "hidden": 16, "epochs": 3},
              "E": {"data": "digits", "model": "cnn", **common, "hidden": 4, "epochs": 1}}
    with folder_with_store(folder, migrated_database):
        def train(recipes):
            return {letter: workflow.train_run(store, load_settings(None, settings)).run_id
                    for letter, settings in recipes.items()}

        store = connect("variants")
        trained = train(recipes)
        with pytest.MonkeyPatch.context() as patch:
            without_exports(patch)
            trained |= train(images)
        example = torch.tensor(FRESH_ROWS[FEATURES].to_numpy()[:4], dtype=torch.float32)
        others = [log_model(weighted_sum(weights, outputs), example)
                  for weights, outputs in ((WHOLE, 1), (PARTIAL, 2))]
    return Made(folder, trained, others)


@pytest.fixture
def runs(made, store_uri, tmp_path):
    """The runs, in a copy of the store for the test to work in, and fresh rows beside it."""
    shutil.copy(made.folder / "mlflow.db", tmp_path / "mlflow.db")
    FRESH_ROWS.drop(columns="z").to_csv(tmp_path / "fresh.csv", index=False)
    FRESH_ROWS.drop(columns="y").to_parquet(tmp_path / "amounts.parquet")
    return made.runs


def log_model(model: nn.Module, inputs: torch.Tensor) -> tuple[str, str]:
    """A model from elsewhere, exported as pt2: its ``models:/`` and its ``runs:/`` address."""
    with mlflow.start_run() as run:
        info = mlflow.pytorch.log_model(model.eval(), name="net", input_example=inputs.numpy(),
                                        serialization_format="pt2", pip_requirements=["torch"])
    return info.model_uri, f"runs:/{run.info.run_id}/net"


def linear(weights: object, biases: object) -> nn.Linear:
    rows_of_weights = torch.tensor(weights, dtype=torch.float32)
    layer = nn.Linear(*reversed(rows_of_weights.shape))
    layer.load_state_dict({"weight": rows_of_weights, "bias": torch.tensor(biases)})
    return layer


def weighted_sum(weights: list[float], outputs: int) -> nn.Linear:
    """Classes by a weighted sum of the raw columns: one logit, or zero and that."""
    scaled = np.divide(weights, SPREAD)
    zeros = [[0.0] * 3] * (outputs - 1)
    return linear([*zeros, scaled.tolist()], [0.0] * (outputs - 1) + [float(-scaled @ MEAN)])


def right_by_weights(weights: list[float]) -> np.ndarray:
    """Which fresh rows ``weighted_sum`` gets right."""
    return right((FRESH_ROWS[FEATURES].to_numpy() - MEAN) / SPREAD @ weights, FRESH_ROWS)


def right(logits: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
    return np.asarray(np.where(logits > 0, "yes", "no") == frame["y"], dtype=float)


def model_of(run_id: str) -> str:
    (output,) = MlflowClient().get_run(run_id).outputs.model_outputs
    return f"models:/{output.model_id}"


def kept(run_id: str) -> dict[str, np.ndarray]:
    """What the run keeps of its test part."""
    return load_file(MlflowClient().download_artifacts(run_id, "evaluation/test.safetensors"))


def right_in(run_id: str) -> np.ndarray:
    return np.asarray(kept(run_id)["predictions"] == kept(run_id)["targets"], dtype=float)


def state_of(run_id: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights, and what a row goes through before and an answer after the network."""
    folder = Path(MlflowClient().download_artifacts(run_id, "state"))
    scaling = json.loads((folder / "scaling.json").read_text())
    return load_file(folder / "model.safetensors"), scaling


def answers_of(run_id: str, frame: pd.DataFrame) -> np.ndarray:
    """The kept network's output before a sigmoid, or its amounts, in NumPy."""
    state, scaling = state_of(run_id)
    columns, targets = scaling["inputs"], scaling["targets"]
    inputs = (frame[FEATURES].to_numpy() - columns["mean"]) / columns["scale"]
    hidden = np.maximum(inputs @ state["fc1.weight"].T + state["fc1.bias"], 0)
    outputs = np.asarray(hidden @ state["fc2.weight"].T + state["fc2.bias"])[:, 0]
    return outputs * targets["scale"][0] + targets["mean"][0] if targets else outputs


def right_in_fresh_rows(run_id: str) -> np.ndarray:
    return right(answers_of(run_id, FRESH_ROWS), FRESH_ROWS)


def test_runs_answer_with_what_they_keep(runs, compare):
    """By the beginnings of their ids."""
    result = compare(runs["A"][:10], runs["B"][:10], "--margin", "0.1")
    assert_same_verdict(result, right_in(runs["A"]), right_in(runs["B"]), margin=0.1)
    metrics = result["metrics"]
    assert metrics["compare/churn"] == pytest.approx(
        np.mean(kept(runs["A"])["predictions"] != kept(runs["B"])["predictions"]))
    assert metrics["compare/flops_ratio"] == 2 * (3 * 6 + 6) / (2 * (3 * 3 + 3))
    assert metrics["compare/params_ratio"] == (3 * 6 + 6 + 6 + 1) / (3 * 3 + 3 + 3 + 1)
    low, ratio, high = (metrics[f"compare/latency_ratio{end}"] for end in ("_low", "", "_high"))
    assert 0 < low <= ratio <= high


def _everything() -> dict[str, object]:
    client = MlflowClient()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {"experiments": ids, "models": len(client.search_logged_models(ids)),
            "runs": {run.info.run_id: (run.data.to_dictionary(), run.info.end_time)
                     for run in client.search_runs(ids)}}


def _artifacts(made: Made) -> list[Path]:
    """All but a note that MLflow itself leaves beside a model that it loads."""
    return sorted(path for path in (made.folder / "mlruns").rglob("*")
                  if path.name != "registered_model_meta")


def test_a_model_that_a_run_of_ours_logged_is_taken_as_the_run_is(made, runs, compare, monkeypatch):
    """On the run's own test part, or with its scaling of fresh rows. Nothing is trained or logged.

    A and C were split, and so standardised, otherwise.
    """
    monkeypatch.setattr(replicates, "fit", None)
    address = {letter: model_of(runs[letter]) for letter in "ABC"}
    before, files = _everything(), _artifacts(made)
    by_address = compare(address["A"], address["B"])
    assert_same_verdict(by_address, right_in(runs["A"]), right_in(runs["B"]))
    scores = [right_in_fresh_rows(runs[letter]) for letter in "AC"]
    assert not np.array_equal(*scores)
    assert scores[0].mean() > 0.75
    assert_same_verdict(compare(runs["A"], address["C"], *FRESH), *scores)
    assert _everything() == before
    assert _artifacts(made) == files


def test_fresh_amounts(runs, compare):
    """R² in the data's own unit, by hand; the networks were trained on standardised targets."""
    result = compare(runs["P"], runs["Q"], *FRESH_AMOUNTS, "--margin", "0.3")
    truth = FRESH_ROWS["z"].to_numpy()
    scores = [1 - (truth - answers_of(runs[letter], FRESH_ROWS)) ** 2 / truth.var()
              for letter in "PQ"]
    expected = wua.compare(*scores, margin=0.3, score="R²", seed=42)
    assert result["verdict"] == expected.outcome
    assert result["artifact"]["delta"] == pytest.approx(expected.delta, abs=1e-4)
    assert result["artifact"]["low"] == pytest.approx(expected.low, abs=1e-3)
    assert "compare/churn" not in result["metrics"]


def test_a_bundled_set_by_name_is_the_runs_own_test_part(runs, compare, refused):
    """And an MLP's flat rows and a CNN's images are then the same examples."""
    assert refused(runs["D"], runs["E"]).endswith("differ; name one test set with --data")
    result = compare(runs["D"], runs["E"], "--data", "digits")
    assert np.array_equal(kept(runs["D"])["targets"], kept(runs["E"])["targets"])
    assert_same_verdict(result, right_in(runs["D"]), right_in(runs["E"]))
    assert "compare/latency_ratio" not in result["metrics"]


def test_predictions_against_a_run(runs, compare, tmp_path):
    """Those of B, written down with the classes' names and with the amounts' own unit."""
    names, targets = (np.array(["no", "yes"])[kept(runs["B"])[column].astype(int)]
                      for column in ("predictions", "targets"))
    pd.DataFrame({"prediction": names}).to_csv(tmp_path / "b.csv", index=False)
    np.savez(tmp_path / "b.npz", prediction=names, target=targets)
    scores = right_in(runs["A"]), right_in(runs["B"])
    assert_same_verdict(compare(runs["A"], "b.csv"), *scores)
    assert_same_verdict(compare("b.npz", runs["A"]), *scores[::-1])
    unit = state_of(runs["Q"])[1]["targets"]
    pd.DataFrame({name: kept(runs["Q"])[f"{name}s"] * unit["scale"] + unit["mean"]
                  for name in ("prediction", "target")}).to_csv(tmp_path / "q.csv", index=False)
    by_file, by_run = (compare(runs["P"], other)["artifact"] for other in ("q.csv", runs["Q"]))
    assert by_file["delta"] == pytest.approx(by_run["delta"], abs=1e-5)
    assert by_file["low"] == pytest.approx(by_run["low"], abs=1e-4)


def test_the_table_of_two_networks(made, runs, capsys):
    main(["compare", runs["A"], runs["B"]])
    out = capsys.readouterr().out
    assert "oversized 6  oversized 3" in out
    for label in ("accuracy, test", "FLOPs, one sample", "parameters", "latency, p50, ms"):
        assert f"\n{label}" in out
    assert "The latencies are not alike" not in out
    main(["compare", runs["A"], made.models[0][0], *FRESH])
    assert "The latencies are not alike: models:/" in capsys.readouterr().out


def test_each_comparison_is_a_look_at_its_test_data(runs, compare, monkeypatch):
    """The same again is none; another margin, other data or a file written anew is."""
    def looks(first, second, *options):
        return compare(runs[first], runs.get(second, second), *options)["metrics"]["compare/looks"]

    def read_only(*_):
        raise MlflowException("read only")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_experiment_tag", read_only)
        assert looks("A", "B") == 1, "where nothing can be noted too"
    assert looks("A", "B", "--margin", "0.031") == 1
    assert looks("A", "B", "--margin", "0.032") == 2
    assert looks("B", "A", "--margin", "0.032") == 3
    assert looks("A", "B", "--margin", "0.031", *FRESH) == 1
    assert looks("A", "B", "--margin", "0.031") == 3
    for flipped, count in ((3, 4), (4, 5), (4, 5)):
        predictions = kept(runs["A"])["predictions"].astype(int)
        predictions[:flipped] = 1 - predictions[:flipped]
        names = np.array(["no", "yes"])[predictions]
        pd.DataFrame({"prediction": names}).to_csv("written.csv", index=False)
        assert looks("A", "written.csv") == count


def test_a_comparison_that_is_refused_is_no_look(runs, refused):
    FRESH_ROWS[FRESH_ROWS["y"] == "yes"].drop(columns="z").to_csv("fresh.csv", index=False)
    before = [entry.tags for entry in MlflowClient().search_experiments()]
    assert "says nothing of the others" in refused(runs["A"], runs["B"], *FRESH)
    assert [entry.tags for entry in MlflowClient().search_experiments()] == before


def test_a_file_of_a_run_that_is_gone_is_named(runs, refused):
    folder = MlflowClient().get_run(runs["A"]).info.artifact_uri.removeprefix("file://")
    file = Path(folder, "state", "rng.safetensors")
    file.rename("moved")
    try:
        assert f"run_id: run {runs['A']} (oversized 6) has no file state/rng.safetensors" in \
            refused(runs["A"], runs["B"])
    finally:
        Path("moved").rename(file)


def test_a_store_that_is_not_there_is_not_made(store_uri, tmp_path, refused):
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    mlflow.set_tracking_uri(uri)
    assert refused("ab" * 16, "cd" * 16) == (
        f"compare: no run has the id '{'ab' * 16}': there is no {uri}")
    assert not (tmp_path / "none.db").exists()


def test_models_that_cannot_be_compared(made, runs, refused, tmp_path):
    foreign = made.models[0][0]
    assert refused(foreign, foreign) == (
        "data: expected the test data that the models are compared on (--data), but got none")
    for other in (runs["C"], model_of(runs["C"])):
        assert refused(runs["A"], other).endswith("differ; name one test set with --data")
    assert refused(runs["A"], runs["D"]).endswith("; name one test set with --data")
    assert "does not take the data's inputs of shape (batch, 64)" in refused(foreign, runs["D"])
    assert refused(runs["A"], runs["D"], *FRESH).startswith(
        "data: expected inputs of shape (64,) in fresh.csv, as the model's own data have")
    fresh = rows(7).drop(columns="z")
    trained_on = str(made.folder / "classes.csv")
    for name, frame, message in (
        ("unseen.csv", fresh.assign(y="maybe"),
         "data: expected only the classes 'no', 'yes', but unseen.csv has 'maybe'"),
        ("named.csv", fresh.rename(columns={"b": "d"}), "data: expected the columns that the model "
         "was trained on in named.csv, but it has no 'b'"),
        ("gaps.csv", fresh.assign(b=fresh["b"].where(fresh["b"] > MEAN[1])),
         f"data: expected numbers without gaps, as the models were trained on, but column 'b' of "
         f"gaps.csv has gaps in {int((fresh['b'] <= MEAN[1]).sum())} of 300 rows; mend it or leave "
         f"it out (--drop-columns b)"),
        ("words.csv", fresh.assign(c="many"), "data: expected numbers in column 'c' of words.csv, "
         "as in the data that the model was trained on, but got text"),
    ):
        frame.to_csv(tmp_path / name, index=False)
        assert refused(runs["A"], runs["B"], "--data", name, "--target", "y") == message
    assert refused(runs["A"], runs["B"], "--data", trained_on, "--target", "y").startswith(
        "data: expected rows that training never saw, but ")
    assert refused(runs["A"], "models:/none/1").startswith("model URI models:/none/1: ")
    assert refused(runs["A"], f"runs:/{runs['B']}/none").startswith("model URI runs:/")
    assert refused(runs["A"], "e" * 32).startswith(f"run_id: no run has the id '{'e' * 32}'")
    assert refused(runs["A"], runs["B"], "--device", "cuda:77").startswith("device: cuda:77 ")


def test_columns_are_taken_by_name(runs, compare, tmp_path):
    turned = pd.read_csv("fresh.csv").assign(more="of no use")[["c", "more", "a", "y", "b"]]
    turned.to_csv(tmp_path / "turned.csv", index=False)
    results = [compare(runs["A"], runs["B"], "--data", name, "--target", "y")["artifact"]
               for name in ("fresh.csv", "turned.csv")]
    assert results[0] == results[1]


def test_models_from_elsewhere_take_the_rows_as_they_are(made, runs, compare):
    """By every kind of address; with one output, and with one a class."""
    (first, _), (_, second) = made.models
    client = MlflowClient()
    client.create_registered_model("reg")
    client.create_model_version("reg", first)
    scores = right_by_weights(WHOLE), right_by_weights(PARTIAL)
    result = compare(first, second, *FRESH, "--margin", "0.05")
    assert_same_verdict(result, *scores, margin=0.05)
    assert result["metrics"]["compare/params_ratio"] == 4 / 8
    assert result["metrics"]["compare/flops_ratio"] == 1 / 2
    assert result["metrics"]["compare/latency_ratio"] > 0
    ours = right_in_fresh_rows(runs["A"])
    assert_same_verdict(compare("models:/reg/1", runs["A"], *FRESH), scores[0], ours)


@pytest.mark.parametrize(("pair", "unknown", "fresh"), [
    ("AB", "AB", FRESH), ("PQ", "P", ()), ("PQ", "PQ", FRESH_AMOUNTS)])
def test_saved_models_whose_runs_are_not_known(pair, unknown, fresh, runs, compare):
    """They take raw rows; where no data are named, the other side's test part as it was read."""
    by_run = compare(*(runs[letter] for letter in pair), *fresh)["artifact"]
    for letter in unknown:
        MlflowClient().set_tag(runs[letter], "wua.kind", "of another store")
    result = compare(*(model_of(runs[letter]) if letter in unknown else runs[letter]
                       for letter in pair), *fresh)
    assert result["metrics"]["compare/flops_ratio"] > 1
    for name in ("delta", "low", "high"):
        assert result["artifact"][name] == pytest.approx(by_run[name], abs=1e-3)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # MLflow's, of a table
@pytest.mark.parametrize("letter", ["A", "P"])
def test_a_saved_model_takes_raw_rows_as_the_file_beside_it_says(letter, runs):
    frame, (_, scaling) = rows(0), state_of(runs[letter])
    inputs = frame[FEATURES].to_numpy()
    model = mlflow.pyfunc.load_model(model_of(runs[letter]))
    answers, by_table = (np.asarray(model.predict(data)).ravel()
                         for data in (inputs, pd.DataFrame(inputs)))
    np.testing.assert_array_equal(by_table, answers)
    expected = answers_of(runs[letter], frame)
    if letter == "P":
        assert scaling["classes"] == []
        np.testing.assert_allclose(answers, expected, rtol=1e-4)
        assert np.corrcoef(answers, frame["z"])[0, 1] > 0.9
        assert abs(answers.mean() - frame["z"].mean()) < 0.1 * frame["z"].std()
    else:
        assert scaling["targets"] is None
        np.testing.assert_allclose(answers, 1 / (1 + np.exp(-expected)), atol=1e-4)
        names = np.array(scaling["classes"])[(answers > 0.5).astype(int)]
        assert (names == frame["y"]).mean() > 0.85


def test_classes_of_a_foreign_model_are_its_outputs_places(store_uri, compare, refused, tmp_path):
    """Also where the test data lack one of them: here 1 of 0, 1, 2."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(300, 3))
    labels = x.argmax(1)
    wrong = draw.random(300) < 0.1
    frame = pd.DataFrame(x, columns=FEATURES).assign(y=np.where(wrong, (labels + 1) % 3, labels))
    frame = frame[frame["y"] != 1]
    frame.to_csv(tmp_path / "lacking.csv", index=False)
    inputs = frame[FEATURES].to_numpy()
    example = torch.from_numpy(x[:4]).float()
    orders = ([0, 1, 2], [1, 2, 0])
    models = [log_model(linear(np.eye(3)[order], [0.0] * 3), example)[0] for order in orders]
    scores = [(inputs[:, order].argmax(1) == frame["y"]).to_numpy(float) for order in orders]
    result = compare(*models, "--data", "lacking.csv", "--target", "y")
    assert_same_verdict(result, *scores)
    assert result["verdict"] == "inferior"
    frame.assign(y=frame["y"].map({0: "low", 2: "high"})).to_csv("named.csv", index=False)
    assert refused(*models, "--data", "named.csv", "--target", "y") == (
        "data: expected a class for each of the model's 3 outputs, but the test data have 2")
