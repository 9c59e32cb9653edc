"""``wua compare A B``: any two models on the same test data; nothing is trained or logged.

A and B are each a run, a logged model of any flavour or a file of predictions (``ComparedModel``).
Both get the test data in the form that they take, are evaluated, and are judged by the paired
verdict.
Tests: ``tests/pipeline/test_compare_external.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.data import datasets
from wua_mlflow.data.batches import Inputs, leaves
from wua_mlflow.data.parts import Part
from wua_mlflow.data.scaling import Scaling, WithoutInputScaling
from wua_mlflow.data.tables import ENDINGS, Table, input_frame, read_columns, read_rows
from wua_mlflow.data.tasks import checked_output, has_classes, judged_as, output_kind
from wua_mlflow.device import device_of, use_threads
from wua_mlflow.errors import printable
from wua_mlflow.flops import count_flops, count_parameters
from wua_mlflow.hooks import evaluating, take_by_place
from wua_mlflow.imports import local_path
from wua_mlflow.pipeline.compare import check_classes, judge
from wua_mlflow.pipeline.evaluation_sets import (
    EvaluationSet,
    Predictions,
    file_evaluation_set,
    named_evaluation_set,
    own_evaluation_set,
    read_predictions,
)
from wua_mlflow.pipeline.example_ids import (
    ExampleIds,
    column_words,
    example_ids,
    matching_rows,
    named_alike,
)
from wua_mlflow.pipeline.models import naming
from wua_mlflow.pipeline.pyfunc_models import (
    AnswersOf,
    TimedAnswers,
    flavour_of,
    load_pyfunc,
    model_info,
)
from wua_mlflow.pipeline.trust import Ask, Trust
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.pruning.layers import call_model
from wua_mlflow.report.content import Report
from wua_mlflow.results import Comparison, ratios
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Kind, Metric, Tag
from wua_mlflow.tracking.runs import count_looks, look_of, record_pair
from wua_mlflow.tracking.store import Store, shown_uri, sqlite_file
from wua_mlflow.training.evaluation import Evaluation, Objective, evaluate_batches
from wua_mlflow.training.latency import latency_ratio, measure_latency
from wua_mlflow.verdict.scores import check_task, find_score

__all__ = ["ComparedModel", "ExternalComparison", "by_outputs", "compare_external",
           "compare_models", "open_model", "source_run"]


LATENCY_BATCH = 64
RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class ExternalComparison:
    """What comparing two models from anywhere found.

    Attributes:
        comparison: the verdict, and what the slim one saves.
        report: the same with both models' figures.
        caution: why a latency, or the order of the rows, is not to be trusted, if so.
    """

    comparison: Comparison
    report: Report
    caution: str


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A or B: a variant's run, a model as it was exported (perhaps by such a run), one of another
    flavour than PyTorch's, or predictions.

    ``raw`` says that the exported model takes rows as they were read, ``kept`` that a run answers
    with the predictions that it keeps; ``experiment_id`` is that of the run or the logged model.
    """

    reference: str
    name: str
    predictions: Predictions | None = None
    variant: ModelVariant | None = None
    exported: nn.Module | None = None
    foreign: AnswersOf | None = None
    raw: bool = False
    kept: bool = False
    experiment_id: str | None = None

    @property
    def is_network(self) -> bool:
        """Whether it takes tensors."""
        return self.predictions is None and self.foreign is None

    @property
    def split(self) -> datasets.DataSplit | None:
        """The data of its run."""
        return self.variant.recipe.split if self.variant else None

    def module(self, scaling: Scaling | None) -> nn.Module | None:
        """What is tested, for rows that were standardised by ``scaling``; None of predictions."""
        if self.exported is None:
            return self.variant.model if self.variant else None
        if not self.raw:
            return self.exported
        return WithoutInputScaling(self.exported, scaling).to(_device(self.exported))

    def naming(self, inputs: Inputs) -> contextlib.AbstractContextManager[None]:
        """Any error of the model as one that names it, with the shape of what it was given."""
        first, *_ = leaves(inputs, Tensor)
        shape = str(("batch", *first.shape[1:])).replace("'", "")
        return naming(f"{self.reference}: does not take the data's inputs of shape {shape}",
                      ours=False)


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model, what it was tested on, and how it did."""

    model: ComparedModel
    test: EvaluationSet
    evaluation: Evaluation

    @property
    def network(self) -> nn.Module | None:
        """What is counted and timed: an exported model's plain network, where that is known."""
        variant = self.model.variant
        return variant.model if variant else self.model.module(self.test.scaling)

    @property
    def identity(self) -> str:
        """A run's id; of anything else what it answered, since a file's name may hold others."""
        if self.model.variant is not None:
            return self.model.variant.run_id
        return hashlib.sha256(np.ascontiguousarray(self.evaluation.losses).tobytes()).hexdigest()

    def metrics(self, cost: Mapping[str, float]) -> dict[str, float]:
        """Score and cost; all that a run has, where it answers with the predictions it keeps."""
        of_score = self.evaluation.score_name not in ("", "accuracy") \
            or not has_classes(self.evaluation.task)
        logged = self.model.variant.metrics if self.model.variant and self.model.kept else {}
        return {**logged, **cost,
                Metric.SCORE_TEST if of_score else Metric.ACCURACY_TEST: self.evaluation.score}


def compare_external(
    a: str, b: str, settings: Settings, *, ask: Ask | None = None
) -> ExternalComparison:
    """The artifact's verdict on B against A; nothing is trained, and nothing logged.

    But a tag of the experiment that knows of one of the two counts the look at the test data.
    Where ``settings.data`` was not given, runs answer with the predictions that they keep, and a
    model URI is tested on its own run's test part or the other side's.

    Args:
        a: the original: a run id, a model URI, or a file with the columns ``prediction`` and,
            unless ``data`` has it, ``target``. Files are matched by a column that names the
            examples, where they have one in common; else by position.
        b: the slim one, likewise.
        settings: margin, confidence, device, and where the test data are.
        ask: asked where a run names code that the user has not; nobody is, if None.

    Raises:
        ValueError: one line; a side cannot be read, or the two were not tested on the same data.
    """
    for reference in (a, b):
        if not (_is_file(reference) or ":/" in reference or RUN_ID.fullmatch(reference)):
            raise ValueError(f"compare: expected a run id, a model URI such as models:/name/1, or "
                             f"a file ending in {', '.join(ENDINGS)}, but got '{reference}'")
    use_threads(settings.threads)
    store = None if _is_file(a) and _is_file(b) else _existing_store()
    trust = Trust.by(settings, ask)
    models = _in_one_order(
        [open_model(reference, store, settings, trust) for reference in (a, b)], settings)
    settings = _with_score(settings, models)
    return compare_models(models, _evaluation_sets(models, settings), settings, store)


def compare_models(
    models: Sequence[ComparedModel], sets: Sequence[EvaluationSet], settings: Settings,
    store: Store | None,
) -> ExternalComparison:
    """The verdict on the second of two models against the first, on the same test data.

    Args:
        models: A and B.
        sets: the test data in the form that each takes.
        settings: score, margin, confidence, and the seed.
        store: where looks at the data are counted; None: nowhere.

    Raises:
        ValueError: one line; a model does not fit the data, or the data differ.
    """
    first, second = evaluated = [
        EvaluatedModel(model, test, _evaluate(model, test, settings.score))
        for model, test in zip(models, sets, strict=True)]
    _check_same_examples(first, second)
    costs, latencies = _costs(evaluated, settings)
    metrics = [each.metrics(cost) for each, cost in zip(evaluated, costs, strict=True)]
    looks = _count_looks(store, first, second, settings) if store else 1
    classes = next((model.split.classes for model in models if model.split),
                   first.test.spec.classes)
    comparison = replace(
        judge(first.evaluation, second.evaluation, settings, classes=classes, looks=looks,
              groups=_groups(evaluated, settings)),
        ratios=ratios(*metrics), latency_ratio=latencies)
    names = [model.name for model in models]
    if names[0] == names[1]:
        names = [f"A: {names[0]}", f"B: {names[1]}"]
    return ExternalComparison(comparison, Report("", names, metrics, comparison),
                              _caution(evaluated, names))


def _with_score(settings: Settings, models: Sequence[ComparedModel]) -> Settings:
    """The settings, by the runs' own score where none is given and they have one and the same."""
    own = {model.variant.settings.score for model in models if model.variant}
    if settings.score is not None or len(own) != 1:
        return settings
    return settings.model_copy(update={"score": own.pop()})


def _groups(evaluated: Sequence[EvaluatedModel], settings: Settings) -> np.ndarray | None:
    """Whose the test examples are: as the test data say, or a file of predictions.

    Raises:
        ValueError: a column of them was asked for, and there is none.
    """
    known = [groups for each in evaluated for groups in (
        each.test.groups, each.evaluation.groups,
        each.model.predictions.groups if each.model.predictions else None)
        if groups is not None]
    column = settings.table_settings.groups
    if column is not None and not known:
        raise ValueError(f"groups: expected a column {column!r} in the test data or in a file of "
                         f"predictions, but found none")
    return known[0] if known else None


# What A and B are


def _is_file(reference: str) -> bool:
    """Whether it names a file of predictions."""
    return Path(reference).suffix.lower() in ENDINGS and ":/" not in reference


def _existing_store() -> Store | None:
    """The store as it is, if it is there: no experiment is made, and no database."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return None if file and not file.exists() else Store(MlflowClient(uri), "", uri)


def open_model(
    reference: str, store: Store | None, settings: Settings, trust: Trust
) -> ComparedModel:
    """What ``reference`` names: predictions, a run's variant, or a logged model.

    Raises:
        ValueError: one line; it is not there, or cannot be read.
    """
    if _is_file(reference):
        return ComparedModel(reference, Path(reference).name,
                             read_predictions(reference, settings.table_settings.groups))
    machine = {"device": settings.device, "threads": settings.threads}
    if RUN_ID.fullmatch(reference):
        if store is None:
            raise ValueError(f"compare: no run has the id '{reference}': there is no "
                             f"{shown_uri()}")
        variant = load_variant(store, reference, machine, trust)
        return ComparedModel(reference, variant.name, variant=variant,
                             kept="data" not in settings.given,
                             experiment_id=variant.experiment_id)
    try:
        info = model_info(reference)
    except MlflowException as error:
        raise ValueError(f"model URI {reference}: cannot be loaded: "
                         f"{printable(error.message)}") from error
    experiment = _experiment_of(store, info)
    if flavour_of(info) != "pytorch":
        return ComparedModel(reference, reference, experiment_id=experiment,
                             foreign=AnswersOf(reference, load_pyfunc(reference, info, trust)))
    exported = load_exported(
        reference, pickle=trust.pickle, code=trust.code).to(device_of(settings.device))
    take_by_place(exported)
    run_id = source_run(store, reference)
    return ComparedModel(
        reference, reference, exported=exported, experiment_id=experiment,
        variant=load_variant(store, run_id, machine, trust) if store and run_id else None,
        raw=bool((info.metadata or {}).get(Tag.TAKES_RAW_ROWS)))


def _experiment_of(store: Store | None, info: ModelInfo) -> str | None:
    """The experiment that a model was logged in; None where the store does not know it."""
    if store is None:
        return None
    with contextlib.suppress(MlflowException):
        return str(store.client.get_run(info.run_id).info.experiment_id) if info.run_id else \
            str(store.client.get_logged_model(info.model_id).experiment_id)
    return None


def source_run(store: Store | None, uri: str) -> str | None:
    """The variant's run that the model was logged by, if it was one of ours."""
    if store is None:
        return None
    try:
        run_id = model_info(uri).run_id
        tags = store.client.get_run(run_id).data.tags if run_id else {}
    except MlflowException:
        return None
    return run_id if tags.get(Tag.KIND) == Kind.VARIANT else None


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


# What they are tested on


def _evaluation_sets(
    models: Sequence[ComparedModel], settings: Settings
) -> Sequence[EvaluationSet]:
    """What each model is tested on.

    A network of ours gets a file's rows scaled as its own data were, one from elsewhere gets them
    as they are. Where no data are named, one from elsewhere takes the other's test part.

    Raises:
        ValueError: one line; there is nothing to test on, or it does not fit.
    """
    known = next((model.split for model in models if model.split), None)
    if "data" in settings.given and datasets.is_file(settings.data):
        return _file_sets(models, settings)
    if "data" in settings.given:
        return [by_outputs(model, named_evaluation_set(
            settings, model.split or known, as_read=model.foreign is not None), known)
            for model in models]
    if known is not None:
        return [own_evaluation_set(model.split or known, as_read=model.foreign is not None)
                for model in models]
    networks = any(model.predictions is None for model in models)
    if networks:
        raise ValueError("data: expected the test data that the models are compared on (--data), "
                         "but got none")
    for model in models:
        rows = model.predictions.rows if model.predictions else None
        if rows is not None:
            test = file_evaluation_set(rows, model.reference, settings.task, None)
            return [test] * len(models)
    raise ValueError("compare: expected a column 'target' in one of the two files, or the test "
                     "data (--data and --target), but got neither")


def _file_sets(models: Sequence[ComparedModel], settings: Settings) -> Sequence[EvaluationSet]:
    """All rows of a file, in the form that each model takes."""
    in_files = any(model.predictions and model.predictions.groups is not None for model in models)
    networks = [model for model in models if model.is_network]
    encodings = [model.split and model.split.encoding for model in networks]
    groups = settings.table_settings.groups
    fresh = read_rows(settings.data, settings.target, targets_only=not networks,
                      groups=None if in_files else groups, settings=settings.table_settings,
                      like=[each for each in encodings if each] if all(encodings) else ())
    sets = [by_outputs(
        model, file_evaluation_set(fresh, settings.data, settings.task, model.split), model.split)
        for model in models]
    if not any(model.foreign for model in models):
        return sets
    kept = fresh.rows if isinstance(fresh, Table) and len(fresh.rows) else None
    frame = input_frame(settings.data, settings.target, groups=groups, rows=kept,
                        settings=settings.table_settings)
    return [replace(test, rows=frame) for test in sets]


def _in_one_order(
    models: Sequence[ComparedModel], settings: Settings
) -> Sequence[ComparedModel]:
    """Files of predictions with their rows in the order of the data, or of the one with targets.

    Raises:
        ValueError: one line; they name other examples, or their orders differ and the data do not
            say which is theirs.
    """
    files = [model.predictions for model in models if model.predictions is not None]
    if not files:
        return models
    given = "data" in settings.given
    if given and datasets.is_file(settings.data):
        path = local_path(settings.data)
        columns = read_columns(path, argument="data") if os.path.isfile(path) else {}
        order = example_ids(settings.data, columns)
    else:
        known = given or len(files) < len(models)
        with_targets = next((each for each in files if each.target is not None), files[0])
        order = ExampleIds("the test data", {}) if known else with_targets.ids
    ordered, notes = [], []
    for model in models:
        match = model.predictions and matching_rows(order, model.predictions.ids)
        if model.predictions and match:
            model = replace(model, predictions=model.predictions.reordered(match[1]))
            notes.append(f"wua: note: {model.reference} has the examples of {order.source} in "
                         f"another order; they are matched by {column_words(match[0])}")
        ordered.append(model)
    if len(files) == len(models):
        _check_one_order(*(model.predictions.ids for model in ordered if model.predictions))
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    return ordered


def _check_one_order(first: ExampleIds, second: ExampleIds) -> None:
    """Raise where two files still name their examples in different orders."""
    match = matching_rows(first, second)
    if match is not None:
        raise ValueError(f"compare: expected test data with {column_words(match[0])}, as "
                         f"{first.source} and {second.source} have the examples in different "
                         f"orders, but got none")


def by_outputs(
    model: ComparedModel, test: EvaluationSet, trained_on: datasets.DataSplit | None
) -> EvaluationSet:
    """The classes in the order of a model's outputs, where its own data do not say it."""
    module = None if trained_on is not None else model.module(None)
    if module is None or test.task == "regression":
        return test
    probe = test.part.example(module, 2)
    with model.naming(probe), evaluating(module):
        outputs = checked_output(call_model(module, probe))
    several = outputs.ndim == 2 and outputs.shape[1] > 1
    return test.for_outputs(outputs.shape[1]) if several else test


def _evaluate(model: ComparedModel, test: EvaluationSet, score: str | None) -> Evaluation:
    """How a model does on its test data; a run as it did then, unless data were given.

    Raises:
        ValueError: one line; the predictions or the model do not fit the data.
    """
    if score is not None:
        check_task(score, judged_as(test.task))
    if model.predictions is not None:
        return model.predictions.evaluate(test, score)
    if model.foreign is not None:
        assert test.rows is not None, "read for such models"
        likely = score is not None and find_score(score).takes == "probabilities"
        return model.foreign.answers(test.rows, test.spec, probabilities=likely).evaluate(
            test, score)
    if model.variant is not None and model.kept and (
            model.variant.test.probabilities is not None
            or score is None or find_score(score).takes != "probabilities"):
        return replace(model.variant.test, score_name=score or "")
    module = model.module(test.scaling)
    assert module is not None
    probe = test.part.example(module, 2)
    with model.naming(probe):
        kind = output_kind(module, probe, test.task, next_token=test.spec.next_token)
        return evaluate_batches(module, test.part.batches(module),
                                Objective(test.task, kind, score), digest=test.digest)


def _check_same_examples(first: EvaluatedModel, second: EvaluatedModel) -> None:
    """Raise unless both were tested on the same examples, of several classes numbered alike."""
    a, b = first.evaluation, second.evaluation
    names = first.model.reference, second.model.reference
    amounts = [not has_classes(evaluation.task) for evaluation in (a, b)]
    if len(a.targets) != len(b.targets):
        problem = f"{names[0]} was on {len(a.targets)} and {names[1]} on {len(b.targets)}"
    elif a.digest == b.digest and (
            all(amounts) or not any(amounts) and np.array_equal(a.targets, b.targets)):
        if not any(amounts):
            check_classes(a.targets)
        return
    else:
        problem = f"the test data of {names[0]} and {names[1]} differ"
    raise ValueError(f"compare: expected both to be tested on the same examples, but {problem}; "
                     f"name one test set with --data")


# What they cost, and how often the test data were looked at


def _costs(
    evaluated: Sequence[EvaluatedModel], settings: Settings
) -> tuple[Sequence[Mapping[str, float]], tuple[float, float, float] | None]:
    """Parameters and FLOPs of networks; latencies and their ratio where both are models that run.
    """
    networks = {letter: network for letter, each in zip("AB", evaluated, strict=True)
                if (network := each.network) is not None}
    parts = {letter: each.test.part for letter, each in zip("AB", evaluated, strict=True)}
    costs: dict[str, dict[str, float]] = {"A": {}, "B": {}}
    for letter, network in networks.items():
        count = count_flops(network, parts[letter].example(network, 2), backward=False)
        costs[letter] = {Metric.PARAMS_TOTAL: count_parameters(network),
                         Metric.FLOPS_FORWARD: count.forward_flops / count.samples}
    foreign = any(each.model.foreign for each in evaluated)
    if any(each.model.predictions for each in evaluated) or \
            not foreign and not _same_inputs(evaluated):
        return list(costs.values()), None
    example: Inputs = torch.zeros(min(LATENCY_BATCH, len(evaluated[0].evaluation.targets)), 1)
    for letter, network in networks.items():
        example = parts[letter].example(network, LATENCY_BATCH)
    counts = 1, len(leaves(example, Tensor)[0])
    timed = measure_latency({
        letter: networks[letter] if letter in networks else _timed_answers(each, counts)
        for letter, each in zip("AB", evaluated, strict=True)}, example)
    ratio = latency_ratio(timed["A"], timed["B"], confidence=settings.confidence,
                          seed=settings.seed)
    return [cost | latency_metrics(timed[letter]) for letter, cost in costs.items()], ratio


def _timed_answers(each: EvaluatedModel, counts: Sequence[int]) -> nn.Module:
    assert each.model.foreign is not None and each.test.rows is not None, "no network, no file"
    return TimedAnswers(each.model.foreign, each.test.rows, counts)


def _same_inputs(evaluated: Sequence[EvaluatedModel]) -> bool:
    first, second = (each.test.part for each in evaluated)
    if isinstance(first, Part) and isinstance(second, Part):
        return first.inputs.shape == second.inputs.shape
    return first.digest == second.digest


def _caution(evaluated: Sequence[EvaluatedModel], names: Sequence[str]) -> str:
    """A sentence where latencies are of different things, or nothing says which rows match."""
    files = [each.model.predictions for each in evaluated if each.model.predictions]
    if len(files) == 2 and not named_alike(files[0].ids, files[1].ids):
        return ("The files' rows were matched by their position: they have no column in common "
                "with a value of its own in each row, such as an id. If one of the two was sorted, "
                "the interval is wrong.")
    if files:
        return ""
    foreign = [name for name, each in zip(names, evaluated, strict=True) if each.model.foreign]
    if foreign:
        others = "" if len(foreign) == len(names) else "; the other is timed as a plain network"
        return (f"No FLOPs of {' and '.join(foreign)}: they are counted of PyTorch models alone. "
                f"Latency is that of mlflow.pyfunc's predict, MLflow's check of the columns "
                f"included{others}.")
    if not _same_inputs(evaluated):
        return "Latency was not measured: the two take inputs of different shapes."
    graphs = [name for name, each in zip(names, evaluated, strict=True) if not each.model.variant]
    if len(graphs) != 1:
        return ""
    return (f"The latencies are not alike: {graphs[0]} is an exported graph, which checks its "
            f"inputs before each forward; the other is a plain network.")


def _count_looks(
    store: Store, first: EvaluatedModel, second: EvaluatedModel, settings: Settings
) -> int:
    """How many verdicts there are on these test data, this one included."""
    digest, look = first.evaluation.digest, look_of(settings.margin, settings.confidence)
    a, b = first.model.variant, second.model.variant
    counted = bool(
        a and b and b.tags.get(Tag.BASELINE) == a.run_id and b.tags.get(Tag.TEST_DIGEST) == digest
        and look in b.tags.get(Tag.LOOKED, "").split(","))
    experiment = second.model.experiment_id or first.model.experiment_id
    if experiment and not counted:
        with contextlib.suppress(MlflowException):  # a store that may only be read
            record_pair(store.client, experiment, digest,
                        [first.identity, second.identity], look)
            counted = True
    return count_looks(store.client, digest) + (not counted)
