"""Files of per-example predictions: reading them, and holding them against the truth.

May import: numpy, pandas, evaluation, the pipeline's test data.
Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.scaling import WithoutInputScaling
from wua_mlflow.data.tables import ENDINGS, Rows, read_columns, rows_of
from wua_mlflow.data.tasks import TaskSpec, example_scores, output_kind
from wua_mlflow.device import device_of, use_threads
from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.flops import count_flops, count_parameters
from wua_mlflow.hooks import evaluating
from wua_mlflow.pipeline.compare import (
    Comparison,
    class_loss,
    compare_evaluations,
    damage,
    ratios,
    worst_class,
)
from wua_mlflow.pipeline.test_sets import (
    TestData,
    check_columns,
    own_test,
    prepared,
    rows_in,
    targets_of,
)
from wua_mlflow.pipeline.variant import ModelVariant, load_variant
from wua_mlflow.report.content import Report
from wua_mlflow.report.render import table_text
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Kind, Metric, Tag
from wua_mlflow.tracking.runs import count_looks, look_of, record_pair
from wua_mlflow.tracking.store import Store, shown_uri, sqlite_file
from wua_mlflow.training.evaluation import Evaluation, evaluate
from wua_mlflow.training.latency import latency_ratio, measure_latency

__all__ = [
    "ComparedModel", "ExternalComparison", "Predictions", "check_reference", "compare_external",
    "evaluated", "give_tests", "is_file", "opened_side", "read_predictions", "source_run",
]


ROUNDING = 1e-5
"""Relative: a run keeps its targets in float32."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """A file's columns ``prediction`` and perhaps ``target``, each (n,)."""

    source: str
    prediction: np.ndarray
    target: np.ndarray | None

    @property
    def rows(self) -> Rows | None:
        """The file's own targets, with nothing as inputs."""
        if self.target is None:
            return None
        return rows_of(np.zeros((len(self.target), 1)), self.target, where=self.source)

    def against(self, test: TestData) -> Evaluation:
        """How the predictions do; a regression's in the data's own unit.

        Raises:
            ValueError: of another length than the test data, other targets than theirs, or
                predictions that are no classes (or amounts) like the targets.
        """
        expected = f"a prediction for each of the {len(test.truth)} test examples"
        if len(self.prediction) != len(test.truth):
            raise ValueError(f"compare: expected {expected} in {self.source}, but got "
                             f"{len(self.prediction)}")
        if self.target is not None:
            own = test.posed.encode(self.target, where=self.source).astype(np.float64)
            other = ~np.isclose(own, test.truth, rtol=ROUNDING, atol=ROUNDING * test.truth.std())
            if other.any():
                raise ValueError(f"compare: expected the test data's targets in {self.source}, in "
                                 f"the same order, but {other.sum()} of {len(own)} are others")
        guesses = _classes(self, test) if test.posed.values else _amounts(self)
        scores = example_scores(guesses, test.truth, test.task)
        return Evaluation(test.task, guesses, test.truth, 1.0 - scores, scores, test.digest)


def read_predictions(data: str) -> Predictions:
    """The columns of a .csv, .parquet or .npz file of predictions, a row an example.

    Raises:
        ValueError: no such file, not to be read, no column ``prediction``, or a value missing.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"compare: expected a file of predictions, but '{data}' "
                         f"{'is a folder' if path.is_dir() else 'does not exist'}")
    columns = read_columns(path, argument="compare")
    if "prediction" not in columns:
        raise ValueError(f"compare: expected a column 'prediction' in {data}, but it has "
                         f"{', '.join(columns) or 'none'}{did_you_mean('prediction', columns)}")
    found = {name: _complete(columns[name], name, data)
             for name in ("prediction", "target") if name in columns}
    if "target" in found and len(found["target"]) != len(found["prediction"]):
        raise ValueError(f"compare: expected a target for each prediction in {data}, but got "
                         f"{len(found['target'])} and {len(found['prediction'])}")
    return Predictions(data, found["prediction"], found.get("target"))


def _complete(values: np.ndarray, name: str, data: str) -> np.ndarray:
    """One value an example, none missing: numbers, bools or text."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not len(values):
        raise ValueError(f"compare: expected one {name} an example in {data}, but got an array of "
                         f"shape {values.shape}")
    missing = int(pd.isna(values).sum())
    if missing:
        raise ValueError(f"compare: expected a {name} in every row of {data}, but {missing} of "
                         f"{len(values)} are missing")
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind != "O":
        return values
    plain = np.asarray(values.tolist())
    return plain if plain.dtype.kind != "O" else values.astype(str)


def _classes(found: Predictions, test: TestData) -> np.ndarray:
    """Predicted classes as their numbers; a class that no target has is −1, and wrong."""
    predictions, classes = found.prediction, test.posed.values
    if predictions.dtype.kind == "f" and (odd := predictions[predictions % 1 != 0]).size:
        raise ValueError(f"compare: expected predicted classes in {found.source}, but got "
                         f"{odd[0]:g}; turn probabilities into classes first")
    numbers = {value: number for number, value in enumerate(classes)}
    codes = np.array([numbers.get(value, -1) for value in predictions.tolist()], dtype=float)
    if (codes < 0).all():
        raise ValueError(f"compare: expected predicted classes such as {classes[0]!r} in "
                         f"{found.source}, as the targets are, but got {predictions.tolist()[0]!r}")
    return codes


def _amounts(found: Predictions) -> np.ndarray:
    predictions = found.prediction
    if predictions.dtype.kind not in "biuf" or not np.isfinite(predictions).all():
        odd = next(value for value in predictions.tolist()
                   if not isinstance(value, int | float) or not np.isfinite(value))
        raise ValueError(f"compare: expected finite numbers as the predictions in {found.source}, "
                         f"as this is a regression, but got {odd!r}")
    return predictions.astype(np.float64)


RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass
class ComparedModel:
    """One of the two: what it is, how it does, what it costs.

    ``variant`` is the run of ours that it comes from; ``model`` what is tested (``raw``: it takes
    rows as they were read), ``network`` what is counted and timed: the plain network behind an
    exported one, where that can be built.
    """

    reference: str
    name: str
    variant: ModelVariant | None = None
    predictions: Predictions | None = None
    test: TestData | None = None
    model: nn.Module | None = None
    network: nn.Module | None = None
    raw: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    found: Evaluation | None = None

    @property
    def evaluation(self) -> Evaluation:
        """How it does."""
        assert self.found is not None
        return self.found

    @property
    def inputs(self) -> Tensor:
        """What it is tested on."""
        assert self.test is not None
        return self.test.part.inputs


def is_file(reference: str) -> bool:
    """Whether it names a file of predictions."""
    return Path(reference).suffix.lower() in ENDINGS and ":/" not in reference


def check_reference(reference: str) -> None:
    """Whether it names anything that can be compared.

    Raises:
        ValueError: it does not.
    """
    if not (is_file(reference) or ":/" in reference or RUN_ID.fullmatch(reference)):
        raise ValueError(f"compare: expected a run id, a model URI such as models:/name/1, or a "
                         f"file ending in {', '.join(ENDINGS)}, but got '{reference}'")


def opened_side(reference: str, store: Store | None, settings: Settings) -> ComparedModel:
    """What ``reference`` names: predictions, a run's variant, or a logged model.

    Raises:
        ValueError: one line; it is not there, or cannot be read.
    """
    if is_file(reference):
        return ComparedModel(
            reference, Path(reference).name, predictions=read_predictions(reference)
        )
    machine = {"device": settings.device, "threads": settings.threads}
    if RUN_ID.fullmatch(reference):
        if store is None:
            raise ValueError(f"compare: no run has the id '{reference}': there is no "
                             f"{shown_uri()}")
        variant = load_variant(store, reference, machine)
        return ComparedModel(
            reference, variant.name, variant, model=variant.model, network=variant.model
        )
    model = load_exported(reference).to(device_of(settings.device))
    run_id = source_run(store, reference)
    source = load_variant(store, run_id, machine) if store and run_id else None
    raw = bool((get_model_info(reference).metadata or {}).get(Tag.TAKES_RAW_ROWS))
    return ComparedModel(reference, reference, source, model=model, raw=raw,
                 network=source.model if source else model)


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


def give_tests(sides: Sequence[ComparedModel], settings: Settings, *, fresh: bool) -> None:
    """What each is tested on.

    A network of ours gets a file's rows scaled as its own data were, one from elsewhere gets them
    as they are. Where no file is named, one from elsewhere takes the other's test part.

    Raises:
        ValueError: one line; there is nothing to test on, or it does not fit.
    """
    known = next((side.variant.recipe.split for side in sides if side.variant), None)
    if fresh:
        read = rows_in if any(side.model for side in sides) else targets_of
        rows = read(settings.data, settings.target)
        for side in sides:
            side.test = _fresh_test(side, rows, settings, known)
    elif known is not None:
        for side in sides:
            side.test = own_test(side.variant.recipe.split if side.variant else known)
    elif any(side.model for side in sides):
        raise ValueError("data: expected the test data that the models are compared on (--data), "
                         "but got none")
    else:
        sides[0].test = sides[1].test = _targets_among(sides, settings)
    for side in sides:
        if side.raw and side.model is not None and side.test is not None:
            saved = side.model
            side.model = WithoutInputScaling(saved, side.test.scaling).to(_device(saved))
            side.network = side.model if side.network is saved else side.network


def _fresh_test(
    side: ComparedModel, rows: Rows | None, settings: Settings, known: DataSplit | None
) -> TestData:
    """``rows`` as the side takes them; ``known``: the data of either side's run."""
    own = side.variant.recipe if side.variant else None
    if own is not None and rows is not None:
        check_columns(settings.data, settings.target, own.split.source, own.settings.target)
    like = own.split if own is not None else known if rows is None else None
    test = prepared(rows, settings.data, seed=settings.seed, task=settings.task, like=like)
    if like is not None or side.model is None:
        return test
    return _by_outputs(
        side, WithoutInputScaling(side.model, None) if side.raw else side.model, test
    )


def _targets_among(sides: Sequence[ComparedModel], settings: Settings) -> TestData:
    """The targets that come with predictions: those of the first file that has any."""
    for side in sides:
        if side.predictions and (own := side.predictions.rows) is not None:
            return prepared(own, side.reference, seed=settings.seed, task=settings.task, like=None)
    raise ValueError("compare: expected a column 'target' in one of the two files, or the test "
                     "data (--data and --target), but got neither")


def _by_outputs(side: ComparedModel, model: nn.Module, test: TestData) -> TestData:
    """The test data with the classes numbered as a model from elsewhere has them.

    Whole numbers below the number of outputs are the outputs' places; other classes must be as many
    as the outputs, and are in sorted order.
    """
    probe = test.part.inputs[:2]
    with _taking(side, probe), evaluating(model):
        outputs = model(probe.to(_device(model), copy=True))
    if test.task == "regression" or outputs.ndim != 2 or outputs.shape[1] < 2:
        return test
    count, values = outputs.shape[1], test.posed.values
    whole = all(isinstance(value, int | float) and value == int(value) for value in values)
    if whole and min(values) >= 0 and max(values) < count:
        numbers = np.array(values)[test.truth.astype(int)].astype(np.int64)
        posed = TaskSpec("multiclass", tuple(range(count)))
    elif len(values) == count:
        numbers, posed = test.truth.astype(np.int64), TaskSpec("multiclass", values)
    else:
        raise ValueError(f"data: expected a class for each of the model's {count} outputs, but "
                         f"the test data have {len(values)}")
    return replace(test, posed=posed, truth=numbers.astype(np.float64),
                   part=replace(test.part, targets=torch.from_numpy(numbers)))


def evaluated(side: ComparedModel, *, fresh: bool) -> Evaluation:
    """How a side does on its test data; a run's variant as it did, unless these are ``fresh``.

    Raises:
        ValueError: one line; the predictions or the model do not fit the data.
    """
    assert side.test is not None
    if side.predictions is not None:
        return side.predictions.against(side.test)
    if side.variant is not None and side.model is side.variant.model and not fresh:
        side.metrics = dict(side.variant.metrics)
        return side.variant.test
    assert side.model is not None
    device = _device(side.model)
    inputs, targets = side.inputs.to(device), side.test.part.targets.to(device)
    with _taking(side, inputs):
        kind = output_kind(side.model, inputs[:2], side.test.task)
        return evaluate(side.model, inputs, targets, task=side.test.task, kind=kind,
                        digest=side.test.digest)


@contextmanager
def _taking(side: ComparedModel, inputs: Tensor) -> Iterator[None]:
    """Any error of a model as one that names it, with the shape of what it was given."""
    try:
        yield
    except Exception as error:
        shape = str(("batch", *inputs.shape[1:])).replace("'", "")
        raise ValueError(f"{side.reference}: does not take the data's inputs of shape {shape}: "
                         f"{one_line(error)}") from error


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return tensor.device if tensor is not None else torch.device("cpu")


LATENCY_BATCH = 64


@dataclass(frozen=True)
class ExternalComparison:
    """What comparing two models from anywhere found, and the text to print."""

    comparison: Comparison
    text: str


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
        check_reference(reference)
    use_threads(settings.threads)
    store = None if all(map(is_file, (a, b))) else _to_read()
    sides = [opened_side(reference, store, settings) for reference in (a, b)]
    give_tests(sides, settings, fresh=data_given)
    for side in sides:
        side.found = evaluated(side, fresh=data_given)
    _check_alike(*sides)
    if sides[0].name == sides[1].name:
        for side, letter in zip(sides, "AB", strict=True):
            side.name = f"{letter}: {side.name}"
    ratio = _measure(sides, settings)
    return _compared(sides, settings, store, ratio)


def _compared(
    sides: Sequence[ComparedModel], settings: Settings, store: Store | None,
    ratio: tuple[float, float, float] | None,
) -> ExternalComparison:
    a, b = sides
    artifact = compare_evaluations(a.evaluation, b.evaluation, settings)
    looks = 1 if store is None else _looks(store, a, b, settings)
    classes = next((side.variant.recipe.split.classes for side in sides if side.variant), ())
    wide = settings.model_copy(update={"confidence": 1 - (1 - settings.confidence) / looks})
    comparison = Comparison(
        artifact, None, *damage(a.evaluation, b.evaluation), looks, ratios(a.metrics, b.metrics),
        worst_class=worst_class(a.evaluation, b.evaluation, classes),
        class_loss=class_loss(a.evaluation, b.evaluation, classes, settings.margin),
        bonferroni=compare_evaluations(a.evaluation, b.evaluation, wide) if looks > 1 else None,
        latency_ratio=ratio)
    report = Report("", [a.name, b.name], [a.metrics, b.metrics], comparison)
    verdict = "\n".join(filter(None, (report.headline, artifact.settle, *comparison.notes)))
    text = "\n\n".join(filter(None, (verdict, table_text(report), _caution(a, b))))
    return ExternalComparison(comparison, text)


def _looks(store: Store, a: ComparedModel, b: ComparedModel, settings: Settings) -> int:
    """How many verdicts there are on these test data, this one included."""
    digest, look = a.evaluation.digest, look_of(settings.margin, settings.confidence)
    logged = a.variant and b.variant and b.variant.tags.get(Tag.BASELINE) == a.variant.run_id \
        and b.variant.tags.get(Tag.TEST_DIGEST) == digest \
        and look in b.variant.tags.get(Tag.LOOKED, "").split(",")
    known = next((side.variant.experiment_id for side in (b, a) if side.variant), None)
    noted = bool(logged)
    if known and not logged:
        with contextlib.suppress(MlflowException):  # a store that may only be read
            record_pair(store.client, known, digest, [_identity(a), _identity(b)], look)
            noted = True
    return count_looks(store.client, digest) + (not noted)


def _identity(side: ComparedModel) -> str:
    """A run's id; of anything else what it answered, since a file's name may hold others."""
    if side.variant is not None:
        return side.variant.run_id
    return hashlib.sha256(np.ascontiguousarray(side.evaluation.losses).tobytes()).hexdigest()


def _caution(*sides: ComparedModel) -> str:
    """A sentence where two latencies are of different things."""
    exported = [side.name for side in sides if side.network and not side.variant]
    if not all(side.network for side in sides):
        return ""
    if not _same_inputs(*sides):
        return "Latency was not measured: the two take inputs of different shapes."
    if len(exported) != 1:
        return ""
    return (f"The latencies are not alike: {exported[0]} is an exported graph, which checks its "
            f"inputs before each forward; the other is a plain network.")


def _to_read() -> Store | None:
    """The store as it is, if it is there: no experiment is made, and no database."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return None if file and not file.exists() else Store(MlflowClient(uri), "", uri)


def _same_inputs(a: ComparedModel, b: ComparedModel) -> bool:
    return a.inputs.shape == b.inputs.shape


def _check_alike(a: ComparedModel, b: ComparedModel) -> None:
    """Whether the two were tested on the same examples, with the classes numbered alike."""
    one, other = a.evaluation, b.evaluation
    if len(one.scores) != len(other.scores):
        raise ValueError(f"compare: expected both to be tested on the same examples, but "
                         f"{a.reference} was on {len(one.scores)} and {b.reference} on "
                         f"{len(other.scores)}; name one test set with --data")
    amounts = [found.task == "regression" for found in (one, other)]
    alike = all(amounts) or (not any(amounts) and np.array_equal(one.targets, other.targets))
    if one.digest != other.digest or not alike:
        raise ValueError(f"compare: expected both to be tested on the same examples, but the test "
                         f"data of {a.reference} and {b.reference} differ; name one test set with "
                         f"--data")


def _measure(
    sides: Sequence[ComparedModel], settings: Settings
) -> tuple[float, float, float] | None:
    """The score of each; parameters and FLOPs of networks; latency where both are networks.

    Returns:
        The ratio of latencies, with its interval.
    """
    networks, device = {}, device_of(settings.device)
    for side, letter in zip(sides, "AB", strict=True):
        score = Metric.SCORE_TEST if side.evaluation.task == "regression" else Metric.ACCURACY_TEST
        side.metrics[score] = side.evaluation.score
        if side.network is not None:
            side.metrics[Metric.PARAMS_TOTAL] = count_parameters(side.network)
            count = count_flops(side.network, side.inputs[:2].to(device), backward=False)
            side.metrics[Metric.FLOPS_FORWARD] = count.forward_flops / count.samples
            networks[letter] = side.network
    if len(networks) == len(sides) and _same_inputs(*sides):
        inputs = sides[0].inputs[:LATENCY_BATCH].to(device)
        timed = measure_latency(networks, inputs)
        for side, letter in zip(sides, "AB", strict=True):
            side.metrics.update(latency_metrics(timed[letter]))
        return latency_ratio(timed["A"], timed["B"], confidence=settings.confidence,
                             seed=settings.seed)
    return None
