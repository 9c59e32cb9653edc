"""Rows split 60/10/30 by class into training, validation and test part, and standardised.

scikit-learn is imported where rows are split. Tests: ``tests/data/test_tables.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wua_mlflow.data.scaling import Scaler, Scaling
from wua_mlflow.data.tables import Rows
from wua_mlflow.data.tasks import TaskSpec, infer_task
from wua_mlflow.rng import Purpose, numpy_generator

__all__ = ["SplitRows", "split_rows"]


_FEWEST_ROWS = 20
_FEWEST_OF_A_CLASS = 10
"""With so many, a stratified 60/10/30 split has the class in each part, whatever the rounding."""


@dataclass(frozen=True, eq=False)
class SplitRows:
    """Training, validation and test rows, the task of their targets, and how they were scaled.

    ``columns`` are a table's names of the inputs.
    """

    parts: Sequence[Rows]
    spec: TaskSpec
    scaling: Scaling | None = None
    columns: tuple[str, ...] = ()


def split_rows(
    rows: Rows, seed: int, task: str | None, *, scale_inputs: bool = True,
    scale_targets: bool = True,
) -> SplitRows:
    """The 60/10/30 split of ``rows``, stratified by class, and its task.

    Rows of one group are in one part.

    Args:
        rows: all there are.
        seed: of the split.
        task: as ``load_data`` takes it.
        scale_inputs: whether to standardise the inputs, by the training part.
        scale_targets: whether to standardise a regression's targets.

    Raises:
        ValueError: too few rows, or too few of a class, to make three parts of.
    """
    spec = infer_task(rows.targets, task=task)
    codes = spec.encode(rows.targets, where="the data")
    _check_enough(spec, codes)
    regression = spec.task == "regression"
    if rows.groups is not None:
        indices = _indices_by_group(codes, rows.groups, seed, stratified=not regression)
    else:
        indices = _indices(codes, seed, stratified=not regression)
    train = indices[0]
    scaling = Scaling(
        Scaler.fit(rows.inputs[train]) if scale_inputs else None,
        Scaler.fit(codes[train][:, None]) if regression and scale_targets else None)
    targets = codes if regression else rows.targets
    parts = [scaling.scale(Rows(rows.inputs[part], targets[part], groups=None if rows.groups is None
                                else rows.groups[part])) for part in indices]
    return SplitRows(parts, spec, scaling, rows.columns)


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
