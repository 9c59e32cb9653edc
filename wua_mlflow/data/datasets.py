"""Data in three parts: the tutorial's, bundled sets, files, and those of the user's function.

scikit-learn and pandas are imported where a set needs them: ``usecase`` imports neither.
Tests: ``tests/data/test_datasets.py``.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from wua_mlflow.config import TableSettings
from wua_mlflow.data.batches import (
    DATASET_BATCH,
    NUMBERS,
    GrowingArray,
    inputs_and_targets,
    leaves,
)
from wua_mlflow.data.encoding import TableEncoding
from wua_mlflow.data.frames import are_frames, split_frames
from wua_mlflow.data.parts import (
    DataPart,
    Part,
    RowsOfPair,
    StreamedPart,
    digest_of,
    is_map_style,
    streamed_part,
)
from wua_mlflow.data.scaling import Scaling
from wua_mlflow.data.splitting import SplitRows, part_lines, split_rows
from wua_mlflow.data.structured import Structure, infer_structured
from wua_mlflow.data.tables import ENDINGS, Rows, read_rows, rows_of
from wua_mlflow.data.tasks import PLAIN, Task, TaskSpec, infer_task
from wua_mlflow.errors import did_you_mean, one_line, printable
from wua_mlflow.imports import load_object, local_path
from wua_mlflow.rng import Purpose, checked_seed, isolated, numpy_generator

__all__ = [
    "BUILT_IN", "DataSplit", "Part", "call_data_function", "digest_of", "is_file", "load_data",
    "part_of", "split_of", "takes",
]


BUILT_IN = ("usecase", "digits", "breast_cancer", "wine", "iris", "diabetes")
PARTS = ("train", "validation", "test")
_MOST_NOTES = 25


@dataclass(frozen=True, eq=False)
class DataSplit:
    """Data for one task, in three parts.

    ``features`` is the shape of one input; ``classes`` the classes' names, none in a regression;
    ``source`` says where the data came from: a path, a scikit-learn function, the user's function.
    ``spec``, ``scaling`` and of a table ``encoding`` are what fresh rows go through to be like
    these; ``columns`` a table's names of the inputs; ``notes`` lines for the user on what was
    guessed, filled in or left out.
    """

    name: str
    train: DataPart
    validation: DataPart
    test: DataPart
    features: tuple[int, ...]
    classes: tuple[str, ...]
    source: str
    spec: TaskSpec
    scaling: Scaling | None = None
    columns: tuple[str, ...] = ()
    encoding: TableEncoding | None = None
    notes: tuple[str, ...] = ()
    find_warnings: Callable[[], list[str]] | None = field(default=None, repr=False)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Lines on what makes scores too good: test rows that are training rows, leaks."""
        return tuple(self.find_warnings()) if self.find_warnings else ()

    def say_notes(self) -> None:
        """Print ``notes``, the first of very many, and ``warnings`` to standard error.

        And of a table how many rows each part has.
        """
        more = len(self.notes) - _MOST_NOTES
        cut = [f"and {more} more such lines; state/encoding.json has every column"] * (more > 0)
        counts = [f"{len(self.train):,} rows to train on, {len(self.validation):,} to validate, "
                  f"{len(self.test):,} to test"] * (self.encoding is not None)
        for line in (*self.notes[:_MOST_NOTES], *cut, *counts, *self.warnings):
            print(f"wua: data: {printable(line)}", file=sys.stderr)

    @property
    def task(self) -> Task:
        """As the targets are; of single decisions: ``judged_as``."""
        return self.spec.task

    @property
    def outputs(self) -> int | None:
        """The model's output units: one a class, a label or an amount; 1 in binary tasks.

        None where only the model knows: of tokens, pixels, and tasks of the user's own.
        """
        if self.task == "multiclass":
            return len(self.spec.values)
        return self.spec.columns if self.task in (*PLAIN, "multilabel") else None

    def for_two_outputs(self) -> DataSplit:
        """A binary task as a multi-class one of two classes, for a model of two outputs."""
        def of_classes(part: DataPart) -> DataPart:
            return replace(part, targets=part.targets[:, 0].long()) \
                if isinstance(part, Part) else part

        train, validation, test = map(of_classes, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test,
                       spec=replace(self.spec, task="multiclass"))


def load_data(  # noqa: PLR0913 - what names the data, and how they are read
    data: str, *, target: str | None = None, groups: str | None = None, seed: int,
    image: bool = False, task: str | None = None, standardise: bool = True,
    batch_size: int = DATASET_BATCH, to_inputs: Callable[[Any], Any] | None = None,
    arguments: Callable[[], int] | None = None, table: TableSettings | None = None,
    returned: Any = None,
) -> DataSplit:
    """The data that ``data`` names, in three parts. The global random generators stay as they are.

    ``usecase`` is the tutorial's: 1,000 uniform points, 10,000 fresh ones to test, 1,000 to
    validate. The other bundled sets (scikit-learn's) and files are split 60/10/30 into training,
    validation and test, stratified by class; every column is standardised by the training part's
    mean and standard deviation, and is 0 where it is constant there. Images in an .npz file are
    standardised by channel (axis 1 of four axes, all alike of three). The targets of a regression
    are standardised too, which leaves R² as it is. What the user's function returns is not changed.

    Args:
        data: a bundled set (``BUILT_IN``), the path of a file (``ENDINGS``), or
            ``package.module:function`` of the seed that gives (train, validation, test), each a
            pair (inputs, targets), a DataFrame with the column ``target``, a Dataset, a DataLoader
            or any iterable of batches that can be gone over again; or one DataFrame, which is split
            like a file. Pairs of arrays and Datasets of such pairs of up to 512 MiB are held in
            memory, anything else is streamed. While it runs, the global generators are seeded with
            ``seed``, so that it gives the same data each time.
        target: the column of a file (or DataFrame) to predict; in an .npz file the array, ``y`` if
            not given.
        groups: the column of a file (or array) that says whose rows they are; no input, and the
            rows of one are in one part.
        seed: in [0, 2**32).
        image: inputs must be images (channels, height, width). The digits then are, divided by
            their largest value, 16, instead of standardised; (height, width) gets a channel.
        standardise: whether the columns of files and bundled sets are, and a regression's targets.
        table: how a table's columns become inputs.
        task: as in ``Task``. If not given: text, bools and whole numbers of at most 20 different
            values are classes, in sorted order, and so are an integer tensor or a Dataset's
            integers whatever their number; several targets an example are what
            ``structured.infer_structured`` says; anything else is a regression.
        batch_size: of a Dataset's batches where it is streamed.
        to_inputs: of a batch of the user's own to what the model takes.
        arguments: how many the model's forward needs; asked where batches have more than two
            entries. One, if None.
        returned: what the function that ``data`` names has returned, if it was called before.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    >>> split = load_data("usecase", seed=42)
    >>> tuple(split.train.inputs.shape), len(split.validation), len(split.test), split.task
    ((1000, 2), 1000, 10000, 'binary')
    """
    seed, target = checked_seed(seed), target or None
    with isolated():
        if is_file(data):
            path = local_path(data)
            rows = read_rows(data, target, groups=groups, settings=table)
            parts = split_rows(rows, seed, task, settings=table,
                               scale_inputs=standardise, scale_targets=standardise)
            return _data_split(parts, path.stem, source=str(path.absolute()), image=image)
        made = returned
        if ":" in data and made is None:
            made = call_data_function(data, seed)
        if are_frames(made, target):
            parts = split_frames(made, data, target=target, groups=groups, seed=seed, task=task,
                                 table=table, standardise=standardise)
            return _data_split(parts, data, source=data, image=image)
        if target is not None and (data in BUILT_IN or ":" in data):
            raise ValueError(f"target: expected none beside data {data!r}, but got {target!r}")
        if groups is not None:
            raise ValueError(f"groups: expected a file that has the column, but the data are "
                             f"{data!r}")
        if ":" in data:
            return split_of(made, data, image=image, task=task, batch_size=batch_size,
                            to_inputs=to_inputs, arguments=arguments)
        if data == "usecase":
            parts = _usecase(seed, task)
            return _data_split(parts, "usecase", source="usecase", image=image)
        if data in BUILT_IN:
            return _bundled(data, seed, image=image, task=task, standardise=standardise)
    raise ValueError(f"data: expected one of {', '.join(BUILT_IN)}, the path of a file ending in "
                     f"{', '.join(ENDINGS)}, or package.module:function, but got {data!r}"
                     f"{did_you_mean(data, BUILT_IN)}")


def is_file(data: str) -> bool:
    """Whether ``data`` names a file, there or not, rather than a bundled set or a function."""
    if Path(data).suffix.lower() in ENDINGS:
        return True
    return ":" not in data and data not in BUILT_IN and ("/" in data or os.path.isfile(data))


def _usecase(seed: int, task: str | None) -> SplitRows:
    """The training part is ``np.random.seed(seed); np.random.rand(1000, 2)``: RandomState's."""
    points = (np.random.RandomState(seed).rand(1000, 2),
              numpy_generator(seed, Purpose.VALIDATION_DATA).random((1000, 2)),
              numpy_generator(seed, Purpose.TEST_DATA).random((10_000, 2)))
    parts = [Rows(x, (x[:, 0] + x[:, 1] > 1).astype(np.int64)) for x in points]
    return SplitRows(parts, infer_task(parts[0].targets, task=task))


def _bundled(
    data: str, seed: int, *, image: bool, task: str | None, standardise: bool
) -> DataSplit:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{data}")()
    pixels = image and data == "digits"
    rows = Rows(loaded.images / 16 if pixels else loaded.data, loaded.target)
    parts = split_rows(rows, seed, task, scale_inputs=standardise and not pixels,
                       scale_targets=standardise, copies_together=False)
    parts = replace(parts, notes=(), find_warnings=None)  # they are known
    split = _data_split(parts, data, source=f"sklearn.datasets.load_{data}", image=image)
    names = tuple(str(name) for name in loaded.get("target_names", ()))
    return replace(split, classes=names) if split.classes and names else split


def call_data_function(reference: str, seed: int) -> Any:
    """What the user's function of the seed (or of nothing) returns; seeds the global generators.

    Raises:
        ValueError: it is not there, or fails.
    """
    function = load_object(reference, argument="data")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    arguments = () if takes(function) and not takes(function, seed) else (seed,)
    with _user_code(reference):
        return function(*arguments)


def takes(function: Callable[..., Any], *values: object) -> bool:
    """Whether a function can be called with these arguments, as far as its signature says.

    >>> takes(abs, 3), takes(lambda widths: widths)
    (True, False)
    """
    try:
        inspect.signature(function).bind(*values)
    except TypeError:
        return False
    except ValueError:  # it has no signature, as some builtins
        return bool(values)
    return True


def split_of(  # noqa: PLR0913 - what was returned, and how it is to be read
    three: Any, reference: str, *, image: bool = False, task: str | None = None,
    batch_size: int = DATASET_BATCH, to_inputs: Callable[[Any], Any] | None = None,
    arguments: Callable[[], int] | None = None,
) -> DataSplit:
    """What the user's function returned, (train, validation, test), as data for one task.

    Raises:
        ValueError: it is anything else, or does not fit the task.
    """
    if not isinstance(three, tuple | list) or len(three) != 3:
        got = f"{len(three)} parts" if isinstance(three, tuple | list) else type(three).__name__
        raise ValueError(f"data: expected {reference} to return (train, validation, test), "
                         f"but got {got}")
    pairs = [None if to_inputs else _pair(part, where)
             for part, where in zip(three, PARTS, strict=True)]
    if any(pair is None for pair in pairs):
        parts = [streamed_part(_source(part), where, batch_size=batch_size, to_inputs=to_inputs)
                 for part, where in zip(three, PARTS, strict=True)]
        return streamed_split(parts, reference, task=task, arguments=arguments)
    whole = [pair for pair in pairs if pair is not None]
    several = _several_targets(whole[0][1]) and task in (None, "regression")
    if several or task is not None and task not in PLAIN:
        return _structured_split(whole, reference, task)
    rows = [rows_of(x, y, where=where) for (x, y), where in zip(whole, PARTS, strict=True)]
    typed = is_map_style(three[0]) or isinstance(whole[0][1], Tensor)
    spec = infer_task(rows[0].targets, task=task, whole_are_classes=typed)
    split = SplitRows(rows, spec, find_warnings=partial(part_lines, rows))
    return _data_split(split, reference, source=reference, image=image)


def _several_targets(targets: Any) -> bool:
    shape = np.shape(targets)
    return len(shape) > 1 and shape[1:] != (1,)


def _structured_split(
    pairs: Sequence[tuple[Any, Any]], reference: str, task: str | None
) -> DataSplit:
    """Tensors in memory with several targets an example."""
    tensors = []
    for (x, y), where in zip(pairs, PARTS, strict=True):
        rows = rows_of(x, np.zeros(len(y)), where=where)
        inputs = torch.from_numpy(np.array(
            rows.inputs, dtype=np.int64 if rows.indices else np.float32, order="C"))
        targets = y.detach().cpu() if isinstance(y, Tensor) else torch.from_numpy(np.array(y))
        if targets.is_floating_point() and not bool(targets.isfinite().all()):
            raise ValueError(f"data: expected finite numbers, but the targets of {where} have NaN "
                             f"or infinity")
        tensors.append((inputs, targets))
    structure = infer_structured(*tensors[0], task)
    if structure is None:
        raise ValueError(f"task: expected several targets an example for {task}, but those of "
                         f"train have the shape {tuple(tensors[0][1].shape)}")
    spec = _structured_spec(structure)
    floats = spec.task in ("multilabel", "regression")
    train, validation, test = (Part(x, y.float() if floats else y.long()) for x, y in tensors)
    return DataSplit(reference, train, validation, test, tuple(train.inputs.shape[1:]),
                     spec.classes, reference, spec, notes=_guess(structure, task, train.targets))


def _guess(structure: Structure, task: str | None, targets: Any) -> tuple[str, ...]:
    """A line that says what several targets an example were taken as; none, if it was said."""
    if task is not None:
        return ()
    shape = f"({', '.join(['examples', *map(str, targets.shape[1:])])})"
    return (f"targets of shape {shape}, taken as {structure.task}; another task: --task",)


def _structured_spec(structure: Structure) -> TaskSpec:
    values = (0, 1) if structure.task == "multilabel" else ()
    return TaskSpec(structure.task, values, structure.columns, structure.next_token)


def streamed_split(
    parts: Sequence[StreamedPart], reference: str, *, task: str | None = None,
    arguments: Callable[[], int] | None = None,
) -> DataSplit:
    """Parts that are gone over in batches, as data for one task.

    Raises:
        ValueError: one line; no batches, or they do not fit the task.
    """
    first, needed = parts[0].first(), 1
    if arguments is not None and isinstance(first, tuple | list) and len(first) > 2:
        needed = arguments()
    inputs, targets = inputs_and_targets(first, parts[0].to_inputs, needed)
    if isinstance(targets, np.ndarray):
        targets = torch.from_numpy(np.array(targets))
    structure = infer_structured(inputs, targets, task)
    if structure is not None:
        spec, notes = _structured_spec(structure), _guess(structure, task, targets)
    else:
        spec, notes = _flat_spec(parts, targets, task, needed), ()
    features = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor | np.ndarray) else ()
    train, validation, test = parts
    return DataSplit(reference, train, validation, test, features, spec.classes, reference, spec,
                     notes=notes)


def _flat_spec(
    parts: Sequence[StreamedPart], first: Tensor, task: str | None, needed: int
) -> TaskSpec:
    """The task of one target an example: of the validation and the test part and a first batch."""
    found = GrowingArray()
    found.add(np.asarray(first).reshape(-1))
    for part in parts[1:]:
        for each in part.all_targets(needed):
            found.add(np.asarray(each).reshape(-1))
    targets = found.rows
    spec = infer_task(targets, task=task, whole_are_classes=True)
    if spec.task == "regression":
        return spec
    numbers = np.unique(targets)
    if numbers.min() < 0 or (numbers != np.round(numbers)).any():
        raise ValueError(f"data: expected classes as whole numbers from 0 in batches, but got "
                         f"{numbers.min():g}")
    most = max(2, int(numbers.max()) + 1)
    return TaskSpec("binary", (0, 1)) if most == 2 and task != "multiclass" else \
        TaskSpec("multiclass", tuple(range(most)))


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Any error of the user's code as one that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"data: expected data from {what}, but got {one_line(error)}") from error


STACKED_BYTES = 2**29
"""A Dataset of pairs is held in memory up to this size."""


def _pair(part: Any, where: str) -> tuple[Any, Any] | None:
    """Inputs and targets of all examples, where the part is held in memory; else None."""
    if is_map_style(part) or isinstance(part, IterableDataset):
        return _stacked(part, where)
    if not isinstance(part, (tuple, list, *NUMBERS)):
        return None
    if isinstance(part, list) and (not part or isinstance(part[0], tuple | Mapping)):
        return None  # batches
    if isinstance(part, tuple | list) and len(part) == 2:
        several = isinstance(part[0], tuple | Mapping)
        return None if several else (part[0], part[1])
    got = f"{len(part)} values" if isinstance(part, tuple | list) else type(part).__name__
    raise ValueError(f"data: expected {where} to be a pair (inputs, targets), a Dataset, a "
                     f"DataLoader or a list of batches, but got {got}")


def _source(part: Any) -> Any:
    """What is streamed: a pair whose inputs are several tensors by its rows."""
    pair = isinstance(part, tuple) or isinstance(part, list) and part and \
        isinstance(part[0], NUMBERS)
    return RowsOfPair(*part) if pair and len(part) == 2 else part


def _stacked(dataset: Any, where: str) -> tuple[Any, np.ndarray] | None:
    """A Dataset's pairs; None where it has no pairs of equal shapes, is large, or draws anew."""
    if isinstance(dataset, IterableDataset):
        return None
    with _user_code(where):
        first = dataset[0] if len(dataset) else None
    if not isinstance(first, tuple | list) or len(first) != 2 \
            or not isinstance(first[0], (*NUMBERS, int, float)) \
            or not _gives_the_same(dataset, where) \
            or len(dataset) * np.asarray(first[0]).nbytes > STACKED_BYTES:
        if first is None:
            raise ValueError(f"data: expected {where} to hold pairs (input, target), but got no "
                             f"items")
        return None
    with _user_code(where):
        pairs = [dataset[i] for i in range(len(dataset))]
        inputs, targets = zip(*pairs, strict=True)
        tensors = all(isinstance(x, Tensor) for x in inputs)
        shapes = {np.shape(x) for x in inputs}, {np.shape(y) for y in targets}
        if max(map(len, shapes)) > 1:
            return None
        stacked = torch.stack(inputs) if tensors else np.stack([*map(np.asarray, inputs)])
        return stacked, np.stack([*map(np.asarray, targets)])


READ_TWICE = 64
"""So many items are read twice, to see whether they are drawn at random, as in augmentation."""


def _gives_the_same(dataset: Any, where: str) -> bool:
    with _user_code(where):
        return all(_same_values(dataset[i], dataset[i])
                   for i in range(min(READ_TWICE, len(dataset))))


def _same_values(first: Any, again: Any) -> bool:
    pairs = zip(leaves(first, NUMBERS), leaves(again, NUMBERS), strict=True)
    return all(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)
               if np.asarray(one).dtype.kind == "f" else np.array_equal(one, other)
               for one, other in pairs)


def _as_images(rows: Rows) -> Rows:
    if rows.inputs.ndim not in (3, 4):
        raise ValueError("data: expected images, (height, width) or (channels, height, width), for "
                         f"this model, but each input has the shape {rows.inputs.shape[1:]}")
    return rows if rows.inputs.ndim == 4 else replace(rows, inputs=rows.inputs[:, None])


def _data_split(split: SplitRows, name: str, *, source: str, image: bool) -> DataSplit:
    parts = [_as_images(rows) for rows in split.parts] if image else split.parts
    shapes = [rows.inputs.shape[1:] for rows in parts]
    for where, shape in zip(PARTS, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"data: expected inputs of shape {shapes[0]} in {where}, as in train, "
                             f"but got {shape}")
    train, validation, test = (part_of(rows, split.spec, where)
                               for rows, where in zip(parts, PARTS, strict=True))
    return DataSplit(name, train, validation, test, shapes[0], split.spec.classes, source,
                     split.spec, split.scaling, split.columns, split.encoding, split.notes,
                     split.find_warnings)


def part_of(rows: Rows, spec: TaskSpec, where: str) -> Part:
    """Rows as tensors; ``where`` names them in a message."""
    codes = spec.encode(rows.targets, where=where)
    dtype = np.int64 if rows.indices else np.float32
    inputs = torch.from_numpy(np.array(rows.inputs, dtype=dtype, order="C"))
    if spec.task == "multiclass":
        return Part(inputs, torch.from_numpy(codes), rows.groups)
    return Part(inputs, torch.from_numpy(codes.astype(np.float32)[:, None]), rows.groups)
