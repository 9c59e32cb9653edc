"""What a newcomer sees in MLflow's own UI: held in Chromium, since MLflow documents none of it.

The values expected are read back from the store through MLflow's client.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from mlflow.entities import Metric, Run, RunTag
from mlflow.tracking import MlflowClient
from playwright.sync_api import Locator, Page, TimeoutError, expect

from wua_mlflow.tracking.ui_view import (
    KEY,
    LATEST_KEY,
    ensure_view,
    latest_view,
    view_address,
)

expect.set_options(timeout=600_000)
pytestmark = [pytest.mark.browser, pytest.mark.slow]

BARS = {
    "FLOPs/sample": "flops/forward",
    "parameters": "params/total",
    "effective weights": "usage/effective_weights",
    "entropy, nats": "usage/entropy",
    "latency, ms": "latency/p50_ms",
}
"""Title of a bar chart, and the metric that it must show."""

TALL = {"width": 1440, "height": 2400}
"""A page on which all our charts are drawn: MLflow draws none that is out of sight."""

ROWS = """() => [...document.querySelectorAll(".ag-row")]
    .map(row => [+row.getAttribute("row-index"), row.querySelector('a[href*="/runs/"]')])
    .filter(([_, link]) => link).sort((a, b) => a[0] - b[0])
    .map(([_, link]) => link.innerText.trim())"""
"""JavaScript: names of the runs in the table, from above (it holds its rows in any order)."""


NOT_CUT = """link => {
    for (let box = link; box && !box.classList.contains("ag-row"); box = box.parentElement)
        if (getComputedStyle(box).overflowX !== "visible" && box.scrollWidth > box.clientWidth + 1)
            return false;
    return true;
}"""
"""JavaScript: whether all of a link in the table can be seen."""


def test_printed_address_shows_the_variants_side_by_side(page, pipeline):
    """On a laptop, with the assistant open beside it."""
    page.goto(pipeline.view)
    expect(page.get_by_text("MLflow Assistant")).to_be_visible()
    verdict = pipeline.run.data.tags["wua.verdict"].replace("_", "-").capitalize()
    ratio = pipeline.run.data.metrics["compare/flops_ratio"]
    headline = page.get_by_text(f"{verdict} · {ratio:.1f}×")
    expect(headline).to_be_in_viewport()
    assert whole(headline), "the section's title is cut"
    picture = card(page, "answer/verdict").locator("img").first
    expect(picture).to_be_in_viewport(ratio=1)
    page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
    assert picture.bounding_box()["width"] >= 190, "smaller, its words cannot be read"
    scatter = plot(card(page, "FLOPs vs. test accuracy"))
    points = {(run.data.metrics["flops/forward"], run.data.metrics["accuracy/test"])
              for run in pipeline.variants}
    assert set(zip(scatter["x"], scatter["y"], strict=True)) == points
    expect(card(page, "FLOPs vs. test accuracy")).to_be_in_viewport()
    names = [*dearest_first(pipeline.variants), pipeline.run.info.run_name]
    expect_rows(page, names)
    for name in names:
        assert page.locator(".ag-row").get_by_role("link", name=name, exact=True).evaluate(NOT_CUT)


@pytest.mark.parametrize(("width", "height"), [(1440, 2400), (1920, 1800)])
def test_costs_are_below_two_a_row_with_titles_that_can_be_read(page, pipeline, width, height):
    page.set_viewport_size({"width": width, "height": height})
    page.goto(pipeline.view)
    tops = []
    for title, metric in BARS.items():
        assert drawn_bars(card(page, title)) == logged(pipeline.variants, metric)
        tops.append(round(card(page, title).bounding_box()["y"]))
        heading = card(page, title).get_by_role("heading", name=title, exact=True)
        assert width < 1900 or whole(heading), f"{title} is cut"
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    picture, scatter = (card(page, title).bounding_box() for title in (
        "answer/verdict", "FLOPs vs. test accuracy"))
    assert picture["y"] == scatter["y"] < tops[0] and picture["x"] < scatter["x"]


def test_variants_have_names_and_colours_of_their_own(page, pipeline):
    page.set_viewport_size(TALL)
    page.goto(pipeline.view)
    names = [run.info.run_name for run in pipeline.variants]
    colours = [run.data.tags["mlflow.runColor"] for run in pipeline.variants]
    assert len(set(names)) == len(set(colours)) == len(names) == 3
    shown = plot(card(page, "parameters"))
    assert dict(zip(shown["names"], shown["marker"]["color"], strict=True)) == dict(
        zip(names, colours, strict=True))


def test_bars_of_scores_and_the_folded_rest_are_below(page, pipeline):
    page.set_viewport_size(TALL)
    page.goto(pipeline.view)
    assert drawn_bars(card(page, "test accuracy")) == logged(pipeline.variants, "accuracy/test")
    assert drawn_bars(card(page, "mean accuracy over seeds")) == logged(
        pipeline.variants, "accuracy/test_mean")
    expect(card(page, "loss/train")).to_be_visible()
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    expect(headers.filter(has_text="layers/fc1")).to_be_visible()
    expect(page.get_by_test_id("experiment-view-compare-runs-card")).to_have_count(len(BARS) + 5)


def test_right_sizing_is_among_the_views(page, pipeline):
    page.goto(pipeline.view)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text("Right-sizing", exact=True).click()
    expect(page.locator(".ag-header-cell", has_text="wua.verdict")).to_be_visible()
    expect_rows(page, dearest_first(pipeline.variants))


def test_address_followed_in_a_page_already_open(page, pipeline):
    """Rows that MLflow nests come up collapsed there, without a chart; ours must not be nested."""
    page.set_viewport_size(TALL)
    page.goto(view_address(pipeline.server, pipeline.run.info.experiment_id, KEY))
    assert drawn_bars(card(page, "parameters")) == logged(pipeline.variants, "params/total")
    page.goto(pipeline.view)
    assert drawn_bars(card(page, "parameters")) == logged(pipeline.variants, "params/total")
    expect_rows(page, [*dearest_first(pipeline.variants), pipeline.run.info.run_name])


def test_runs_page_without_a_view_expands_the_variants(page, pipeline):
    experiment = pipeline.run.info.experiment_id
    page.goto(f"{pipeline.server}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    newest_first = [run.info.run_name for run in reversed(pipeline.variants)]
    expect_rows(page, [pipeline.run.info.run_name, *newest_first])


def test_pipeline_page_begins_with_the_verdict(page, pipeline):
    page.goto(pipeline.report)
    decision = pipeline.run.data.tags["mlflow.note.content"].split("**")[1]
    expect(page.get_by_text(decision)).to_be_in_viewport()
    for run in pipeline.variants:
        expect(page.get_by_role("link", name=run.info.run_name, exact=True)).to_be_visible()


def test_description_says_verdict_and_savings_before_it_is_folded(page, pipeline):
    page.goto(pipeline.report)
    decision = pipeline.run.data.tags["mlflow.note.content"].split("**")[1]
    assert "fewer FLOPs" in decision
    shown = page.get_by_text(decision)
    shown.scroll_into_view_if_needed()
    expect(shown).to_be_visible()
    box = shown.bounding_box()
    assert box["height"] <= 4.5 * 20, "more than the four lines that MLflow shows"


def test_report_fits_the_pane_of_artifacts(page, pipeline):
    """Nothing is cut at its sides, nor blocked by the frame's sandbox."""
    refused = []
    page.on("console", lambda line: refused.append(line.text) if "sandbox" in line.text.lower()
            and "blocked" in line.text.lower() else None)
    experiment, run_id = pipeline.run.info.experiment_id, pipeline.run.info.run_id
    page.goto(f"{pipeline.server}/#/experiments/{experiment}/runs/{run_id}/artifacts/report.html"
              f"?workflowType=machine_learning")
    report = page.frame_locator("iframe")
    table = report.locator("table").first
    expect(table).to_be_visible()
    cut = report.locator(".wide, body, table").evaluate_all(
        "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1).length")
    pictures = report.locator("img").evaluate_all(
        "images => images.map(image => image.naturalWidth)")
    assert cut == 0 and pictures and all(pictures) and not refused
    for name in [run.info.run_name for run in pipeline.variants]:
        expect(table.get_by_role("columnheader", name=name, exact=True)).to_be_visible()


def test_figure_to_explore_is_drawn_in_the_pane_of_artifacts(page, pipeline):
    """Plotly's script, which a page fetches, is given to it from the package."""
    script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    page.route("https://cdn.plot.ly/**", lambda route: route.fulfill(
        body=script, content_type="text/javascript",
        headers={"access-control-allow-origin": "*"}))
    experiment, run_id = pipeline.run.info.experiment_id, pipeline.run.info.run_id
    page.goto(f"{pipeline.server}/#/experiments/{experiment}/runs/{run_id}/artifacts/plots/"
              f"pareto.html?workflowType=machine_learning")
    figure = page.frame_locator("iframe").locator(".js-plotly-plot")
    expect(figure.locator(".scatterlayer .point")).to_have_count(len(pipeline.variants))
    names = set(figure.evaluate("figure => figure.data.map(trace => trace.name)"))
    assert names == {run.info.run_name for run in pipeline.variants}


def test_metrics_of_the_pipeline_begin_with_the_picture_of_the_verdict(page, pipeline):
    experiment, run_id = pipeline.run.info.experiment_id, pipeline.run.info.run_id
    page.goto(f"{pipeline.server}/#/experiments/{experiment}/runs/{run_id}/model-metrics"
              f"?workflowType=machine_learning")
    picture = card(page, "answer/verdict").locator("img").first
    expect(picture).to_be_in_viewport()
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    expect(headers.first).to_contain_text("answer")


def test_page_of_two_variants_begins_with_what_differs_and_the_test_score(page, pipeline):
    first, last = (pipeline.variants[i].info.run_id for i in (0, -1))
    experiment = pipeline.run.info.experiment_id
    page.goto(f'{pipeline.server}/#/compare-runs?runs=["{first}","{last}"]'
              f'&experiments=["{experiment}"]')
    expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
    axes = page.locator(".js-plotly-plot .axis-title")
    expect(axes.last).to_have_text("score/test")
    assert set(axes.all_text_contents()) >= {"epochs", "hidden"}


def test_models_stand_side_by_side_with_the_data_that_their_metrics_are_of(page, pipeline):
    """Names that tell them apart; the score on the test part is among the first columns."""
    page.set_viewport_size({"width": 3200, "height": 900})
    page.goto(f"{pipeline.server}/#/experiments/{pipeline.run.info.experiment_id}/models"
              f"?workflowType=machine_learning")
    table = page.locator(".ag-root").first
    expect(table.locator(".ag-header-cell", has_text="score/test").first).to_be_visible()
    for name in ("oversized-10", "oversized-same-budget-10", "slim-7"):
        expect(table.get_by_role("link", name=name, exact=True)).to_be_visible()
    expect(table.get_by_text("Dataset:").first).to_be_visible()
    expect(table.get_by_text("usecase test (#").first).to_be_visible()
    scores = {f"{run.data.metrics['score/test']:.4f}" for run in pipeline.variants}
    for score in scores:
        expect(table.get_by_text(score).first).to_be_visible()


def test_page_of_the_slim_model_begins_with_data_and_verdict(page, pipeline):
    (slim,) = [run for run in pipeline.variants if run.data.tags["wua.variant"] == "slim"]
    client = MlflowClient(pipeline.server)
    (output,) = client.get_run(slim.info.run_id).outputs.model_outputs
    page.goto(f"{pipeline.server}/#/experiments/{slim.info.experiment_id}/models/{output.model_id}")
    expect(page.get_by_role("heading", name="slim-7")).to_be_visible()
    expect(page.get_by_text("usecase test (#").first).to_be_visible()
    decision = slim.data.tags["mlflow.note.content"].split("**")[1]
    expect(page.get_by_text(decision)).to_be_visible()
    expect(page.get_by_text("compare/artifact_delta", exact=True)).to_be_attached()


def test_right_sizing_with_many_variants_and_a_sweep_beside_them(page, server, served_store):
    client = MlflowClient(served_store)  # without the way through the server
    experiment = client.create_experiment("many")
    ensure_view(client, experiment)
    for number in range(1200):
        kind = "variant" if number < 200 else "trial"
        run = client.create_run(experiment, run_name=f"{kind} {number}", tags={"wua.kind": kind})
        if kind == "variant":
            client.log_batch(run.info.run_id, metrics=[
                Metric("flops/forward", 1000 + number, 0, 0),
                Metric("score/test", 0.5 + number / 1000, 0, 0)])
    page.goto(view_address(server, experiment, KEY))
    scatter = plot(card(page, "FLOPs vs. test score"))
    assert set(scatter["x"]) <= {1000 + number for number in range(200)} and len(scatter["x"]) >= 10
    names = page.evaluate(ROWS)
    assert names and all(name.startswith("variant ") for name in names)
    expect(page.get_by_text("100 matching runs")).to_be_visible()


def test_network_and_histogram_are_one_click_away(page, pipeline):
    page.set_viewport_size(TALL)
    page.goto(pipeline.view)
    expect(card(page, "parameters")).to_be_visible()
    page.get_by_text("Network, importance").click()
    for key in ("pictures/network", "pictures/importance"):
        pictures = card(page, key).locator("img")
        expect(pictures).to_have_count(len(pipeline.variants))
        for picture in pictures.all():
            page.wait_for_function("image => image.naturalWidth > 0",
                                   arg=picture.element_handle())


def test_regression_shows_r_squared(page, server):
    client = MlflowClient(server)
    experiment = client.create_experiment("regression")
    parent = client.create_run(experiment, run_name="prices 64 → 24").info.run_id
    client.set_terminated(parent)
    for variant, score in (("oversized", 0.75), ("slim", 0.5)):
        run = client.create_run(experiment, run_name=variant, tags={
            "mlflow.parentRunId": parent, "mlflow.runType": "evaluation",
            "wua.pipeline": parent, "wua.kind": "variant", "wua.variant": variant})
        client.log_batch(run.info.run_id, metrics=[
            Metric("score/test", score, 0, 0), Metric("flops/forward", 100 * score, 0, 0)],
                         tags=[RunTag("mlflow.runColor", "#d95f02")])
        client.set_terminated(run.info.run_id)
    latest_view(client, experiment, parent, "prices 64 → 24", classification=False)
    page.set_viewport_size(TALL)
    page.goto(view_address(server, experiment, LATEST_KEY))
    assert drawn_bars(card(page, "test R²")) == {"oversized": 0.75, "slim": 0.5}
    expect_rows(page, ["oversized", "slim", "prices 64 → 24"])


def card(page: Page, title: str) -> Locator:
    """The chart of that title."""
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    return cards.filter(has=page.get_by_role("heading", name=title, exact=True))


def whole(words: Locator) -> bool:
    """Whether nothing of a line is cut off."""
    return bool(words.evaluate("line => line.scrollWidth <= line.clientWidth + 1"))


def plot(chart: Locator) -> dict[str, Any]:
    """What plotly was given to draw, once it has drawn it."""
    figure = chart.locator(".js-plotly-plot")
    expect(figure.locator(".trace").first).to_be_visible()
    found: dict[str, Any] = figure.evaluate("figure => figure.data[0]")
    return found


def drawn_bars(chart: Locator) -> dict[str, float]:
    """The values of a chart's bars by run name; each has a bar of its own."""
    shown = plot(chart)
    expect(chart.locator(".bars .point")).to_have_count(len(shown["names"]))
    return dict(zip(shown["names"], shown["x"], strict=True))


def logged(runs: tuple[Run, ...], metric: str) -> dict[str, float]:
    """The metric of those runs that have it."""
    return {run.info.run_name: run.data.metrics[metric]
            for run in runs if metric in run.data.metrics}


def dearest_first(runs: tuple[Run, ...]) -> list[str]:
    """The runs' names, most FLOPs first; of equal ones the newer, as MLflow has it."""
    newest = sorted(runs, key=lambda run: -run.info.start_time)
    return [run.info.run_name
            for run in sorted(newest, key=lambda run: -run.data.metrics["flops/forward"])]


def expect_rows(page: Page, names: list[str]) -> None:
    """The table's runs, from above, must come to be these."""
    try:
        page.wait_for_function(f"names => JSON.stringify(({ROWS})()) === JSON.stringify(names)",
                               arg=names)
    except TimeoutError:
        assert page.evaluate(ROWS) == names
