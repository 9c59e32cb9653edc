"""What the plugin of ``mlflow.models.evaluate`` finds: usage and FLOPs, or a verdict.

Tests: ``tests/pipeline/test_evaluator.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models.evaluation.artifacts import ImageEvaluationArtifact, JsonEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationResult
from mlflow.tracking import MlflowClient
from torch import nn

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.parts import Part
from wua_mlflow.data.tables import rows_of, rows_without_inputs
from wua_mlflow.data.tasks import output_kind
from wua_mlflow.flops import CONVENTION, count_flops, count_parameters
from wua_mlflow.hooks import take_by_place
from wua_mlflow.pipeline.analyze import criteria_of, needs_loss
from wua_mlflow.pipeline.compare_external import (
    ComparedModel,
    by_outputs,
    compare_models,
    open_model,
)
from wua_mlflow.pipeline.evaluation_sets import EvaluationSet, Predictions, file_evaluation_set
from wua_mlflow.pipeline.example_ids import ExampleIds
from wua_mlflow.pipeline.pyfunc_models import AnswersOf, check_batch, model_info, rows_like
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.report.pair import verdicts_record
from wua_mlflow.tracking.log import Files, layers_table, usage_metrics, write
from wua_mlflow.tracking.names import ArtifactPath, Metric, Tag
from wua_mlflow.tracking.pictures import usage_pictures
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Objective
from wua_mlflow.usage.analyze import analyze

if TYPE_CHECKING:  # slow to import
    from mlflow.pyfunc import PyFuncModel

__all__ = ["Evaluated", "evaluate_logged"]


WHERE = "the evaluation data"
OF_VERDICT = ("margin", "confidence", "score", "class_margin", "trust")
"""Keys that mean something beside a baseline alone."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What ``mlflow.models.evaluate`` is to evaluate.

    Attributes:
        model: None where the data hold its predictions.
        model_id: of the LoggedModel, if it is one.
        model_type: ``classifier`` or ``regressor``.
        dataset: MLflow's, with features, labels and perhaps predictions.
        column: of the model's answers, where these are a table of several.
    """

    model: PyFuncModel | None
    model_id: str | None
    model_type: str
    dataset: Any
    column: str | None = None

    @property
    def task(self) -> str:
        """The task of the labels."""
        if self.model_type == "regressor":
            return "regression"
        return "binary" if len(pd.unique(self.dataset.labels_data)) <= 2 else "multiclass"

    @property
    def rows(self) -> pd.DataFrame | np.ndarray:
        """The features."""
        rows: pd.DataFrame | np.ndarray = self.dataset.features_data
        return rows


@dataclass(frozen=True)
class Found:
    """Metrics and tags of the run, and files by their path in it."""

    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=dict)


def evaluate_logged(
    evaluated: Evaluated, run_id: str, config: Mapping[str, Any]
) -> EvaluationResult:
    """Evaluate, and log what MLflow does not: tags and files, and metrics of what has no model id.

    Args:
        evaluated: the model, and the data.
        run_id: the run that MLflow opened.
        config: settings by name, and the baseline.

    Raises:
        ValueError: one line that names the key, or the model that does not fit.
    """
    settings = _settings(config)
    client = MlflowClient()
    baseline = config.get("baseline")
    found = _usage(evaluated, settings) if baseline is None else \
        _verdict(evaluated, baseline, settings, client, run_id)
    write(client, run_id, tags=found.tags, files=found.files,
          metrics=None if evaluated.model_id else found.metrics,
          model_id=evaluated.model.model_id if evaluated.model else None)
    root = client.get_run(run_id).info.artifact_uri
    kinds: dict[str, Any] = {".png": ImageEvaluationArtifact, ".json": JsonEvaluationArtifact}
    result: Any = EvaluationResult
    return result(dict(found.metrics), {  # type: ignore[no-any-return]
        path: kinds[Path(path).suffix](uri=f"{root}/{path}") for path in found.files}, run_id)


def _settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a configuration.

    Raises:
        ValueError: a value that is none of its setting, or a key that needs a baseline.
    """
    useless = next((key for key in OF_VERDICT if key in config), None)
    if config.get("baseline") is None and useless:
        raise ValueError(f"evaluator_config: expected a baseline beside {useless}, such as "
                         f"models:/name/1, but got none")
    given = {key: value for key, value in config.items() if key != "baseline"}
    return load_settings(None, {"data": WHERE, **given})


# How its weights are used


def _usage(evaluated: Evaluated, settings: Settings) -> Found:
    module = _module_of(evaluated.model)
    if module is None:
        raise ValueError("model: expected a PyTorch model, whose weights can be analysed, but got "
                         "one of another flavour; beside a baseline in evaluator_config its "
                         "answers are judged")
    assert evaluated.model is not None, "a module is of one"
    test = _as_network(_test_data(evaluated, networks=True),
                       evaluated.model.metadata.signature, "the model")
    model = ComparedModel("the model", "the model", exported=module,
                          raw=_takes_raw_rows(evaluated.model))
    network = model.module(None)
    assert network is not None, "exported"
    part = by_outputs(model, test, None).part
    probe, criteria = part.example(network, 2), criteria_of(settings)
    with model.naming(probe):
        loss = Objective(test.task, output_kind(network, probe, test.task)).loss
        usages = analyze(network, part.batches(network), criterion=criteria,
                         loss=loss if needs_loss(criteria) else None, null=settings.null_draws,
                         seed=settings.seed, effective_rank=True)
        count = count_flops(network, probe, backward=False)
    usage = next(iter(usages.values()))
    metrics = {**usage_metrics(usage), Metric.PARAMS_TOTAL: count_parameters(network),
               Metric.FLOPS_FORWARD: count.forward_flops / count.samples}
    tags = {Tag.FLOP_CONVENTION: CONVENTION, Tag.CRITERION: usage.criterion,
            **({Tag.NULL_KIND: usage.null.kind} if usage.null else {})}
    return Found(metrics, tags, {ArtifactPath.LAYERS_TABLE: layers_table(usage),
                                 **usage_pictures(network, usage)})


# Whether it is as good as a baseline


def _verdict(
    evaluated: Evaluated, baseline: object, settings: Settings, client: MlflowClient, run_id: str
) -> Found:
    experiment = client.get_run(run_id).info.experiment_id
    models = [replace(model, experiment_id=experiment)
              for model in (_baseline(baseline, settings), _candidate(evaluated))]
    test = _test_data(evaluated, networks=any(model.is_network for model in models))
    signatures = [_signature_of(baseline), evaluated.model and evaluated.model.metadata.signature]
    sets = [by_outputs(model, _as_network(test, signature, model.reference), None)
            if model.is_network else test
            for model, signature in zip(models, signatures, strict=True)]
    result = compare_models(models, sets, settings,
                            Store(client, experiment, mlflow.get_tracking_uri()))
    comparison = result.comparison
    record = {**verdicts_record(comparison), "sentence": comparison.verdict.sentence,
              "in_short": result.report.in_short, "caution": result.caution}
    return Found({**result.report.metrics[1], **comparison.metrics}, comparison.tags,
                 {VERDICT: json.dumps(record, indent=1)})


VERDICT = "compare/verdict.json"


def _baseline(baseline: object, settings: Settings) -> ComparedModel:
    """The baseline: a URI, loaded where our rules trust it, or what the caller has loaded.

    Raises:
        ValueError: one line; it is neither, or is not trusted.
    """
    if isinstance(baseline, mlflow.pyfunc.PyFuncModel):
        return _loaded(baseline, "the baseline")
    if not isinstance(baseline, str) or ":/" not in baseline:
        raise ValueError(f"baseline: expected a model's URI, such as models:/name/1, or what "
                         f"mlflow.pyfunc.load_model returns, but got {baseline!r}")
    try:
        return open_model(baseline, None, settings, Trust.by(settings))
    except ValueError as error:
        reason = str(error).replace("--trust pickle", "{'trust': 'pickle'} in evaluator_config")
        raise ValueError(f"baseline: {reason}".replace(
            "--trust code", "{'trust': 'code'} in evaluator_config")) from error


def _candidate(evaluated: Evaluated) -> ComparedModel:
    if evaluated.model is not None:
        return _loaded(evaluated.model, "the model", evaluated.column)
    name, predictions = "the predictions", np.asarray(evaluated.dataset.predictions_data)
    return ComparedModel(name, name, predictions=Predictions(
        name, predictions, None, ExampleIds(name, {})))


def _loaded(model: PyFuncModel, name: str, column: str | None = None) -> ComparedModel:
    """A model that the caller had MLflow load: whether it is to be trusted was theirs to decide."""
    module = _module_of(model)
    if module is None:
        return ComparedModel(name, name, foreign=AnswersOf(name, model, column))
    return ComparedModel(name, name, exported=module, raw=_takes_raw_rows(model))


def _module_of(model: PyFuncModel | None) -> nn.Module | None:
    """The PyTorch module behind a model, if it is one."""
    try:
        module: Any = model and model.get_raw_model()  # type: ignore[no-untyped-call]
    except (NotImplementedError, AttributeError):
        return None
    if not isinstance(module, nn.Module):
        return None
    check_batch(module, "the model")
    take_by_place(module)
    return module


def _takes_raw_rows(model: PyFuncModel) -> bool:
    return bool((model.metadata.metadata or {}).get(Tag.TAKES_RAW_ROWS))


def _signature_of(baseline: object) -> Any:
    return baseline.metadata.signature if isinstance(baseline, mlflow.pyfunc.PyFuncModel) else \
        model_info(str(baseline)).signature


# The data


def _test_data(evaluated: Evaluated, *, networks: bool) -> EvaluationSet:
    """The evaluation data as both models are tested on them.

    Args:
        evaluated: with the data.
        networks: whether tensors are made of the features, which must be numbers then.
    """
    labels, rows = evaluated.dataset.labels_data, evaluated.rows
    read = rows_of(np.asarray(rows), labels, where=WHERE) if networks else \
        rows_without_inputs(labels, where=WHERE)
    return replace(file_evaluation_set(read, WHERE, evaluated.task, None), rows=rows)


def _as_network(test: EvaluationSet, signature: Any, name: str) -> EvaluationSet:
    """With the inputs in the form of a network's signature."""
    assert test.rows is not None and isinstance(test.part, Part), "made so"
    inputs = np.array(rows_like(signature, test.rows, name))
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(np.float32)
    return replace(test, part=Part(torch.from_numpy(inputs), test.part.targets))
