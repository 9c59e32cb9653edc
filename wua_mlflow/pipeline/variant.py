"""A variant: one trained network with its replicates, in memory and as its run holds it.

Tests: ``tests/pipeline/test_workflow.py``, ``tests/pipeline/test_workflow_steps.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from torch import nn

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.tasks import OutputKind, judged_as
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pipeline.networks import NetworkFactory, cached, from_scratch, one_network
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import Replicate, Trained
from wua_mlflow.pipeline.trust import Trust
from wua_mlflow.pruning.cut import Specification, rebuild
from wua_mlflow.results import VariantResult
from wua_mlflow.rng import Stream, isolated
from wua_mlflow.tracking.artifacts import download
from wua_mlflow.tracking.log import Files
from wua_mlflow.tracking.models import read_tensors, write_tensors
from wua_mlflow.tracking.names import ArtifactPath, Kind, Tag, step_tag
from wua_mlflow.tracking.runs import find_run
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.scores import BY_EXAMPLE, default_score, find_score

__all__ = ["MACHINE", "ModelVariant", "load_variant", "replicates_table", "variant_files"]


UNIT_ATTRIBUTES = ("out_features", "out_channels", "hidden_size", "embedding_dim")
"""The attributes of a module that say how many units it has."""
MACHINE = ("device", "threads")
"""The settings that are of the machine, not of how a variant was made."""
LONGEST_BEGINNING = 31
"""So many characters are a shortened run id; a whole one has 32."""


@dataclass(frozen=True)
class ModelVariant:
    """A trained network, where it came from, and how it does on the test part.

    ``recipe.settings`` are the variant's own: ``hidden`` what its factory is given, ``epochs`` its
    budget. ``make`` trains the networks of its replicates. ``interrupted``: by Ctrl-C, before there
    were as many of them as were asked for. ``model_id``: of its LoggedModel, '' where it has none.
    """

    run_id: str
    experiment_id: str
    name: str
    variant: str
    recipe: Recipe
    trained: Trained
    test: Evaluation
    replicates: Sequence[Replicate]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    make: NetworkFactory
    interrupted: bool = False
    model_id: str = ""

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.trained.model

    @property
    def kind(self) -> OutputKind:
        """What its outputs are."""
        return self.trained.kind

    @property
    def settings(self) -> Settings:
        """The variant's own settings."""
        return self.recipe.settings

    @property
    def widths(self) -> tuple[int, ...]:
        """The variant's hidden widths; of a network that was cut, the units left by group."""
        return tuple(map(int, self.tags[Tag.WIDTHS].split(",")))

    @property
    def adopted(self) -> bool:
        """Whether it was trained elsewhere; nothing is known of that training."""
        return Tag.ADOPTED in self.tags

    @property
    def epochs_trained(self) -> int:
        """Epochs really trained: fewer than the budget where training stopped early.

        0 of a network that was trained elsewhere.
        """
        if self.adopted:
            return 0
        return int(self.tags.get(Tag.EPOCHS_TRAINED, self.settings.epochs))

    def result(self) -> VariantResult:
        """The variant as plain data, as it stands now."""
        structure = self.trained.structure
        return VariantResult(
            run_id=self.run_id, experiment_id=self.experiment_id, name=self.name,
            kind=self.variant, settings=self.settings, tags=dict(self.tags),
            metrics=dict(self.metrics),
            scores=tuple(replicate.score for replicate in self.replicates),
            training_examples=len(self.recipe.split.train),
            device=str(self.recipe.device), threads=torch.get_num_threads(),
            layer_units=_layer_units(self.model), uncut=dict(self.trained.uncut),
            units_left=structure.left if structure else {}, model_id=self.model_id)

    def with_settings(self, settings: Settings) -> ModelVariant:
        """The variant with other settings for what is measured, not for how it was made."""
        return replace(self, recipe=replace(self.recipe, settings=settings))

    def logged(self, tags: Mapping[str, str], metrics: Mapping[str, float]) -> ModelVariant:
        """The variant with what was added to its run."""
        return replace(self, tags={**self.tags, **tags}, metrics={**self.metrics, **metrics})

    @property
    def replicate_scores(self) -> np.ndarray:
        """Scores by replicate and test example, shape (replicates, examples)."""
        return np.stack([replicate.scores for replicate in self.replicates])


def _layer_units(model: nn.Module) -> dict[str, int]:
    """Units by layer, as the attributes of the modules say."""
    units: dict[str, int] = {}
    for name, module in unwrapped(model).named_modules():
        sizes = (getattr(module, attribute, None) for attribute in UNIT_ATTRIBUTES)
        size = next((size for size in sizes if isinstance(size, int)), None)
        if size is not None and getattr(module, "weight", True) is not None:
            units[name] = size
    return units


def variant_files(trained: Trained, test: Evaluation, replicates: Sequence[Replicate]) -> Files:
    """The files from which ``load_variant`` makes the variant again."""
    scores = np.stack([replicate.scores for replicate in replicates])
    groups = {} if test.groups is None else {"groups": torch.from_numpy(test.groups)}
    results = {
        **groups,
        "predictions": torch.from_numpy(test.predictions.astype(np.float64)),
        "targets": torch.from_numpy(test.targets.astype(np.float64)),
        "losses": torch.from_numpy(test.losses),
        "replicate_scores": torch.from_numpy(_compact(scores)),
        "replicate_seeds": torch.tensor([replicate.seed for replicate in replicates]),
        "replicate_losses": torch.tensor([r.loss for r in replicates], dtype=torch.float64),
    }
    validated = [replicate.validation_scores for replicate in replicates]
    if len({scores.shape for scores in validated}) == 1:
        results["replicate_validation_scores"] = torch.from_numpy(_compact(np.stack(validated)))
    predictions = [replicate.predictions for replicate in replicates]
    if all(each is not None for each in predictions):
        results["replicate_predictions"] = torch.from_numpy(_small(np.stack(
            [each for each in predictions if each is not None])))
    streams = {f"{number}/{device}": state for number, replicate in enumerate(replicates)
               for device, state in replicate.stream.items()}

    def state(path: Path) -> None:
        write_tensors(unwrapped(trained.model).state_dict(), path)

    files: Files = {
        ArtifactPath.STATE: state,
        ArtifactPath.RNG_STATE: lambda path: write_tensors(streams, path),
        ArtifactPath.PREDICTIONS: lambda path: write_tensors(results, path),
    }
    structure = trained.structure
    return {**files, ArtifactPath.STRUCTURE: structure.to_json()} if structure else files


def _compact(scores: np.ndarray) -> np.ndarray:
    right_or_wrong = bool(np.isin(scores, (0.0, 1.0)).all())
    return scores.astype(np.uint8 if right_or_wrong else np.float64)


def _small(predictions: np.ndarray) -> np.ndarray:
    """Classes as whole numbers of one byte where they fit, anything else in float32."""
    if predictions.dtype.kind in "iu":
        few = predictions.size and predictions.min() >= 0 and predictions.max() < 256
        return predictions.astype(np.uint8 if few else np.int32)
    return predictions.astype(np.float32)


def load_variant(
    store: Store, run_id: str, machine: Mapping[str, Any] | None = None,
    trust: Trust | None = None,
) -> ModelVariant:
    """Rebuild a variant from its run: config, state, predictions, random streams.

    Args:
        store: where the run is.
        run_id: the run, or the beginning of its id.
        machine: settings that this machine needs other than the run's (``device``, ``threads``).
        trust: which code of the run's may be imported; what was named before, if None.

    Raises:
        ValueError: the run names code that may not run; no such run, not a variant that is
            trained, its data have changed since, or the factory builds another network now.
    """
    run = _run(store, run_id)
    run_id, tags = run.info.run_id, dict(run.data.tags)
    paths = [ArtifactPath.CONFIG, ArtifactPath.STATE, ArtifactPath.RNG_STATE,
             ArtifactPath.PREDICTIONS]
    if Tag.STRUCTURE in tags:
        paths.append(ArtifactPath.STRUCTURE)
    with tempfile.TemporaryDirectory() as folder:
        files = {path: download(store.client, run, path, folder) for path in paths}
        settings = load_settings(str(files[ArtifactPath.CONFIG]), machine)
        (trust or Trust()).check_code(settings, run_id)  # before anything of it is used
        test, replicates = _read_results(files, tags, settings.score or "")
        weights = read_tensors(files[ArtifactPath.STATE])
        structure = Specification.from_json(
            files[ArtifactPath.STRUCTURE].read_text(encoding="utf-8")
        ) if Tag.STRUCTURE in tags else None
    recipe = load_recipe(settings)
    if recipe.split.test.digest != test.digest:
        raise ValueError(f"data: {settings.data} has changed since run {run_id} was made: the "
                         f"test part's digest differs")
    with isolated():
        model = recipe.build(settings.hidden)
        if structure is not None:
            model = rebuild(model, recipe.example(model), structure)
        model = model.to(recipe.device)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"model: {settings.model} builds another network now than when run "
                         f"{run_id} was made: {' '.join(str(error).split())}") from error
    trained = Trained(model.eval(), recipe.kind_of(model), (), replicates[0].stream,
                      structure=structure)
    make = one_network(trained, recipe.device) if Tag.ADOPTED in tags else cached(
        from_scratch(recipe, settings.hidden, settings.epochs), first=trained)
    return ModelVariant(run_id, run.info.experiment_id, run.info.run_name, tags[Tag.VARIANT],
                        recipe, trained, test, replicates, tags, dict(run.data.metrics), make,
                        model_id=run.outputs.model_outputs[-1].model_id
                        if run.outputs and run.outputs.model_outputs else "")


def _read_results(
    files: Mapping[str, Path], tags: Mapping[str, str], score: str
) -> tuple[Evaluation, list[Replicate]]:
    """The evaluation and the replicates that a variant's run keeps, without its network."""
    results = {name: tensor.numpy()
               for name, tensor in read_tensors(files[ArtifactPath.PREDICTIONS]).items()}
    streams: dict[int, Stream] = {}
    for key, state in read_tensors(files[ArtifactPath.RNG_STATE]).items():
        number, device = key.split("/")
        streams.setdefault(int(number), {})[device] = state
    scores = results["replicate_scores"].astype(np.float64)
    predictions = _wide(results.get("replicate_predictions"))
    probabilities = None if predictions is None or not score or ":" in score \
        or find_score(score).takes != "probabilities" else predictions[0]
    task: Any = judged_as(tags[Tag.TASK])  # type: ignore[arg-type]
    score = score or (default_score(task) if task in BY_EXAMPLE else "")
    test = Evaluation(task, predictions=results["predictions"], targets=results["targets"],
                      losses=results["losses"], digest=tags[Tag.TEST_DIGEST], score_name=score,
                      probabilities=probabilities, groups=results.get("groups"))
    validated = results.get("replicate_validation_scores", np.empty((len(scores), 0)))
    columns = (results["replicate_seeds"], scores, results["replicate_losses"],
               validated.astype(np.float64))
    return test, [
        Replicate(int(seed), row, float(loss), streams[number], validation_row, score_name=score,
                  predictions=None if predictions is None else predictions[number])
        for number, (seed, row, loss, validation_row) in enumerate(zip(*columns, strict=True))]


def _wide(predictions: np.ndarray | None) -> np.ndarray | None:
    """As they were before ``_small``; rows of probabilities have the sum 1 again."""
    if predictions is None or predictions.dtype.kind in "iu":
        return None if predictions is None else predictions.astype(np.int64)
    wide = predictions.astype(np.float64)
    return wide / wide.sum(axis=2, keepdims=True) if wide.ndim > 2 else wide


def _run(store: Store, run_id: str) -> Run:
    """The run of a variant that is trained."""
    try:
        shortened = len(run_id) <= LONGEST_BEGINNING
        run = find_run(run_id) if shortened else store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ValueError(f"run_id: no run has the id '{run_id}' in this store; `wua runs` lists "
                         f"them") from None
    except ValueError as error:
        raise ValueError(f"run_id: {str(error).removeprefix('run: ')}") from None
    tags = run.data.tags
    kind = tags.get(Tag.KIND)
    if kind != Kind.VARIANT:
        got = f"is a {kind}'s" if kind else "was not made by wua"
        raise ValueError(f"run_id: expected a variant's run, but {run.info.run_id} "
                         f"({run.info.run_name}) {got}; `wua runs` lists the variants")
    trained = tags.get(step_tag("train"))
    if trained is None:
        raise ValueError(f"run_id: expected a variant that was trained here, but "
                         f"{run.info.run_id} ({run.info.run_name}) was only analysed; name the "
                         f"model again: wua analyze --model ...")
    if trained != "done":
        raise ValueError(f"run_id: expected a trained variant, but the training of "
                         f"{run.info.run_id} ({run.info.run_name}) is {trained}")
    return run


def replicates_table(replicates: Sequence[Replicate]) -> str:
    """``replicates.json``: a row a replicate, in columns (MLflow shows it as a table)."""
    rows = [[number, replicate.seed, replicate.score, replicate.loss]
            for number, replicate in enumerate(replicates)]
    return json.dumps({"columns": ["replicate", "seed", "score/test", "loss/test"],
                       "data": rows}, indent=1)
