"""``mlflow.models.evaluate`` with the evaluator ``wua``, on models that others logged."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import MetricThreshold, infer_signature
from mlflow.tracking import MlflowClient
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import wua_mlflow as wua
from tests.pipeline.slimming_cases import folder_with_store
from wua_mlflow.pipeline import compare_external
from wua_mlflow.pipeline.evaluator import KEYS, WuaEvaluator
from wua_mlflow.training.latency import measure_latency

pytestmark = pytest.mark.filterwarnings(  # MLflow's, on what it imports
    "ignore:.*Any type hint", "ignore:_ImportHookChainedLoader:ImportWarning",
    "ignore:the load_module:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning")
COLUMNS = ["a", "b", "c"]
ROOT = Path(__file__).resolve().parents[2]


def table(seed: int, count: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    rows = pd.DataFrame(draw.normal(size=(count, 3)), columns=COLUMNS)
    score = rows["a"] + rows["b"] + draw.normal(size=count) / 3
    return rows.assign(y=(score > 0).astype(int), z=5 * score)


TRAIN, TEST = table(0), table(1, 400)
INPUTS = TEST[COLUMNS].to_numpy(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_database):
    """A folder with a store, URIs by name, and the modules and models themselves."""
    folder = tmp_path_factory.mktemp("evaluator")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
    models = {"net": net, "two": nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)).eval(),
              "pickled": net,
              "logistic": LogisticRegression().fit(TRAIN[COLUMNS], TRAIN["y"]),
              "tree": DecisionTreeClassifier(max_depth=2).fit(TRAIN[COLUMNS], TRAIN["y"]),
              "line": LinearRegression().fit(TRAIN[COLUMNS], TRAIN["z"])}
    uris = {}
    with folder_with_store(folder, migrated_database), mlflow.start_run(), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on logging models
        for name, model in models.items():
            if isinstance(model, nn.Module):
                form = "pickle" if name == "pickled" else "pt2"
                uris[name] = mlflow.pytorch.log_model(
                    model, name=name, input_example=INPUTS[:3], serialization_format=form,
                    pip_requirements=["torch"]).model_uri
            else:
                uris[name] = mlflow.sklearn.log_model(
                    model, name=name, signature=infer_signature(TRAIN[COLUMNS]),
                    pip_requirements=[], serialization_format="cloudpickle").model_uri
        uris["one row"] = mlflow.pytorch.log_model(
            net, name="one_row", input_example=INPUTS[:1], serialization_format="pt2",
            pip_requirements=["torch"]).model_uri
    return folder, uris, models


@pytest.fixture
def uris(made, store_uri, tmp_path, monkeypatch):
    """The models' URIs, in a copy of the store; latency takes no time."""
    monkeypatch.setattr(compare_external, "measure_latency",
                        partial(measure_latency, rounds=2, budget_s=0.0))
    shutil.copy(made[0] / "mlflow.db", tmp_path / "mlflow.db")
    return made[1]


def evaluated(model, data=TEST[[*COLUMNS, "y"]], targets="y", model_type="classifier", **options):
    """The result, and the run that MLflow made for it."""
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(model, data, targets=targets, model_type=model_type,
                                        **options)
    return result, MlflowClient().get_run(run.info.run_id)


def by_wua(model, config=None, **options):
    return evaluated(model, evaluators=["wua"],
                     evaluator_config={"wua": config} if config else None, **options)


def points(run, metric: str) -> int:
    return len(MlflowClient().get_metric_history(run.info.run_id, metric))


def files(run_id: str, path: str = "") -> set[str]:
    found = MlflowClient().list_artifacts(run_id, path)
    return {name for each in found
            for name in (files(run_id, each.path) if each.is_dir else [each.path])}


def test_it_is_installed_as_mlflows_plugin():
    (point,) = importlib.metadata.entry_points(group="mlflow.model_evaluator", name="wua")
    assert point.load() is WuaEvaluator


def test_usage_of_an_exported_graph_is_the_modules(uris, made):
    result, run = by_wua(uris["net"], {"null_draws": 2})
    usage = wua.analyze(made[2]["net"], torch.from_numpy(INPUTS))
    assert result.metrics["usage/effective_weights"] == pytest.approx(usage.effective_weights)
    assert result.metrics["layers/0/units"] == 6
    assert result.metrics["flops/forward"] == 2 * (3 * 6 + 6)
    assert result.metrics["params/total"] == 3 * 6 + 6 + 6 + 1
    assert run.data.metrics == pytest.approx(result.metrics)
    assert (run.data.tags["wua.criterion"], run.data.tags["wua.null_kind"]) == (
        "output", "permuted")
    assert {"plots/layers.png", "plots/units.png", "plots/importance_0.png",
            "usage/layers.json"} <= files(run.info.run_id)
    assert result.artifacts["usage/layers.json"].content["skipped"] == [
        {"layer": "2", "reason": "the output layer: its units are the model's outputs"}]
    assert set(result.artifacts) == files(run.info.run_id)


def test_figures_are_the_logged_models_too_each_once(uris):
    result, run = by_wua(uris["net"], {"null_draws": 0, "criterion": "taylor"})
    logged = mlflow.get_logged_model(uris["net"].removeprefix("models:/"))
    of_run = {metric.key: metric for metric in logged.metrics
              if metric.run_id == run.info.run_id}
    assert {key: metric.value for key, metric in of_run.items()} == pytest.approx(result.metrics)
    assert {metric.dataset_digest for metric in of_run.values()} == {
        run.inputs.dataset_inputs[0].dataset.digest}
    assert {points(run, key) for key in result.metrics} == {1}


def test_a_registered_version_whose_model_mlflow_does_not_know(uris):
    """MLflow logs what is returned only where it knows the model's id; it does not always."""
    version = MlflowClient().create_model_version(
        MlflowClient().create_registered_model("theirs").name, uris["two"])
    uri = f"models:/theirs/{version.version}"
    result, run = by_wua(uri, {"null_draws": 0})
    assert run.data.metrics == pytest.approx(result.metrics)
    assert {points(run, key) for key in result.metrics} == {1}
    logged = mlflow.get_logged_model(uris["two"].removeprefix("models:/"))
    assert {metric.key for metric in logged.metrics if metric.run_id == run.info.run_id} == set(
        result.metrics)


@pytest.mark.slow
def test_a_pickled_module_that_mlflow_has_loaded(uris, made):
    assert by_wua(uris["pickled"], {"null_draws": 0})[0].metrics == pytest.approx(
        by_wua(uris["net"], {"null_draws": 0})[0].metrics)


def test_a_verdict_beside_a_baseline(uris, made):
    """The outcome is a tag and in the artifact, the figures are metrics."""
    result, run = by_wua(uris["tree"], {
        "baseline": uris["logistic"], "trust": "pickle", "margin": 0.15, "class_margin": "none"})
    answers = {name: made[2][name].predict(TEST[COLUMNS]) == TEST["y"]
               for name in ("logistic", "tree")}
    verdict = wua.compare(answers["logistic"].astype(float), answers["tree"].astype(float),
                          margin=0.15, seed=42)
    for name, value in (("", verdict.delta), ("_low", verdict.low), ("_high", verdict.high)):
        assert run.data.metrics[f"compare/artifact_delta{name}"] == pytest.approx(value)
    assert run.data.metrics["compare/margin"] == 0.15
    assert run.data.metrics["compare/looks"] == 1
    assert run.data.metrics["accuracy/test"] == answers["tree"].mean()
    assert "compare/flops_ratio" not in run.data.metrics
    record = result.artifacts["compare/verdict.json"].content
    assert run.data.tags["wua.verdict"] == record["verdict"] == verdict.outcome
    assert record["artifact"]["low"] == pytest.approx(verdict.low)
    assert {points(run, key) for key in result.metrics} == {1}


def test_two_networks_one_of_two_outputs(uris, made):
    result, run = by_wua(uris["net"], {"baseline": uris["two"], "margin": 0.05})
    with torch.no_grad():
        answers = {"two": made[2]["two"](torch.from_numpy(INPUTS)).argmax(1).numpy(),
                   "net": (made[2]["net"](torch.from_numpy(INPUTS))[:, 0] > 0).long().numpy()}
    right = {name: (answer == TEST["y"]).mean() for name, answer in answers.items()}
    assert result.metrics["compare/artifact_delta"] == pytest.approx(right["net"] - right["two"])
    assert result.metrics["compare/churn"] == pytest.approx(
        np.mean(answers["net"] != answers["two"]))
    assert result.metrics["compare/flops_ratio"] == 2 * 3 * 2 / (2 * (3 * 6 + 6))


@pytest.mark.slow
def test_a_loaded_baseline_a_network_and_probabilities(uris):
    """The caller has loaded it: whether it is trusted was theirs to decide."""
    result, _ = by_wua(uris["net"], {"baseline": mlflow.pyfunc.load_model(uris["logistic"]),
                                     "score": "roc_auc"})
    record = result.artifacts["compare/verdict.json"].content
    assert record["artifact"]["score"] == "roc_auc"
    assert record["artifact"]["baseline_score"] > 0.9


def test_a_regression(uris, made):
    result, _ = by_wua(uris["line"], {"baseline": mlflow.pyfunc.load_model(uris["line"]),
                                      "margin": 0.1}, targets="z", model_type="regressor",
                       data=TEST[[*COLUMNS, "z"]])
    assert result.metrics["compare/artifact_delta"] == 0
    assert result.metrics["score/test"] == pytest.approx(
        made[2]["line"].score(TEST[COLUMNS], TEST["z"]))


def test_predictions_that_the_data_hold_are_logged_though_no_model_has_an_id(uris, made):
    data = TEST[[*COLUMNS, "y"]].assign(answer=made[2]["tree"].predict(TEST[COLUMNS]))
    result, run = by_wua(None, {"baseline": mlflow.pyfunc.load_model(uris["tree"])}, data=data,
                         predictions="answer")
    assert result.metrics["compare/artifact_delta"] == 0
    assert run.data.metrics == pytest.approx(result.metrics)
    assert {points(run, key) for key in result.metrics} == {1}


@pytest.mark.slow
def test_beside_mlflows_own_evaluator_no_name_is_anothers(uris):
    own, default = {"baseline": uris["net"]}, {"log_model_explainability": False}
    both, run = evaluated(uris["tree"], evaluators=["default", "wua"], evaluator_config={
        "wua": own, "default": default})
    alone, _ = evaluated(uris["tree"], evaluators="default", evaluator_config=default)
    ours, _ = by_wua(uris["tree"], own)
    assert set(both.metrics) == set(alone.metrics) | set(ours.metrics)
    assert not set(alone.metrics) & set(ours.metrics)
    assert not set(alone.artifacts) & set(ours.artifacts)
    assert {points(run, key) for key in ours.metrics} == {1}


NOT_ASKED = [
    {}, {"evaluators": "default"}, {"evaluators": ["default"]},
    {"evaluator_config": {"log_model_explainability": False}},
    {"evaluator_config": {"default": {"log_model_explainability": False}}},
    {"evaluator_config": {"score": "f1", "somebody_elses": 1}},
    {"evaluators": "default", "evaluator_config": {"log_model_explainability": False}},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", NOT_ASKED, ids=str)
def test_whoever_does_not_ask_gets_nothing(uris, monkeypatch, options):
    monkeypatch.setattr(WuaEvaluator, "evaluate", lambda *_, **__: pytest.fail("it was run"))
    monkeypatch.setattr("mlflow.models.evaluation.evaluators.shap.ShapEvaluator.can_evaluate",
                        lambda *_, **__: False)
    _, run = evaluated(uris["tree"], **options)
    assert not any(name.startswith("wua.") for name in run.data.tags)
    assert "accuracy_score" in run.data.metrics


@pytest.mark.parametrize("options", [
    {"evaluators": "wua"}, {"evaluators": ["wua"]}, {"evaluators": ["wua"], "evaluator_config": {}},
    {"evaluators": "wua", "evaluator_config": {"null_draws": 1}},
    {"evaluators": ["wua"], "evaluator_config": {"wua": {"null_draws": 1}}},
    pytest.param({"evaluator_config": {"wua": {"null_draws": 1}}}, marks=pytest.mark.slow),
], ids=str)
def test_whoever_asks_gets_it(uris, monkeypatch, options):
    asked = []

    def found(self, *, evaluator_config, **_):
        asked.append(evaluator_config)
        return mlflow.models.EvaluationResult({"usage/entropy": 1.0}, {})

    monkeypatch.setattr(WuaEvaluator, "evaluate", found)
    monkeypatch.setattr("mlflow.models.evaluation.evaluators.shap.ShapEvaluator.can_evaluate",
                        lambda *_, **__: False)
    result, _ = evaluated(uris["tree"], **options)
    assert asked == [{"null_draws": 1} if "null_draws" in str(options) else {}]
    assert result.metrics["usage/entropy"] == 1.0


@pytest.mark.parametrize(("config", "line"), [
    ({"basline": "models:/a/1"}, f"evaluator_config: expected the keys {', '.join(KEYS)}, but got "
     "'basline'; did you mean 'baseline'?"),
    ({"margin": 0.02}, "evaluator_config: expected a baseline beside margin, such as "
     "models:/name/1, but got none"),
    ({"baseline": "{net}", "margin": 7}, "margin: expected 0 or a number from 1e-12 to below 1, "
     "but got 7"),
    ({"baseline": 3}, "baseline: expected a model's URI, such as models:/name/1, or what "
     "mlflow.pyfunc.load_model returns, but got 3"),
    ({"baseline": "{logistic}"}, "baseline: model URI {logistic}: cannot be loaded: it is a model "
     "of MLflow's flavour sklearn, and loading such a one runs what its author saved (a pickle, or "
     "a loader of its own); {{'trust': 'pickle'}} in evaluator_config loads it all the same"),
    ({"baseline": "{pickled}"}, "baseline: model URI {pickled}: cannot be loaded: it is pickled, "
     "and unpickling runs whatever code its author put in; {{'trust': 'pickle'}} in "
     "evaluator_config loads it all the same"),
    ({"null_draws": 1}, "model: expected a PyTorch model, whose weights can be analysed, but got "
     "one of another flavour; beside a baseline in evaluator_config its answers are judged"),
])
def test_what_is_wrong_is_one_line(uris, config, line):
    config = {key: value.format(**uris) if isinstance(value, str) else value
              for key, value in config.items()}
    with pytest.raises(ValueError) as caught:
        by_wua(uris["tree"], config)
    assert str(caught.value) == line.format(**uris)


def test_a_graph_of_one_row_is_refused_with_the_remedy(uris):
    with pytest.raises(ValueError, match="takes 1 row at a time.*log it with two or more"):
        by_wua(uris["one row"])


def test_other_kinds_of_models_are_not_ours(uris):
    assert not WuaEvaluator.can_evaluate(model_type="text", evaluator_config={"null_draws": 1})


@pytest.mark.slow
def test_mlflows_own_thresholds_take_the_interval(uris):
    """The lower limit above minus the margin; MLflow's own change of an accuracy cannot say so."""
    result, _ = by_wua(uris["tree"], {"baseline": uris["net"], "margin": 0.02})
    low = {"compare/artifact_delta_low": MetricThreshold(threshold=-0.02, greater_is_better=True)}
    mlflow.validate_evaluation_results(low, result)
    with pytest.raises(MlflowException, match="must be a positive number"):
        MetricThreshold(min_absolute_change=-0.02, greater_is_better=True)


@pytest.mark.slow
def test_looks_are_counted_across_evaluations(uris):
    looks = [by_wua(uris["net"], {"baseline": uris[name]})[0].metrics["compare/looks"]
             for name in ("two", "two", "net")]
    assert looks == [1, 1, 2]


@pytest.mark.slow
def test_nobody_who_evaluates_something_else_imports_more():
    """Neither torch nor the rest of this package."""
    code = ("import sys, mlflow.models.evaluation.evaluator_registry as registry\n"
            "assert registry._model_evaluation_registry.is_registered('wua')\n"
            "print([name for name in sys.modules if name in ('torch', 'matplotlib.pyplot')],"
            " sorted(name for name in sys.modules if name.startswith('wua_mlflow')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=True)
    assert done.stdout.strip().endswith(
        "['wua_mlflow', 'wua_mlflow.errors', 'wua_mlflow.pipeline', "
        "'wua_mlflow.pipeline.evaluator', 'wua_mlflow.redaction']")
    assert "'torch'" not in done.stdout
