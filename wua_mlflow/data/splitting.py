"""Rows split 60/10/30 by class into training, validation and test part, and standardised.

Rows with the same inputs stay in one part. scikit-learn is imported where rows are split.
Tests: ``tests/data/test_splitting.py``, ``tests/data/test_tables.py``.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from wua_mlflow.config import TableSettings
from wua_mlflow.data.encoding import TableEncoding, fit_encoding, fit_gaps, gap_lines
from wua_mlflow.data.leaks import counting_lines, leak_lines
from wua_mlflow.data.scaling import Scaler, Scaling
from wua_mlflow.data.tables import Rows, Table
from wua_mlflow.data.tasks import TaskSpec, infer_task
from wua_mlflow.rng import Purpose, numpy_generator

__all__ = ["SplitRows", "copies_of", "part_lines", "split_rows"]


_FEWEST_ROWS = 20
_FEWEST_OF_A_CLASS = 10
"""With so many, a stratified 60/10/30 split has the class in each part, whatever the rounding."""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Training, validation and test rows, the task of their targets, and how they were scaled.

    Of a table ``encoding`` says how its columns became inputs, ``columns`` are the inputs' names,
    ``notes`` lines for the user, and ``find_warnings`` finds what makes scores too good.
    """

    parts: Sequence[Rows]
    spec: TaskSpec
    scaling: Scaling | None = None
    columns: tuple[str, ...] = ()
    encoding: TableEncoding | None = None
    notes: tuple[str, ...] = ()
    find_warnings: Callable[[], list[str]] | None = None


def split_rows(  # noqa: PLR0913 - what is split, and how
    rows: Rows | Table, seed: int, task: str | None, *, scale_inputs: bool = True,
    scale_targets: bool = True, settings: TableSettings | None = None,
    copies_together: bool = True, indices: Sequence[np.ndarray] | None = None,
) -> SplitRows:
    """The 60/10/30 split of ``rows``, stratified by class, and its task.

    Rows of one group are in one part, and rows with the same inputs, as far as that goes.

    Args:
        rows: all there are.
        seed: of the split.
        task: as ``load_data`` takes it.
        scale_inputs: whether to standardise the inputs, by the training part.
        scale_targets: whether to standardise a regression's targets.
        settings: how a table's columns become inputs.
        copies_together: whether rows with the same inputs are kept together.
        indices: row numbers of the three parts, where they are given.

    Raises:
        ValueError: too few rows, or too few of a class, to make three parts of.
    """
    spec = infer_task(rows.targets, task=task)
    codes = spec.encode(rows.targets, where="the data")
    regression = spec.task == "regression"
    values = rows.codes() if isinstance(rows, Table) else rows.inputs
    copies = copies_of(values) if copies_together else np.arange(len(codes))
    copies_line = ""
    if indices is None:
        _check_enough(spec, codes)
        indices, copies_line = _split(codes, rows.groups, copies, seed, stratified=not regression)
    train = indices[0]
    encoding, gaps, notes = None, None, [*_guess_lines(rows, spec, task)]
    if isinstance(rows, Table):
        settings = settings or TableSettings()
        encoding = fit_encoding(rows.take(train), settings, rows.left_out)
        inputs = encoding.encode(rows.columns, where="the data")
        gaps = fit_gaps(inputs[train], encoding, settings) if np.isnan(inputs).any() else None
        notes += [*gap_lines(rows.columns, encoding, gaps, settings)]
        columns = encoding.names if gaps is None else (
            *encoding.names, *(f"{encoding.names[place]} missing" for place in gaps.indicators))
    else:
        inputs, columns = rows.inputs, rows.columns
    scaling = Scaling(None, None, gaps, named=encoding is not None and encoding.named)
    filled = scaling.scale(Rows(inputs, codes)).inputs
    scaling = replace(
        scaling, inputs=Scaler.fit(filled[train]) if scale_inputs else None,
        targets=Scaler.fit(codes[train][:, None]) if regression and scale_targets else None)
    targets = codes if regression else rows.targets
    parts = [scaling.scale(Rows(inputs[part], targets[part], groups=None if rows.groups is None
                                else rows.groups[part])) for part in indices]
    notes += [copies_line] if copies_line else []
    find = partial(_warnings, rows, values[train], codes[train], _overlap(copies, indices),
                   regression=regression)
    return SplitRows(parts, spec, scaling, columns, encoding, tuple(notes), find)


def _warnings(
    rows: Rows | Table, values: np.ndarray, codes: np.ndarray, overlap: str, *, regression: bool
) -> list[str]:
    """Test rows that are training rows, and columns that give the target away.

    Args:
        rows: all.
        values: the training part's inputs, a table's as ``Table.codes``.
        codes: its targets.
        overlap: a line on test rows that are training rows, if some are.
        regression: whether the targets are amounts.
    """
    lines = [overlap] if overlap else []
    if values.ndim != 2:
        return lines
    table = isinstance(rows, Table)
    names = [column.name for column in rows.columns] if isinstance(rows, Table) else \
        [f"X[:, {place}]" for place in range(values.shape[1])]
    target = rows.target if isinstance(rows, Table) else "the target"
    if isinstance(rows, Table):
        lines += counting_lines(values, {place: column.name for place, column in enumerate(
            rows.columns) if column.kind == "number"})
    return lines + leak_lines(values, codes, names, target=target, classes=not regression,
                              droppable=table)


def _guess_lines(rows: Rows | Table, spec: TaskSpec, task: str | None) -> list[str]:
    """What was guessed of the targets, and of a table's columns."""
    lines = [*rows.notes, *(f"{column.name}: {column.note}" for column in rows.columns
                            if column.note),
             *(f"{name}: {reason}; left out" for name, reason in rows.left_out.items()
               if "drop_columns" not in reason)] if isinstance(rows, Table) else []
    values = np.unique(rows.targets)
    if task is not None or values.dtype.kind not in "iuf" or bool((values % 1 != 0).any()):
        return lines
    name = rows.target if isinstance(rows, Table) else "the target"
    if spec.values and len(values) > 2:
        lines.append(f"{name}: {len(values)} whole numbers, taken as classes; `--task regression` "
                     f"otherwise")
    elif not spec.values and len(values) <= _MOST_CLASSES:
        lines.append(f"{name}: {len(values)} different whole numbers, taken as amounts; `--task "
                     f"multiclass` otherwise")
    return lines


_MOST_CLASSES = 200
"""Of more whole numbers nobody asks whether they are classes."""


# Rows with the same inputs


def copies_of(inputs: np.ndarray) -> np.ndarray:
    """Numbers (n,) that are equal where the inputs (n, ...) are, counted from their first rows.

    >>> copies_of(np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
    [0, 1, 0]
    """
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(key, len(first)) for key in _row_keys(inputs)])


def _row_keys(inputs: np.ndarray) -> Iterator[bytes]:
    """By row of (n, ...) 16 bytes that are equal where the rows are; no copy of all is made."""
    flat = inputs.reshape(len(inputs), -1)
    for start in range(0, len(flat), _AT_ONCE):
        block = np.ascontiguousarray(flat[start:start + _AT_ONCE])
        if block.dtype.kind == "f":
            block = np.where(np.isnan(block), np.nan, block) + 0.0  # one NaN, and no minus zero
        for row in block:
            yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()


_AT_ONCE = 1024


def part_lines(parts: Sequence[Rows]) -> list[str]:
    """How many rows of a test part are training rows too, where parts were given."""
    train, test = parts[0].inputs, parts[-1].inputs
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype \
            or train.size + test.size > _MOST_NUMBERS:
        return []
    known = set(_row_keys(train))
    line = _overlap_line(sum(key in known for key in _row_keys(test)), len(test))
    return [line] if line else []


_MOST_NUMBERS = 1 << 28
"""Parts of more are not gone over for equal rows."""


def _overlap(copies: np.ndarray, indices: Sequence[np.ndarray]) -> str:
    train, test = indices[0], indices[-1]
    return _overlap_line(int(np.isin(copies[test], copies[train]).sum()), len(test))


def _overlap_line(count: int, of: int) -> str:
    if not count:
        return ""
    verb = "row is a training row" if count == 1 else "rows are training rows"
    return (f"{count} of {of} test {verb} too (the same inputs): what a network remembers counts "
            f"as what it can do")


def _split(
    codes: np.ndarray, groups: np.ndarray | None, copies: np.ndarray, seed: int, *,
    stratified: bool,
) -> tuple[list[np.ndarray], str]:
    """Row numbers of the three parts, and a line where copies decided anything."""
    distinct = int(copies.max()) + 1
    number = len(codes) - distinct
    if groups is not None:
        together = _joined(groups, copies) if number else groups
        if len(np.unique(together)) >= _FOLDS:
            try:
                return _indices_by_group(codes, together, seed, stratified=stratified), \
                    _copies_line(number, len(codes)) if number else ""
            except ValueError:
                if together is groups:
                    raise
        return _indices_by_group(codes, groups, seed, stratified=stratified), ""
    if not number:
        return _indices(codes, seed, stratified=stratified), ""
    first = np.unique(copies, return_index=True)[1]
    fewest = np.bincount(codes[first].astype(int)).min() if stratified else distinct
    if distinct >= _FEWEST_ROWS and fewest >= _FEWEST_OF_A_CLASS:
        chosen = _indices(codes[first], seed, stratified=stratified)
        parts = [np.flatnonzero(np.isin(copies, part)) for part in chosen]
        if all(low <= len(part) / len(codes) <= high
               for part, (low, high) in zip(parts, _SHARES, strict=True)):
            return parts, _copies_line(number, len(codes))
    return _indices(codes, seed, stratified=stratified), ""


_SHARES = ((0.45, 0.75), (0.04, 0.2), (0.2, 0.4))
"""Of the rows, which the parts of a split by different rows may have."""


def _copies_line(number: int, rows: int) -> str:
    verb = "row has" if number == 1 else "rows have"
    return f"{number} of {rows} {verb} the inputs of another; such rows stay in one part"


def _joined(groups: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Groups that share rows with the same inputs as one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers = np.unique(groups, return_inverse=True)[1]
    size = int(numbers.max()) + 1 + int(copies.max()) + 1
    links = coo_matrix((np.ones(len(copies)), (numbers, copies + int(numbers.max()) + 1)),
                       shape=(size, size))
    found = connected_components(links, directed=False)[1]
    return np.asarray(found)[numbers]


def _check_enough(spec: TaskSpec, codes: np.ndarray) -> None:
    if len(codes) < _FEWEST_ROWS:
        raise ValueError(f"data: expected at least {_FEWEST_ROWS} rows to make three parts of, "
                         f"but got {len(codes)}")
    if spec.task == "regression":
        return
    counts = np.bincount(codes)
    rarest = int(counts.argmin())
    if counts[rarest] < _FEWEST_OF_A_CLASS:
        hint = "" if isinstance(spec.values[0], str | bool) else "; amounts want task=regression"
        raise ValueError(f"target: expected at least {_FEWEST_OF_A_CLASS} rows of each class to "
                         f"have it in all three parts, but class {spec.classes[rarest]!r} has "
                         f"{counts[rarest]}{hint}")


_FOLDS = 10
"""Of whole groups: six to train on, one to validate, three to test."""


def _indices_by_group(
    codes: np.ndarray, groups: np.ndarray, seed: int, *, stratified: bool
) -> list[np.ndarray]:
    """Row numbers of the three parts, no group in two of them."""
    from sklearn.model_selection import StratifiedGroupKFold

    number = len(np.unique(groups))
    if number < _FOLDS:
        raise ValueError(f"groups: expected at least {_FOLDS}, to make three parts of whole ones, "
                         f"but got {number}")
    draw = numpy_generator(seed, Purpose.SPLIT)
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=int(draw.integers(2**32)))
    classes = codes if stratified else np.zeros(len(codes), dtype=int)
    with warnings.catch_warnings():  # of a class that a fold lacks: checked by part below
        warnings.simplefilter("ignore", UserWarning)
        folds = [fold for _, fold in splitter.split(codes, classes, groups)]
    parts = [np.sort(np.concatenate(some)) for some in (folds[:6], folds[6:7], folds[7:])]
    for part, where in zip(parts, ("training", "validation", "test"), strict=True):
        if stratified and len(np.unique(codes[part])) < len(np.unique(codes)):
            raise ValueError(f"groups: expected rows of each class in the {where} part, but a "
                             f"class is in too few groups")
    return parts


def _indices(codes: np.ndarray, seed: int, *, stratified: bool) -> list[np.ndarray]:
    """Row numbers of the training, the validation and the test part."""
    from sklearn.model_selection import train_test_split

    n, draw = len(codes), numpy_generator(seed, Purpose.SPLIT)
    train, parts = np.arange(n), []
    for size in (-(-3 * n // 10), -(-n // 10)):
        train, part = train_test_split(
            train, test_size=size, random_state=int(draw.integers(2**32)),
            stratify=codes[train] if stratified else None)
        parts.append(part)
    return [train, parts[1], parts[0]]
