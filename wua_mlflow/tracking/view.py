"""The experiment's saved views: what a reader sees in MLflow's UI without a click, and addresses.

A view is a tag on the experiment; it holds the state of the UI's runs page as JSON. MLflow does
not document that state, so the browser test holds it. May import: mlflow's client as a type, names.
Tests: ``tests/tracking/test_view.py`` and, in Chromium, ``tests/browser/test_ui.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from wua_mlflow.tracking.names import Kind, Metric, Tag

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["KEY", "LATEST_KEY", "ensure_view", "latest_view", "run_address", "view_address"]

KEY = "wua"
"""Key of the view of all variants, named "Right-sizing"."""
LATEST_KEY = "wua-latest"
"""Key of the view of the last pipeline's variants."""

State = dict[str, Any]

_TAG = "mlflow.sharedViewState."
_MAIN, _MORE = "wua-main", "wua-more"
_FOLDED = ("accuracy", "compare", "flops", "flops_ptflops", "latency", "loss", "params", "score",
           "size", "usage")
_MOST_FOLDED = 50
"""A view must stay below 20,000 characters; a folded section takes about 200."""
_ROW_HEIGHT = 290
"""Pixels: two rows of charts fit below the page's head on a screen of 1,000."""


def ensure_view(client: MlflowClient, experiment_id: str) -> None:
    """Make the view "Right-sizing" of all variants, unless the experiment has it already.

    A view that somebody has edited stays as it is.

    Args:
        client: MLflow's.
        experiment_id: the experiment.
    """
    if _TAG + KEY in client.get_experiment(experiment_id).tags:
        return
    state = _state(
        f"tags.`{Tag.KIND}` = '{Kind.VARIANT}'",
        score=("test score (accuracy or R²)", Metric.SCORE_TEST),
        section="All variants, newest first",
        folded=_FOLDED,
    )
    _save(client, experiment_id, KEY, "Right-sizing", {**state, "orderByAsc": False})


def latest_view(
    client: MlflowClient,
    experiment_id: str,
    pipeline_id: str,
    name: str,
    *,
    classification: bool,
) -> None:
    """Replace the view of the last pipeline: its variants side by side, the original first.

    Args:
        client: MLflow's.
        experiment_id: the pipeline's experiment.
        pipeline_id: the pipeline's run.
        name: what the view is called, after "Latest: ".
        classification: whether accuracy is what is compared; else R².
    """
    variants = f"tags.`{Tag.PIPELINE}` = '{pipeline_id}' and tags.`{Tag.KIND}` = '{Kind.VARIANT}'"
    runs = client.search_runs([experiment_id], variants)
    score = (("test accuracy", Metric.ACCURACY_TEST) if classification
             else ("test R²", Metric.SCORE_TEST))
    state = _state(
        variants,
        score=score,
        section=f"{name}: is the slim one as good, and what does it save?",
        folded=sorted({key.rpartition("/")[0] for run in runs for key in run.data.metrics}),
    )
    state |= {"orderByAsc": True, "runsHiddenMode": "SHOW_ALL", "runsExpanded": {pipeline_id: True}}
    _save(client, experiment_id, LATEST_KEY, f"Latest: {name}", state)


def view_address(base_url: str, experiment_id: str, key: str) -> str:
    """Address of a saved view, opened on its charts.

    >>> view_address("http://127.0.0.1:5000", "1", "wua").partition("#")[2][:20]
    '/experiments/1/runs?'
    """
    return (f"{_experiment(base_url, experiment_id)}/runs?workflowType=machine_learning"
            f"&viewStateShareKey={key}&compareRunsMode=CHART")


def run_address(base_url: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page.

    >>> run_address("http://127.0.0.1:5000/", "1", "ab")
    'http://127.0.0.1:5000/#/experiments/1/runs/ab'
    """
    return f"{_experiment(base_url, experiment_id)}/runs/{run_id}"


def _experiment(base_url: str, experiment_id: str) -> str:
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}"


def _save(
    client: MlflowClient, experiment_id: str, key: str, name: str, state: Mapping[str, Any]
) -> None:
    now = int(time.time() * 1000)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    client.set_experiment_tag(experiment_id, _TAG + key, json.dumps(view))


def _state(
    search: str, *, score: tuple[str, str], section: str, folded: Iterable[str]
) -> State:
    """The state of the runs page; a field that is left out would become undefined in the UI.

    Ordered by time, since that order alone nests the variants under their pipelines.
    """
    columns = [
        f"tags.`{Tag.VERDICT}`", f"tags.`{Tag.VARIANT}`", f"tags.`{Tag.WIDTHS}`",
        *(f"metrics.`{metric}`" for metric in (
            score[1], Metric.FLOPS_FORWARD, Metric.PARAMS_TOTAL, Metric.LATENCY_P50,
            Metric.USAGE_ENTROPY, Metric.USAGE_EFFECTIVE_WEIGHTS, Metric.FLOPS_RATIO)),
    ]
    return {
        "searchFilter": search,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": _charts(score),
        "compareRunSections": _sections(section, folded),
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {
            "xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(score: tuple[str, str]) -> list[State]:
    """Six bar charts, then the scatter plot and the training curve."""
    flops = ("FLOPs per sample", Metric.FLOPS_FORWARD)
    bars = (
        score,
        flops,
        ("parameters", Metric.PARAMS_TOTAL),
        ("effective weights", Metric.USAGE_EFFECTIVE_WEIGHTS),
        ("entropy, nats", Metric.USAGE_ENTROPY),
        ("latency p50, ms", Metric.LATENCY_P50),
    )
    scatter = {"type": "SCATTER", "xaxis": _axis(*flops), "yaxis": _axis(*score)}
    curve = {"type": "LINE", "metricKey": "training loss",
             "selectedMetricKeys": [Metric.LOSS_TRAIN]}
    cards = [({"type": "BAR", **_data(*bar)}, _MAIN) for bar in bars]
    cards += [(scatter, _MORE), (curve, _MORE)]
    return [
        {"uuid": f"wua-{number}", "metricSectionId": section, "runsCountToCompare": 10,
         "deleted": False, "isGenerated": False, **card}
        for number, (card, section) in enumerate(cards)
    ]


def _data(title: str, metric: str) -> State:
    """A chart's metric. The UI shows ``metricKey`` as the title, and reads ``dataAccessKey``."""
    return {"metricKey": title, "dataAccessKey": metric}


def _axis(title: str, metric: str) -> State:
    return {"key": title, "type": "METRIC", "dataAccessKey": metric}


def _sections(title: str, folded: Iterable[str]) -> list[State]:
    """Our two sections, then those that the UI makes of the other metrics, folded."""
    ours = [
        {"uuid": _MAIN, "name": title, "display": True, "columns": 3, "cardHeight": _ROW_HEIGHT},
        {"uuid": _MORE, "name": "Score against cost, and training", "display": True, "columns": 2,
         "cardHeight": _ROW_HEIGHT},
    ]
    others = [{"uuid": f"wua-{name}", "name": name, "display": False} for name in folded]
    return [
        {**section, "isReordered": True, "deleted": False, "isGenerated": False}
        for section in (*ours, *others[:_MOST_FOLDED])
    ]
