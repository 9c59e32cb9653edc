"""``wua compare A B``: any two models on the same test data; nothing is trained or logged.

A and B are each a run, a logged model or a file of predictions (``ComparedModel``). Both get the
test data in the form that they take, are evaluated, and are judged by the paired verdict.
Tests: ``tests/pipeline/test_compare_external.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.data import datasets
from wua_mlflow.data.scaling import Scaling, WithoutInputScaling
from wua_mlflow.data.tables import ENDINGS, read_rows
from wua_mlflow.data.tasks import checked_output, output_kind
from wua_mlflow.device import device_of, use_threads
from wua_mlflow.errors import one_line
from wua_mlflow.flops import count_flops, count_parameters
from wua_mlflow.hooks import evaluating
from wua_mlflow.pipeline.compare import check_classes, judge
from wua_mlflow.pipeline.test_sets import (
    Predictions,
    TestSet,
    file_test_set,
    named_test_set,
    own_test_set,
    read_predictions,
)
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.report.content import Report
from wua_mlflow.results import Comparison, ratios
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Kind, Metric, Tag
from wua_mlflow.tracking.runs import count_looks, look_of, record_pair
from wua_mlflow.tracking.store import Store, shown_uri, sqlite_file
from wua_mlflow.training.evaluation import Evaluation, evaluate
from wua_mlflow.training.latency import latency_ratio, measure_latency

__all__ = [
    "ComparedModel", "ExternalComparison", "compare_external", "evaluate_model", "is_file",
    "open_model", "source_run", "choose_test_sets",
]


LATENCY_BATCH = 64
RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class ExternalComparison:
    """What comparing two models from anywhere found.

    Attributes:
        comparison: the verdict, and what the slim one saves.
        report: the same with both models' figures.
        caution: why a latency is not to be trusted, if so.
    """

    comparison: Comparison
    report: Report
    caution: str


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A or B: a variant's run, a model as it was exported (perhaps by such a run), or predictions.

    ``raw`` says that the exported model takes rows as they were read.
    """

    reference: str
    name: str
    predictions: Predictions | None = None
    variant: ModelVariant | None = None
    exported: nn.Module | None = None
    raw: bool = False

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

    def network(self, scaling: Scaling | None) -> nn.Module | None:
        """What is counted and timed: an exported model's plain network, where that is known."""
        return self.variant.model if self.variant else self.module(scaling)

    @contextmanager
    def naming(self, inputs: Tensor) -> Iterator[None]:
        """Any error of the model as one that names it, with the shape of what it was given."""
        try:
            yield
        except Exception as error:
            shape = str(("batch", *inputs.shape[1:])).replace("'", "")
            raise ValueError(f"{self.reference}: does not take the data's inputs of shape {shape}: "
                             f"{one_line(error)}") from error


def compare_external(a: str, b: str, settings: Settings, *, data_given: bool) -> ExternalComparison:
    """The artifact's verdict on B against A; nothing is trained, and nothing logged.

    But a tag of the experiment that knows of one of the two counts the look at the test data.

    Args:
        a: the original: a run id, a model URI, or a file with the columns ``prediction`` and,
            unless ``data`` has it, ``target``.
        b: the slim one, likewise.
        settings: margin, confidence, device, and where the test data are.
        data_given: whether ``settings.data`` was named; else runs answer with the predictions that
            they keep, and a model URI is tested on its own run's test part or the other side's.

    Raises:
        ValueError: one line; a side cannot be read, or the two were not tested on the same data.
    """
    for reference in (a, b):
        _check_reference(reference)
    use_threads(settings.threads)
    store = None if is_file(a) and is_file(b) else _existing_store()
    models = [open_model(reference, store, settings) for reference in (a, b)]
    tests = choose_test_sets(models, settings, data_given=data_given)
    evaluations = [evaluate_model(model, test, data_given=data_given)
                   for model, test in zip(models, tests, strict=True)]
    first, second = evaluations
    _check_same_examples(models, first, second)
    costs, latencies = _costs(models, tests, settings)
    metrics = [_metrics(model, evaluation, cost, data_given=data_given)
               for model, evaluation, cost in zip(models, evaluations, costs, strict=True)]
    looks = _count_looks(store, models, evaluations, settings) if store else 1
    classes = next((model.split.classes for model in models if model.split), ())
    comparison = replace(
        judge(first, second, settings, classes=classes, looks=looks),
        ratios=ratios(*metrics), latency_ratio=latencies)
    names = [model.name for model in models]
    if names[0] == names[1]:
        names = [f"A: {names[0]}", f"B: {names[1]}"]
    return ExternalComparison(comparison, Report("", names, metrics, comparison),
                              _latency_caution(models, tests, names))


# What A and B are


def is_file(reference: str) -> bool:
    """Whether it names a file of predictions."""
    return Path(reference).suffix.lower() in ENDINGS and ":/" not in reference


def _check_reference(reference: str) -> None:
    if not (is_file(reference) or ":/" in reference or RUN_ID.fullmatch(reference)):
        raise ValueError(f"compare: expected a run id, a model URI such as models:/name/1, or a "
                         f"file ending in {', '.join(ENDINGS)}, but got '{reference}'")


def _existing_store() -> Store | None:
    """The store as it is, if it is there: no experiment is made, and no database."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return None if file and not file.exists() else Store(MlflowClient(uri), "", uri)


def open_model(reference: str, store: Store | None, settings: Settings) -> ComparedModel:
    """What ``reference`` names: predictions, a run's variant, or a logged model.

    Raises:
        ValueError: one line; it is not there, or cannot be read.
    """
    if is_file(reference):
        predictions = read_predictions(reference)
        return ComparedModel(reference, Path(reference).name, predictions=predictions)
    machine = {"device": settings.device, "threads": settings.threads}
    if RUN_ID.fullmatch(reference):
        if store is None:
            raise ValueError(f"compare: no run has the id '{reference}': there is no "
                             f"{shown_uri()}")
        variant = load_variant(store, reference, machine)
        return ComparedModel(reference, variant.name, variant=variant)
    exported = load_exported(reference).to(device_of(settings.device))
    run_id = source_run(store, reference)
    return ComparedModel(
        reference, reference, exported=exported,
        variant=load_variant(store, run_id, machine) if store and run_id else None,
        raw=bool((get_model_info(reference).metadata or {}).get(Tag.TAKES_RAW_ROWS)))


def source_run(store: Store | None, uri: str) -> str | None:
    """The variant's run that the model was logged by, if it was one of ours."""
    if store is None:
        return None
    try:
        run_id = get_model_info(uri).run_id
        tags = store.client.get_run(run_id).data.tags if run_id else {}
    except MlflowException:
        return None
    return run_id if tags.get(Tag.KIND) == Kind.VARIANT else None


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


# What they are tested on


def choose_test_sets(
    models: Sequence[ComparedModel], settings: Settings, *, data_given: bool
) -> list[TestSet]:
    """What each model is tested on.

    A network of ours gets a file's rows scaled as its own data were, one from elsewhere gets them
    as they are. Where no data are named, one from elsewhere takes the other's test part.

    Raises:
        ValueError: one line; there is nothing to test on, or it does not fit.
    """
    known = next((model.split for model in models if model.split), None)
    networks = any(model.predictions is None for model in models)
    if data_given and datasets.is_file(settings.data):
        fresh = read_rows(settings.data, settings.target, targets_only=not networks)
        return [_by_outputs(model, file_test_set(fresh, settings.data, settings.task, model.split),
                            model.split) for model in models]
    if data_given:
        return [_by_outputs(model, named_test_set(settings, model.split or known), known)
                for model in models]
    if known is not None:
        return [own_test_set(model.split or known) for model in models]
    if networks:
        raise ValueError("data: expected the test data that the models are compared on (--data), "
                         "but got none")
    for model in models:
        rows = model.predictions.rows if model.predictions else None
        if rows is not None:
            return [file_test_set(rows, model.reference, settings.task, None)] * len(models)
    raise ValueError("compare: expected a column 'target' in one of the two files, or the test "
                     "data (--data and --target), but got neither")


def _by_outputs(
    model: ComparedModel, test: TestSet, trained_on: datasets.DataSplit | None
) -> TestSet:
    """The classes in the order of a model's outputs, where its own data do not say it."""
    module = None if trained_on is not None else model.module(None)
    if module is None:
        return test
    probe = test.part.inputs[:2]
    with model.naming(probe), evaluating(module):
        outputs = checked_output(module(probe.to(_device(module), copy=True)))
    if test.task == "regression" or outputs.ndim != 2 or outputs.shape[1] < 2:
        return test
    return test.for_outputs(outputs.shape[1])


def evaluate_model(model: ComparedModel, test: TestSet, *, data_given: bool) -> Evaluation:
    """How a model does on its test data; a run as it did then, unless data were given.

    Raises:
        ValueError: one line; the predictions or the model do not fit the data.
    """
    if model.predictions is not None:
        return model.predictions.evaluate(test)
    if model.variant is not None and model.exported is None and not data_given:
        return model.variant.test
    module = model.module(test.scaling)
    assert module is not None
    device = _device(module)
    inputs, targets = test.part.inputs.to(device), test.part.targets.to(device)
    with model.naming(inputs):
        kind = output_kind(module, inputs[:2], test.task)
        return evaluate(module, inputs, targets, task=test.task, kind=kind, digest=test.digest)


def _check_same_examples(models: Sequence[ComparedModel], a: Evaluation, b: Evaluation) -> None:
    """Raise unless both were tested on the same examples, with the classes numbered alike."""
    first, second = (model.reference for model in models)
    if len(a.scores) != len(b.scores):
        raise ValueError(f"compare: expected both to be tested on the same examples, but "
                         f"{first} was on {len(a.scores)} and {second} on "
                         f"{len(b.scores)}; name one test set with --data")
    amounts = [evaluation.task == "regression" for evaluation in (a, b)]
    alike = all(amounts) or (not any(amounts) and np.array_equal(a.targets, b.targets))
    if a.digest != b.digest or not alike:
        raise ValueError(f"compare: expected both to be tested on the same examples, but the test "
                         f"data of {first} and {second} differ; name one test set with --data")
    if not any(amounts):
        check_classes(a.targets)


# What they cost, and how often the test data were looked at


def _costs(
    models: Sequence[ComparedModel], tests: Sequence[TestSet], settings: Settings
) -> tuple[list[dict[str, float]], tuple[float, float, float] | None]:
    """Parameters and FLOPs of networks; latencies and their ratio where both are networks."""
    device = device_of(settings.device)
    networks, metrics = {}, []
    for letter, model, test in zip("AB", models, tests, strict=True):
        network = model.network(test.scaling)
        values: dict[str, float] = {}
        if network is not None:
            count = count_flops(network, test.part.inputs[:2].to(device), backward=False)
            values = {Metric.PARAMS_TOTAL: count_parameters(network),
                      Metric.FLOPS_FORWARD: count.forward_flops / count.samples}
            networks[letter] = network
        metrics.append(values)
    if len(networks) < len(models) or not _same_inputs(tests):
        return metrics, None
    timed = measure_latency(networks, tests[0].part.inputs[:LATENCY_BATCH].to(device))
    for letter, values in zip("AB", metrics, strict=True):
        values |= latency_metrics(timed[letter])
    return metrics, latency_ratio(timed["A"], timed["B"], confidence=settings.confidence,
                                  seed=settings.seed)


def _metrics(
    model: ComparedModel, evaluation: Evaluation, cost: Mapping[str, float], *, data_given: bool
) -> dict[str, float]:
    """Score and cost; all that a run has, where it answers with the predictions that it keeps."""
    as_kept = model.variant is not None and model.exported is None and not data_given
    regression = evaluation.task == "regression"
    return {**(model.variant.metrics if model.variant and as_kept else {}), **cost,
            Metric.SCORE_TEST if regression else Metric.ACCURACY_TEST: evaluation.score}


def _same_inputs(tests: Sequence[TestSet]) -> bool:
    return tests[0].part.inputs.shape == tests[1].part.inputs.shape


def _latency_caution(
    models: Sequence[ComparedModel], tests: Sequence[TestSet], names: Sequence[str]
) -> str:
    """A sentence where two latencies are of different things."""
    if any(model.predictions for model in models):
        return ""
    if not _same_inputs(tests):
        return "Latency was not measured: the two take inputs of different shapes."
    graphs = [name for name, model in zip(names, models, strict=True) if not model.variant]
    if len(graphs) != 1:
        return ""
    return (f"The latencies are not alike: {graphs[0]} is an exported graph, which checks its "
            f"inputs before each forward; the other is a plain network.")


def _count_looks(
    store: Store, models: Sequence[ComparedModel], evaluations: Sequence[Evaluation],
    settings: Settings,
) -> int:
    """How many verdicts there are on these test data, this one included."""
    digest, look = evaluations[0].digest, look_of(settings.margin, settings.confidence)
    a, b = (model.variant for model in models)
    counted = bool(
        a and b and b.tags.get(Tag.BASELINE) == a.run_id and b.tags.get(Tag.TEST_DIGEST) == digest
        and look in b.tags.get(Tag.LOOKED, "").split(","))
    variant = b or a
    if variant and not counted:
        pair = [_identity(model, evaluation)
                for model, evaluation in zip(models, evaluations, strict=True)]
        with contextlib.suppress(MlflowException):  # a store that may only be read
            record_pair(store.client, variant.experiment_id, digest, pair, look)
            counted = True
    return count_looks(store.client, digest) + (not counted)


def _identity(model: ComparedModel, evaluation: Evaluation) -> str:
    """A run's id; of anything else what it answered, since a file's name may hold others."""
    if model.variant is not None:
        return model.variant.run_id
    return hashlib.sha256(np.ascontiguousarray(evaluation.losses).tobytes()).hexdigest()
