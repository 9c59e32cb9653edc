"""Training a variant and logging it as one MLflow run; and what the run of any step needs.

A step makes at most ten tracking calls, plus one per thousand metrics.
Tests: ``tests/pipeline/test_workflow.py``, ``tests/pipeline/test_workflow_steps.py``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mlflow.entities import DatasetInput
from torch import Tensor, nn

from wua_mlflow import __version__
from wua_mlflow.config import Settings, TableSettings, settings_yaml
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.parts import DataPart, Part
from wua_mlflow.data.scaling import WithInputScaling, raw_rows
from wua_mlflow.data.tasks import Task, has_classes, judged_as
from wua_mlflow.flops import CONVENTION, count_flops, count_parameters, ptflops_forward_flops
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pipeline.networks import NetworkFactory
from wua_mlflow.pipeline.predict import encoding_json, named_columns
from wua_mlflow.pipeline.recipe import Recipe
from wua_mlflow.pipeline.replicates import Replicate, Trained, train_replicates
from wua_mlflow.pipeline.trainer_runs import trainer_logs_to
from wua_mlflow.pipeline.variant import ModelVariant, replicates_table, variant_files
from wua_mlflow.plots.style import variant_colour
from wua_mlflow.progress import keep, stage
from wua_mlflow.signals import allow_signals, defer_signals
from wua_mlflow.tracking.log import Dataset, Files, dataset_inputs, flop_metrics, write
from wua_mlflow.tracking.models import EXAMPLES, NotExportable, log_model
from wua_mlflow.tracking.names import (
    ArtifactPath,
    Kind,
    Metric,
    Tag,
    logged_model_name,
    step_tag,
)
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.runs import is_slim
from wua_mlflow.tracking.store import (
    Store,
    ended,
    inherited_run,
    new_run,
    system_metrics,
    tags_with_passwords,
)
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.scores import default_score
from wua_mlflow.widths.results import widths_name

__all__ = [
    "TrainingPlan", "add_to_run", "datasets_of", "measured_on", "replicate_metrics", "run_scope",
    "scores_by_seed", "step_status", "train_variant", "variant_tags", "write_params",
]


_PARAMS = ("data", "target", "table", "model", "train", "hidden", "epochs", "criterion",
           "optimizer", "batch_size", "lr", "patience", "score", "seed", "seeds", "device",
           "threads")
"""The settings that made a network: the params of its run."""
_OF_BUILT_IN_TRAINER = ("optimizer", "batch_size", "lr", "patience")
"""Those that the user's own trainer knows nothing of."""
_MODEL_TYPES = {"binary": "classifier", "multiclass": "classifier", "regression": "regressor"}
"""By task what MLflow's evaluation calls a model of it; it knows none of the others."""
_WITH_THE_MODEL = (ArtifactPath.STATE, ArtifactPath.STRUCTURE, ArtifactPath.SCALING,
                   ArtifactPath.ENCODING, ArtifactPath.CONFIG)
_TRAINING_COSTS = (Metric.FLOPS_TRAINING, Metric.FLOPS_PTFLOPS_TRAINING, Metric.TRAINING_SECONDS)


@dataclass(frozen=True)
class TrainingPlan:
    """One variant to train: which one it is, how wide, for how long, and from what.

    Attributes:
        variant: the value of its tag.
        widths: what the run shows: the factory's, or how many units stay of each group.
        epochs: in all, with those of the network that it was cut from.
        make: trains the networks.
        parent: the network that it was cut from, if any.
        hidden: the widths that the factory is given, where they are not ``widths``.
        adopted: where its weights came from, if it was trained elsewhere.
        replicates: at most so many.
        known: replicates that were trained before, by number; all of them are the variant's.
        affords: told how many seconds the first network took, whether replicates are trained too.
        baseline: run of the original.
        pipeline: run of the pipeline.
        origin: a comment for ``config.yaml``: what else it takes to make this variant again.
        controls: runs of the networks that were trained to compare with.
    """

    variant: str
    widths: tuple[int, ...]
    epochs: int
    make: NetworkFactory
    parent: ModelVariant | None = None
    hidden: tuple[int, ...] | None = None
    adopted: str = ""
    replicates: int | None = None
    known: Mapping[int, Replicate] = field(default_factory=dict, repr=False)
    affords: Callable[[float], bool] | None = None
    baseline: str | None = None
    pipeline: str | None = None
    origin: str = ""
    controls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name, short enough for MLflow's list: ``slim 7``, ``oversized, 60 epochs``."""
        if self.variant == VariantName.SAME_BUDGET:
            return f"oversized{' +' if self.parent else ','} {self.epochs} epochs"
        return f"{self.variant} {widths_name(self.widths)}"


@contextlib.contextmanager
def run_scope(
    store: Store, name: str, tags: Mapping[str, str], *, parent: str | None = None,
    inherit: bool = True,
) -> Iterator[str]:
    """A run for the block: a new one, or the one that ``mlflow run`` made for this process.

    It ends as FINISHED, FAILED or KILLED, whenever a signal comes.

    Args:
        store: where the run is.
        name: of a new run.
        tags: are set on either.
        parent: the run that a new one is nested under.
        inherit: whether the run of ``mlflow run`` may be taken.
    """
    inherited = inherited_run() if inherit else None
    with defer_signals(), \
            ended(store, inherited or new_run(store, name, tags, parent=parent)) as run_id, \
            allow_signals():
        if inherited:
            write(store.client, run_id, tags={**tags_with_passwords(store, run_id), **tags})
        yield run_id


@contextlib.contextmanager
def step_status(store: Store, run_id: str, step: str, *, begin: bool = False) -> Iterator[None]:
    """Tag a step of a run as failed where the block raises; its results bring the tag ``done``.

    Args:
        store: where the run is.
        run_id: the run.
        step: its name.
        begin: whether to tag it as running first; a new run has that tag already.
    """
    if begin:
        store.client.set_tag(run_id, step_tag(step), "running")
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the store's own failure must not hide the error
            store.client.set_tag(run_id, step_tag(step), "failed")
        raise


def train_variant(store: Store, recipe: Recipe, plan: TrainingPlan) -> ModelVariant:
    """Train a variant and its replicates, count what it costs, and log all of it as one run.

    The run that ``mlflow run -e train`` made is the variant's; else one is made.
    """
    hidden = plan.widths if plan.hidden is None else plan.hidden
    settings = recipe.settings.model_copy(
        update={"hidden": hidden, "epochs": plan.epochs, "run_id": None})
    variant_recipe = replace(recipe, settings=settings)
    tags = _tags(recipe, plan)
    inherit = plan.variant == VariantName.OVERSIZED and plan.pipeline is None
    with run_scope(store, plan.name, tags, parent=plan.pipeline, inherit=inherit) as run_id, \
            step_status(store, run_id, "train"), system_metrics(store, run_id), \
            stage(f"{'taking' if plan.adopted else 'training'} {plan.name}"):
        if recipe.trainer is None:
            write_params(store, run_id, settings, _PARAMS)
        with trainer_logs_to(store, own=run_id):
            trained = plan.make(0, settings.seed, f"training {plan.name}")
        if recipe.trainer is not None:  # of a name that the trainer has logged the value is its own
            own = set(store.client.get_run(run_id).data.params)
            write_params(store, run_id, settings, (
                name for name in _PARAMS if name not in own
                and (name not in _OF_BUILT_IN_TRAINER or name in settings.given)))
        test = recipe.evaluate(trained.model, recipe.split.test, trained.kind)
        count = min(settings.first_seeds, plan.replicates or settings.first_seeds)
        if count > 1 and plan.affords is not None and not plan.affords(trained.seconds):
            count = 1
        count = max(count, len(plan.known))
        with trainer_logs_to(store, parent=run_id):
            replicates = train_replicates(recipe, plan.make, (trained, test), count=count,
                                          known=plan.known, label=f"replicates of {plan.name}",
                                          stoppable=is_slim(plan.variant))
        metrics = {**_score_metrics(recipe, trained, test, replicates),
                   **_cost_metrics(recipe, trained, plan)}
        scaling = recipe.split.scaling
        files = {
            **({ArtifactPath.SCALING: scaling.to_json(recipe.split.classes)} if scaling else {}),
            ArtifactPath.ENCODING: encoding_json(recipe.split, trained.kind, settings.target),
            ArtifactPath.CONFIG: plan.origin + settings_yaml(settings),
            ArtifactPath.REPLICATES: replicates_table(replicates),
            **variant_files(trained, test, replicates)}
        model_id, sizes, unexported = _logged_model(
            store, run_id, variant_recipe, trained, plan, files)
        metrics |= sizes
        inputs = datasets_of(recipe.split, "train", "validation", "test")
        store.client.log_inputs(run_id, datasets=inputs)
        results = {**_result_tags(trained, plan), **unexported}
        curves = {Metric.LOSS_TRAIN: [record.train_loss for record in trained.records],
                  Metric.LOSS_VALIDATION: [
                      record.validation_loss for record in trained.records
                      if record.validation_loss is not None],
                  Metric.SCORE_TEST_BY_SEED: scores_by_seed(replicates)}
        write(store.client, run_id, metrics=metrics, curves=curves, model_id=model_id,
              datasets=measured_on(metrics, inputs), tags=results, files=files)
    onwards = f"; wua slim --run-id {run_id} goes on" \
        if plan.variant == VariantName.OVERSIZED else ""
    keep(f"{plan.name}: run {run_id}{onwards}")
    return ModelVariant(run_id, store.experiment_id, plan.name, plan.variant, variant_recipe,
                        trained, test, replicates, {**tags, **results}, metrics, plan.make,
                        interrupted=len(replicates) < count, model_id=model_id or "")


def _result_tags(trained: Trained, plan: TrainingPlan) -> dict[str, str]:
    """Tags that are known after training."""
    tags = {step_tag("train"): "done"}
    if not plan.adopted:
        tags[Tag.EPOCHS_TRAINED] = str(_epochs_trained(trained, plan))
    if trained.structure is not None:
        tags[Tag.STRUCTURE] = trained.structure.summary
        tags[Tag.FOLDED] = str(trained.folded).lower() + (", chosen" if trained.tries > 1 else "")
    return tags


def _epochs_trained(trained: Trained, plan: TrainingPlan) -> int:
    """In all: fewer than planned where training stopped early."""
    if not trained.records:
        return plan.epochs
    return len(trained.records) + (plan.parent.epochs_trained if plan.parent else 0)


def write_params(store: Store, run_id: str, settings: Settings, fields: Iterable[str]) -> None:
    """Log settings as params of a run, but for those that ``mlflow run`` has logged already."""
    present = store.client.get_run(run_id).data.params if run_id == inherited_run() else {}
    write(store.client, run_id, params=_as_text(
        settings, (name for name in fields if name not in present)))


def _logged_model(
    store: Store, run_id: str, recipe: Recipe, trained: Trained, plan: TrainingPlan, files: Files
) -> tuple[str | None, dict[str, float], dict[str, str]]:
    """The LoggedModel's id, its size as metrics, and a tag where torch.export refuses it."""
    model, scaling = trained.model, recipe.split.scaling
    inputs: Any = _one_tensor(model, recipe.example(model, EXAMPLES))
    metadata = {Tag.TAKES_RAW_ROWS: "true"} if scaling else {}
    if scaling:
        model = WithInputScaling(unwrapped(model), scaling)
        inputs = raw_rows(inputs.cpu(), scaling)
    try:
        model_id, size = log_model(
            store.client, run_id, store.experiment_id, model, inputs, metadata=metadata,
            name=logged_model_name(plan.variant, plan.widths),
            model_type=_MODEL_TYPES.get(recipe.split.task),
            params=_as_text(recipe.settings, _PARAMS), tags={Tag.VARIANT: plan.variant},
            columns=named_columns(recipe.split),
            files={path: files[path] for path in _WITH_THE_MODEL if path in files})
    except NotExportable as error:
        size = sum(tensor.nbytes for tensor in unwrapped(trained.model).state_dict().values())
        return None, {Metric.SIZE_BYTES: size}, {Tag.UNEXPORTED: str(error)}
    return model_id, {Metric.SIZE_BYTES: size}, {}


def _one_tensor(model: nn.Module, inputs: Any) -> Any:
    """The only argument of a batch that is a dict, where it is the first of the forward too."""
    if isinstance(inputs, dict) and len(inputs) == 1:
        (name, value), = inputs.items()
        first = next(iter(inspect.signature(unwrapped(model).forward).parameters.values()), None)
        if first is not None and first.name == name and isinstance(value, Tensor) and \
                first.kind is first.POSITIONAL_OR_KEYWORD:
            return value
    return inputs


def _tags(recipe: Recipe, plan: TrainingPlan) -> dict[str, str]:
    """Tags that are known before training."""
    tags = {
        **variant_tags(plan.variant, plan.name, "train"),
        Tag.TASK: recipe.split.task,
        Tag.SCORE: recipe.settings.score or default_score(judged_as(recipe.split.task)),
        Tag.WIDTHS: ",".join(str(width) for width in plan.widths),
        Tag.TEST_DIGEST: recipe.split.test.digest,
        "mlflow.runType": "evaluation",  # the UI shows parents of such runs expanded
    }
    links = {Tag.PIPELINE: plan.pipeline, Tag.BASELINE: plan.baseline,
             Tag.CONTROLS: ",".join(plan.controls), Tag.ADOPTED: plan.adopted}
    return {**tags, **{name: value for name, value in links.items() if value}}


def variant_tags(variant: str, name: str, step: str) -> dict[str, str]:
    """Tags of every variant's run, which begins with ``step``."""
    return {
        Tag.KIND: Kind.VARIANT, Tag.VARIANT: variant, Tag.VERSION: __version__,
        Tag.FLOP_CONVENTION: CONVENTION, step_tag(step): "running", "mlflow.runName": name,
        "mlflow.runColor": variant_colour(variant)}


def _as_text(settings: Settings, fields: Iterable[str]) -> dict[str, str]:
    """Settings as params; those that are unset are left out."""
    values = {name: getattr(settings, name) for name in fields}
    texts = {name: ",".join(map(str, value)) if isinstance(value, tuple) else
             value.text if isinstance(value, TableSettings) else str(value)
             for name, value in values.items() if value is not None}
    return {name: text for name, text in texts.items() if text}


def _score_metrics(
    recipe: Recipe, trained: Trained, test: Evaluation, replicates: Sequence[Replicate]
) -> dict[str, float]:
    split = recipe.split
    results = {name: recipe.evaluate(trained.model, part, trained.kind)
               for name, part in (("validation", split.validation), ("train", split.train))}
    results = {"test": test, **results}  # MLflow's page of two runs shows them in this order
    metrics = {f"score/{part}": result.score for part, result in results.items()}
    metrics[Metric.LOSS_TEST] = test.loss
    if has_classes(split.task):
        metrics |= {f"accuracy/{part}": result.accuracy for part, result in results.items()}
    return metrics | replicate_metrics(replicates, split.task)


def replicate_metrics(replicates: Sequence[Replicate], task: Task) -> dict[str, float]:
    """Mean and standard deviation (ddof 1) over several replicates of the accuracy, or of the
    score that was set."""
    if len(replicates) < 2:
        return {}
    scores, name = [replicate.score for replicate in replicates], replicates[0].score_name
    of_score = name not in ("", "accuracy", "r2")
    if not has_classes(task) and not of_score:
        return {}
    names = (Metric.SCORE_TEST_MEAN, Metric.SCORE_TEST_STD) if of_score else \
        (Metric.ACCURACY_TEST_MEAN, Metric.ACCURACY_TEST_STD)
    return {names[0]: float(np.mean(scores)), names[1]: float(np.std(scores, ddof=1))}


def scores_by_seed(replicates: Sequence[Replicate]) -> list[float]:
    """The score of each of several replicates, the run's own model first: points of a metric.

    None where one is not finite, which MLflow would store as another number.
    """
    scores = [float(replicate.score) for replicate in replicates]
    return scores if len(scores) > 1 and all(map(math.isfinite, scores)) else []


def _cost_metrics(recipe: Recipe, trained: Trained, plan: TrainingPlan) -> dict[str, float]:
    """FLOPs, seconds and parameters.

    The cost of training includes that of the network that it was cut from, and of each try.
    """
    split, parent = recipe.split, plan.parent
    epochs = _epochs_trained(trained, plan) - (parent.epochs_trained if parent else 0)
    epochs *= trained.tries
    metrics = flop_metrics(count_flops(trained.model, recipe.example(trained.model, 2)),
                           train_samples=len(split.train), epochs=epochs)
    tutorial = ptflops_forward_flops(trained.model, split.features) \
        if isinstance(split.train, Part) and split.train.inputs.is_floating_point() \
        else None  # ptflops knows no others
    if tutorial is not None:
        metrics[Metric.FLOPS_PTFLOPS_INFERENCE] = tutorial * len(split.train)
        metrics[Metric.FLOPS_PTFLOPS_TRAINING] = 2 * tutorial * len(split.train) * epochs
    metrics[Metric.TRAINING_SECONDS] = trained.seconds
    if parent:
        metrics |= {name: metrics[name] + parent.metrics.get(name, 0.0)
                    for name in _TRAINING_COSTS if name in metrics}
    if plan.adopted:
        metrics = {name: value for name, value in metrics.items() if name not in _TRAINING_COSTS}
    metrics[Metric.PARAMS_TOTAL] = count_parameters(trained.model)
    return metrics


_MEASURED_ON = {
    **dict.fromkeys((
        Metric.FLOPS_INFERENCE, Metric.FLOPS_TRAINING, Metric.FLOPS_PTFLOPS_INFERENCE,
        Metric.FLOPS_PTFLOPS_TRAINING, Metric.PARAMS_ANALYZED, Metric.LATENCY_P50,
        Metric.LATENCY_P95, Metric.LATENCY_THROUGHPUT, Metric.LATENCY_RATIO,
        Metric.LATENCY_RATIO_LOW, Metric.LATENCY_RATIO_HIGH), "train"),
    **dict.fromkeys((
        Metric.ARTIFACT_DELTA, Metric.ARTIFACT_LOW, Metric.ARTIFACT_HIGH, Metric.RECIPE_DELTA,
        Metric.RECIPE_LOW, Metric.RECIPE_HIGH, Metric.CHURN, Metric.WORST_CLASS_DELTA,
        Metric.LOOKS), "test"),
}
"""By metric the part of the data that it is of, where its name does not end in one."""


def measured_on(names: Iterable[str], inputs: Sequence[DatasetInput]) -> dict[str, Dataset]:
    """By metric the part of the data that it was measured on, where it was on one."""
    parts = {tag.value: each.dataset for each in inputs for tag in each.tags}
    named = {name: "train" if name.startswith(("usage/", "layers/")) else _MEASURED_ON.get(
                 name, name.rpartition("/")[2].removesuffix("_mean").removesuffix("_std"))
             for name in names}
    return {name: parts[part] for name, part in named.items() if part in parts}


def add_to_run(  # noqa: PLR0913 - what a run can hold, each by name
    store: Store, variant: ModelVariant, metrics: Mapping[str, float], *,
    tags: Mapping[str, str] | None = None, files: Files | None = None, step: int = 0,
    model_id: str | None = None,
) -> None:
    """Log more of a variant that was trained; its LoggedModel gets the metrics with their data.

    Args:
        store: where its run is.
        variant: with its network.
        metrics: each at ``step``.
        tags: as ``write`` takes them.
        files: likewise.
        step: of the metrics.
        model_id: another LoggedModel that the metrics are of, instead of the variant's own.
    """
    model_id = model_id or variant.model_id or None
    inputs = datasets_of(variant.recipe.split, "train", "test") if model_id else []
    write(store.client, variant.run_id, metrics=metrics, tags=tags, files=files, step=step,
          model_id=model_id, datasets=measured_on(metrics, inputs))


def datasets_of(split: DataSplit, *contexts: str) -> list[DatasetInput]:
    """The parts of the data (``train``, ``validation``, ``test``) as inputs of a run."""
    parts: list[tuple[str, DataPart]] = [
        (context, getattr(split, context)) for context in contexts]
    return dataset_inputs(split.name, split.source, [
        (context, *_shown_arrays(part), digest) for context, part in parts
        if (digest := _known_digest(part))])


def _shown_arrays(part: DataPart) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets for MLflow's schema; of a streamed part empty ones."""
    if isinstance(part, Part):
        return part.inputs.numpy(), part.targets.numpy()
    return np.empty((0, 1), np.float32), np.empty(0, np.float32)


def _known_digest(part: DataPart) -> str:
    """A streamed training part has none: nobody goes over it for that."""
    return part.digest or "streamed"

