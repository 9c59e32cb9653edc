"""``wua predict``, and the same answers without this package, as the guide shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.predict import encoding_json, predict
from wua_mlflow.tracking.store import connect


def people(n: int = 300, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    age, city = draw.normal(40, 9, n).round(), draw.choice(["Bonn", "Kiel", "Ulm"], n)
    made = pd.DataFrame({"customer_id": [f"c{i}" for i in range(n)], "age": age, "city": city,
                         "since": pd.date_range("2020-01-01", periods=n).strftime("%d.%m.%Y"),
                         "buys": np.where((age > 40) ^ (city == "Kiel"), "yes", "NA")})
    made.loc[draw.random(n) < 0.1, "age"] = np.nan
    made.loc[draw.random(n) < 0.1, "city"] = None
    return made


FRESH = people(60, 1).replace("Ulm", "Rom")[["city", "buys", "since", "customer_id", "age"]]


@pytest.fixture
def trained(store_uri, tmp_path):
    """Trains on a file's columns, one replicate; gives the run."""
    people().to_csv("people.csv", index=False)
    FRESH.to_csv("fresh.csv", index=False)

    def train(target: str = "buys", **settings):
        store = connect("tables")
        return workflow.train_run(store, load_settings(None, {
            "data": "people.csv", "target": target, "hidden": 4, "epochs": 2, "seeds": 1,
            **settings}))
    return train


def without_this_package(uri: str, table: pd.DataFrame) -> np.ndarray:
    """What docs/own_table.md shows."""
    folder = mlflow.artifacts.download_artifacts(uri)
    encoding = json.loads(Path(folder, "state", "encoding.json").read_text())
    columns = {}
    for column in encoding["columns"]:
        values = table[column["name"]]
        if column["kind"] == "text":
            level = values.map(column["levels"]).where(values.isin(list(column["levels"])),
                                                       column["unknown"])
            level = level.where(values.notna(), column["missing"])
            columns |= {name: level == name for name in column["model_columns"]}
        elif column["kind"] == "date":
            days = pd.to_datetime(values, format=column["written"]) - pd.Timestamp("1970-01-01")
            columns[column["name"]] = days / pd.Timedelta(days=1) - column["minus"]
        else:
            columns[column["name"]] = values - column["minus"]
    rows = pd.DataFrame(columns).astype("float32")
    return np.asarray(mlflow.pyfunc.load_model(uri).predict(rows))


def test_text_and_dates_are_encoded_as_in_training(trained, capsys):
    variant = trained()
    capsys.readouterr()
    assert main(["predict", variant.run_id, "fresh.csv"]) == 0
    printed = capsys.readouterr()
    answers = pd.read_csv(io.StringIO(printed.out), keep_default_na=False)
    known = (FRESH.city == "Rom").sum()
    gaps = FRESH.age.isna().sum()
    assert printed.err == (f"wua: note: gaps are filled as in training: 'age' ({gaps})\n"
                           f"wua: note: city: {known} rows with 'Rom', which the training part "
                           f"does not have, taken as none of the levels\n")
    assert answers.columns.tolist() == ["customer_id", "prediction", "target", "probability_NA",
                                        "probability_yes"]
    assert answers.customer_id.tolist() == FRESH.customer_id.tolist()
    assert answers.target.tolist() == FRESH.buys.tolist()
    run = mlflow.MlflowClient().get_run(variant.run_id)
    uri = f"models:/{run.outputs.model_outputs[0].model_id}"
    by_hand = without_this_package(uri, FRESH)[:, 0]
    np.testing.assert_allclose(answers.probability_yes, by_hand, rtol=1e-5)
    assert (answers.prediction == np.where(by_hand > 0.5, "yes", "NA")).all()
    names = mlflow.models.get_model_info(uri).signature.inputs.input_names()
    assert names == list(variant.recipe.split.encoding.names)
    example = mlflow.pyfunc.load_model(uri)
    assert example.predict(example.input_example).shape == (4, 1)
    assert main(["predict", uri, "fresh.csv", "--out", "answers.csv"]) == 0
    assert capsys.readouterr().out == "60 predictions in answers.csv\n"
    assert Path("answers.csv").read_text() == printed.out
    assert main(["compare", "answers.csv", "answers.csv", "--margin", "0.5"]) in (0, 4)


def test_the_network_and_the_saved_model_agree(trained):
    """On the test part: rows as they were read against rows as they were encoded and scaled."""
    variant = trained()
    table = people()
    answers = predict(variant.run_id, "people.csv")
    test = variant.recipe.split.test.inputs
    with torch.no_grad():
        expected = np.sort(variant.model(test)[:, 0].numpy())
    everywhere = answers.probability_yes.to_numpy()
    nearest = np.abs(everywhere[:, None] - expected).min(axis=0)
    assert nearest.max() < 1e-5
    assert len(answers) == len(table)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_numbers_with_gaps_go_in_as_they_are(trained, capsys):
    people()[["age", "customer_id"]].assign(
        amount=lambda made: made.age.fillna(20) * 2.0 + np.arange(300) / 10).to_csv("numbers.csv")
    variant = trained("amount", data="numbers.csv", drop_columns="customer_id")
    run = mlflow.MlflowClient().get_run(variant.run_id)
    served = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    ages = people()[["age"]].to_numpy()
    answers = predict(variant.run_id, "numbers.csv")
    np.testing.assert_allclose(answers.prediction, served.predict(ages)[:, 0], rtol=1e-6)
    assert not np.isnan(answers.prediction).any()
    named = pd.DataFrame({"age": [20, 30], "who": ["ann", "bob"], "town": ["Rom", "Rom"]})
    named.to_csv("named.csv", index=False)
    assert predict(variant.run_id, "named.csv").columns.tolist() == ["who", "prediction"], \
        "what differs in each row names them"
    assert answers.columns.tolist() == ["Unnamed: 0", "customer_id", "prediction", "target"]
    content = json.loads(encoding_json(variant.recipe.split, "values", "amount"))
    assert (content["named"], content["dtype"], content["fills_gaps"]) == (False, "float64", True)


def test_bundled_sets_by_their_columns_in_order(trained, tmp_path):
    variant = trained(None, data="iris")
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]])
    np.savez("rows.npz", X=rows)
    pd.DataFrame(rows).to_csv("rows.csv", index=False)
    first, second = (predict(variant.run_id, f"rows.{ending}") for ending in ("npz", "csv"))
    assert first.equals(second)
    assert first.columns.tolist()[1:] == [f"probability_{name}" for name in (
        "setosa", "versicolor", "virginica")]
    np.testing.assert_allclose(first.iloc[:, 1:].sum(axis=1), 1)


def test_what_cannot_be_predicted(trained, capsys):
    run_id = trained().run_id
    FRESH.drop(columns="age").to_csv("less.csv", index=False)
    FRESH.assign(age="old").to_csv("words.csv", index=False)
    FRESH.iloc[:0].to_csv("none.csv", index=False)
    capsys.readouterr()
    for words, message in (
        (f"{run_id} nowhere.csv", "data: expected a file of rows, but 'nowhere.csv' does not "),
        (f"{run_id} rows.xlsx", "data: expected a file of rows, but 'rows.xlsx' does not end in "),
        (f"{run_id} less.csv", "data: expected the columns that the model was trained on in "
                               "less.csv, but it has no 'age'"),
        (f"{run_id} words.csv", "data: expected numbers in column 'age' of words.csv, as in the "
                                "data that the model was trained on, but got text"),
        (f"{run_id} none.csv", "data: expected rows in none.csv, but it has only a header"),
        ("models:/none/1 fresh.csv", "model: expected a run's id or a model's URI such as "),
        ("abcd fresh.csv", "run: no run's id begins with 'abcd'"),
        (f"{run_id} fresh.csv --out no/folder.csv", "out: expected a file that can be written, but "
                                                    "'no/folder.csv' cannot: "),
        (run_id, "FILE: expected a value, but got none"),
    ):
        assert main(["predict", *words.split()]) in (1, 2)
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if "wua: note: " not in line]
        assert lines == [line for line in lines if line.startswith(f"wua: {message}")], words
        assert len(lines) == 1, words
