"""The tutorial's pipeline, read back through MLflow's client: figures, names, files, statuses."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.pipeline.conftest import SEEDS, Finished
from wua_mlflow.cli.output import pipeline_text
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.recipe import load_recipe, train_one
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.tracking.names import ArtifactPath, Metric

SEED_MD = {
    "oversized": {
        "flops_ptflops/training": "12,200,000", "flops_ptflops/inference": "122,000",
        "accuracy/train": "0.8850", "layers/fc1/weights": "20", "layers/fc1/units": "10",
        "layers/fc1/entropy": "2.7584", "layers/fc1/effective_weights": "15.7751",
        "layers/fc1/top90_share": "65.00%", "layers/fc1/low_share": "0.00%",
        "usage/entropy": "2.7584", "usage/effective_weights": "15.7751",
    },
    "slim": {
        "flops_ptflops/training": "10,320,000", "flops_ptflops/inference": "86,000",
        "accuracy/train": "0.8730", "layers/fc1/weights": "14", "layers/fc1/units": "7",
        "layers/fc1/entropy": "2.4191", "layers/fc1/effective_weights": "11.2361",
        "layers/fc1/top90_share": "71.43%", "layers/fc1/low_share": "0.00%",
        "usage/entropy": "2.4191", "usage/effective_weights": "11.2361",
    },
}


def _printed(value: float, like: str) -> str:
    if like.endswith("%"):
        return f"{100 * value:.2f}%"
    decimals = len(like.partition(".")[2])
    return f"{value:,.{decimals}f}"


@pytest.mark.parametrize("variant", SEED_MD)
def test_every_figure_of_the_tutorial(usecase: Finished, variant: str) -> None:
    metrics = usecase.run(variant).data.metrics
    printed = {name: _printed(metrics[name], figure) for name, figure in SEED_MD[variant].items()}
    assert printed == SEED_MD[variant]


def test_the_derived_width_is_seven(usecase: Finished) -> None:
    assert usecase.run("slim").data.params["hidden"] == "7"
    assert usecase.run("slim").info.run_name == "slim 7"


def test_flops_by_hand(usecase: Finished) -> None:
    """2-10-1: 2·(20 + 10) forward; backward both weight gradients and the second input's."""
    metrics = usecase.run("oversized").data.metrics
    forward, backward = 2 * (20 + 10), 2 * (20 + 10) + 2 * 10
    assert metrics["flops/forward"] == forward
    assert metrics["flops/inference"] == forward * 1000
    assert metrics["flops/training"] == (forward + backward) * 1000 * 50


CONTRACT_VARIANT = {
    "score/train", "score/validation", "score/test", "accuracy/train", "accuracy/validation",
    "accuracy/test", "accuracy/test_mean", "accuracy/test_std", "loss/train", "loss/test",
    "flops/forward", "flops/inference", "flops/training", "flops_ptflops/inference",
    "flops_ptflops/training", "params/total", "params/analyzed", "size/bytes",
    "usage/effective_weights", "usage/entropy", "usage/effective_share", "usage/null_share",
    "usage/null_low", "usage/null_high", "usage/shift", "usage/top90_share", "usage/low_share",
    "latency/p50_ms", "latency/p95_ms", "latency/samples_per_s", "training/seconds",
}
CONTRACT_SLIM = {
    "compare/artifact_delta", "compare/artifact_delta_low", "compare/artifact_delta_high",
    "compare/recipe_delta", "compare/recipe_delta_low", "compare/recipe_delta_high",
    "compare/margin", "compare/flops_ratio", "compare/params_ratio", "compare/size_ratio",
    "compare/latency_ratio", "compare/latency_ratio_low", "compare/latency_ratio_high",
    "compare/training_time_ratio", "compare/churn", "compare/worst_class_delta", "compare/looks",
}
CONTRACT_OVERSIZED = {"fidelity/reliability", *(
    f"{what}/{criterion}" for what in ("fidelity", "fidelity_area")
    for criterion in ("output", "taylor", "spanning"))}


@pytest.mark.parametrize("variant", ["oversized", "oversized-same-budget", "slim"])
def test_metrics_of_a_variant_are_the_contracts(usecase: Finished, variant: str) -> None:
    run = usecase.run(variant)
    expected = CONTRACT_VARIANT | {"slim": CONTRACT_SLIM, "oversized": CONTRACT_OVERSIZED}.get(
        variant, set())
    expected |= {f"layers/fc1/{what}" for what in (
        "entropy", "effective_weights", "top90_share", "low_share", "weights", "units")}
    assert set(run.data.metrics) == expected
    assert all(math.isfinite(value) for value in run.data.metrics.values())


def test_summary_metrics_have_one_point_at_step_0_and_the_loss_one_an_epoch(
    usecase: Finished,
) -> None:
    run_id = usecase.run("slim").info.run_id
    for name in usecase.run("slim").data.metrics:
        steps = [point.step for point in usecase.client.get_metric_history(run_id, name)]
        assert steps == (list(range(1, 61)) if name == "loss/train" else [0]), name


def test_the_pipeline_copies_the_slim_variants_comparison(usecase: Finished) -> None:
    pipeline, slim = usecase.run().data, usecase.run("slim").data
    assert {k: v for k, v in slim.metrics.items() if k.startswith("compare/")} == pipeline.metrics
    for tag in ("wua.verdict", "wua.verdict.artifact", "wua.verdict.recipe"):
        assert pipeline.tags[tag] == slim.tags[tag]
    assert slim.tags["wua.verdict"] == slim.tags["wua.verdict.recipe"]


def test_tags_names_and_nesting(usecase: Finished) -> None:
    pipeline = usecase.run()
    assert pipeline.data.tags["wua.kind"] == "pipeline"
    assert pipeline.info.run_name == "usecase 10 → 7"
    names, colours = set(), set()
    for variant in ("oversized", "oversized-same-budget", "slim"):
        run = usecase.run(variant)
        tags = run.data.tags
        assert (tags["wua.kind"], tags["wua.variant"]) == ("variant", variant)
        assert tags["wua.pipeline"] == tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert (tags["wua.step.train"], tags["wua.step.analyze"]) == ("done", "done")
        assert tags["wua.null_kind"] == "re-initialised"
        assert tags["wua.version"]
        names.add(run.info.run_name)
        colours.add(tags["mlflow.runColor"])
    assert names == {"oversized 10", "oversized 10, 60 epochs", "slim 7"}
    assert len(colours) == 3
    oversized = usecase.run("oversized").info.run_id
    assert usecase.run("slim").data.tags["wua.baseline"] == oversized


def test_every_run_finished(usecase: Finished) -> None:
    runs = usecase.client.search_runs([usecase.store.experiment_id])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}


def _files(usecase: Finished, run_id: str, path: str = "") -> set[str]:
    found = set()
    for item in usecase.client.list_artifacts(run_id, path):
        found |= _files(usecase, run_id, item.path) if item.is_dir else {item.path}
    return found


def test_artifacts(usecase: Finished) -> None:
    expected = {"config.yaml", "replicates.json", "usage/layers.json", "plots/importance_fc1.png",
                "plots/network.png", "plots/layers.png", "plots/units.png",
                "state/model.safetensors", "state/rng.safetensors", "evaluation/test.safetensors"}
    for variant in ("oversized", "oversized-same-budget", "slim"):
        widths = {"widths.json"} if variant == "slim" else set()
        assert _files(usecase, usecase.run(variant).info.run_id) == expected | widths
    assert _files(usecase, usecase.outcome.run_id) == {
        "report.md", "report.html", "plots/comparison.png", "config.yaml"}


def test_at_most_ten_tracking_calls_a_step(usecase: Finished) -> None:
    steps = {step: calls for step, calls in usecase.calls.items() if step != "chain"}
    assert sorted(step.split()[0].removesuffix("_variant") for step in steps) == [
        "analyze"] * 3 + ["compare_variants"] + ["train"] * 3
    assert {step: calls for step, calls in steps.items() if len(calls) > 10} == {}
    assert len(usecase.calls["chain"]) <= 10


def test_the_very_network_is_rebuilt_from_its_run(usecase: Finished) -> None:
    for variant in usecase.outcome.variants:
        again = load_variant(usecase.store, variant.run_id)
        inputs = variant.recipe.split.test.inputs[:50]
        assert torch.equal(again.model(inputs), variant.model(inputs))
        assert again.settings.hidden == variant.settings.hidden
        assert np.array_equal(again.replicate_scores, variant.replicate_scores)
        assert all(torch.equal(a.stream["cpu"], b.stream["cpu"]) for a, b in
                   zip(again.replicates, variant.replicates, strict=True))


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_logged_model_loads_without_pickle_at_any_batch_size(
    usecase: Finished, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.chdir(usecase.folder)
    mlflow.set_tracking_uri(usecase.store.uri)
    (output,) = usecase.run("slim").outputs.model_outputs
    model = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    slim = usecase.outcome.variants[-1]
    inputs = slim.recipe.split.test.inputs[:batch]
    assert torch.allclose(model(inputs), slim.model(inputs), atol=1e-6)


def test_data_sets_are_inputs_of_the_run(usecase: Finished) -> None:
    inputs = usecase.run("slim").inputs.dataset_inputs
    found = {one.tags[0].value: one.dataset for one in inputs}
    assert set(found) == {"train", "validation", "test"}
    split = usecase.outcome.variants[0].recipe.split
    assert found["test"].digest == split.test.digest[:12]
    assert usecase.run("slim").data.tags["wua.test_digest"] == split.test.digest


def test_config_runs_it_again(usecase: Finished) -> None:
    path = usecase.client.download_artifacts(usecase.run("slim").info.run_id, "config.yaml")
    values = yaml.safe_load(Path(path).read_text())
    assert (values["hidden"], values["epochs"], values["data"]) == ([7], 60, "usecase")
    whole = usecase.client.download_artifacts(usecase.outcome.run_id, "config.yaml")
    assert load_settings(whole) == load_settings(
        None, {"seeds": SEEDS, "null_draws": 5, "how": "rebuild"})


def test_the_description_begins_with_the_verdict_then_what_is_saved(usecase: Finished) -> None:
    note = usecase.run().data.tags["mlflow.note.content"]
    first, second, third, fourth = note.split("\n\n")[:4]
    verdict = usecase.outcome.verdict
    assert first == f"**{usecase.outcome.report.in_short}**"
    assert "(95% confidence, 6 seeds)" in first
    assert second.startswith(f"{verdict.headline}.")
    assert "The slim model: 1.4× fewer FLOPs, 1.4× fewer parameters" in second
    assert verdict.sentence in note
    assert third == ("The question: Is slim 7 as good as oversized 10, to within 2 points of "
                     "accuracy, and what does it save?")
    assert fourth.startswith("| ")
    assert "Budgets differ: the original trained for 50 epochs, the slim one for 60 epochs." in note
    path = usecase.client.download_artifacts(usecase.outcome.run_id, "report.md")
    assert note in Path(path).read_text()


def test_the_readme_shows_what_is_printed(usecase: Finished) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    block = re.search(r"<!-- tutorial figures -->\n```\n(.*?)```", readme, re.S)
    assert block
    assert pipeline_text(usecase.outcome.report).startswith(block.group(1))


def test_looks_are_counted_over_the_whole_store(usecase: Finished) -> None:
    from wua_mlflow.tracking.runs import count_looks

    digest = usecase.run("slim").data.tags["wua.test_digest"]
    assert usecase.run("slim").data.metrics[Metric.LOOKS] == 1
    assert count_looks(usecase.client, digest) == 1
    assert count_looks(usecase.client, "of another test set") == 0


def test_views_are_there(usecase: Finished) -> None:
    tags = usecase.client.get_experiment(usecase.store.experiment_id).tags
    assert json.loads(tags["mlflow.sharedViewState.wua"])["name"] == "Right-sizing"
    latest = json.loads(tags["mlflow.sharedViewState.wua-latest"])
    assert usecase.outcome.run_id in latest["state"]


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())


def _fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), nn.BCELoss()
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def test_replicates_repeat_the_whole_recipe_with_the_next_seeds(usecase: Finished) -> None:
    """Seed 43 by hand: the oversized network, then the slim one from the same stream."""
    points = np.random.RandomState(42).rand(1000, 2)
    x = torch.tensor(points, dtype=torch.float32)
    y = torch.tensor((points.sum(1) > 1).astype(np.float32))[:, None]
    test = usecase.outcome.variants[0].recipe.split.test
    with torch.random.fork_rng():
        torch.manual_seed(43)
        big = _mlp(10)
        _fit(big, x, y, 50)
        small = _mlp(7)
        _fit(small, x, y, 60)
    with torch.no_grad():
        by_hand = [float(((m(test.inputs) > 0.5) == (test.targets > 0.5)).double().mean())
                   for m in (big, small)]
    for variant, accuracy in zip(("oversized", "slim"), by_hand, strict=True):
        path = usecase.client.download_artifacts(usecase.run(variant).info.run_id,
                                                 ArtifactPath.REPLICATES)
        table = json.loads(Path(path).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["seed"] for row in rows] == list(range(42, 42 + SEEDS))
        assert rows[1]["score/test"] == pytest.approx(accuracy, abs=1e-12)
        metrics = usecase.run(variant).data.metrics
        scores = [row["score/test"] for row in rows]
        assert metrics["accuracy/test_mean"] == pytest.approx(np.mean(scores))
        assert metrics["accuracy/test_std"] == pytest.approx(np.std(scores, ddof=1))
        assert rows[0]["score/test"] == metrics["accuracy/test"]


def test_the_callers_random_stream_is_left_alone(usecase: Finished) -> None:
    before = torch.get_rng_state()
    recipe = load_recipe(load_settings(None, {"epochs": 2}))
    train_one(recipe, (10,), 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
