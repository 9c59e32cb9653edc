"""``wua compare A B`` of scikit-learn's, XGBoost's and anybody's models, beside PyTorch's."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import xgboost
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import nn

from tests.pipeline.comparing import assert_same_verdict
from tests.pipeline.slimming_cases import folder_with_store
from wua_mlflow.cli.main import main
from wua_mlflow.pipeline import compare_external
from wua_mlflow.training.latency import measure_latency

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint")
COLUMNS = ["a", "b", "level"]
DATA = ("--data", "test.csv", "--target", "y", "--trust", "pickle")


def table(seed: int, count: int) -> pd.DataFrame:
    """Two amounts and a whole number; ``y`` is text, ``number`` the same as 0 and 1, ``z`` an
    amount, ``city`` a text."""
    draw = np.random.default_rng(seed)
    rows = pd.DataFrame({"a": draw.normal(size=count), "b": draw.normal(10, 3, count),
                         "level": draw.integers(0, 5, count)})
    score = rows["a"] + (rows["b"] - 10) / 3 + draw.normal(size=count) / 3
    return rows.assign(y=np.where(score > 0, "yes", "no"), number=(score > 0).astype(int),
                       z=50 + 7 * score, city=draw.choice(["Bonn", "Kiel"], count))


TRAIN, TEST = table(0, 300), table(1, 400)


@dataclass(frozen=True)
class Made:
    """A store, and the URIs of its models by name; the scikit-learn models themselves."""

    folder: Path
    uris: dict[str, str]
    models: dict[str, object]


def python_models() -> dict[str, mlflow.pyfunc.PythonModel]:
    """``named`` answers as a table of probabilities by class, in another order than the classes';
    ``short`` gives one answer too few."""
    class Named(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: pd.DataFrame) -> pd.DataFrame:
            likely = 1 / (1 + np.exp(-3 * (model_input["a"] + (model_input["b"] - 10) / 3)))
            return pd.DataFrame({"probability_yes": likely, "probability_no": 1 - likely})

    class Short(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: pd.DataFrame) -> np.ndarray:
            return np.array(["yes"] * (len(model_input) - 1))

    return {"named": Named(), "short": Short()}


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_database):
    folder = tmp_path_factory.mktemp("flavours")
    inputs = TRAIN[COLUMNS]
    of = partial(infer_signature, inputs)
    fitted = {
        "logistic": LogisticRegression().fit(inputs, TRAIN["y"]),
        "tree": DecisionTreeClassifier(max_depth=3, random_state=0).fit(inputs, TRAIN["y"]),
        "line": LinearRegression().fit(inputs, TRAIN["z"]),
        "regression tree": DecisionTreeRegressor(max_depth=3, random_state=0).fit(
            inputs, TRAIN["z"]),
        "of text": make_pipeline(
            FunctionTransformer(lambda rows: rows[["a", "b"]]),
            LogisticRegression()).fit(TRAIN[[*COLUMNS, "city"]], TRAIN["y"]),
    }
    boosted = xgboost.XGBClassifier(n_estimators=5, max_depth=2).fit(inputs, TRAIN["number"])
    booster = boosted.get_booster()
    net = nn.Linear(3, 1)
    net.load_state_dict({"weight": torch.tensor([[1.0, 1 / 3, 0.0]]),
                         "bias": torch.tensor([-10 / 3])})
    uris = {}
    with folder_with_store(folder, migrated_database), mlflow.start_run(), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on logging models
        for name, model in fitted.items():
            signature = infer_signature(TRAIN[[*COLUMNS, "city"]]) if name == "of text" else of()
            uris[name] = mlflow.sklearn.log_model(
                model, name=name.replace(" ", "_"), signature=signature, pip_requirements=[],
                serialization_format="cloudpickle").model_uri
        uris["unsigned"] = mlflow.sklearn.log_model(
            fitted["tree"], name="unsigned", pip_requirements=[],
            serialization_format="cloudpickle").model_uri
        for name, boost in (("boosted", boosted), ("booster", booster)):
            uris[name] = mlflow.xgboost.log_model(
                boost, name=name, signature=of(), pip_requirements=[]).model_uri
        for name, python in python_models().items():
            uris[name] = mlflow.pyfunc.log_model(
                name=name, python_model=python, signature=of(), pip_requirements=[]).model_uri
        uris["net"] = mlflow.pytorch.log_model(
            net.eval(), name="net", input_example=inputs.to_numpy(np.float32)[:3],
            serialization_format="pt2", pip_requirements=["torch"]).model_uri
    return Made(folder, uris, {**fitted, "boosted": boosted})


@pytest.fixture
def uris(made, store_uri, tmp_path, monkeypatch):
    """The models' URIs, in a copy of the store, beside the test data; latency takes no time."""
    monkeypatch.setattr(compare_external, "measure_latency",
                        partial(measure_latency, rounds=2, budget_s=0.0))
    shutil.copy(made.folder / "mlflow.db", tmp_path / "mlflow.db")
    TEST[[*COLUMNS, "y"]].to_csv("test.csv", index=False)
    return made.uris


def right(answers: object, target: str = "y") -> np.ndarray:
    return np.asarray(np.asarray(answers) == TEST[target], dtype=float)


def test_two_of_scikit_learns_by_their_labels(uris, made, compare):
    result = compare(uris["logistic"], uris["tree"], *DATA, "--margin", "0.1", "--class-margin",
                     "none")
    answers = [made.models[name].predict(TEST[COLUMNS]) for name in ("logistic", "tree")]
    assert_same_verdict(result, *map(right, answers), margin=0.1)
    metrics = result["metrics"]
    assert metrics["compare/churn"] == np.mean(answers[0] != answers[1])
    assert metrics["compare/latency_ratio"] > 0
    assert "compare/flops_ratio" not in metrics


def test_what_is_timed_is_said_and_that_flops_are_not_counted(uris, capsys):
    assert main(["compare", uris["logistic"], uris["net"], *DATA]) in (0, 3, 4)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(
        f"No FLOPs of {uris['logistic']}: they are counted of PyTorch models alone. Latency is "
        f"that of mlflow.pyfunc's predict, MLflow's check of the columns included; the other is "
        f"timed as a plain network.")
    flops = next(line for line in printed.splitlines() if line.startswith("FLOPs"))
    assert flops.split()[-2:] == ["–", "6"]


@pytest.mark.parametrize("first", ["logistic", "net"])
def test_one_of_each(uris, made, compare, first):
    """The network's single output is of the second class."""
    rows = TEST[COLUMNS]
    answers = {"logistic": right(made.models["logistic"].predict(rows)),
               "net": right(np.where(rows["a"] + (rows["b"] - 10) / 3 > 0, "yes", "no"))}
    second = "net" if first == "logistic" else "logistic"
    result = compare(uris[first], uris[second], *DATA)
    assert_same_verdict(result, answers[first], answers[second])


def test_probabilities_where_the_score_takes_them(uris, made, compare):
    """scikit-learn's by ``predict_proba``, a booster's answers, a table's columns by class."""
    truth = TEST["y"] == "yes"
    likely = made.models["logistic"].predict_proba(TEST[COLUMNS])
    for score, value in (("roc_auc", roc_auc_score(truth, likely[:, 1])),
                         ("log_loss", log_loss(TEST["y"], likely))):
        result = compare(uris["logistic"], uris["named"], *DATA, "--score", score)
        assert result["artifact"]["baseline_score"] == pytest.approx(value)
    logits = 3 * (TEST["a"] + (TEST["b"] - 10) / 3)
    assert result["artifact"]["candidate_score"] == pytest.approx(
        log_loss(truth, 1 / (1 + np.exp(-logits))))
    booster = compare(uris["logistic"], uris["booster"], *DATA, "--score", "roc_auc")
    assert booster["artifact"]["candidate_score"] == pytest.approx(roc_auc_score(
        truth, made.models["boosted"].predict_proba(TEST[COLUMNS])[:, 1]))


def test_xgboosts_classes_are_numbers(uris, made, compare):
    TEST[[*COLUMNS, "number"]].to_csv("test.csv", index=False)
    result = compare(uris["booster"], uris["boosted"], "--data", "test.csv", "--target", "number",
                     "--trust", "pickle", "--margin", "0.1")
    answers = right(made.models["boosted"].predict(TEST[COLUMNS]), "number")
    assert_same_verdict(result, answers, answers, margin=0.1)


def test_regressions(uris, made, compare):
    TEST[[*COLUMNS, "z"]].to_parquet("test.parquet")
    result = compare(uris["line"], uris["regression tree"], "--data", "test.parquet", "--target",
                     "z", "--trust", "pickle", "--margin", "0.3")
    for side, name in (("baseline", "line"), ("candidate", "regression tree")):
        assert result["artifact"][f"{side}_score"] == pytest.approx(
            made.models[name].score(TEST[COLUMNS], TEST["z"]))


def test_columns_are_taken_by_name_whatever_others_there_are(uris, made, compare):
    """In another order, beside texts and an index; whole numbers that a gap made amounts."""
    shuffled = TEST[["city", "y", "level", "b", "a"]].astype({"level": float})
    shuffled.to_csv("test.csv")
    result = compare(uris["logistic"], uris["of text"], *DATA)
    expected = [right(made.models["logistic"].predict(TEST[COLUMNS])),
                right(made.models["of text"].predict(TEST[[*COLUMNS, "city"]]))]
    assert_same_verdict(result, *expected)


def test_without_a_signature_it_gets_all_columns_but_those_that_are_left_out(
        uris, made, compare, refused):
    TEST.assign(patient=np.arange(400) // 2)[[*COLUMNS, "y", "patient", "city"]].to_csv("test.csv")
    options = (*DATA, "--groups", "patient", "--margin", "0.1")
    result = compare(uris["unsigned"], uris["tree"], *options, "--table", "drop_columns: city")
    assert (result["artifact"]["delta"], result["artifact"]["groups"]) == (0.0, 200)
    assert "does not take the data's rows of shape (400, 4)" in refused(
        uris["unsigned"], uris["tree"], *options)


def test_beside_a_file_of_predictions(uris, made, compare):
    answers = made.models["tree"].predict(TEST[COLUMNS])
    pd.DataFrame({"prediction": answers}).to_csv("answers.csv", index=False)
    result = compare("answers.csv", uris["tree"], *DATA, "--margin", "0.1")
    assert result["artifact"]["delta"] == 0
    assert "compare/latency_ratio" not in result["metrics"]


@pytest.mark.slow
def test_an_array_and_a_bundled_set(uris, compare, refused):
    np.savez("test.npz", X=TEST[COLUMNS].to_numpy(), y=TEST["y"].to_numpy(dtype=str))
    by_array = compare(uris["logistic"], uris["tree"], "--data", "test.npz", "--trust", "pickle")
    by_name = compare(uris["logistic"], uris["tree"], *DATA)
    assert by_array["artifact"]["delta"] == by_name["artifact"]["delta"]
    assert refused(uris["logistic"], uris["tree"], "--data", "wine", "--trust", "pickle") == (
        f"model: {uris['logistic']} takes 3 columns, but the data have the shape (54, 13)")


def test_nothing_is_loaded_that_is_not_trusted(uris, refused, monkeypatch):
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda *_: pytest.fail("it was loaded"))
    for name, flavour in (("tree", "sklearn"), ("boosted", "xgboost"), ("named", "")):
        assert refused(uris["net"], uris[name], *DATA[:4]) == (
            f"model URI {uris[name]}: cannot be loaded: it is a model of MLflow's flavour "
            f"{flavour or 'python_function'}, and loading such a one runs what its author saved "
            f"(a pickle, or a loader of its own); --trust pickle loads it all the same")


@pytest.mark.parametrize(("model", "data", "line"), [
    ("short", TEST[[*COLUMNS, "y"]],
     "model: expected an answer of {uri} to each of 400 rows, but got 399"),
    ("tree", TEST[["a", "level", "y"]].assign(bb=1),
     "model: {uri} takes the columns 'a', 'b', 'level', but the data have no 'b'; did you mean "
     "'bb'?"),
    ("boosted", TEST[[*COLUMNS, "y"]],
     "compare: expected predicted classes such as 'no' in {uri}, as the targets are, but got 0"),
    ("line", TEST[[*COLUMNS, "y"]], "compare: expected predicted classes in {uri}, but got"),
])
def test_a_model_that_does_not_fit(uris, refused, model, data, line):
    data.to_csv("test.csv", index=False)
    other = uris["logistic"] if model != "tree" else uris["tree"]
    assert refused(uris[model], other, *DATA).startswith(line.format(uri=uris[model]))


@pytest.mark.slow
def test_looks_at_models_of_others_are_counted(uris, compare):
    """In the experiment that the model was logged in: once for a pair and a margin."""
    looks = [compare(uris[a], uris["tree"], *DATA, "--margin", margin)["metrics"]["compare/looks"]
             for a, margin in (("logistic", "0.1"), ("logistic", "0.1"), ("logistic", "0.2"),
                               ("named", "0.2"))]
    assert looks == [1, 1, 2, 3]
    (experiment,) = MlflowClient().search_experiments()
    (tag,) = [value for name, value in experiment.tags.items() if name.startswith("wua.looks.")]
    assert tag.count(",") == 2
