"""Data in three parts: the tutorial's, bundled sets, files, and those of the user's function.

scikit-learn and pandas are imported where a set needs them: ``usecase`` imports neither.
Tests: ``tests/data/test_datasets.py``.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from wua_mlflow.config import TableSettings
from wua_mlflow.data.encoding import TableEncoding
from wua_mlflow.data.frames import are_frames, split_frames
from wua_mlflow.data.scaling import Scaling
from wua_mlflow.data.splitting import SplitRows, part_lines, split_rows
from wua_mlflow.data.tables import ENDINGS, Rows, read_rows, rows_of
from wua_mlflow.data.tasks import Task, TaskSpec, infer_task
from wua_mlflow.errors import did_you_mean, one_line, printable
from wua_mlflow.imports import load_object
from wua_mlflow.rng import Purpose, checked_seed, isolated, numpy_generator

__all__ = [
    "BUILT_IN", "DataSplit", "Part", "call_data_function", "digest_of", "is_file", "load_data",
    "part_of", "split_of", "takes",
]


BUILT_IN = ("usecase", "digits", "breast_cancer", "wine", "iris", "diabetes")
_PARTS = ("train", "validation", "test")
_MOST_NOTES = 25


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the data; ``part[i]`` is a pair, so that a torch DataLoader takes it.

    ``inputs`` are (n, *features) float32, or int64 where they are an embedding's; ``targets``
    (n, 1) float32 in binary tasks and regressions, (n,) int64 in multiclass ones; ``groups`` (n,)
    numbers of whose examples they are, if that is known.
    """

    inputs: Tensor
    targets: Tensor
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets, on a device."""
        return self.inputs.to(device), self.targets.to(device)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the shapes, the types and the bytes of both tensors."""
        return digest_of(*(tensor.detach().cpu().contiguous().numpy()
                           for tensor in (self.inputs, self.targets)))


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
    train: Part
    validation: Part
    test: Part
    features: tuple[int, ...]
    classes: tuple[str, ...]
    source: str
    spec: TaskSpec
    scaling: Scaling | None = None
    columns: tuple[str, ...] = ()
    encoding: TableEncoding | None = None
    notes: tuple[str, ...] = ()
    leaks: Callable[[], list[str]] | None = field(default=None, repr=False)

    def say_notes(self) -> None:
        """Print ``notes`` to standard error, the first of very many, and what gives targets away.
        """
        more = len(self.notes) - _MOST_NOTES
        cut = [f"and {more} more such lines; state/encoding.json has every column"] * (more > 0)
        for line in (*self.notes[:_MOST_NOTES], *cut, *(self.leaks() if self.leaks else ())):
            print(f"wua: data: {printable(line)}", file=sys.stderr)

    @property
    def task(self) -> Task:
        """Binary, multiclass or regression."""
        return self.spec.task

    @property
    def outputs(self) -> int:
        """The model's output units: 1 in binary tasks and regressions, else one a class."""
        return len(self.spec.values) if self.task == "multiclass" else 1


def load_data(  # noqa: PLR0913 - what names the data, and how they are read
    data: str, *, target: str | None = None, groups: str | None = None, seed: int,
    image: bool = False, task: str | None = None, standardise: bool = True,
    table: TableSettings | None = None,
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
            pair of arrays (inputs, targets), a torch Dataset of such pairs, or a DataFrame with
            the column ``target``; or one DataFrame, which is split like a file. While it runs, the
            global generators are seeded with ``seed``, so that it gives the same data each time.
        target: the column of a file (or DataFrame) to predict; in an .npz file the array, ``y`` if
            not given.
        groups: the column of a file (or array) that says whose rows they are; no input, and the
            rows of one are in one part.
        seed: in [0, 2**32).
        image: inputs must be images (channels, height, width). The digits then are, divided by
            their largest value, 16, instead of standardised; (height, width) gets a channel.
        standardise: whether the columns of files and bundled sets are, and a regression's targets.
        table: how a table's columns become inputs.
        task: binary, multiclass or regression. If not given: text, bools and whole numbers of at
            most 20 different values are classes, in sorted order, and so are an integer tensor or
            a Dataset's integers whatever their number; anything else is a regression.

    Raises:
        ValueError: one line naming the argument, what was expected and what came.

    >>> split = load_data("usecase", seed=42)
    >>> tuple(split.train.inputs.shape), len(split.validation), len(split.test), split.task
    ((1000, 2), 1000, 10000, 'binary')
    """
    seed, target = checked_seed(seed), target or None
    with isolated():
        if is_file(data):
            path = Path(data).expanduser()
            rows = read_rows(data, target, groups=groups, settings=table)
            parts = split_rows(rows, seed, task, settings=table,
                               scale_inputs=standardise, scale_targets=standardise)
            return _data_split(parts, path.stem, source=str(path.absolute()), image=image)
        made = call_data_function(data, seed) if ":" in data else None
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
            return split_of(made, data, image=image, task=task)
        if data == "usecase":
            parts = _usecase(seed, task)
            return _data_split(parts, "usecase", source="usecase", image=image)
        if data in BUILT_IN:
            return _bundled(data, seed, image=image, task=task, standardise=standardise)
    raise ValueError(f"data: expected one of {', '.join(BUILT_IN)}, the path of a file ending in "
                     f"{', '.join(ENDINGS)}, or package.module:function, but got {data!r}"
                     f"{did_you_mean(data, BUILT_IN)}")


def digest_of(*parts: np.ndarray | bytes) -> str:
    """SHA-256, in hexadecimal, of arrays with their shapes and types, and of bytes."""
    sha = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            part = np.ascontiguousarray(part).tobytes()
        sha.update(part)
    return sha.hexdigest()


def is_file(data: str) -> bool:
    """Whether ``data`` names a file, there or not, rather than a bundled set or a function."""
    if Path(data).suffix.lower() in ENDINGS:
        return True
    return ":" not in data and data not in BUILT_IN and ("/" in data or Path(data).is_file())


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
    parts = replace(split_rows(rows, seed, task, scale_inputs=standardise and not pixels,
                               scale_targets=standardise, copies_together=False), leaks=None)
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


def split_of(
    three: Any, reference: str, *, image: bool = False, task: str | None = None
) -> DataSplit:
    """What the user's function returned, (train, validation, test), as data for one task.

    Raises:
        ValueError: it is anything else, or does not fit the task.
    """
    if not isinstance(three, tuple | list) or len(three) != 3:
        got = f"{len(three)} parts" if isinstance(three, tuple | list) else type(three).__name__
        raise ValueError(f"data: expected {reference} to return (train, validation, test), "
                         f"but got {got}")
    pairs = [_pair(part, where) for part, where in zip(three, _PARTS, strict=True)]
    parts = [rows_of(x, y, where=where) for (x, y), where in zip(pairs, _PARTS, strict=True)]
    typed = isinstance(three[0], Dataset) or isinstance(pairs[0][1], Tensor)
    spec = infer_task(parts[0].targets, task=task, whole_are_classes=typed)
    split = SplitRows(parts, spec, leaks=partial(part_lines, parts))
    return _data_split(split, reference, source=reference, image=image)


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Any error of the user's code as one that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"data: expected data from {what}, but got {one_line(error)}") from error


def _pair(part: Any, where: str) -> tuple[Any, Any]:
    if isinstance(part, Dataset):
        return _stacked(part, where)
    if isinstance(part, tuple | list) and len(part) == 2:
        return part[0], part[1]
    got = f"{len(part)} values" if isinstance(part, tuple | list) else type(part).__name__
    raise ValueError(f"data: expected {where} to be a pair (inputs, targets) or a torch Dataset "
                     f"of such pairs, but got {got}")


def _stacked(dataset: Any, where: str) -> tuple[Any, np.ndarray]:
    with _user_code(where):
        iterable = isinstance(dataset, IterableDataset)
        pairs = list(dataset) if iterable else [dataset[i] for i in range(len(dataset))]
    odd = [pair for pair in pairs if not isinstance(pair, tuple | list) or len(pair) != 2]
    if odd or not pairs:
        got = f"items that are none, {len(odd)} of them" if odd else "no items"
        raise ValueError(f"data: expected {where} to hold pairs (input, target), but got {got}")
    with _user_code(where):
        inputs, targets = zip(*pairs, strict=True)
        tensors = all(isinstance(x, Tensor) for x in inputs)
        return torch.stack(inputs) if tensors else np.stack([*map(np.asarray, inputs)]), \
            np.asarray(targets)


def _as_images(rows: Rows) -> Rows:
    if rows.inputs.ndim not in (3, 4):
        raise ValueError("data: expected images, (height, width) or (channels, height, width), for "
                         f"this model, but each input has the shape {rows.inputs.shape[1:]}")
    return rows if rows.inputs.ndim == 4 else replace(rows, inputs=rows.inputs[:, None])


def _data_split(split: SplitRows, name: str, *, source: str, image: bool) -> DataSplit:
    parts = [_as_images(rows) for rows in split.parts] if image else split.parts
    shapes = [rows.inputs.shape[1:] for rows in parts]
    for where, shape in zip(_PARTS, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"data: expected inputs of shape {shapes[0]} in {where}, as in train, "
                             f"but got {shape}")
    train, validation, test = (part_of(rows, split.spec, where)
                               for rows, where in zip(parts, _PARTS, strict=True))
    return DataSplit(name, train, validation, test, shapes[0], split.spec.classes, source,
                     split.spec, split.scaling, split.columns, split.encoding, split.notes,
                     split.leaks)


def part_of(rows: Rows, spec: TaskSpec, where: str) -> Part:
    """Rows as tensors; ``where`` names them in a message."""
    codes = spec.encode(rows.targets, where=where)
    dtype = np.int64 if rows.indices else np.float32
    inputs = torch.from_numpy(np.array(rows.inputs, dtype=dtype, order="C"))
    if spec.task == "multiclass":
        return Part(inputs, torch.from_numpy(codes), rows.groups)
    return Part(inputs, torch.from_numpy(codes.astype(np.float32)[:, None]), rows.groups)
