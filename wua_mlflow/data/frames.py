"""DataFrames from the user's function: one to split, or three parts, with the target or beside it.

pandas is imported where there is one. Tests: ``tests/data/test_frames.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wua_mlflow.config import TableSettings
from wua_mlflow.data.splitting import SplitRows, split_rows
from wua_mlflow.data.table_files import check_names
from wua_mlflow.data.tables import table_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["are_frames", "split_frames"]


_TARGET = "target"
"""The name of a target that has none."""


def are_frames(made: Any, target: str | None) -> bool:
    """Whether the user's function returned tables, which are read like a file's.

    That is a DataFrame, a pair of one and its target, or three of either; not three pairs whose
    columns are numbers without gaps, which are taken as they are, as arrays.

    Args:
        made: what it returned.
        target: the setting: three DataFrames without targets beside them have it as a column.
    """
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return False

    def is_table(part: Any) -> bool:
        return isinstance(part, pandas.DataFrame) or (
            isinstance(part, tuple | list) and len(part) == 2
            and isinstance(part[0], pandas.DataFrame))

    if is_table(made):
        return True
    if not isinstance(made, tuple | list) or len(made) != 3 or not all(map(is_table, made)):
        return False
    return any(isinstance(part, pandas.DataFrame) or not _plain(part[0]) for part in made)


def split_frames(  # noqa: PLR0913 - what was returned, and how it is read
    made: Any, reference: str, *, target: str | None, groups: str | None, seed: int,
    task: str | None, table: TableSettings | None, standardise: bool = True,
) -> SplitRows:
    """The three parts of what ``are_frames`` says is a table; arguments as of ``load_data``.

    Raises:
        ValueError: one line; columns that differ between parts, or as ``table_of``.
    """
    import pandas as pd

    parts = [made] if isinstance(made, pd.DataFrame) or len(made) == 2 else list(made)
    named = target or next((str(part[1].name) for part in parts
                            if not isinstance(part, pd.DataFrame)
                            and getattr(part[1], "name", None) is not None), None)
    frames = [_with_target(part, named, reference) for part in parts]
    _check_columns(frames, reference)
    whole = pd.concat(frames, ignore_index=True)
    beside = not isinstance(parts[0], pd.DataFrame)
    name = (named or _TARGET) if beside else target
    read = table_of(whole, name, where=f"what {reference} returned", groups=groups, settings=table)
    indices: Sequence[np.ndarray] | None = None
    if len(frames) == 3:
        places = np.searchsorted(np.cumsum([len(frame) for frame in frames]), read.rows, "right")
        indices = [np.flatnonzero(places == place) for place in range(3)]
    return split_rows(read, seed, task, settings=table, scale_inputs=standardise,
                      scale_targets=standardise, indices=indices)


def _plain(frame: pd.DataFrame) -> bool:
    return all(dtype.kind in "biuf" for dtype in frame.dtypes) and not bool(
        frame.isna().to_numpy().any())


def _with_target(part: Any, name: str | None, reference: str) -> pd.DataFrame:
    """A frame with its target as a column, under strings as names."""
    import pandas as pd

    if isinstance(part, pd.DataFrame):
        frame = part.rename(columns=str)
        check_names(list(frame.columns), f"what {reference} returned", "data")
        return frame
    frame, values = part[0].rename(columns=str), np.asarray(part[1])
    check_names(list(frame.columns), f"what {reference} returned", "data")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != len(frame):
        raise ValueError(f"data: expected a target for each of {len(frame)} rows from {reference}, "
                         f"but got an array of shape {values.shape}")
    name = name or _TARGET
    if name in frame.columns:
        raise ValueError(f"data: expected the target beside the inputs from {reference}, but they "
                         f"have a column {name!r} too")
    return frame.assign(**{name: values})


def _check_columns(frames: Sequence[pd.DataFrame], reference: str) -> None:
    for frame, where in zip(frames[1:], ("validation", "test"), strict=False):
        others = sorted(set(frames[0].columns) ^ set(frame.columns))
        if others:
            raise ValueError(f"data: expected the same columns in all parts from {reference}, but "
                             f"{where} {'has' if others[0] in frame.columns else 'lacks'} "
                             f"{others[0]!r}, other than train")
