"""``wua compare A B``: any two models on the same test data, without training anything.

A and B are run ids, model URIs, or files of per-example predictions.
May import: everything but cli and the chain. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from wua_mlflow.config import Settings
from wua_mlflow.flops import count_flops, count_parameters
from wua_mlflow.latency import latency_ratio, measure_latency
from wua_mlflow.pipeline.comparison import (
    Comparison,
    class_loss,
    compare_evaluations,
    damage,
    ratios,
    worst_class,
)
from wua_mlflow.pipeline.machine import device_of, use_threads
from wua_mlflow.pipeline.report import Report, table_text
from wua_mlflow.pipeline.sides import (
    Side,
    check_reference,
    evaluated,
    give_tests,
    is_file,
    opened_side,
)
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.looks import count_looks, look_of, record_pair
from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.tracking.store import Store, sqlite_file

__all__ = ["Outside", "compare_any"]

LATENCY_BATCH = 64


@dataclass(frozen=True)
class Outside:
    """What comparing two models from anywhere found, and the text to print."""

    comparison: Comparison
    text: str


def compare_any(a: str, b: str, settings: Settings, *, data_given: bool) -> Outside:
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
    sides: Sequence[Side], settings: Settings, store: Store | None,
    ratio: tuple[float, float, float] | None,
) -> Outside:
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
    return Outside(comparison, text)


def _looks(store: Store, a: Side, b: Side, settings: Settings) -> int:
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


def _identity(side: Side) -> str:
    """A run's id; of anything else what it answered, since a file's name may hold others."""
    if side.variant is not None:
        return side.variant.run_id
    return hashlib.sha256(np.ascontiguousarray(side.evaluation.losses).tobytes()).hexdigest()


def _caution(*sides: Side) -> str:
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


def _same_inputs(a: Side, b: Side) -> bool:
    return a.inputs.shape == b.inputs.shape


def _check_alike(a: Side, b: Side) -> None:
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
    sides: Sequence[Side], settings: Settings
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
