"""``wua compare A B``: any two models on the same test data, without training anything.

A and B are run ids, model URIs, or files of per-example predictions.
May import: everything but cli and the chain. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.dotted import one_line
from wua_mlflow.evaluation import Evaluation, evaluate, output_kind
from wua_mlflow.flops import count_flops
from wua_mlflow.hooks import evaluating
from wua_mlflow.latency import measure_latency
from wua_mlflow.pipeline.comparison import Comparison, compare_evaluations, damage, ratios
from wua_mlflow.pipeline.predictions import Predictions, read_predictions
from wua_mlflow.pipeline.recipe import device_of
from wua_mlflow.pipeline.report import Report, table_text
from wua_mlflow.pipeline.tables import ENDINGS, Target
from wua_mlflow.pipeline.testdata import TestData, own_test, prepared, rows_in, targets_of
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Kind, Metric, Tag
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import Store, sqlite_file

__all__ = ["Outside", "compare_any"]

RUN_ID = re.compile(r"[0-9a-f]{4,32}")
LATENCY_BATCH = 64


@dataclass(frozen=True)
class Outside:
    """What comparing two models from anywhere found, and the text to print."""

    comparison: Comparison
    text: str


@dataclass
class _Side:
    """One of the two: what it is, how it does, what it costs.

    ``variant`` is the run of ours that it comes from; ``model`` what is tested, ``network`` what is
    counted and timed: the plain network behind an exported one, where that can be built.
    """

    reference: str
    name: str
    variant: Variant | None = None
    predictions: Predictions | None = None
    test: TestData | None = None
    model: nn.Module | None = None
    network: nn.Module | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    found: Evaluation | None = None

    @property
    def evaluation(self) -> Evaluation:
        """How it does."""
        assert self.found is not None
        return self.found


def compare_any(a: str, b: str, settings: Settings, *, data_given: bool) -> Outside:
    """The artifact's verdict on B against A; nothing is trained, and nothing logged.

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
    store = None if all(map(_is_file, (a, b))) else _to_read()
    sides = [_opened(reference, store, settings) for reference in (a, b)]
    _give_tests(sides, settings, fresh=data_given)
    for side in sides:
        side.found = _evaluated(side, fresh=data_given)
    _check_alike(*sides)
    if sides[0].name == sides[1].name:
        for side, letter in zip(sides, "AB", strict=True):
            side.name = f"{letter}: {side.name}"
    _measure(sides, device_of(settings.device))
    return _compared(sides, settings, store)


def _compared(sides: Sequence[_Side], settings: Settings, store: Store | None) -> Outside:
    a, b = sides
    artifact = compare_evaluations(a.evaluation, b.evaluation, settings)
    looks = 1
    if store is not None:
        own = b.variant.run_id if b.variant else ""
        looks += count_looks(store.client, a.evaluation.digest, besides=own)
    comparison = Comparison(artifact, None, *damage(a.evaluation, b.evaluation), looks,
                            ratios(a.metrics, b.metrics))
    report = Report("", [a.name, b.name], [a.metrics, b.metrics], comparison)
    verdict = "\n".join(filter(None, (report.headline, artifact.settle)))
    text = "\n\n".join(filter(None, (verdict, table_text(report), _caution(a, b))))
    return Outside(comparison, text)


def _caution(*sides: _Side) -> str:
    """A sentence where two latencies are of different things."""
    exported = [side.name for side in sides if side.network and not side.variant]
    if len(exported) != 1 or not all(side.network for side in sides):
        return ""
    return (f"The latencies are not alike: {exported[0]} is an exported graph, which checks its "
            f"inputs before each forward; the other is a plain network.")


def _to_read() -> Store | None:
    """The store as it is, if it is there: no experiment is made, and no database."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return None if file and not file.exists() else Store(MlflowClient(uri), "", uri)


def _is_file(reference: str) -> bool:
    return Path(reference).suffix.lower() in ENDINGS and ":/" not in reference


def _check_reference(reference: str) -> None:
    if not (_is_file(reference) or ":/" in reference or RUN_ID.fullmatch(reference)):
        raise ValueError(f"compare: expected a run id, a model URI such as models:/name/1, or a "
                         f"file ending in {', '.join(ENDINGS)}, but got '{reference}'")


def _opened(reference: str, store: Store | None, settings: Settings) -> _Side:
    if _is_file(reference):
        return _Side(reference, Path(reference).name, predictions=read_predictions(reference))
    machine = {"device": settings.device}
    if RUN_ID.fullmatch(reference):
        if store is None:
            raise ValueError(f"compare: no run has the id '{reference}': there is no "
                             f"{mlflow.get_tracking_uri()}")
        variant = load_variant(store, reference, machine)
        return _Side(reference, variant.name, variant, model=variant.model, network=variant.model)
    model = load_exported(reference).to(device_of(settings.device))
    run_id = _source_run(store, reference)
    source = load_variant(store, run_id, machine) if store and run_id else None
    return _Side(reference, reference, source, model=model,
                 network=source.model if source else model)


def _source_run(store: Store | None, uri: str) -> str | None:
    """The variant's run that the model was logged by, if it was one of ours."""
    if store is None:
        return None
    try:
        run_id = get_model_info(uri).run_id
        tags = store.client.get_run(run_id).data.tags if run_id else {}
    except MlflowException:
        return None
    return run_id if tags.get(Tag.KIND) == Kind.VARIANT else None


def _give_tests(sides: Sequence[_Side], settings: Settings, *, fresh: bool) -> None:
    """What each is tested on.

    A network of ours gets a file's rows scaled as its own data were, one from elsewhere gets them
    as they are. Where no file is named, one from elsewhere takes the other's test part.
    """
    known = next((side.variant.recipe.split for side in sides if side.variant), None)
    rows = None
    if fresh:
        read = rows_in if any(side.model for side in sides) else targets_of
        rows = read(settings.data, settings.target)
    for side in sides:
        like = side.variant.recipe.split if side.variant else known if rows is None else None
        if fresh:
            side.test = prepared(rows, settings.data, seed=settings.seed, task=settings.task,
                                 like=like)
            if like is None and side.model is not None:
                side.test = _by_outputs(side, side.model, side.test)
        elif like is not None:
            side.test = own_test(like)
    if any(side.test for side in sides):
        return
    if any(side.model for side in sides):
        raise ValueError("data: expected the test data that the models are compared on (--data), "
                         "but got none")
    for side in sides:  # of predictions: the first file that holds the targets has them for both
        if side.predictions and (own := side.predictions.rows) is not None:
            sides[0].test = sides[1].test = prepared(
                own, side.reference, seed=settings.seed, task=settings.task, like=None)
            return
    raise ValueError("compare: expected a column 'target' in one of the two files, or the test "
                     "data (--data and --target), but got neither")


def _by_outputs(side: _Side, model: nn.Module, test: TestData) -> TestData:
    """The test data with the classes numbered as a model from elsewhere has them.

    Whole numbers below the number of outputs are the outputs' places; other classes must be as many
    as the outputs, and are in sorted order.
    """
    probe = test.part.inputs[:2]
    with _taking(side, probe), evaluating(model):
        outputs = model(probe.to(_device(model)))
    if test.task == "regression" or outputs.ndim != 2 or outputs.shape[1] < 2:
        return test
    count, values = outputs.shape[1], test.posed.values
    whole = all(isinstance(value, int | float) and value == int(value) for value in values)
    if whole and min(values) >= 0 and max(values) < count:
        numbers = np.array(values)[test.truth.astype(int)].astype(np.int64)
        posed = Target("multiclass", tuple(range(count)))
    elif len(values) == count:
        numbers, posed = test.truth.astype(np.int64), Target("multiclass", values)
    else:
        raise ValueError(f"data: expected a class for each of the model's {count} outputs, but "
                         f"the test data have {len(values)}")
    return replace(test, posed=posed, truth=numbers.astype(np.float64),
                   part=replace(test.part, targets=torch.from_numpy(numbers)))


def _evaluated(side: _Side, *, fresh: bool) -> Evaluation:
    assert side.test is not None
    if side.predictions is not None:
        return side.predictions.against(side.test)
    if side.variant is not None and side.model is side.variant.model and not fresh:
        side.metrics = dict(side.variant.metrics)
        return side.variant.test
    assert side.model is not None
    part, device = side.test.part, _device(side.model)
    inputs = part.inputs.to(device)
    with _taking(side, inputs):
        kind = output_kind(side.model, inputs[:2], side.test.task)
        return evaluate(side.model, inputs, part.targets.to(device), task=side.test.task,
                        kind=kind, digest=side.test.digest)


@contextmanager
def _taking(side: _Side, inputs: Tensor) -> Iterator[None]:
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


def _check_alike(a: _Side, b: _Side) -> None:
    """Whether the two were tested on the same examples, with the classes numbered alike."""
    one, other = a.evaluation, b.evaluation
    if len(one.scores) != len(other.scores):
        raise ValueError(f"compare: expected both to be tested on the same examples, but "
                         f"{a.reference} was on {len(one.scores)} and {b.reference} on "
                         f"{len(other.scores)}; name one test set with --data")
    alike = one.task == "regression" or np.array_equal(one.targets, other.targets)
    if one.digest != other.digest or not alike:
        raise ValueError(f"compare: expected both to be tested on the same examples, but the test "
                         f"data of {a.reference} and {b.reference} differ; name one test set with "
                         f"--data")


def _measure(sides: Sequence[_Side], device: torch.device) -> None:
    """The score of each; parameters and FLOPs of networks; latency where both are networks."""
    networks = {}
    for side, letter in zip(sides, "AB", strict=True):
        score = Metric.SCORE_TEST if side.evaluation.task == "regression" else Metric.ACCURACY_TEST
        side.metrics[score] = side.evaluation.score
        if side.network is not None and side.test is not None:
            side.metrics[Metric.PARAMS_TOTAL] = sum(p.numel() for p in side.network.parameters())
            count = count_flops(side.network, side.test.part.inputs[:2].to(device), backward=False)
            side.metrics[Metric.FLOPS_FORWARD] = count.forward_flops / count.samples
            networks[letter] = side.network
    if len(networks) == len(sides) and sides[0].test is not None:
        inputs = sides[0].test.part.inputs[:LATENCY_BATCH].to(device)
        timed = measure_latency(networks, inputs)
        for side, letter in zip(sides, "AB", strict=True):
            side.metrics.update(latency_metrics(timed[letter]))
