"""The contract of names, against a list of its own, and on the way through a real store."""

from __future__ import annotations

from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import (
    KINDS,
    ArtifactPath,
    Kind,
    Metric,
    Outcome,
    Tag,
    Variant,
    importance_plot,
    layer_metric,
    step_tag,
)
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import connect, ended, new_run

_METRICS = """
    score/train score/validation score/test accuracy/train accuracy/validation accuracy/test
    accuracy/test_mean accuracy/test_std loss/train loss/test
    flops/forward flops/inference flops/training flops_ptflops/inference flops_ptflops/training
    params/total params/analyzed size/bytes
    usage/effective_weights usage/entropy usage/effective_share usage/null_share usage/null_low
    usage/null_high usage/shift usage/top90_share usage/low_share
    latency/p50_ms latency/p95_ms latency/samples_per_s
    compare/artifact_delta compare/artifact_delta_low compare/artifact_delta_high
    compare/recipe_delta compare/recipe_delta_low compare/recipe_delta_high
    compare/margin compare/flops_ratio compare/params_ratio compare/size_ratio
    compare/latency_ratio compare/churn compare/worst_class_delta compare/looks
"""
_TAGS = """
    wua.kind wua.variant wua.pipeline wua.baseline wua.verdict wua.verdict.artifact
    wua.verdict.recipe wua.error wua.version wua.null_kind
"""
_ARTIFACTS = """
    plots/network.png plots/layers.png plots/units.png usage/layers.json config.yaml
    replicates.json report.md report.html plots/comparison.png
"""
METRICS, TAGS, ARTIFACTS = _METRICS.split(), _TAGS.split(), _ARTIFACTS.split()


def _values(names: type) -> list[str]:
    return [value for key, value in vars(names).items() if not key.startswith("_")]


def test_every_name_of_the_contract_is_there():
    assert set(METRICS) <= set(_values(Metric))
    assert set(TAGS) <= set(_values(Tag))
    assert set(ARTIFACTS) <= set(_values(ArtifactPath))


def test_metrics_beyond_the_contract_are_known_ones():
    assert set(_values(Metric)) - set(METRICS) == {
        "loss/validation", "training/seconds", "compare/latency_ratio_low",
        "compare/latency_ratio_high", "compare/training_time_ratio"}


def test_values_of_tags_are_the_contracts():
    assert set(_values(Kind)) == {"pipeline", "variant", "step", "sweep", "trial"} == set(KINDS)
    assert set(_values(Variant)) == {"oversized", "slim", "oversized-same-budget", "from-scratch"}
    assert set(_values(Outcome)) == {"non_inferior", "inferior", "inconclusive"}
    assert step_tag("train") == "wua.step.train"


def test_no_name_is_given_twice():
    for names in (Metric, Tag, ArtifactPath):
        assert len(_values(names)) == len(set(_values(names)))


def test_names_of_layers():
    assert layer_metric("encoder.layers.0.fc1", "units") == "layers/encoder.layers.0.fc1/units"
    assert importance_plot("fc1") == "plots/importance_fc1.png"
    assert layer_metric("", "entropy") == "layers/model/entropy"
    assert layer_metric("a+b/c", "entropy") == "layers/a_b_c/entropy"
    assert importance_plot("a+b/c") == "plots/importance_a_b_c.png"


def test_what_is_written_under_the_names_is_read_under_them(store_uri):
    store = connect("names")
    layers = [layer_metric(name, "entropy") for name in ("", "fc1", "a+b/c", "Größe 1")]
    metrics = {name: number + 0.5 for number, name in enumerate([*METRICS, *layers])}
    tags = {name: f"value of {name}" for name in TAGS} | {"wua.kind": "variant"}
    run_id = new_run(store, "all of them", {})
    with ended(store, run_id):
        write(store.client, run_id, metrics=metrics, tags=tags,
              files=dict.fromkeys([*ARTIFACTS, importance_plot("a+b/c")], "text"))
    row = runs("names").iloc[0]
    assert {name: row[name] for name in metrics} == metrics
    assert {name: row[name] for name in TAGS if name != "wua.error"} \
        == {name: value for name, value in tags.items() if name != "wua.error"}
    client = MlflowClient(store_uri)
    held = {file.path for folder in ("", "plots", "usage")
            for file in client.list_artifacts(run_id, folder) if not file.is_dir}
    assert held == {*ARTIFACTS, "plots/importance_a_b_c.png"}
