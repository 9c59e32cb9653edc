"""Searching MLflow's runs, page by page.

Tests: ``tests/tracking/test_runs.py``.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.names import Tag
from wua_mlflow.tracking.store import (
    chosen_experiment,
    experiment_ids,
    open_client,
    shown_uri,
    sqlite_file,
)

__all__ = [
    "all_found", "naming_the_filter", "no_garbage", "nothing_there", "of_kind", "opened",
    "search_pages",
]


PAGE = 2500
"""Runs a search. MLflow works through the whole store for each page, and holds a page whole."""
SORTED_PAGE = 10_000
"""And where MLflow sorts by a tag or a param, which takes it longer than all else."""


def opened(experiment: str | Sequence[str] | None) -> tuple[MlflowClient | None, list[str]]:
    """A client and the ids of these experiments; no client where there is no store yet.

    Of none named it is the one that MLflow's variables name, or all.

    Raises:
        ValueError: there is none of such a name or id, or it is deleted.
    """
    if not nothing_there():
        client = open_client()
        chosen = None if experiment is not None else chosen_experiment(client)
        return client, [chosen] if chosen else experiment_ids(client, experiment)
    if experiment is None:
        return None, []
    raise ValueError(f"experiment: expected the name of one, but got '{experiment}': there is no "
                     f"{shown_uri()}")


def search_pages(
    client: MlflowClient | None,
    experiments: Sequence[str],
    clause: str,
    order_by: Sequence[str],
    limit: int | None,
) -> Iterator[list[Run]]:
    """The runs of these experiments that a clause of MLflow's finds, page by page."""
    size, token = SORTED_PAGE if order_by else PAGE, None
    missing = sys.maxsize if limit is None else limit
    while client and experiments and missing:
        page = client.search_runs(list(experiments), clause, order_by=list(order_by),
                                  max_results=min(missing, size), page_token=token)
        token, missing = page.token, missing - len(page)
        yield page
        if not token:
            break


def all_found(
    client: MlflowClient, experiments: Sequence[str], clause: str, limit: int | None = None
) -> list[Run]:
    """The same in one list, newest first."""
    return [run for page in search_pages(client, experiments, clause, (), limit) for run in page]


def nothing_there() -> bool:
    """Whether the store is a SQLite file that nobody has made yet; a search would make it."""
    file = sqlite_file(mlflow.get_tracking_uri())
    return file is not None and not file.exists()


def of_kind(kind: str, *conditions: str | None) -> str:
    """MLflow's filter for the runs of a kind, of which all conditions hold that there are.

    >>> of_kind("variant", None, "metrics.loss < 1")
    "tags.`wua.kind` = 'variant' AND metrics.loss < 1"
    """
    return " AND ".join([f"tags.`{Tag.KIND}` = '{kind}'", *filter(None, conditions)])


@contextlib.contextmanager
def naming_the_filter(where: str | None, order: Sequence[str]) -> Iterator[None]:
    """What MLflow refuses in the block is a ValueError that names the filter."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        query = " ".join([where or "", *order]).strip()
        if not query:  # nothing that was asked for is in the way
            raise
        hint = "" if "`" in query or "/" not in query else \
            "; a name with / stands in backticks, as in metrics.`accuracy/test` > 0.9"
        raise ValueError(f"where, order_by: MLflow refuses {query!r}: "
                         f"{' '.join(error.message.split())}{hint}") from None


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """The garbage collector is off in the block.

    What MLflow builds for a page is many objects and no garbage: to look at them again and again
    takes as long as to build them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
