"""``wua compare A B``: any two models on the same test data, without training anything.

A and B are run ids, model URIs, or files of per-example predictions.
May import: everything but cli and the chain. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.evaluation import Evaluation, evaluate, example_scores, output_kind
from wua_mlflow.flops import count_flops
from wua_mlflow.latency import measure_latency
from wua_mlflow.pipeline.comparison import Comparison, compare_evaluations, damage, ratios
from wua_mlflow.pipeline.report import Report, table_text
from wua_mlflow.pipeline.tables import ENDINGS, pose
from wua_mlflow.pipeline.testdata import TestData, load_test, read_predictions
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.tracking.log import latency_metrics
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Metric
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import connect

__all__ = ["Outside", "compare_any"]

RUN_ID = re.compile(r"[0-9a-f]{32}")
LATENCY_BATCH = 64


@dataclass(frozen=True)
class Outside:
    """What comparing two models from anywhere found, and the text to print."""

    comparison: Comparison
    text: str


@dataclass
class _Side:
    """One of the two: how it does, what it costs, and its network where there is one."""

    reference: str
    name: str
    test: Evaluation
    metrics: dict[str, float] = field(default_factory=dict)
    model: nn.Module | None = None
    inputs: Tensor | None = None


def compare_any(a: str, b: str, settings: Settings, *, data_given: bool) -> Outside:
    """The artifact's verdict on B against A.

    Args:
        a: the original: a run id, a model URI, or a file with the columns ``prediction`` and,
            unless ``data`` has it, ``target``.
        b: the slim one, likewise.
        settings: margin, confidence, and where the test data are.
        data_given: whether ``settings.data`` was named; else runs answer with the predictions that
            they keep, and a model URI is tested on the other side's test part.

    Raises:
        ValueError: one line; a side cannot be read, or the two were not tested on the same data.
    """
    variants = {ref: load_variant(connect(settings.experiment), ref)
                for ref in dict.fromkeys((a, b)) if RUN_ID.fullmatch(ref)}
    like = next(iter(variants.values())).recipe.split if variants else None
    test = TestData(like.test, like.posed) if like else None
    if data_given:
        test = load_test(settings.data, target=settings.target, seed=settings.seed,
                         task=settings.task, like=like)
    sides = [_side(ref, variants.get(ref), test, settings, fresh=data_given) for ref in (a, b)]
    _check_alike(*sides)
    if sides[0].name == sides[1].name:
        for side, letter in zip(sides, "AB", strict=True):
            side.name = f"{letter}: {side.name}"
    _measure(sides)
    artifact = compare_evaluations(sides[0].test, sides[1].test, settings)
    looks = 1
    if variants:
        looks += count_looks(connect(settings.experiment).client, sides[0].test.digest,
                             besides=b)
    comparison = Comparison(artifact, None, *damage(sides[0].test, sides[1].test), looks,
                            ratios(sides[0].metrics, sides[1].metrics))
    report = Report("", [side.name for side in sides], [side.metrics for side in sides], comparison)
    text = "\n\n".join(filter(None, (
        f"{report.headline}\n{artifact.settle or ''}".strip(), table_text(report))))
    return Outside(comparison, text)


def _side(
    reference: str,
    variant: Variant | None,
    test: TestData | None,
    settings: Settings,
    *,
    fresh: bool,
) -> _Side:
    if variant is not None:
        return _from_variant(reference, variant, test, fresh=fresh)
    if Path(reference).suffix.lower() in ENDINGS:
        return _from_predictions(reference, test, settings)
    if ":/" not in reference:
        raise ValueError(f"compare: expected a run id (32 hexadecimal digits), a model URI such as "
                         f"models:/name/1, or a file ending in {', '.join(ENDINGS)}, "
                         f"but got '{reference}'")
    if test is None:
        raise ValueError("data: expected the test data that the models are compared on (--data), "
                         "but got none")
    model = load_exported(reference)
    return _evaluated(reference, reference, model, test)


def _from_variant(
    reference: str, variant: Variant, test: TestData | None, *, fresh: bool
) -> _Side:
    if fresh and test is not None:
        return _evaluated(reference, variant.name, variant.model, test)
    return _Side(reference, variant.name, variant.test, dict(variant.metrics), variant.model,
                 variant.recipe.split.test.inputs)


def _evaluated(reference: str, name: str, model: nn.Module, test: TestData) -> _Side:
    inputs = test.part.inputs
    try:
        kind = output_kind(model, inputs[:2], test.task)
        found = evaluate(model, inputs, test.part.targets, task=test.task, kind=kind,
                         digest=test.part.digest)
    except (RuntimeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{reference}: does not take the data's inputs of shape "
                         f"(batch, {', '.join(map(str, inputs.shape[1:]))}): {reason}") from error
    return _Side(reference, name, found, {}, model, inputs)


def _from_predictions(reference: str, test: TestData | None, settings: Settings) -> _Side:
    columns = read_predictions(reference)
    predictions = columns["prediction"]
    if test is not None:
        targets, posed = test.part.targets.numpy().reshape(len(test.part), -1)[:, 0], test.posed
        digest = test.part.digest
    elif "target" in columns:
        posed = pose(columns["target"], task=settings.task)
        targets = posed.encoded(columns["target"], where=reference).astype(float)
        digest = hashlib.sha256(targets.tobytes()).hexdigest()
    else:
        raise ValueError(f"{reference}: expected a column 'target', or the test data (--data and "
                         f"--target), but got neither")
    if len(predictions) != len(targets):
        raise ValueError(f"{reference}: expected a prediction for each of the {len(targets)} test "
                         f"examples, but got {len(predictions)}")
    guesses = _codes(predictions, posed.values, reference) if posed.values else \
        posed.encoded(predictions, where=reference).astype(float)
    truth = targets.astype(float)
    scores = example_scores(guesses, truth, posed.task)
    return _Side(reference, Path(reference).name,
                 Evaluation(posed.task, guesses, truth, 1.0 - scores, scores, digest))


def _codes(predictions: np.ndarray, classes: tuple[object, ...], reference: str) -> np.ndarray:
    """Predicted classes as their numbers; a class that no target has is −1, and wrong."""
    numbers = {value: number for number, value in enumerate(classes)}
    if predictions.dtype.kind == "f" and not np.equal(np.mod(predictions, 1), 0).all():
        odd = predictions[np.mod(predictions, 1) != 0][0]
        raise ValueError(f"{reference}: expected predicted classes, but got {odd:g}; turn "
                         f"probabilities into classes first")
    return np.array([numbers.get(value, -1) for value in predictions.tolist()], dtype=float)


def _check_alike(a: _Side, b: _Side) -> None:
    if len(a.test.scores) != len(b.test.scores):
        raise ValueError(f"compare: expected predictions for the same examples, but {a.reference} "
                         f"has {len(a.test.scores)} and {b.reference} {len(b.test.scores)}")
    if a.test.task != b.test.task:
        raise ValueError(f"compare: expected two models of one task, but {a.reference} is "
                         f"{a.test.task} and {b.reference} {b.test.task}")
    if not np.array_equal(a.test.targets, b.test.targets) or a.test.digest != b.test.digest:
        raise ValueError(f"compare: expected both to be tested on the same examples, but the test "
                         f"data of {a.reference} and {b.reference} differ; name one test set with "
                         f"--data")


def _measure(sides: list[_Side]) -> None:
    """Score of each; FLOPs, parameters and latency where both are networks."""
    for side in sides:
        score = Metric.SCORE_TEST if side.test.task == "regression" else Metric.ACCURACY_TEST
        side.metrics = {**side.metrics, score: side.test.score}
        if side.model is not None and side.inputs is not None:
            side.metrics[Metric.PARAMS_TOTAL] = sum(p.numel() for p in side.model.parameters())
            count = count_flops(side.model, side.inputs[:2], backward=False)
            side.metrics[Metric.FLOPS_FORWARD] = count.forward_flops / count.samples
    networks = {side.reference: side for side in sides if side.model is not None}
    if len(networks) < 2:
        return
    inputs = sides[0].inputs
    if not isinstance(inputs, Tensor):
        return
    latencies = measure_latency(
        {name: side.model for name, side in networks.items() if side.model is not None},
        inputs[:LATENCY_BATCH])
    for name, side in networks.items():
        side.metrics.update(latency_metrics(latencies[name]))
