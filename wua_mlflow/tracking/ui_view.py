"""The experiment's saved views: what a reader sees in MLflow's UI without a click, and addresses.

A view is a tag on the experiment; it holds the state of the UI's runs page as JSON. MLflow does
not document that state, so a browser test holds it.
Tests: ``tests/tracking/test_view.py`` and, in Chromium, ``tests/browser/test_ui.py``.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from wua_mlflow.tracking.names import Kind, Metric, Tag

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = [
    "ANSWER_IMAGE", "IMAGES_TAG", "IMPORTANCE_IMAGE", "KEY", "LATEST_KEY", "NETWORK_IMAGE",
    "chart_images", "ensure_view", "latest_view", "run_address", "view_address",
]


KEY = "wua"
"""Key of the view of all variants, named "Right-sizing"."""
LATEST_KEY = "wua-latest"
"""Key of the view of the last pipeline's variants."""

IMAGES_TAG = "mlflow.loggedImages"
"""On a run that has images among its charts."""
NETWORK_IMAGE, IMPORTANCE_IMAGE = "pictures/network", "pictures/importance"
"""Keys of a variant's images: its diagram, and the importance in its first layer."""
_THUMBNAIL = (420, 420)
"""Pixels; the whole picture opens by a click on it."""

State = dict[str, Any]
Titled = tuple[str, str]
"""A title for a chart, and the metric that it shows."""

_TAG = "mlflow.sharedViewState."
_ANSWER, _MAIN, _MORE, _PICTURES = "wua-answer", "wua-main", "wua-more", "wua-pictures"
_COLUMNS = 2
"""Charts a row: with the assistant open on a laptop, more leave no room for their titles."""
_PIXELS = {_ANSWER: 400, _MAIN: 250, _MORE: 250, _PICTURES: 420}
"""Height of a section's charts; the first holds an image of 256 pixels, with its run's name."""
ANSWER_IMAGE = "answer/verdict"
"""Key of the image, logged with the pipeline's run, that the first chart shows.

Before its slash stands the section that it is in on the run's own page of metrics: the first one.
"""
_MOST_FOLDED = 32
"""MLflow stores at most 20,000 characters a tag; a section takes up to 450."""
_FOLDED = ("accuracy", "compare", "flops", "flops_ptflops", "latency", "loss", "params", "score",
           "size", "usage")
_PICKER, _NAME = "1", "attributes.`Run Name`"


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
        score=("test score", Metric.SCORE_TEST),
        over_seeds=("mean accuracy over seeds", Metric.ACCURACY_TEST_MEAN),
        headline="All variants",
        folded=_FOLDED,
    )
    _save(client, experiment_id, KEY, "Right-sizing", state)


def latest_view(
    client: MlflowClient,
    experiment_id: str,
    pipeline_id: str,
    name: str,
    *,
    classification: bool,
) -> None:
    """Replace the view of the last pipeline: its variants side by side, the original first.

    Call it when the variants are logged: the view is headed by their verdict.

    Args:
        client: MLflow's.
        experiment_id: the pipeline's experiment.
        pipeline_id: the pipeline's run.
        name: what the view is called, after "Latest: ".
        classification: whether accuracy is what is compared; else R².
    """
    search = f"tags.`{Tag.PIPELINE}` = '{pipeline_id}' and tags.`{Tag.KIND}` = '{Kind.VARIANT}'"
    runs = list(client.search_runs([experiment_id], search, order_by=["attributes.start_time ASC"]))
    shown = ", ".join(f"'{run_id}'" for run_id in (pipeline_id, *(r.info.run_id for r in runs)))
    state = _state(
        f"attributes.run_id IN ({shown})",
        score=("test accuracy", Metric.ACCURACY_TEST) if classification
        else ("test R²", Metric.SCORE_TEST),
        over_seeds=("mean accuracy over seeds", Metric.ACCURACY_TEST_MEAN),
        headline=_headline(runs),
        folded=sorted({key.rpartition("/")[0] for run in runs for key in run.data.metrics}),
        images=(ANSWER_IMAGE, *(_image_keys(client, runs[0]) if runs else ())),
    )
    _save(client, experiment_id, LATEST_KEY, f"Latest: {name}",
          {**state, "runsHiddenMode": "SHOW_ALL"})


def chart_images(plots: Mapping[str, str]) -> dict[str, Callable[[Path], object]]:
    """Copies of a run's pictures that the UI shows among its charts, as files to log after them.

    The names are those that ``MlflowClient.log_image`` gives, and MLflow does not document: under
    another version they would be files like any other. The run needs ``IMAGES_TAG`` too.

    Args:
        plots: by the image's key the path of a PNG among the files that are logged.
    """
    files: dict[str, Callable[[Path], object]] = {}
    for key, plot in plots.items():
        name = (f"images/{key.replace('/', '~')}+step+0+timestamp+{int(time.time() * 1000)}+"
                f"{uuid.uuid4()}")
        files[f"{name}.png"] = partial(_copy, plot)
        files[f"{name}+compressed.webp"] = partial(_copy, plot)
    return files


def _copy(plot: str, path: Path) -> None:
    """Copy a picture within a run's files; as WebP at the size of a chart."""
    with Image.open(path.parents[1] / plot) as picture:
        if path.suffix == ".webp":
            picture.thumbnail(_THUMBNAIL)
        picture.convert("RGB").save(path)


def _image_keys(client: MlflowClient, run: Run) -> list[str]:
    """The keys of the images that a run has among its charts."""
    if IMAGES_TAG not in run.data.tags:
        return []
    names = [file.path.rpartition("/")[2] for file in client.list_artifacts(
        run.info.run_id, "images")]
    return sorted({name.partition("+step+")[0].replace("~", "/") for name in names})


def view_address(base_url: str, experiment_id: str, key: str) -> str:
    """Address of a saved view, opened on its charts.

    >>> view_address("http://127.0.0.1:5000", "1", "wua").partition("&")[2]
    'viewStateShareKey=wua&compareRunsMode=CHART'
    """
    return (f"{_experiment(base_url, experiment_id)}/runs?workflowType=machine_learning"
            f"&viewStateShareKey={key}&compareRunsMode=CHART")


def run_address(base_url: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page.

    >>> run_address("http://127.0.0.1:5000/", "1", "ab")
    'http://127.0.0.1:5000/#/experiments/1/runs/ab?workflowType=machine_learning'
    """
    return f"{_experiment(base_url, experiment_id)}/runs/{run_id}?workflowType=machine_learning"


def _experiment(base_url: str, experiment_id: str) -> str:
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}"


def _save(
    client: MlflowClient, experiment_id: str, key: str, name: str, state: Mapping[str, Any]
) -> None:
    now = int(time.time() * 1000)
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    client.set_experiment_tag(experiment_id, _TAG + key, json.dumps(view))


def _headline(runs: Sequence[Run]) -> str:
    """The last slim variant's verdict and its saving of FLOPs, in as few letters as are shown."""
    judged = [run for run in runs if Tag.VERDICT in run.data.tags]
    if not judged:
        return "Variants side by side"
    verdict = judged[-1].data.tags[Tag.VERDICT].replace("_", "-").capitalize()
    ratio = judged[-1].data.metrics.get(Metric.FLOPS_RATIO)
    return verdict + (f" · {ratio:.{int(ratio < 10)}f}×" if ratio else "")


def _state(
    search: str, *, score: Titled, over_seeds: Titled, headline: str, folded: Iterable[str],
    images: Sequence[str] = (),
) -> State:
    """The state of the runs page, ordered by time: that order alone nests runs under parents.

    Which runs are expanded, pinned or hidden is no part of a view: MLflow 3.17 drops it.
    """
    pixels = {
        f"tags.`{Tag.VERDICT}`": 115, f"tags.`{Tag.VARIANT}`": 170, f"tags.`{Tag.WIDTHS}`": 90,
        "params.`data`": 90,
        **{f"metrics.`{metric}`": 112 for metric in (
            score[1], Metric.FLOPS_FORWARD, Metric.PARAMS_TOTAL, Metric.LATENCY_P50,
            Metric.USAGE_ENTROPY, Metric.USAGE_EFFECTIVE_WEIGHTS, Metric.FLOPS_RATIO)},
    }
    return {
        "searchFilter": search,
        "orderByKey": f"metrics.`{Metric.FLOPS_FORWARD}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(pixels),
        "columnOrder": [_PICKER, _NAME, *pixels],
        "columnWidths": {_PICKER: 64, _NAME: 240, **pixels},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": _charts(score, over_seeds, images),
        "compareRunSections": _sections(headline, folded),
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(score: Titled, over_seeds: Titled, images: Sequence[str]) -> list[State]:
    """The verdict as a picture, the score against its cost as points; bars of costs; scores.

    Further pictures, of each variant, have a section of their own.

    A bar begins at 0, so that bars of scores look alike: points show by how much they differ.
    """
    points: State = {"type": "SCATTER", "xaxis": _axis(("FLOPs", Metric.FLOPS_FORWARD)),
                     "yaxis": _axis(score)}
    main = (
        ("FLOPs/sample", Metric.FLOPS_FORWARD),
        ("parameters", Metric.PARAMS_TOTAL),
        ("effective weights", Metric.USAGE_EFFECTIVE_WEIGHTS),
        ("entropy, nats", Metric.USAGE_ENTROPY),
        ("latency, ms", Metric.LATENCY_P50),
    )
    more: tuple[State, ...] = (
        _bar(score),
        _bar(over_seeds),
        {"type": "LINE", "metricKey": Metric.LOSS_TRAIN, "selectedMetricKeys": [Metric.LOSS_TRAIN],
         "xAxisKey": "step", "lineSmoothness": 0, "displayPoints": False},
    )
    pictures = [({"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False},
                 _ANSWER if key == ANSWER_IMAGE else _PICTURES) for key in images]
    placed = [*pictures, (points, _ANSWER),
              *((_bar(titled), _MAIN) for titled in main),
              *((card, _MORE) for card in more)]
    return [
        {"uuid": f"wua-{number}", "metricSectionId": section, "runsCountToCompare": 10,
         "deleted": False, "isGenerated": False, **card}
        for number, (card, section) in enumerate(placed)
    ]


def _bar(titled: Titled) -> State:
    """A bar chart. The UI shows ``metricKey`` as the title and draws ``dataAccessKey``."""
    return {"type": "BAR", "metricKey": titled[0], "dataAccessKey": titled[1]}


def _axis(titled: Titled) -> State:
    return {"key": titled[0], "type": "METRIC", "dataAccessKey": titled[1]}


def _sections(headline: str, folded: Iterable[str]) -> list[State]:
    """Our sections; then, folded, those in which the UI puts all other metrics and images."""
    ours = [(_ANSWER, headline, True), (_MAIN, "What it costs", True),
            (_MORE, "Scores, seeds, training", True), (_PICTURES, "Network, importance", False)]
    others = [(f"wua-folded-{number}", name, False)
              for number, name in enumerate(folded)][:_MOST_FOLDED]
    return [
        {"uuid": uuid, "name": name, "display": shown, "columns": _COLUMNS,
         "cardHeight": _PIXELS.get(uuid, 290), "isReordered": True, "deleted": False,
         "isGenerated": False}
        for uuid, name, shown in (*ours, *others)
    ]
