"""Logging the library's results from anybody's training code, under the contract's names.

Each function writes to the run that is named, else to the active one (under ``mlflow run`` to that
of the project), else to the run that the LoggedModel comes from. It takes a few calls, and changes
nothing of MLflow's global state.
Tests: ``tests/tracking/test_log_results.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from wua_mlflow.flops import CONVENTION, FlopCount, count_parameters
from wua_mlflow.tracking import models
from wua_mlflow.tracking.log import (
    Dataset,
    flop_metrics,
    last_step,
    latency_metrics,
    layers_table,
    usage_metrics,
    verdict_metrics,
    verdict_tags,
    write,
)
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.pictures import usage_pictures, verdict_picture
from wua_mlflow.tracking.store import inherited_run
from wua_mlflow.training.latency import Latency
from wua_mlflow.usage.results import ModelUsage
from wua_mlflow.verdict.compare import Verdict

__all__ = [
    "log_flops", "log_latency", "log_model", "log_usage", "log_verdict", "run_of", "usage_record",
]


def log_usage(
    usage: ModelUsage,
    model: nn.Module | None = None,
    *,
    run_id: str | None = None,
    model_id: str | None = None,
    dataset: Dataset | None = None,
    step: int | None = None,
) -> None:
    """Log how a model's weights are used: metrics, the table of layers, and the pictures.

    Args:
        usage: what ``analyze`` gave.
        model: what was analysed; with it the number of parameters is logged too, and of a small
            MLP the diagram.
        run_id: the run; the active one, if None.
        model_id: a LoggedModel that the metrics belong to as well.
        dataset: what the usage was measured on, one of MLflow's: an input of the run.
        step: of the metrics; where a ``UsageMonitor`` watched the training its last step, else 0,
            if None.

    Raises:
        ValueError: no run, or no such model.
    """
    client, run_id = run_of(run_id, model_id)
    if step is None:
        step = last_step(client, run_id, Metric.USAGE_ENTROPY)
    _write(client, run_id, model_id, dataset, step=step, **usage_record(usage, model))


def usage_record(usage: ModelUsage, model: nn.Module | None = None) -> dict[str, Any]:
    """Metrics, tags and files of a usage, as ``write`` takes them."""
    tags = {Tag.CRITERION: usage.criterion}
    if usage.null:
        tags[Tag.NULL_KIND] = usage.null.kind
    metrics = usage_metrics(usage)
    if model is not None:
        metrics[Metric.PARAMS_TOTAL] = count_parameters(model)
    return {"metrics": metrics, "tags": tags, "files": {
        ArtifactPath.LAYERS_TABLE: layers_table(usage), **usage_pictures(model, usage)}}


def log_flops(
    count: FlopCount,
    *,
    train_samples: int | None = None,
    epochs: float | None = None,
    run_id: str | None = None,
    model_id: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Log a FLOP count: of one sample's forward; where it is known how much was trained on, of
    inference over it, and where it is known how often, of training.

    Args:
        count: what ``count_flops`` gave.
        train_samples: their number.
        epochs: how often each was trained on, on average.
        run_id: the run; the active one, if None.
        model_id: a LoggedModel that the metrics belong to as well.
        dataset: the training data, one of MLflow's: an input of the run.

    Raises:
        ValueError: no run, no such model, or ``epochs`` without ``train_samples``.
    """
    if epochs is not None and train_samples is None:
        raise ValueError(f"train_samples: expected their number beside epochs={epochs}, but got "
                         f"none")
    client, run_id = run_of(run_id, model_id)
    _write(client, run_id, model_id, dataset, tags={Tag.FLOP_CONVENTION: CONVENTION},
           metrics=flop_metrics(count, train_samples=train_samples, epochs=epochs))


def log_latency(
    latency: Latency, *, run_id: str | None = None, model_id: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Log p50, p95 and throughput.

    Args:
        latency: one of those that ``measure_latency`` gave.
        run_id: the run; the active one, if None.
        model_id: a LoggedModel that the metrics belong to as well.
        dataset: what it was measured on, one of MLflow's: an input of the run.

    Raises:
        ValueError: no run, or no such model.
    """
    client, run_id = run_of(run_id, model_id)
    _write(client, run_id, model_id, dataset, metrics=latency_metrics(latency))


def log_verdict(
    verdict: Verdict, *, baseline: str | None = None, run_id: str | None = None,
    model_id: str | None = None, dataset: Dataset | None = None,
) -> None:
    """Log a verdict to the candidate's run: the difference with its interval, tags, a picture.

    Where the run has a recipe verdict already, that stays the one that decides (``wua.verdict``).

    Args:
        verdict: what ``compare`` gave.
        baseline: run of the original.
        run_id: the candidate's run; the active one, if None.
        model_id: the candidate as a LoggedModel, which the metrics belong to as well.
        dataset: the test data, one of MLflow's: an input of the run.

    Raises:
        ValueError: no run, or no such model.
    """
    client, run_id = run_of(run_id, model_id)
    tags = verdict_tags(verdict)
    files = {ArtifactPath.COMPARISON_PLOT: verdict_picture(verdict)}
    if verdict.kind == "artifact" and Tag.VERDICT_RECIPE in client.get_run(run_id).data.tags:
        tags, files = {Tag.VERDICT_ARTIFACT: verdict.outcome}, {}
    if baseline:
        tags[Tag.BASELINE] = baseline
    _write(client, run_id, model_id, dataset, metrics=verdict_metrics(verdict), tags=tags,
           files=files)


def log_model(  # noqa: PLR0913 - where to, what, and what is shown beside it
    model: nn.Module,
    inputs: Tensor,
    *,
    name: str = models.MODEL_NAME,
    run_id: str | None = None,
    model_type: str | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Save a model as a LoggedModel of the run: ``pt2``, any batch size, nothing pickled.

    Args:
        model: in any mode, on any device; it is left as found.
        inputs: an example, shape (at least 1, ...).
        name: what it is called among the run's models; MLflow allows no ``/ : . %`` and no quotes.
        run_id: the run; the active one, if None.
        model_type: shown with the model, as ``classifier`` or ``regressor``.
        params: shown with the model.
        tags: shown with the model.

    Returns:
        Its id: ``models:/<id>`` loads it, and ``log_usage`` and the like take it as ``model_id``.

    Raises:
        ValueError: no run, a name that MLflow does not allow, or a model that ``torch.export``
            refuses.
    """
    client, run_id = run_of(run_id)
    experiment = client.get_run(run_id).info.experiment_id
    model_id, size = models.log_model(
        client, run_id, experiment, model, inputs, name=name, model_type=model_type, params=params,
        tags=tags)
    write(client, run_id, metrics={Metric.SIZE_BYTES: size}, model_id=model_id)
    return model_id


def run_of(run_id: str | None, model_id: str | None = None) -> tuple[MlflowClient, str]:
    """A client, and the run that is named, is active, was made by ``mlflow run``, or has the model.

    Raises:
        ValueError: there is none, or no such model.
    """
    client = MlflowClient()
    source = None
    if model_id is not None:
        try:
            source = client.get_logged_model(model_id).source_run_id
        except MlflowException as error:
            raise ValueError(f"model_id: expected the id of a LoggedModel, but got '{model_id}': "
                             f"{error.message}") from error
    active = mlflow.active_run()
    found = run_id or (active.info.run_id if active else inherited_run() or source)
    if not found:
        raise ValueError("run_id: expected a run's id or an active run, but got neither; "
                         "open one with mlflow.start_run()")
    return client, str(found)


def _write(
    client: MlflowClient, run_id: str, model_id: str | None, dataset: Dataset | None,
    *, metrics: Mapping[str, float], **content: Any,
) -> None:
    if dataset is not None:
        # a data set that is no entity yet makes one; MLflow has no public name for that
        entity: Any = getattr(dataset, "_to_mlflow_entity", lambda: dataset)()
        client.log_inputs(run_id, datasets=[DatasetInput(entity)])
    write(client, run_id, metrics=metrics, model_id=model_id,
          datasets=dict.fromkeys(metrics, dataset) if dataset is not None else None, **content)
