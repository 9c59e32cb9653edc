"""Writing to a run: data sets as inputs, params, metrics, tags, tables and files, in few calls.

Tests: ``tests/tracking/test_log.py``, ``tests/tracking/test_datasets.py``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Param, RunTag
from mlflow.entities import Metric as MetricEntity
from mlflow.tracking import MlflowClient

from wua_mlflow.flops import FlopCount
from wua_mlflow.redaction import redacted
from wua_mlflow.tracking.names import Metric, Tag, keys_of, layer_metric, long_value
from wua_mlflow.tracking.store import run_name
from wua_mlflow.training.latency import Latency
from wua_mlflow.usage.results import LayerUsage, ModelUsage
from wua_mlflow.verdict.compare import Verdict
from wua_mlflow.verdict.text import seeds_text

__all__ = [
    "Dataset", "dataset_inputs", "flop_metrics", "last_step", "latency_metrics", "layers_table",
    "usage_history", "usage_metrics", "verdict_metrics", "verdict_tags", "write", "write_files",
    "write_history",
]


class Dataset(Protocol):
    """A data set of MLflow's, or its entity: what it is called, and the digest of its content."""

    @property
    def name(self) -> str:
        """Shown beside the metrics that were measured on it."""

    @property
    def digest(self) -> str:
        """Of its content."""


CONTEXT = "mlflow.data.context"
LONGEST_CONTEXT = 20
"""Characters beside a data set's name; its source is kept whole."""


def dataset_inputs(
    name: str, source: str, parts: Iterable[tuple[str, np.ndarray, np.ndarray, str]]
) -> list[DatasetInput]:
    """What ``client.log_inputs`` takes.

    Args:
        name: of the data set.
        source: a file's path, or words for what made the data (shown as the code's name).
        parts: context (``train``, ``validation``, ``test``), inputs, targets, digest; MLflow keeps
            12 characters of the digest.
    """
    origin, name = _origin(redacted(source)), redacted(name)
    name = name[:DATASET_NAME_CHARACTERS - LONGEST_CONTEXT]
    return [
        DatasetInput(
            from_numpy(inputs, targets=targets, source=origin, digest=digest[:12],
                       name=f"{name} {context}")._to_mlflow_entity(),
            tags=[InputTag(CONTEXT, context)],
        )
        for context, inputs, targets, digest in parts
    ]


def _origin(source: str) -> DatasetSource:
    try:
        is_file = Path(source).is_file()
    except OSError:  # too long for a path
        is_file = False
    if not is_file:
        return CodeDatasetSource({"mlflow.source.name": source})
    with warnings.catch_warnings():  # MLflow has two sources of the same name for a file
        warnings.simplefilter("ignore")
        return resolve_dataset_source(source)


ENTITIES_A_BATCH = 1000
"""MLflow's limit on the metrics, params and tags of one batch together."""
PARAMS_A_BATCH = 100
"""And on its params, and on its tags."""
PARAM_CHARACTERS, TAG_CHARACTERS = 6000, 8000
"""MLflow cuts longer values without a word."""
DESCRIPTION, RUN_NAME = "mlflow.note.content", "mlflow.runName"
DATASET_NAME_CHARACTERS = 500
MOST_LAYERS_AS_METRICS = 20
"""Above this the per-layer figures are in the table alone: many keys freeze MLflow's page."""

Files = Mapping[str, Callable[[Path], object] | str]


def write(  # noqa: PLR0913 - what a run can hold, each by name
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Files | None = None,
    step: int = 0,
    model_id: str | None = None,
    datasets: Mapping[str, Dataset] | None = None,
) -> None:
    """Send everything to one run: one call for all files, and one per thousand metrics.

    No password of an address is sent (``redaction``).

    The files go first and the tags last, so that a tag that says ``done`` is true.

    Args:
        client: MLflow's.
        run_id: the run.
        metrics: each at ``step``.
        curves: by metric name, a value an epoch; the first is step 1.
        params: logged as text. The whole of one that is too long for MLflow is a file of the run,
            and the param ends in words that name it.
        tags: likewise; a description ends in a line that says so, a run's name in "…".
        files: by path within the run: the text, or a function that writes the file it is given.
        step: of the metrics.
        model_id: the LoggedModel that the metrics belong to as well; the curves do not.
        datasets: by metric what it was measured on, shown with that model.

    Raises:
        ValueError: a metric is NaN or infinite (MLflow would store another number). Nothing is
            sent then.
    """
    now = int(time.time() * 1000)
    entities = [*_model_metrics(metrics or {}, now, step, model_id, datasets or {}),
                *_curve_points(curves or {}, now)]
    whole: dict[str, str] = {}
    names = [Param(key, _fitted("param", key, redacted(str(value)), whole))
             for key, value in (params or {}).items()]
    labels = [RunTag(key, _fitted("tag", key, redacted(value), whole))
              for key, value in (tags or {}).items()]
    files = {**(files or {}), **whole}
    if files:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), files)
            client.log_artifacts(run_id, folder)
    for some_metrics, some_params, some_tags in _batches(entities, names, labels):
        client.log_batch(run_id, metrics=some_metrics, params=some_params, tags=some_tags)


def write_history(
    client: MlflowClient, run_id: str, points: Mapping[int, Mapping[str, float]]
) -> None:
    """Send points of metrics to a run, by step, in as few calls as MLflow's limits allow.

    Raises:
        ValueError: one is NaN or infinite; nothing is sent then.
    """
    now = int(time.time() * 1000)
    entities = [entity for step, metrics in points.items()
                for entity in _model_metrics(metrics, now, step, None, {})]
    for some_metrics, _, _ in _batches(entities, [], []):
        client.log_batch(run_id, metrics=some_metrics)


def write_files(folder: Path, files: Files) -> None:
    """Write them into ``folder``, in the form that ``write`` takes them."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(target)
        else:
            target.write_text(redacted(content), encoding="utf-8")


def _model_metrics(
    metrics: Mapping[str, float], now: int, step: int, model_id: str | None,
    datasets: Mapping[str, Dataset],
) -> Iterator[MetricEntity]:
    for key, value in metrics.items():
        dataset = datasets.get(key) if model_id else None
        yield MetricEntity(
            key, _finite(key, value), now, step, model_id=model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None)


def _curve_points(curves: Mapping[str, Sequence[float]], now: int) -> Iterator[MetricEntity]:
    for key, values in curves.items():
        for step, value in enumerate(values, 1):
            yield MetricEntity(key, _finite(key, value), now, step)


def _finite(key: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"metric {key}: expected a finite number, but got {value}")
    return float(value)


def last_step(client: MlflowClient, run_id: str, metric: str) -> int:
    """The last step at which a run has a point of the metric; 0 where it has none.

    Of a metric's points MLflow shows the one of the last step: a later one has to have it, too.
    """
    return max((point.step for point in client.get_metric_history(run_id, metric)), default=0)


def _batches(
    metrics: Sequence[MetricEntity], params: Sequence[Param], tags: Sequence[RunTag]
) -> Iterator[tuple[Sequence[MetricEntity], Sequence[Param], Sequence[RunTag]]]:
    """As few batches as MLflow's limits allow; the tags in the last."""
    while metrics or params or tags:
        some_metrics = metrics[:ENTITIES_A_BATCH]
        some_params = params[:min(PARAMS_A_BATCH, ENTITIES_A_BATCH - len(some_metrics))]
        room = ENTITIES_A_BATCH - len(some_metrics) - len(some_params)
        metrics, params = metrics[len(some_metrics):], params[len(some_params):]
        some_tags = [] if metrics or params else tags[:min(PARAMS_A_BATCH, room)]
        tags = tags[len(some_tags):]
        yield some_metrics, some_params, some_tags


def _fitted(kind: str, key: str, value: str, whole: dict[str, str]) -> str:
    """The value as MLflow can hold it; what does not fit is put into ``whole``, by path."""
    if key == DESCRIPTION:
        return _described(value)
    if key == RUN_NAME:
        return run_name(value)
    limit = PARAM_CHARACTERS if kind == "param" else TAG_CHARACTERS
    if len(value) <= limit:
        return value
    path = long_value(kind, key)
    whole[path] = value
    note = f"… (cut: {len(value):,} characters, whole in this run's {path})"
    return value[:limit - len(note)] + note


def _described(text: str) -> str:
    """The description, cut between two lines where it is longer than MLflow keeps."""
    if len(text) <= TAG_CHARACTERS:
        return text
    note = f"\n\n… cut here: MLflow keeps {TAG_CHARACTERS:,} characters of a description."
    beginning = text[:TAG_CHARACTERS - len(note)]
    return (beginning.rpartition("\n")[0] or beginning) + note


def usage_metrics(usage: ModelUsage) -> dict[str, float]:
    """The model's usage, and its layers' where they are at most 20."""
    metrics = {
        **usage_history(usage),
        Metric.USAGE_EFFECTIVE_SHARE: usage.effective_share,
        Metric.USAGE_TOP90_SHARE: usage.top90_share,
        Metric.USAGE_LOW_SHARE: usage.low_share,
        Metric.PARAMS_ANALYZED: usage.weights,
    }
    if usage.null:
        metrics |= {
            Metric.USAGE_NULL_SHARE: usage.null.share,
            Metric.USAGE_NULL_LOW: usage.null.low,
            Metric.USAGE_NULL_HIGH: usage.null.high,
            Metric.USAGE_SHIFT: usage.null.shift,
        }
    if len(usage.layers) <= MOST_LAYERS_AS_METRICS:
        keys = keys_of(usage.layers)
        for name, layer in usage.layers.items():
            for what in ("entropy", "effective_weights", "top90_share", "low_share", "weights",
                         "units"):
                metrics[layer_metric(name, what, keys)] = getattr(layer, what)
    return metrics


def usage_history(usage: ModelUsage) -> dict[str, float]:
    """Those of the model's figures that are followed while it trains."""
    metrics = {Metric.USAGE_EFFECTIVE_WEIGHTS: usage.effective_weights,
               Metric.USAGE_ENTROPY: usage.entropy, Metric.USAGE_DEAD_UNITS: usage.dead_units,
               Metric.USAGE_EFFECTIVE_RANK: usage.effective_rank}
    return {name: value for name, value in metrics.items() if value is not None}


def layers_table(usage: ModelUsage) -> str:
    """``usage/layers.json``: a row a layer, in columns; ``dead``: no importance at all.

    The ``unit_…`` columns are those of the units' importances; what was not measured is null.
    ``key`` is what metrics and files call the layer.
    """
    keys = keys_of(usage.layers)
    rows = [{**_row(layer), "key": keys[layer.name]} for layer in usage.layers.values()]
    skipped = [{"layer": name, "reason": reason} for name, reason in usage.skipped.items()]
    return json.dumps({"columns": list(rows[0]) if rows else [],
                       "data": [list(row.values()) for row in rows], "skipped": skipped,
                       "criterion": usage.criterion, "samples": usage.samples}, indent=1)


def _row(layer: LayerUsage) -> dict[str, object]:
    null, units = layer.null, layer.unit_usage
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "weights": layer.weights,
        "units": layer.units,
        "entropy": layer.entropy,
        "effective_weights": layer.effective_weights,
        "effective_share": layer.effective_share,
        "null_share": null.share if null else None,
        "null_low": null.low if null else None,
        "null_high": null.high if null else None,
        "shift": null.shift if null else None,
        "null_kind": null.kind if null else None,
        "top90_share": layer.top90_share,
        "low_share": layer.low_share,
        "dead": layer.dead,
        "unit_entropy": units.entropy if units else None,
        "effective_units": units.effective if units else None,
        "unit_top90_share": units.top90_share if units else None,
        "unit_low_share": units.low_share if units else None,
        "dead_units": layer.dead_units,
        "effective_rank": layer.effective_rank,
        "forward_flops": layer.forward_flops,
    }


def flop_metrics(
    count: FlopCount, *, train_samples: int | None = None, epochs: float | None = None
) -> dict[str, float]:
    """FLOPs of one sample's forward, and, as far as it is known how much was trained on how often,
    of inference over the training part and of training.
    """
    forward = count.forward_flops / count.samples
    metrics = {Metric.FLOPS_FORWARD: forward}
    if train_samples is not None:
        metrics[Metric.FLOPS_INFERENCE] = forward * train_samples
        if epochs is not None:
            both = (count.forward_flops + count.backward_flops) / count.samples
            metrics[Metric.FLOPS_TRAINING] = both * train_samples * epochs
    return metrics


def latency_metrics(latency: Latency) -> dict[str, float]:
    """p50 and p95 at batch 1, and throughput."""
    return {
        Metric.LATENCY_P50: latency.p50_ms,
        Metric.LATENCY_P95: latency.p95_ms,
        Metric.LATENCY_THROUGHPUT: latency.samples_per_s,
    }


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """The difference and its interval, under the artifact's or the recipe's names."""
    if verdict.kind == "artifact":
        names = (Metric.ARTIFACT_DELTA, Metric.ARTIFACT_LOW, Metric.ARTIFACT_HIGH)
    else:
        names = (Metric.RECIPE_DELTA, Metric.RECIPE_LOW, Metric.RECIPE_HIGH)
    values = dict(zip(names, (verdict.delta, verdict.low, verdict.high), strict=True))
    return {**values, Metric.MARGIN: verdict.margin}


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """The outcome, as the artifact's or the recipe's and as the one that decides, and its basis."""
    tags = {Tag.VERDICT: verdict.outcome, Tag.VERDICT_METHOD: verdict.method,
            Tag.SCORE: "r2" if verdict.score == "R²" else verdict.score,
            Tag.CONFIDENCE: str(verdict.confidence)}
    if verdict.kind == "artifact":
        return {**tags, Tag.VERDICT_ARTIFACT: verdict.outcome}
    return {**tags, Tag.VERDICT_RECIPE: verdict.outcome,
            Tag.VERDICT_SEEDS: seeds_text(verdict)}
