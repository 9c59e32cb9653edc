"""The experiment's saved views: what a reader sees in MLflow's UI without a click, and addresses.

A view is a tag on the experiment that holds the state of the UI's runs page as JSON.
May import: mlflow's client (as a type), names. Tests: ``tests/tracking/test_view.py`` and, in a
real browser, ``tests/browser/test_ui.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wua_mlflow.tracking.names import Kind, Metric, Tag

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["KEY", "LATEST_KEY", "ensure_view", "latest_view", "run_address", "view_address"]

KEY = "wua"
"""Key of the view of all variants."""
LATEST_KEY = "wua-latest"
"""Key of the view of the last pipeline's variants."""

State = dict[str, Any]

_TAG = "mlflow.sharedViewState."
_SECTION = "wua"


def ensure_view(client: MlflowClient, experiment_id: str) -> None:
    """Make the view "Right-sizing" of all variants, unless the experiment has one already."""
    if _TAG + KEY not in client.get_experiment(experiment_id).tags:
        _save(client, experiment_id, KEY, "Right-sizing", _state())


def latest_view(
    client: MlflowClient,
    experiment_id: str,
    pipeline_id: str,
    name: str,
    *,
    classification: bool,
) -> None:
    state = _state()
    state["searchFilter"] = f"tags.`{Tag.PIPELINE}` = '{pipeline_id}'"
    state["orderByKey"]="attributes.start_time"
    state["orderByAsc"]=True
    state["runsHiddenMode"]="SHOW_ALL"
    _save(client, experiment_id, LATEST_KEY, f"Latest: {name}", state)


def view_address(base_url: str, experiment_id: str, key: str) -> str:
    return (f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
            f"?workflowType=machine_learning&viewStateShareKey={key}&compareRunsMode=CHART")


def run_address(base_url: str, experiment_id: str, run_id: str) -> str:
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def _save(client, experiment_id, key, name, state):
    now = int(time.time() * 1000)
    client.set_experiment_tag(experiment_id, _TAG + key, json.dumps(
        {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}))

def _bar(title, metric):
    return {"uuid": f"wua-{metric}", "type": "BAR", "runsCountToCompare": 10, "metricSectionId": _SECTION, "deleted": False, "isGenerated": False,
      "displayName": title, "metricKey": metric}

def _state():
    charts=[_bar("test accuracy", Metric.ACCURACY_TEST), _bar("FLOPs per sample", Metric.FLOPS_FORWARD),_bar("parameters", Metric.PARAMS_TOTAL),
     _bar("effective weights", Metric.USAGE_EFFECTIVE_WEIGHTS),_bar("entropy, nats", Metric.USAGE_ENTROPY),_bar("latency p50, ms",Metric.LATENCY_P50),
     {"uuid":"wua-scatter","type":"SCATTER","runsCountToCompare":10,"metricSectionId":_SECTION,"deleted":False,"isGenerated":False,"displayName":"accuracy against FLOPs",
       "xaxis":{"key":"flops/forward","type":"METRIC","dataAccessKey":"flops/forward"},"yaxis":{"key":"accuracy/test","type":"METRIC","dataAccessKey":"accuracy/test"}},
     {"uuid":"wua-diff","type":"DIFFERENCE","runsCountToCompare":10,"metricSectionId":_SECTION,"deleted":False,"isGenerated":False,"displayName":"difference",
      "compareGroups":["Model metrics"],"chartName":"x","showChangeFromBaseline":True,"showDifferencesOnly":True,"baselineColumnUuid":""}]
    sections=[{"uuid":_SECTION,"name":"Right-sizing","display":True,"isReordered":True,"deleted":False,"isGenerated":False,"columns":3,"cardHeight":260}]
    sections+=[{"uuid":"s-"+n,"name":n,"display":False,"isReordered":False,"deleted":False,"isGenerated":True} for n in ("accuracy","compare","flops","flops_ptflops","latency","loss","params","score","size","usage")]
    return {"searchFilter":f"tags.`{Tag.KIND}` = '{Kind.VARIANT}'","orderByKey":"metrics.`flops/forward`","orderByAsc":False,"startTime":"ALL","lifecycleFilter":"Active",
      "datasetsFilter":[],"modelVersionFilter":"All Runs",
      "selectedColumns":[f"tags.`{t}`" for t in (Tag.VARIANT,Tag.VERDICT,Tag.WIDTHS)]+[f"metrics.`{m}`" for m in (Metric.ACCURACY_TEST,Metric.FLOPS_FORWARD,Metric.PARAMS_TOTAL)],
      "columnOrder":[],"columnWidths":{},"runsExpanded":{},"runsPinned":[],"runsHidden":[],"runsVisibilityMap":{},"runsHiddenMode":"FIRST_10_RUNS",
      "compareRunCharts":charts,"compareRunSections":sections,"viewMaximized":False,"runListHidden":False,"isAccordionReordered":True,"useGroupedValuesInCharts":True,"hideEmptyCharts":True,
      "groupBy":None,"groupsExpanded":{},"autoRefreshEnabled":True,
      "globalLineChartConfig":{"xAxisKey":"step","lineSmoothness":0,"selectedXAxisMetricKey":""}}
