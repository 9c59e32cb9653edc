"""What a newcomer sees in MLflow's own UI: held in Chromium, since MLflow documents none of it.

The values expected are read back from the store through MLflow's client.
"""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.entities import Metric, Run, RunTag
from mlflow.tracking import MlflowClient
from playwright.sync_api import Locator, Page, TimeoutError, expect

from wua_mlflow.tracking.ui_view import KEY, LATEST_KEY, latest_view, view_address

expect.set_options(timeout=600_000)
pytestmark = [pytest.mark.browser, pytest.mark.slow]

BARS = {
    "FLOPs, one sample": "flops/forward",
    "parameters": "params/total",
    "effective weights": "usage/effective_weights",
    "entropy, nats": "usage/entropy",
    "latency, ms": "latency/p50_ms",
}
"""Title of a bar chart, and the metric that it must show."""

ROWS = """() => [...document.querySelectorAll(".ag-row")]
    .map(row => [+row.getAttribute("row-index"), row.querySelector('a[href*="/runs/"]')])
    .filter(([_, link]) => link).sort((a, b) => a[0] - b[0])
    .map(([_, link]) => link.innerText.trim())"""
"""JavaScript: names of the runs in the table, from above (it holds its rows in any order)."""


def test_printed_address_shows_the_variants_side_by_side(page, pipeline):
    page.goto(pipeline.view)
    scatter = plot(card(page, "FLOPs, one sample vs. test accuracy"))
    points = {(run.data.metrics["flops/forward"], run.data.metrics["accuracy/test"])
              for run in pipeline.variants}
    assert set(zip(scatter["x"], scatter["y"], strict=True)) == points
    expect(card(page, "FLOPs, one sample vs. test accuracy")).to_be_in_viewport()
    for title, metric in BARS.items():
        assert drawn_bars(card(page, title)) == logged(pipeline.variants, metric)
        expect(card(page, title)).to_be_in_viewport()
    expect_rows(page, [*dearest_first(pipeline.variants), pipeline.run.info.run_name])
    verdict = pipeline.run.data.tags["wua.verdict"].replace("_", "-")
    ratio = pipeline.run.data.metrics["compare/flops_ratio"]
    headline = page.get_by_text(f"Verdict: {verdict}, {ratio:.2f}× fewer FLOPs")
    expect(headline).to_be_in_viewport()


def test_variants_have_names_and_colours_of_their_own(page, pipeline):
    page.goto(pipeline.view)
    names = [run.info.run_name for run in pipeline.variants]
    colours = [run.data.tags["mlflow.runColor"] for run in pipeline.variants]
    assert len(set(names)) == len(set(colours)) == len(names) == 3
    shown = plot(card(page, "parameters"))
    assert dict(zip(shown["names"], shown["marker"]["color"], strict=True)) == dict(
        zip(names, colours, strict=True))


def test_bars_of_scores_and_the_folded_rest_are_below(page, pipeline):
    page.set_viewport_size({"width": 1600, "height": 2400})
    page.goto(pipeline.view)
    assert drawn_bars(card(page, "test accuracy")) == logged(pipeline.variants, "accuracy/test")
    assert drawn_bars(card(page, "mean accuracy over seeds")) == logged(
        pipeline.variants, "accuracy/test_mean")
    expect(card(page, "loss/train")).to_be_visible()
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    expect(headers.filter(has_text="layers/fc1")).to_be_visible()
    expect(page.get_by_test_id("experiment-view-compare-runs-card")).to_have_count(len(BARS) + 4)


def test_right_sizing_is_among_the_views(page, pipeline):
    page.goto(pipeline.view)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text("Right-sizing", exact=True).click()
    expect(page.locator(".ag-header-cell", has_text="wua.verdict")).to_be_visible()
    expect_rows(page, dearest_first(pipeline.variants))


def test_address_followed_in_a_page_already_open(page, pipeline):
    """Rows that MLflow nests come up collapsed there, without a chart; ours must not be nested."""
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
    first_line = pipeline.run.data.tags["mlflow.note.content"].splitlines()[0].strip("*# ")
    expect(page.get_by_text(first_line)).to_be_in_viewport()
    for run in pipeline.variants:
        expect(page.get_by_role("link", name=run.info.run_name, exact=True)).to_be_visible()


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
    page.set_viewport_size({"width": 1600, "height": 2400})
    page.goto(view_address(server, experiment, LATEST_KEY))
    assert drawn_bars(card(page, "test R²")) == {"oversized": 0.75, "slim": 0.5}
    expect_rows(page, ["oversized", "slim", "prices 64 → 24"])


def card(page: Page, title: str) -> Locator:
    """The chart of that title."""
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    return cards.filter(has=page.get_by_role("heading", name=title, exact=True))


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
