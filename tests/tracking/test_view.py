"""Views and addresses on a real store; what the UI makes of them is in ``tests/browser``."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from PIL import Image

from wua_mlflow.tracking import ui_view
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.ui_view import KEY, LATEST_KEY, ensure_view, latest_view, view_address

TAG = "mlflow.sharedViewState."
MLFLOWS_LIMIT = 20_000
DISCARDED = {"runsExpanded", "runsPinned", "runsHidden", "runsVisibilityMap", "autoRefreshEnabled"}
"""Fields that MLflow 3.17's UI drops from a shared view (``omit`` in its bundle)."""


@pytest.fixture
def client(store_uri):
    return MlflowClient(store_uri)


@pytest.fixture
def experiment(client):
    return str(client.create_experiment("wua"))


def make_pipeline(client: MlflowClient, experiment: str, *, layers=0, verdict=None):
    """A finished pipeline run with two variants and a step; ids by name."""
    ids = {"pipeline": client.create_run(experiment, tags={"wua.kind": "pipeline"}).info.run_id}
    for name, kind in (("oversized", "variant"), ("slim", "variant"), ("step", "step")):
        tags = {"wua.kind": kind, "wua.pipeline": ids["pipeline"], "wua.variant": name}
        if verdict and name == "slim":
            tags["wua.verdict"] = verdict
        run_id = client.create_run(experiment, tags=tags).info.run_id
        keys = ["flops/forward", "accuracy/test", "compare/flops_ratio"]
        keys += [f"layers/{'encoder.' * 28}{number}/entropy" for number in range(layers)]
        client.log_batch(run_id, metrics=[Metric(key, 1.5, 0, 0) for key in keys])
        ids[name] = run_id
    for run_id in ids.values():
        client.set_terminated(run_id)
    return ids


def saved(client: MlflowClient, experiment: str, key: str) -> tuple[str, dict[str, Any]]:
    """Name and state of a view, as the UI reads them."""
    tag = client.get_experiment(experiment).tags[TAG + key]
    assert len(tag) < MLFLOWS_LIMIT
    view = json.loads(tag)
    assert view["createdAt"] == view["updatedAt"] > 1.7e12  # milliseconds
    return view["name"], json.loads(view["state"])


def shown(client: MlflowClient, experiment: str, state: dict[str, Any]) -> set[str]:
    """Ids of the runs that MLflow's own search finds for a state."""
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    runs = client.search_runs([experiment], state["searchFilter"], order_by=[order])
    return {run.info.run_id for run in runs}


def metrics_of(state: dict[str, Any]) -> set[str]:
    keys = set()
    for chart in state["compareRunCharts"]:
        keys |= {chart["dataAccessKey"]} if chart["type"] == "BAR" else set()
        keys |= set(chart.get("selectedMetricKeys", ()))
        keys |= {chart[axis]["dataAccessKey"] for axis in ("xaxis", "yaxis") if axis in chart}
    return keys


def test_ensure_view_shows_every_variant_and_leaves_an_edited_view_alone(client, experiment):
    pipelines = [make_pipeline(client, experiment) for _ in range(2)]
    ensure_view(client, experiment)
    name, state = saved(client, experiment, KEY)
    assert name == "Right-sizing"
    assert shown(client, experiment, state) == {
        ids[variant] for ids in pipelines for variant in ("oversized", "slim")}
    assert set(state["selectedColumns"]) == {
        "tags.`wua.verdict`", "tags.`wua.variant`", "tags.`wua.widths`", "params.`data`",
        *(f"metrics.`{name}`" for name in (
            "score/test", "flops/forward", "params/total", "usage/entropy", "latency/p50_ms",
            "usage/effective_weights", "compare/flops_ratio"))}
    assert "IMAGE" not in {chart["type"] for chart in state["compareRunCharts"]}
    client.set_experiment_tag(experiment, TAG + KEY, "edited by a user")
    ensure_view(client, experiment)
    assert client.get_experiment(experiment).tags[TAG + KEY] == "edited by a user"


def test_latest_view_shows_one_pipeline_headed_by_its_verdict_and_is_replaced(client, experiment):
    for name, verdict, headline in (
            ("first", "non_inferior", "Non-inferior · 1.5×"),
            ("second", None, "Variants side by side")):
        ids = make_pipeline(client, experiment, layers=1, verdict=verdict)
        latest_view(client, experiment, ids["pipeline"], name, classification=True)
        title, state = saved(client, experiment, LATEST_KEY)
        assert title == f"Latest: {name}"
        assert shown(client, experiment, state) == {ids["pipeline"], ids["oversized"], ids["slim"]}
        sections = state["compareRunSections"]
        assert sections[0]["name"] == headline
        assert [section["display"] for section in sections[:4]] == [True, True, True, False]
        assert sections[3]["name"] == "Network, importance"
        assert {section["columns"] for section in sections} == {2}
        first, second = state["compareRunCharts"][:2]
        assert (first["type"], first["imageKeys"]) == ("IMAGE", ["answer/verdict"])
        assert second["type"] == "SCATTER"
        assert first["metricSectionId"] == second["metricSectionId"] == sections[0]["uuid"]
        assert {section["name"] for section in sections if not section["display"]} == {
            "Network, importance", "accuracy", "compare", "flops", f"layers/{'encoder.' * 28}0"}
    assert list(client.get_experiment(experiment).tags) == [TAG + LATEST_KEY]


def test_pictures_of_the_variants_are_among_the_charts_in_a_folded_section(
        client, experiment, tmp_path):
    ids = make_pipeline(client, experiment)
    Image.new("RGB", (900, 300), "white").save(tmp_path / "network.png")
    for variant in ("oversized", "slim"):
        write(client, ids[variant], tags={ui_view.IMAGES_TAG: "True"}, files={
            "plots/network.png": lambda path: shutil.copy(tmp_path / "network.png", path),
            **ui_view.chart_images({ui_view.NETWORK_IMAGE: "plots/network.png"})})
        whole, small = sorted((file.path for file in client.list_artifacts(
            ids[variant], "images")), key=lambda path: path.endswith(".webp"))
        with Image.open(client.download_artifacts(ids[variant], whole)) as picture:
            assert picture.size == (900, 300)
        with Image.open(client.download_artifacts(ids[variant], small)) as picture:
            assert picture.size == (420, 140)
    latest_view(client, experiment, ids["pipeline"], "x", classification=True)
    _, state = saved(client, experiment, LATEST_KEY)
    sections = {chart["imageKeys"][0]: chart["metricSectionId"]
                for chart in state["compareRunCharts"] if chart["type"] == "IMAGE"}
    folded, = (section for section in state["compareRunSections"]
               if section["name"] == "Network, importance")
    assert sections == {"answer/verdict": "wua-answer", "pictures/network": folded["uuid"]}
    assert folded["display"] is False


def test_images_are_named_as_mlflow_names_them(client, experiment):
    """Which it does not document: where it comes to name them otherwise this fails."""
    run_id = client.create_run(experiment).info.run_id
    client.log_image(run_id, Image.new("RGB", (9, 9)), key="a/b", step=0)
    client.set_terminated(run_id)
    ours, theirs = ({re.sub(r"timestamp\+\d+\+[\da-f-]{36}", "…", name) for name in names}
                    for names in (ui_view.chart_images({"a/b": "x.png"}), [
                        file.path for file in client.list_artifacts(run_id, "images")]))
    assert ours == theirs
    assert client.get_run(run_id).data.tags[ui_view.IMAGES_TAG] == "True"


@pytest.mark.parametrize(("classification", "score", "other"), [
    (True, "accuracy/test", "score/test"), (False, "score/test", "accuracy/test")])
def test_latest_view_charts_the_score_that_the_task_has(client, experiment, classification, score,
                                                        other):
    ids = make_pipeline(client, experiment)
    latest_view(client, experiment, ids["pipeline"], "x", classification=classification)
    _, state = saved(client, experiment, LATEST_KEY)
    assert {score, "flops/forward", "params/total", "usage/entropy", "usage/effective_weights",
            "latency/p50_ms"} <= metrics_of(state)
    assert f"metrics.`{score}`" in state["selectedColumns"]
    assert other not in metrics_of(state)
    scatter, = (chart for chart in state["compareRunCharts"] if chart["type"] == "SCATTER")
    assert (scatter["xaxis"]["dataAccessKey"], scatter["yaxis"]["dataAccessKey"]) == (
        "flops/forward", score)


def test_charts_have_sections_runs_are_not_nested_and_no_state_is_lost(client, experiment):
    """Ordered by time, runs nest, and are collapsed wherever a view is opened from another page.

    Also of layers whose metrics have 243 of the 250 characters that MLflow takes.
    """
    ids = make_pipeline(client, experiment, layers=99)
    ensure_view(client, experiment)
    latest_view(client, experiment, ids["pipeline"], "x" * 200, classification=True)
    for key in (KEY, LATEST_KEY):
        _, state = saved(client, experiment, key)
        assert state["orderByKey"] != "attributes.start_time"
        assert not DISCARDED & state.keys()
        charts, sections = state["compareRunCharts"], state["compareRunSections"]
        assert {chart["metricSectionId"] for chart in charts} <= {
            section["uuid"] for section in sections}
        assert len({chart["uuid"] for chart in charts}) == len(charts)
        assert len({section["name"] for section in sections}) == len(sections)


def test_addresses_have_what_the_page_reads():
    for base in ("http://127.0.0.1:5000", "https://mlflow.example/sub/"):
        route, _, query = urlsplit(view_address(base, "7", LATEST_KEY)).fragment.partition("?")
        assert route == "/experiments/7/runs"
        assert parse_qs(query) == {
            "workflowType": ["machine_learning"], "viewStateShareKey": ["wua-latest"],
            "compareRunsMode": ["CHART"]}
        route, _, query = urlsplit(ui_view.run_address(base, "7", "ab12")).fragment.partition("?")
        assert (route, parse_qs(query)) == ("/experiments/7/runs/ab12",
                                            {"workflowType": ["machine_learning"]})
        assert ui_view.run_address(base, "7", "ab12").startswith(base.rstrip("/") + "/#/")
