"""A table of runs: a row a run, columns by the contract's names, typed; the rows worth having.

Tests: ``tests/tracking/test_run_table.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run

from wua_mlflow.config import Settings
from wua_mlflow.errors import did_you_mean
from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.verdict.text import methods_note

__all__ = ["HISTORIES", "OWN", "in_order", "note_on", "pareto", "table_of"]


UNSET = ("", "None")
WHOLE = (Metric.FLOPS_FORWARD, Metric.FLOPS_INFERENCE, Metric.FLOPS_TRAINING,
         Metric.FLOPS_PTFLOPS_INFERENCE, Metric.FLOPS_PTFLOPS_TRAINING, Metric.PARAMS_TOTAL,
         Metric.PARAMS_ANALYZED, Metric.SIZE_BYTES, Metric.LOOKS,
         "epochs", "seed", "patience", "null_draws", "threads")
"""Metrics and params that are whole numbers."""
FRACTIONS = ("lr", "margin", "confidence")
"""Params that are other numbers. Widths, batch sizes and seeds stay text: not all are numbers."""
OWN = ("run_id", "name", "status", "start_time")
"""What every run has."""
HISTORIES = (Metric.SCORE_TEST_BY_SEED,)
"""Metrics whose last point says nothing of the run; only who asks for them has them in a table."""
CONTRACT = tuple(value for names in (Metric, Tag) for key, value in vars(names).items()
                 if not key.startswith("_"))
ORDER = {name: place for place, name in enumerate(CONTRACT)}
"""In which metrics stand side by side."""


def table_of(
    pages: Iterable[Sequence[Run]], columns: Sequence[str] = (), *,
    sort: Mapping[str, bool] = MappingProxyType({}),
) -> pd.DataFrame:
    """The runs of all pages, one after the other; a page is let go before the next is asked for.

    Args:
        pages: runs.
        columns: the only ones, in this order; every one, if there is none.
        sort: metrics to sort by, and whether upwards. Those that lack one come last, and what is
            alike stays in its order.

    Raises:
        ValueError: a column that no run has, and that is none of the contract's.
    """
    wanted = {*columns, *sort} if columns else None
    cells: dict[str, list[object]] = {name: [] for name in wanted or OWN}
    metrics: set[str] = set()
    verdicts: list[tuple[str, str | None]] = []
    rows = 0
    for page in pages:
        for run in page:
            for name, value in _row(run, wanted).items():
                column = cells.setdefault(name, [])
                column.extend([None] * (rows - len(column)))
                column.append(value)
            metrics |= run.data.metrics.keys()
            verdicts += _method(run)
            rows += 1
    for column in cells.values():
        column.extend([None] * (rows - len(column)))
    _check([name for name in columns if not any(value is not None for value in cells[name])],
           metrics, rows)
    table = pd.DataFrame({name: _typed(name, cells[name]) for name in _arranged(cells, metrics)})
    keys = [key for key in sort if key in metrics]
    if keys:
        table = table.sort_values(keys, ascending=[sort[key] for key in keys], kind="stable",
                                  ignore_index=True)
    if columns:
        table = table[list(columns)]
    table.attrs["note"] = methods_note(verdicts)
    return table


def _row(run: Run, wanted: Collection[str] | None) -> dict[str, object]:
    """What the run says; its own fields come last, since a param may be called ``run_id``."""
    info, data = run.info, run.data
    own = (info.run_id, info.run_name, info.status, info.start_time)
    prefix = "wua." if wanted is None else ("wua.", "mlflow.")
    row: dict[str, object] = {key: _unquoted(value) for key, value in data.params.items()}
    if row.get("hidden") is None and Tag.WIDTHS in data.tags:
        row["hidden"] = data.tags[Tag.WIDTHS]
    row |= {key: value for key, value in data.tags.items() if key.startswith(prefix)}
    row |= data.metrics
    row |= zip(OWN, own, strict=True)
    if wanted is None:
        for key in HISTORIES:
            row.pop(key, None)
        return row
    return {key: row[key] for key in wanted if key in row}


def _unquoted(value: str) -> str | None:
    """A param as it was given: ``mlflow run`` logs it quoted for the shell, and '' where empty."""
    if len(value) > 1 and value[0] == value[-1] == "'":
        value = value[1:-1].replace("'\"'\"'", "'")
    return None if value in UNSET else value


def _check(missing: Sequence[str], metrics: Collection[str], rows: int) -> None:
    """Of a column that no run has a value of, whether it is the contract's, or a mistake."""
    for name in missing if rows else ():
        if name not in CONTRACT and name not in Settings.model_fields:
            raise ValueError(f"columns: expected names of metrics, params or tags, but none of "
                             f"these {rows} runs has '{name}'"
                             f"{did_you_mean(name, {*CONTRACT, *OWN, *metrics})}")


def _arranged(names: Collection[str], metrics: Collection[str]) -> list[str]:
    """A run's own fields, its tags, its params, its metrics."""
    others = set(names) - set(OWN)
    tags = {name for name in others - set(metrics) if name.startswith("wua.")}
    own = [name for name in OWN if name in names]
    return [*own, *sorted(tags), *sorted(others - set(metrics) - tags),
            *in_order(others & set(metrics))]


def in_order(metrics: Iterable[str]) -> list[str]:
    """Names of metrics, the contract's first and in its order."""
    return sorted(metrics, key=lambda name: (ORDER.get(name, len(ORDER)), name))


def _typed(name: str, cells: list[object]) -> Any:
    """Counts as whole numbers, times in UTC; the rest as pandas takes it."""
    if name == "start_time":
        return pd.to_datetime(cells, unit="ms", utc=True)
    if name not in FRACTIONS and name not in WHOLE and not name.endswith(("/weights", "/units")):
        return cells
    numbers = pd.to_numeric(np.array(cells, dtype=object), errors="coerce").astype(float)
    known = numbers[~np.isnan(numbers)]
    if name in FRACTIONS or (abs(known) >= 2**63).any() or (known % 1 != 0).any():
        return numbers
    return pd.array(numbers, dtype="Int64")


def _method(run: Run) -> list[tuple[str, str | None]]:
    """Whose verdict it is and by what method, where the run has one."""
    tags = run.data.tags
    return [(str(run.info.run_name), tags.get(Tag.VERDICT_METHOD))] if Tag.VERDICT in tags else []


def note_on(listed: Iterable[Run]) -> str:
    """Where the verdicts of these runs were made by several methods, or by one not known."""
    return methods_note(entry for run in listed for entry in _method(run))


def pareto(
    table: pd.DataFrame, *, score: str = Metric.SCORE_TEST, cost: str = Metric.FLOPS_FORWARD
) -> pd.DataFrame:
    """The rows than which no other has as high a score for less, or a higher one for as much.

    Rows that are equal in both stay, all of them; one that lacks either is left out. The order and
    the index are the table's.

    Args:
        table: of ``runs``, or any other.
        score: the column of which more is better.
        cost: the column of which less is better.

    Raises:
        ValueError: the table has no such column of numbers.

    >>> table = pd.DataFrame({"s": [3, 2, 2, 1], "c": [9, 9, 5, 5]})
    >>> pareto(table, score="s", cost="c").index.tolist()
    [0, 2]
    """
    scores, costs = (_numbers(table, argument, name)
                     for argument, name in (("score", score), ("cost", cost)))
    whole = np.flatnonzero(~np.isnan(scores) & ~np.isnan(costs))
    ordered = whole[np.lexsort((-scores[whole], costs[whole]))]  # the best of each cost first
    kept: list[int] = []
    for place in ordered:
        best = kept[-1] if kept else None
        if best is None or scores[place] > scores[best] or (
                scores[place] == scores[best] and costs[place] == costs[best]):
            kept.append(int(place))
    front = table.iloc[sorted(kept)]
    front.attrs.update(table.attrs)
    return front


def _numbers(table: pd.DataFrame, argument: str, name: str) -> np.ndarray:
    if name not in table:
        raise ValueError(f"{argument}: expected a column of the table, but got '{name}'"
                         f"{did_you_mean(name, table.columns)}")
    if not pd.api.types.is_numeric_dtype(table[name]):
        raise ValueError(f"{argument}: expected a column of numbers, but '{name}' has "
                         f"{table[name].dtype}")
    numbers: np.ndarray = table[name].to_numpy(dtype=float, na_value=np.nan)
    return numbers
