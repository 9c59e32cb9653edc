"""The two sides of ``wua compare A B``: what each is, what it is tested on, how it does there.

May import: everything but cli and the chain. Tests: ``tests/pipeline/test_outside.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.dotted import one_line
from wua_mlflow.evaluation import Evaluation, evaluate, output_kind
from wua_mlflow.hooks import evaluating
from wua_mlflow.pipeline.data import DataSplit
from wua_mlflow.pipeline.machine import device_of
from wua_mlflow.pipeline.predictions import Predictions, read_predictions
from wua_mlflow.pipeline.rawrows import OnScaledRows
from wua_mlflow.pipeline.tables import ENDINGS, Rows, Target
from wua_mlflow.pipeline.testdata import (
    TestData,
    check_columns,
    own_test,
    prepared,
    rows_in,
    targets_of,
)
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.tracking.models import load_exported
from wua_mlflow.tracking.names import Kind, Tag
from wua_mlflow.tracking.store import Store, shown_uri

__all__ = ["Side", "check_reference", "evaluated", "give_tests", "is_file", "opened_side",
           "source_run"]

RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass
class Side:
    """One of the two: what it is, how it does, what it costs.

    ``variant`` is the run of ours that it comes from; ``model`` what is tested (``raw``: it takes
    rows as they were read), ``network`` what is counted and timed: the plain network behind an
    exported one, where that can be built.
    """

    reference: str
    name: str
    variant: Variant | None = None
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


def opened_side(reference: str, store: Store | None, settings: Settings) -> Side:
    """What ``reference`` names: predictions, a run's variant, or a logged model.

    Raises:
        ValueError: one line; it is not there, or cannot be read.
    """
    if is_file(reference):
        return Side(reference, Path(reference).name, predictions=read_predictions(reference))
    machine = {"device": settings.device, "threads": settings.threads}
    if RUN_ID.fullmatch(reference):
        if store is None:
            raise ValueError(f"compare: no run has the id '{reference}': there is no "
                             f"{shown_uri()}")
        variant = load_variant(store, reference, machine)
        return Side(reference, variant.name, variant, model=variant.model, network=variant.model)
    model = load_exported(reference).to(device_of(settings.device))
    run_id = source_run(store, reference)
    source = load_variant(store, run_id, machine) if store and run_id else None
    raw = bool((get_model_info(reference).metadata or {}).get(Tag.TAKES_RAW_ROWS))
    return Side(reference, reference, source, model=model, raw=raw,
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


def give_tests(sides: Sequence[Side], settings: Settings, *, fresh: bool) -> None:
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
            side.model = OnScaledRows(saved, side.test.scaling).to(_device(saved))
            side.network = side.model if side.network is saved else side.network


def _fresh_test(
    side: Side, rows: Rows | None, settings: Settings, known: DataSplit | None
) -> TestData:
    """``rows`` as the side takes them; ``known``: the data of either side's run."""
    own = side.variant.recipe if side.variant else None
    if own is not None and rows is not None:
        check_columns(settings.data, settings.target, own.split.source, own.settings.target)
    like = own.split if own is not None else known if rows is None else None
    test = prepared(rows, settings.data, seed=settings.seed, task=settings.task, like=like)
    if like is not None or side.model is None:
        return test
    return _by_outputs(side, OnScaledRows(side.model, None) if side.raw else side.model, test)


def _targets_among(sides: Sequence[Side], settings: Settings) -> TestData:
    """The targets that come with predictions: those of the first file that has any."""
    for side in sides:
        if side.predictions and (own := side.predictions.rows) is not None:
            return prepared(own, side.reference, seed=settings.seed, task=settings.task, like=None)
    raise ValueError("compare: expected a column 'target' in one of the two files, or the test "
                     "data (--data and --target), but got neither")


def _by_outputs(side: Side, model: nn.Module, test: TestData) -> TestData:
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
        posed = Target("multiclass", tuple(range(count)))
    elif len(values) == count:
        numbers, posed = test.truth.astype(np.int64), Target("multiclass", values)
    else:
        raise ValueError(f"data: expected a class for each of the model's {count} outputs, but "
                         f"the test data have {len(values)}")
    return replace(test, posed=posed, truth=numbers.astype(np.float64),
                   part=replace(test.part, targets=torch.from_numpy(numbers)))


def evaluated(side: Side, *, fresh: bool) -> Evaluation:
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
def _taking(side: Side, inputs: Tensor) -> Iterator[None]:
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
