"""All reading of runs: tables by the contract's names, with filters pushed down to MLflow.

May import: mlflow, pandas, names. Tests: ``tests/tracking/test_runs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.names import Kind, Metric, Outcome, Tag

__all__ = ["best", "compare_runs", "count_looks", "runs", "show_run"]

PAGE = 1000
UNSET = ("", "''", "None")
"""How MLflow logs a project's parameter that was left empty."""
WHOLE = (Metric.FLOPS_FORWARD, Metric.FLOPS_INFERENCE, Metric.FLOPS_TRAINING,
         Metric.FLOPS_PTFLOPS_INFERENCE, Metric.FLOPS_PTFLOPS_TRAINING, Metric.PARAMS_TOTAL,
         Metric.PARAMS_ANALYZED, Metric.SIZE_BYTES, Metric.LOOKS)
"""Metrics that are whole numbers."""
NUMBERS: dict[str, type[int] | type[float]] = {
    "epochs": int, "seed": int, "seeds": int, "patience": int, "lr": float}
"""Params that are numbers."""
COLUMNS = ("run_id", "name", "status", "start_time")


def runs(
    experiment: str | Sequence[str] | None = None,
    kind: str = Kind.VARIANT,
    where: str | None = None,
    *,
    order_by: Sequence[str] = (),
    limit: int | None = None,
) -> pd.DataFrame:
    """A row a run, newest first; columns are the contract's names of tags, params and metrics.

    One search of MLflow for every thousand runs, none by run.

    Args:
        experiment: name or names; every experiment, if None.
        kind: value of the tag ``wua.kind``: ``variant``, ``pipeline``, …
        where: MLflow's filter syntax, e.g. ``"metrics.`accuracy/test` > 0.9"``; added to the kind.
        order_by: MLflow's syntax, e.g. ``["metrics.`flops/forward` ASC"]``.
        limit: at most so many rows.

    Returns:
        ``run_id``, ``name``, ``status``, ``start_time``, then tags (``wua.…``), params and metrics;
        counts are whole numbers, times in UTC, and what a run lacks is NA.

    Raises:
        ValueError: an experiment that does not exist, or a filter that MLflow refuses.
    """
    found = _search(experiment, f"tags.`{Tag.KIND}` = '{kind}'", where, order_by, limit)
    return _table(found)


def best(
    experiment: str | Sequence[str] | None = None,
    *,
    where: str | None = None,
    by: str = Metric.FLOPS_FORWARD,
) -> pd.Series | None:
    """The smallest variant whose verdict is non-inferior; None where there is none.

    Args:
        experiment: name or names; every experiment, if None.
        where: MLflow's filter syntax, added.
        by: the metric that is smallest.
    """
    verdict = f"tags.`{Tag.VERDICT}` = '{Outcome.NON_INFERIOR}'"
    clause = f"{verdict} AND {where}" if where else verdict
    table = runs(experiment, where=clause, order_by=[f"metrics.`{by}` ASC"], limit=1)
    return None if table.empty else table.iloc[0]


def compare_runs(a: str, b: str) -> pd.DataFrame:
    """Two runs side by side: a row a metric, columns the runs' names, and their ratio a ÷ b.

    Raises:
        ValueError: no such run.
    """
    client = MlflowClient()
    pair = [_run(client, a), _run(client, b)]
    names = [str(run.info.run_name) for run in pair]
    if names[0] == names[1]:
        names = [f"{name} ({run.info.run_id[:8]})" for name, run in zip(names, pair, strict=True)]
    metrics = [run.data.metrics for run in pair]
    shared = sorted({*metrics[0], *metrics[1]})
    table = pd.DataFrame({name: [values.get(key) for key in shared]
                          for name, values in zip(names, metrics, strict=True)},
                         index=pd.Index(shared, name="metric"), dtype="Float64")
    table["ratio"] = table[names[0]] / table[names[1]].where(table[names[1]] != 0)
    return table


def show_run(run_id: str) -> pd.DataFrame:
    """Everything that one run says: a row a name, column ``value``.

    Raises:
        ValueError: no such run.
    """
    row = _row(_run(MlflowClient(), run_id))
    return pd.DataFrame({"value": list(row.values())}, index=pd.Index(list(row), name="name"))


def count_looks(client: MlflowClient, digest: str, *, besides: str = "") -> int:
    """How many runs of the whole store hold a verdict on the test set with this digest."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = _pages(client, experiments,
                   f"tags.`{Tag.TEST_DIGEST}` = '{digest}' AND tags.`{Tag.VERDICT}` != '' "
                   f"AND tags.`{Tag.KIND}` = '{Kind.VARIANT}'", (), None)
    return sum(run.info.run_id != besides for run in found)


def _search(
    experiment: str | Sequence[str] | None,
    kind: str,
    where: str | None,
    order_by: Sequence[str],
    limit: int | None,
) -> list[Run]:
    client = MlflowClient()
    clause = f"{kind} AND {where}" if where else kind
    try:
        return _pages(client, _experiments(client, experiment), clause, order_by, limit)
    except MlflowException as error:
        raise ValueError(f"where: MLflow refuses the filter or order: {error.message}") from None


def _pages(
    client: MlflowClient,
    experiments: Sequence[str],
    clause: str,
    order_by: Sequence[str],
    limit: int | None,
) -> list[Run]:
    found: list[Run] = []
    token = None
    while experiments and (limit is None or len(found) < limit):
        size = PAGE if limit is None else min(PAGE, limit - len(found))
        page = client.search_runs(list(experiments), clause, order_by=list(order_by),
                                  max_results=size, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            break
    return found


def _experiments(client: MlflowClient, experiment: str | Sequence[str] | None) -> list[str]:
    if experiment is None:
        return [found.experiment_id for found in client.search_experiments()]
    ids = []
    for name in [experiment] if isinstance(experiment, str) else experiment:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise ValueError(f"experiment: no experiment is called '{name}' in "
                             f"{mlflow.get_tracking_uri()}")
        ids.append(found.experiment_id)
    return ids


def _run(client: MlflowClient, run_id: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException:
        raise ValueError(f"run: no run has the id '{run_id}' in "
                         f"{mlflow.get_tracking_uri()}") from None


def _table(found: Sequence[Run]) -> pd.DataFrame:
    rows = [_row(run) for run in found]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(COLUMNS))
    if rows:
        table["start_time"] = pd.to_datetime(table["start_time"], unit="ms", utc=True)
    for column in table.columns:
        if column in WHOLE or column.endswith(("/weights", "/units")) or NUMBERS.get(column) is int:
            table[column] = table[column].astype("Int64")
    first = [*COLUMNS, *sorted(c for c in table.columns if c.startswith("wua."))]
    params = sorted({key for run in found for key in run.data.params})
    first += [column for column in params if column not in first]
    return table[[*first, *sorted(set(table.columns) - set(first))]]


def _row(run: Run) -> dict[str, object]:
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("wua.")}
    params = {key: None if value in UNSET else _typed(key, value)
              for key, value in run.data.params.items()}
    if params.get("hidden") is None and Tag.WIDTHS in tags:
        params["hidden"] = tags[Tag.WIDTHS]
    return {"run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
            "start_time": run.info.start_time, **tags, **params, **run.data.metrics}


def _typed(name: str, value: str) -> object:
    """Numbers as numbers; widths and batch sizes stay text, since not all of them are numbers."""
    kind = NUMBERS.get(name)
    try:
        return kind(value) if kind else value
    except ValueError:
        return value
