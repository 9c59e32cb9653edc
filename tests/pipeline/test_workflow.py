"""The tutorial's pipeline, read back through MLflow's client: figures, names, files, statuses.

What its runs hold, what they show (the report's files, the pictures), ``fidelity/<criterion>``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.pipeline.slimming_cases import folder_with_store
from tests.pruning.cutting_cases import greedy
from tests.report import cases
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import analyze, publish, slim, workflow
from wua_mlflow.pipeline.analyze import fidelity_metrics
from wua_mlflow.pipeline.publish import report_pictures
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import SlimmingResult
from wua_mlflow.report.answer import tutorial_text
from wua_mlflow.tracking.names import ArtifactPath, Metric
from wua_mlflow.tracking.runs import count_looks, history, runs
from wua_mlflow.tracking.store import Store, connect
from wua_mlflow.tracking.ui_view import LATEST_KEY
from wua_mlflow.widths.results import LayerChange

SEEDS = 6
VARIANTS = ("oversized", "oversized-same-budget", "slim")


@dataclass(frozen=True)
class Finished:
    """A pipeline that ran, the store that it ran in, its calls of the tracking client by step."""

    outcome: SlimmingResult
    store: Store
    calls: dict[str, list[str]]

    @property
    def client(self) -> MlflowClient:
        return self.store.client

    def run(self, variant: str | None = None) -> Run:
        """The pipeline's run, or a variant's, read back."""
        run_ids = {network.variant: network.run_id for network in self.outcome.variants}
        return self.client.get_run(self.outcome.run_id if variant is None else run_ids[variant])

    def text(self, variant: str | None, path: str) -> str:
        run_id = self.run(variant).info.run_id
        return Path(self.client.download_artifacts(run_id, path)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def usecase(tmp_path_factory, migrated_database):
    """``wua run`` with fewer replicates; every call to the tracking client is written down."""
    with folder_with_store(tmp_path_factory.mktemp("usecase"), migrated_database):
        store = connect("usecase")
        with pytest.MonkeyPatch.context() as patch:
            calls = count_calls(patch)
            settings = load_settings(None, {"seeds": SEEDS, "null_draws": 5})
            outcome = workflow.run_pipeline(store, settings)
        yield Finished(outcome, store, calls)


def count_calls(patch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of the client's methods that are called from outside it, by the step under way."""
    calls: dict[str, list[str]] = {"chain": []}
    steps, inside = ["chain"], []

    def counted(name, method):
        def call(*args, **kwargs):
            if not inside:
                calls[steps[-1]].append(name)
            inside.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                inside.pop()
        return call

    def stepping(name, step):
        def call(*args, **kwargs):
            steps.append(f"{name} {len(calls)}")
            calls[steps[-1]] = []
            result = step(*args, **kwargs)
            steps.pop()
            return result
        return call

    for name, method in vars(MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            patch.setattr(MlflowClient, name, counted(name, method))
    for module, names in ((workflow, ("train_variant", "analyze_variant")),
                          (slim, ("train_variant", "analyze_variant", "compare_variants"))):
        for name in names:
            patch.setattr(module, name, stepping(name, getattr(module, name)))
    return calls


FIGURES = {  # of the tutorial: the oversized network's, the slim one's
    "flops_ptflops/training": ("12,200,000", "10,320,000"),
    "flops_ptflops/inference": ("122,000", "86,000"), "accuracy/train": ("0.8850", "0.8730"),
    "layers/fc1/weights": ("20", "14"), "layers/fc1/units": ("10", "7"),
    "layers/fc1/entropy": ("2.7584", "2.4191"), "usage/entropy": ("2.7584", "2.4191"),
    "layers/fc1/effective_weights": ("15.7751", "11.2361"),
    "usage/effective_weights": ("15.7751", "11.2361"),
    "layers/fc1/top90_share": ("65.00%", "71.43%"), "layers/fc1/low_share": ("0.00%", "0.00%")}


def _printed(value: float, like: str) -> str:
    if like.endswith("%"):
        return f"{100 * value:.2f}%"
    return f"{value:,.{len(like.partition('.')[2])}f}"


def test_every_figure_of_the_tutorial(usecase):
    original, slim = (usecase.run(variant).data.metrics for variant in ("oversized", "slim"))
    assert {name: (_printed(original[name], old), _printed(slim[name], new))
            for name, (old, new) in FIGURES.items()} == FIGURES
    # 2-10-1: 2·(20 + 10) forward; backward both weight gradients and the second input's
    forward, backward = 2 * (20 + 10), 2 * (20 + 10) + 2 * 10
    assert original["flops/forward"] == forward
    assert original["flops/inference"] == forward * 1000
    assert original["flops/training"] == (forward + backward) * 1000 * 50


def test_summary_metrics_have_one_point_at_step_0_the_loss_one_an_epoch_and_one_a_seed(usecase):
    for network, epochs in zip(usecase.outcome.variants, (50, 60, 60), strict=True):
        run = usecase.run(network.variant)
        assert all(math.isfinite(value) for value in run.data.metrics.values())
        steps = {"loss/train": range(1, epochs + 1), "score/test_by_seed": range(1, SEEDS + 1)}
        for name in run.data.metrics:
            points = usecase.client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == list(steps.get(name, [0])), name
        by_seed = history(run.info.run_id, "score/test_by_seed")["value"]
        assert by_seed.tolist() == [replicate.score for replicate in network.replicates]
        assert by_seed[0] == run.data.metrics["score/test"]


def test_one_search_of_mlflows_on_entropy_finds_the_oversized_and_the_slim_one(usecase):
    """Rows side by side, the same that ``runs`` has."""
    condition = "metrics.`usage/entropy` > 2"
    found = mlflow.search_runs([usecase.store.experiment_id], f"tags.`wua.kind` = 'variant' AND "
                               f"{condition}", order_by=["metrics.`flops/forward` DESC"])
    by_variant = found.set_index("tags.wua.variant")
    assert {*by_variant.index} == {*VARIANTS}
    shown = by_variant.loc[["oversized", "slim"]]
    assert shown["metrics.flops/forward"].tolist() == [60, 42]
    assert shown["metrics.usage/entropy"].round(4).tolist() == [2.7584, 2.4191]
    assert shown["metrics.usage/effective_weights"].round(4).tolist() == [15.7751, 11.2361]
    assert shown["metrics.accuracy/train"].tolist() == [0.885, 0.873]
    ours = runs("usecase", where=condition, order_by="metrics.`flops/forward` DESC")
    assert ours["run_id"].tolist() == found["run_id"].tolist()
    assert "score/test_by_seed" not in ours


def test_tags_names_and_nesting(usecase):
    """The pipeline has the slim variant's comparison and verdicts too."""
    pipeline = usecase.run()
    assert pipeline.data.tags["wua.kind"] == "pipeline"
    assert pipeline.info.run_name == "usecase 10 → 7"
    runs = [usecase.run(variant) for variant in VARIANTS]
    for variant, run in zip(VARIANTS, runs, strict=True):
        tags = run.data.tags
        assert (tags["wua.kind"], tags["wua.variant"]) == ("variant", variant)
        assert tags["wua.pipeline"] == tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert (tags["wua.step.train"], tags["wua.step.analyze"]) == ("done", "done")
        assert tags["wua.null_kind"] == "re-initialised"
        assert tags["wua.version"]
    assert [run.info.run_name for run in runs] == [
        "oversized 10", "oversized, 60 epochs", "slim 7"]
    assert len({run.data.tags["mlflow.runColor"] for run in runs}) == 3
    slim = runs[-1]
    assert {name: value for name, value in slim.data.metrics.items()
            if name.startswith("compare/")} == pipeline.data.metrics
    for tag in ("wua.verdict", "wua.verdict.artifact", "wua.verdict.recipe"):
        assert pipeline.data.tags[tag] == slim.data.tags[tag]
    assert slim.data.tags["wua.verdict"] == slim.data.tags["wua.verdict.recipe"]
    assert slim.data.tags["wua.baseline"] == runs[0].info.run_id
    assert pipeline.data.tags["wua.result"] == slim.info.run_id
    assert slim.data.params["hidden"] == "7"
    in_store = usecase.client.search_runs([usecase.store.experiment_id])
    assert [run.info.status for run in in_store] == ["FINISHED"] * 4


def test_at_most_ten_tracking_calls_a_step(usecase):
    steps = {step: calls for step, calls in usecase.calls.items() if step != "chain"}
    assert sorted(step.split()[0].removesuffix("_variant") for step in steps) == [
        "analyze"] * 3 + ["compare_variants"] + ["train"] * 3
    assert {step: calls for step, calls in steps.items() if len(calls) > 10} == {}
    assert len(usecase.calls["chain"]) <= 16


def test_the_very_network_is_rebuilt_from_its_run_and_loads_without_pickle(usecase, monkeypatch):
    for network in usecase.outcome.variants:
        again = load_variant(usecase.store, network.run_id)
        inputs = network.recipe.split.test.inputs[:50]
        assert torch.equal(again.model(inputs), network.model(inputs))
        assert again.settings.hidden == network.settings.hidden
        assert np.array_equal(again.replicate_scores, network.replicate_scores)
        assert all(torch.equal(a.stream["cpu"], b.stream["cpu"]) for a, b in
                   zip(again.replicates, network.replicates, strict=True))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    (output,) = usecase.run("slim").outputs.model_outputs
    model = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    for batch in (1, 7, 1000):
        inputs = network.recipe.split.test.inputs[:batch]
        assert torch.allclose(model(inputs), network.model(inputs), atol=1e-6)
    plain = usecase.outcome.slimmed.result.variant
    assert plain.layer_units == {"fc1": 7, "fc2": 1}
    assert (plain.run_id, plain.kind, plain.widths) == (network.run_id, "slim", (7,))
    assert (plain.test_score, plain.epochs_trained) == (network.test.score, 60)
    assert plain.metrics.items() <= usecase.run("slim").data.metrics.items()


def test_data_sets_are_inputs_of_the_run_and_its_config_runs_it_again(usecase):
    slim = usecase.run("slim")
    datasets = {given.tags[0].value: given.dataset for given in slim.inputs.dataset_inputs}
    assert set(datasets) == {"train", "validation", "test"}
    digest = usecase.outcome.variants[0].recipe.split.test.digest
    assert datasets["test"].digest == digest[:12]
    assert slim.data.tags["wua.test_digest"] == digest
    assert slim.data.metrics[Metric.LOOKS] == count_looks(usecase.client, digest) == 1
    assert count_looks(usecase.client, "of another test set") == 0
    values = yaml.safe_load(usecase.text("slim", "config.yaml"))
    assert (values["hidden"], values["epochs"], values["data"]) == ([7], 60, "usecase")
    whole = usecase.client.download_artifacts(usecase.outcome.run_id, "config.yaml")
    assert load_settings(whole) == load_settings(
        None, {"seeds": SEEDS, "null_draws": 5, "how": "rebuild"})


def test_logged_models_are_told_apart_and_their_metrics_name_the_data(usecase):
    models = {model.name: model for model in usecase.client.search_logged_models(
        [usecase.store.experiment_id])}
    assert set(models) == {"oversized-10", "oversized-same-budget-10", "slim-7"}
    slim, run = models["slim-7"], usecase.run("slim")
    assert (slim.model_type, slim.source_run_id) == ("classifier", run.info.run_id)
    assert slim.tags["mlflow.note.content"] == run.data.tags["mlflow.note.content"]
    assert {name: slim.tags[name] for name in ("mlflow.user", "mlflow.source.name")} == {
        name: run.data.tags[name] for name in ("mlflow.user", "mlflow.source.name")}
    parts = {(given.dataset.name, given.dataset.digest): given.tags[0].value
             for given in run.inputs.dataset_inputs}
    parts[None, None] = "none"
    shown = {metric.key: parts[metric.dataset_name, metric.dataset_digest]
             for metric in slim.metrics}
    of_parts = {name: part for name, part in shown.items() if part != "none"}
    assert of_parts == {
        **{f"{score}/{part}": part for score in ("score", "accuracy")
           for part in ("train", "validation", "test")},
        "accuracy/test_mean": "test", "accuracy/test_std": "test", "loss/test": "test",
        **{f"{count}/{what}": "train" for count in ("flops", "flops_ptflops")
           for what in ("inference", "training")},
        **{name: "train" for name in run.data.metrics
           if name.startswith(("usage/", "layers/", "latency/", "compare/latency"))
           or name == "params/analyzed"},
        **{name: "test" for name in run.data.metrics if name.startswith((
            "compare/artifact", "compare/recipe", "compare/churn", "compare/worst",
            "compare/looks"))}}
    assert {"compare/artifact_delta", "compare/recipe_delta", "latency/p50_ms"} <= of_parts.keys()
    assert {"flops/forward", "params/total", "size/bytes", "compare/margin",
            "compare/flops_ratio"} <= shown.keys() - of_parts.keys()
    assert {metric.key for metric in models["oversized-10"].metrics} >= {
        "latency/p50_ms", "usage/entropy", "accuracy/test"}
    test, = (key for key, part in parts.items() if part == "test")
    found = usecase.client.search_logged_models(
        [usecase.store.experiment_id], "metrics.`accuracy/test` > 0",
        datasets=[{"dataset_name": test[0], "dataset_digest": test[1]}])
    assert {model.name for model in found} == set(models)
    loaded = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/slim-7")
    assert loaded(torch.zeros(3, 2)).shape == (3, 1)


def test_the_report_and_the_description_which_begins_with_the_verdict(usecase):
    note = usecase.run().data.tags["mlflow.note.content"]
    first, second, third, fourth = note.split("\n\n")[:4]
    verdict = usecase.outcome.verdict
    report = usecase.outcome.report
    assert first == f"**{report.decision}** {report.comparison.equal_budget}".strip()
    assert "(95% confidence, 6 seeds)" in first
    assert second.startswith(f"{verdict.headline}.")
    assert "The slim model: 1.4× fewer FLOPs, 1.4× fewer parameters" in second
    assert verdict.sentence in note
    assert third == ("The question: Is slim 7 as good as oversized 10, to within 2 points of "
                     "accuracy, and what does it save?")
    assert fourth.startswith("| ")
    assert "Budgets differ: the original trained for 50 epochs, the slim one for 60 epochs." in note
    assert note in usecase.text(None, "report.md")
    page = usecase.text(None, "report.html")
    assert page.count("data:image/png;base64,") >= 4
    assert "Yes" not in page.split("<h1>")[1].split("</h1>")[0]
    with Image.open(usecase.client.download_artifacts(
            usecase.outcome.run_id, "plots/comparison.png")) as picture:
        assert picture.width > 800


def test_the_guide_shows_what_is_printed(usecase):
    guide = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text()
    block = re.search(r"<!-- tutorial figures -->\n```\n(.*?)```", guide, re.S)
    assert block.group(1) in tutorial_text(usecase.outcome.report)


def test_views_are_there(usecase):
    tags = usecase.client.get_experiment(usecase.store.experiment_id).tags
    assert json.loads(tags["mlflow.sharedViewState.wua"])["name"] == "Right-sizing"
    assert usecase.outcome.run_id in json.loads(tags["mlflow.sharedViewState.wua-latest"])["state"]
    assert any(LATEST_KEY in name for name in tags)


def _fitted(hidden: int, x: torch.Tensor, y: torch.Tensor, epochs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), nn.BCELoss()
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def test_replicates_repeat_the_whole_recipe_with_the_next_seeds(usecase):
    """Seed 43 by hand: the oversized network, then the slim one from the same stream."""
    points = np.random.RandomState(42).rand(1000, 2)
    x = torch.tensor(points, dtype=torch.float32)
    y = torch.tensor((points.sum(1) > 1).astype(np.float32))[:, None]
    test = usecase.outcome.variants[0].recipe.split.test
    with torch.random.fork_rng():
        torch.manual_seed(43)
        networks = [_fitted(10, x, y, 50), _fitted(7, x, y, 60)]
    with torch.no_grad():
        by_hand = [float(((network(test.inputs) > 0.5) == (test.targets > 0.5)).double().mean())
                   for network in networks]
    for variant, accuracy in zip(("oversized", "slim"), by_hand, strict=True):
        table = json.loads(usecase.text(variant, ArtifactPath.REPLICATES))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["seed"] for row in rows] == list(range(42, 42 + SEEDS))
        assert rows[1]["score/test"] == pytest.approx(accuracy, abs=1e-12)
        metrics = usecase.run(variant).data.metrics
        scores = [row["score/test"] for row in rows]
        assert metrics["accuracy/test_mean"] == pytest.approx(np.mean(scores))
        assert metrics["accuracy/test_std"] == pytest.approx(np.std(scores, ddof=1))
        assert rows[0]["score/test"] == metrics["accuracy/test"]


def test_only_pictures_that_there_are_data_for(usecase, monkeypatch):
    plain = [cases.variant("old", (10,), metrics={"flops/forward": 60, "accuracy/test": 0.9}),
             cases.variant("new", (7,), metrics={"flops/forward": 42, "accuracy/test": 0.89})]
    bare = replace(usecase.outcome.report, layers=(), widths=None, usages={}, names=["old", "new"])
    widths = cases.widths_of_a_search()
    rich = replace(bare, layers=[LayerChange("fc1", 10, 7)], widths=widths)
    pictures = report_pictures(rich, plain, every=plain)
    assert set(pictures) == {"comparison", "pareto", "changes", "curves", "trials"}
    for png in pictures.values():
        with Image.open(BytesIO(png)) as picture:
            assert picture.format == "PNG"
    monkeypatch.setattr(publish, "_png", lambda _: b"")  # which ones there are, is what matters
    unknown = [replace(result, metrics={"accuracy/test": 0.9}) for result in plain]
    alone = replace(widths.searched, trials=widths.searched.trials[:1])
    for report, variants, keys in (
        (bare, plain, {"comparison", "pareto"}), (bare, unknown, {"comparison"}),
        (replace(bare, widths=replace(widths, searched=alone)), plain,
         {"comparison", "pareto", "curves"}),
    ):
        assert set(report_pictures(report, variants, every=variants)) == keys


@pytest.fixture(scope="module")
def oversized(usecase):
    return load_variant(usecase.store, usecase.run("oversized").info.run_id, {})


def test_the_rank_correlation_with_leaving_each_unit_out(usecase, oversized):
    train, part = oversized.recipe.split.train, oversized.recipe.split.validation

    def loss_without(*units):
        with torch.no_grad():
            hidden = oversized.model.fc1(part.inputs).relu()
            hidden[:, list(units)] = 0
            return float(binary_cross_entropy_with_logits(
                oversized.model.fc2(hidden), part.targets))

    changes = [loss_without(unit) - loss_without() for unit in range(10)]
    activation = oversized.model.fc1(train.inputs).relu().detach().requires_grad_()
    loss = binary_cross_entropy_with_logits(oversized.model.fc2(activation), train.targets)
    gradient, = torch.autograd.grad(loss, activation)
    taylor = (activation * gradient).sum(0).abs().detach()
    signed = oversized.model.fc1(train.inputs).mean(0).abs().detach()
    output = (oversized.model.fc1.weight.abs() * signed[:, None]).sum(1).detach()
    logged = usecase.run("oversized").data.metrics
    assert logged["fidelity/taylor"] == pytest.approx(spearmanr(taylor, changes).statistic)
    assert logged["fidelity/output"] == pytest.approx(spearmanr(output, changes).statistic)
    norms = oversized.model.fc2.weight.detach().double().norm(dim=0).numpy()
    spanning = greedy(activation.detach().double().numpy() * norms)
    assert logged["fidelity/spanning"] == pytest.approx(spearmanr(spanning, changes).statistic)
    assert 0 < logged["fidelity/reliability"] <= 1
    assert 0 < logged["fidelity_area/output"] <= 1


def test_why_fidelity_is_not_measured(oversized, monkeypatch):
    monkeypatch.setattr(analyze, "MOST_FLOPS", 10 * 1000 * 100 - 1)
    assert fidelity_metrics(oversized, 100) == ({}, (
        "Fidelity not measured: leaving out each of 10 units on 1,000 examples takes too long "
        "unasked; wua_mlflow.widths.fidelity does it."))
    monkeypatch.setattr(analyze, "MOST_FLOPS", 10 * 1000 * 100)
    assert fidelity_metrics(oversized, 100)[0]
    monkeypatch.setattr(analyze, "MOST_FORWARDS", 99)
    assert not [name for name in fidelity_metrics(oversized, 1)[0] if "area" in name]
    bare = replace(oversized, trained=replace(oversized.trained, model=nn.Linear(2, 1)))
    assert fidelity_metrics(bare, 4) == (
        {}, "Fidelity not measured: the network has no units that can be removed.")
