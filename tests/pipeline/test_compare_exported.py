"""Saved models: the rows that they take, and ``wua compare A B`` of ours and of others."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tests.pipeline import comparing
from tests.pipeline.comparing import (
    FEATURES,
    FRESH,
    FRESH_AMOUNTS,
    PARTIAL,
    WHOLE,
    Compare,
    Made,
    Refused,
    Weighing,
    assert_same_verdict,
    by_weights,
    forward,
    fresh_scores,
    log_model,
    model_of,
    raw,
    rows,
)

made, runs, compare, refused = comparing.made, comparing.runs, comparing.compare, comparing.refused


def test_models_from_elsewhere_take_the_rows_as_they_are(
    made: Made, runs: dict[str, str], compare: Compare
) -> None:
    """By every kind of address; with one output, and with one a class."""
    fresh = rows(7, 400)
    first = log_model(Weighing(WHOLE), raw())
    second = log_model(Weighing(PARTIAL, outputs=2), raw())
    client = MlflowClient()
    client.create_registered_model("reg")
    for address in (first[0], second[0]):
        client.create_model_version("reg", address)
    scores = by_weights(WHOLE, fresh), by_weights(PARTIAL, fresh)
    for pair in ((first[0], second[0]), (first[1], second[1]), ("models:/reg/1", "models:/reg/2")):
        found = compare(*pair, *FRESH, "--margin", "0.05")
        assert_same_verdict(found, *scores, margin=0.05)
        assert found["metrics"]["compare/params_ratio"] == 4 / 8
        assert found["metrics"]["compare/flops_ratio"] == 1 / 2
        assert found["metrics"]["compare/latency_ratio"] > 0
    ours = fresh_scores(made, "A", fresh)
    assert_same_verdict(compare("models:/reg/1", runs["A"], *FRESH), scores[0], ours, margin=0.02)


def test_a_model_that_a_run_of_ours_logged_is_taken_as_the_run_is(
    runs: dict[str, str], compare: Compare
) -> None:
    """On the run's own test part, or with its scaling of fresh rows."""
    address = {letter: model_of(runs[letter]) for letter in "ABC"}
    as_runs = compare(runs["A"], runs["B"])
    assert compare(address["A"], address["B"])["artifact"] == as_runs["artifact"]
    assert compare(runs["A"], address["B"])["artifact"] == as_runs["artifact"]
    as_runs = compare(runs["A"], runs["C"], *FRESH)
    assert compare(address["A"], address["C"], *FRESH)["artifact"] == as_runs["artifact"]


@pytest.mark.parametrize(("pair", "fresh"), [("AB", FRESH), ("PQ", FRESH_AMOUNTS)])
def test_saved_models_whose_runs_are_not_known(
    pair: str, fresh: tuple[str, ...], runs: dict[str, str], compare: Compare
) -> None:
    """They take raw rows; where no data are named, the other side's test part as it was read."""
    first, second = (runs[letter] for letter in pair)
    addresses = model_of(first), model_of(second)
    by_runs = [compare(first, second, *words)["artifact"] for words in ((), fresh)]
    MlflowClient().set_tag(first, "wua.kind", "of another store")
    found = compare(addresses[0], second)
    assert found["metrics"]["compare/flops_ratio"] > 1
    MlflowClient().set_tag(second, "wua.kind", "of another store")
    for artifact, expected in zip((found["artifact"], compare(*addresses, *fresh)["artifact"]),
                                  by_runs, strict=True):
        for name in ("delta", "low", "high"):
            assert artifact[name] == pytest.approx(expected[name], abs=1e-3)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # MLflow's, of a table
@pytest.mark.parametrize("letter", ["A", "P"])
def test_a_saved_model_takes_raw_rows_as_the_file_beside_it_says(
    letter: str, runs: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(MlflowClient().download_artifacts(runs[letter], "state", str(tmp_path)))
    scaling = json.loads((folder / "scaling.json").read_text())
    frame = rows(0)
    inputs = frame[FEATURES].to_numpy()
    model = mlflow.pyfunc.load_model(model_of(runs[letter]))
    answers = np.asarray(model.predict(inputs)).ravel()
    by_table = np.asarray(model.predict(pd.DataFrame(inputs))).ravel()
    np.testing.assert_array_equal(by_table, answers)
    by = scaling["inputs"]
    outputs = forward(runs[letter], (inputs - by["mean"]) / by["scale"])
    if letter == "P":
        by = scaling["targets"]
        assert scaling["classes"] == []
        np.testing.assert_allclose(answers, outputs * by["scale"][0] + by["mean"][0], rtol=1e-4)
        assert np.corrcoef(answers, frame["z"])[0, 1] > 0.9
        assert abs(answers.mean() - frame["z"].mean()) < 0.1 * frame["z"].std()
    else:
        assert scaling["targets"] is None
        np.testing.assert_allclose(answers, 1 / (1 + np.exp(-outputs)), atol=1e-4)
        names = np.array(scaling["classes"])[(answers > 0.5).astype(int)]
        assert (names == frame["y"]).mean() > 0.85


def test_classes_of_a_model_from_elsewhere_are_its_outputs_places(
    store_uri: str, compare: Compare, refused: Refused, tmp_path: Path
) -> None:
    """Also where the test data lack one of them: here 1 of 0, 1, 2."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(300, 3))
    labels = x.argmax(1)
    wrong = draw.random(300) < 0.1
    frame = pd.DataFrame(x, columns=FEATURES).assign(y=np.where(wrong, (labels + 1) % 3, labels))
    frame = frame[frame["y"] != 1]
    frame.to_csv(tmp_path / "lacking.csv", index=False)
    torch.manual_seed(0)
    example = torch.from_numpy(x[:4]).float()
    same, turned = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        same.weight.copy_(torch.eye(3))
        turned.weight.copy_(torch.eye(3)[[1, 2, 0]])
        same.bias.zero_()
        turned.bias.zero_()
    a, b = log_model(same, example)[0], log_model(turned, example)[0]
    kept = frame[FEATURES].to_numpy()
    scores = [(kept[:, order].argmax(1) == frame["y"]).to_numpy().astype(float)
              for order in ([0, 1, 2], [1, 2, 0])]
    found = compare(a, b, "--data", "lacking.csv", "--target", "y")
    assert_same_verdict(found, *scores, margin=0.02)
    assert found["verdict"] == "inferior"
    frame.assign(y=frame["y"].map({0: "low", 2: "high"})).to_csv(tmp_path / "named.csv",
                                                                 index=False)
    assert refused(a, b, "--data", "named.csv", "--target", "y") == (
        "data: expected a class for each of the model's 3 outputs, but the test data have 2")
