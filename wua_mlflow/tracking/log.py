"""All writing to runs: results become metrics, params, tags and files, and go out in batches.

``*_metrics`` are pure; ``write`` sends. May import: mlflow, names, the result types.
Tests: ``tests/tracking/test_log.py``.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric as MetricEntity
from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient

from wua_mlflow.flops import FlopCount
from wua_mlflow.latency import Latency
from wua_mlflow.tracking.names import ArtifactPath, Metric, layer_metric
from wua_mlflow.usage import ModelUsage
from wua_mlflow.verdict import Verdict

__all__ = [
    "flop_metrics",
    "latency_metrics",
    "layers_table",
    "log_flops",
    "log_usage",
    "usage_metrics",
    "verdict_metrics",
    "write",
]

METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
MOST_LAYERS_AS_METRICS = 20
"""Above this the per-layer figures are in the table alone: many keys freeze MLflow's page."""

Files = Mapping[str, Callable[[Path], object] | str]


def write(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    files: Files | None = None,
    model_id: str | None = None,
) -> None:
    """Send everything to one run: a call per thousand metrics, and one for all files.

    Args:
        client: MLflow's.
        run_id: the run.
        metrics: each at step 0.
        curves: by metric name, a value an epoch; the first is step 1.
        params: logged as text.
        tags: as they are.
        files: by path within the run: the text, or a function that writes the file it is given.
        model_id: the LoggedModel that the metrics belong to as well.

    Raises:
        ValueError: a metric is NaN or infinite (MLflow would store another number).
    """
    now = int(time.time() * 1000)
    entities = list(_entities(metrics or {}, curves or {}, now, model_id))
    names = [Param(key, str(value)) for key, value in (params or {}).items()]
    labels = [RunTag(key, value) for key, value in (tags or {}).items()]
    batches = max(1, math.ceil(len(entities) / METRICS_A_BATCH),
                  math.ceil(len(names) / PARAMS_A_BATCH), math.ceil(len(labels) / PARAMS_A_BATCH))
    for batch in range(batches) if entities or names or labels else ():
        client.log_batch(
            run_id,
            metrics=_slice(entities, batch, METRICS_A_BATCH),
            params=_slice(names, batch, PARAMS_A_BATCH),
            tags=_slice(labels, batch, PARAMS_A_BATCH),
        )
    if files:
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                target = Path(folder) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if callable(content):
                    content(target)
                else:
                    target.write_text(content, encoding="utf-8")
            client.log_artifacts(run_id, folder)


def _entities(
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[float]],
    now: int,
    model_id: str | None,
) -> Iterator[MetricEntity]:
    points = [(key, value, 0) for key, value in metrics.items()]
    points += [(key, value, step) for key, values in curves.items()
               for step, value in enumerate(values, 1)]
    for key, value, step in points:
        if not math.isfinite(value):
            raise ValueError(f"metric {key}: expected a finite number, but got {value}")
        yield MetricEntity(key, float(value), now, step,
                           model_id=model_id if step == 0 else None)


def _slice(items: Sequence[Any], batch: int, size: int) -> Sequence[Any]:
    return items[batch * size:(batch + 1) * size]


def usage_metrics(usage: ModelUsage) -> dict[str, float]:
    """The model's usage, and its layers' where they are at most 20."""
    metrics = {
        Metric.USAGE_EFFECTIVE_WEIGHTS: usage.effective_weights,
        Metric.USAGE_ENTROPY: usage.entropy,
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
        for name, layer in usage.layers.items():
            for what in ("entropy", "effective_weights", "top90_share", "low_share", "weights",
                         "units"):
                metrics[layer_metric(name, what)] = getattr(layer, what)
    return metrics


def layers_table(usage: ModelUsage) -> str:
    """``usage/layers.json``: a row a layer, in columns (MLflow shows it as a table)."""
    columns = ["layer", "kind", "weights", "units", "entropy", "effective_weights",
               "effective_share", "null_share", "null_low", "null_high", "shift", "top90_share",
               "low_share"]
    rows = [
        [layer.name, layer.kind, layer.weights, layer.units, layer.entropy,
         layer.effective_weights, layer.effective_share,
         *((layer.null.share, layer.null.low, layer.null.high, layer.null.shift)
           if layer.null else (None,) * 4),
         layer.top90_share, layer.low_share]
        for layer in usage.layers.values()
    ]
    skipped = [{"layer": name, "reason": reason} for name, reason in usage.skipped.items()]
    return json.dumps({"columns": columns, "data": rows, "skipped": skipped,
                       "criterion": usage.criterion, "samples": usage.samples}, indent=1)


def flop_metrics(count: FlopCount, *, train_samples: int, epochs: int) -> dict[str, float]:
    """FLOPs of one sample's forward, of inference over the training part, and of training."""
    forward = count.forward_flops / count.samples
    both = (count.forward_flops + count.backward_flops) / count.samples
    return {
        Metric.FLOPS_FORWARD: forward,
        Metric.FLOPS_INFERENCE: forward * train_samples,
        Metric.FLOPS_TRAINING: both * train_samples * epochs,
    }


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


def log_usage(usage: ModelUsage, *, run_id: str | None = None) -> None:
    """Log a usage to a run (the active one, if none is named), under the contract's names."""
    write(MlflowClient(), _run(run_id), metrics=usage_metrics(usage),
          files={ArtifactPath.LAYERS_TABLE: layers_table(usage)})


def log_flops(
    count: FlopCount, *, train_samples: int, epochs: int, run_id: str | None = None
) -> None:
    """Log a FLOP count to a run (the active one, if none is named), under the contract's names."""
    write(MlflowClient(), _run(run_id),
          metrics=flop_metrics(count, train_samples=train_samples, epochs=epochs))


def _run(run_id: str | None) -> str:
    import mlflow

    if run_id:
        return run_id
    active = mlflow.active_run()
    if active is None:
        raise ValueError("run_id: expected a run's id or an active run, but got neither; "
                         "open one with mlflow.start_run()")
    return str(active.info.run_id)

