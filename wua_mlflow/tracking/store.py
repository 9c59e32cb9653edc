"""The connection to MLflow, and runs that always end: FINISHED, FAILED or KILLED.

Tests: ``tests/tracking/test_store.py``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment, LifecycleStage, Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url

from wua_mlflow.errors import WORDED, did_you_mean, one_line
from wua_mlflow.signals import defer_signals
from wua_mlflow.tracking.names import Tag

__all__ = [
    "Store", "active", "connect", "ended", "experiment_ids", "inherited_run", "new_run",
    "open_client", "pages", "shown_uri", "sqlite_file",
]


@dataclass(frozen=True)
class Store:
    """A client and the experiment that it writes to."""

    client: MlflowClient
    experiment_id: str
    uri: str


def connect(experiment: str | None = None) -> Store:
    """Connect to the tracking store that MLflow's own settings name; make what is missing.

    A SQLite database is initialised under a lock, since several processes that meet a fresh one
    crash in its migration. A run made by ``mlflow run`` decides the experiment.

    Args:
        experiment: the experiment's name, made if absent; MLflow's own choice, if None.

    Raises:
        ValueError: the experiment is deleted, or a run or an experiment that MLflow's environment
            variables name does not exist.
    """
    uri = mlflow.get_tracking_uri()
    if database := sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    with _opening(uri):
        client = _WholeCalls(uri)  # this opens the database already
        experiment_id = _experiment_id(client, experiment)
    return Store(client, experiment_id, uri)


class _WholeCalls(MlflowClient):
    """MLflow's client, but a signal is raised after the call under way, never within it.

    A transaction that is broken off keeps the database locked for as long as the traceback holds
    its session: the run could not be ended then.
    """

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return _whole(found) if inspect.ismethod(found) else found


def _whole(call: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(call)
    def uninterrupted(*args: object, **named: object) -> object:
        with defer_signals():
            return call(*args, **named)

    return uninterrupted


def open_client() -> MlflowClient:
    """A client to read with; it waits while another process initialises the database."""
    uri = mlflow.get_tracking_uri()
    with _opening(uri):
        return MlflowClient(uri)


def _opening(uri: str) -> contextlib.AbstractContextManager[object]:
    """The lock under which a SQLite database is opened; none where nobody here can write."""
    database = sqlite_file(uri)
    if database and os.access(database.parent, os.W_OK):
        return FileLock(f"{database}.lock")
    return contextlib.nullcontext()


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite tracking URI; None for any other store.

    >>> sqlite_file("sqlite:////tmp/a%20b/mlflow.db").as_posix()
    '/tmp/a b/mlflow.db'
    """
    name = make_url(uri).database if uri.startswith("sqlite") else None
    return Path(name) if name and name != ":memory:" else None


def shown_uri(uri: str | None = None) -> str:
    """An address as messages may show it: no user, no password, nothing after ``?``.

    Args:
        uri: MLflow's own tracking URI, if None.

    >>> shown_uri("postgresql://ann:se/cret@db:5432/mlflow?sslpassword=x")
    'postgresql://…@db:5432/mlflow?…'
    """
    uri = mlflow.get_tracking_uri() if uri is None else uri
    if uri.startswith(("sqlite:", "file:")):  # a path, in which @ and ? are no secret
        return uri
    address, asked, _ = uri.partition("?")
    return re.sub("//.*@", "//…@", address) + ("?…" if asked else "")


def inherited_run() -> str | None:
    """The run that ``mlflow run`` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def _experiment_id(client: MlflowClient, name: str | None) -> str:
    if run_id := inherited_run():
        try:
            return str(client.get_run(run_id).info.experiment_id)
        except MlflowException as error:
            raise ValueError(f"MLFLOW_RUN_ID: {_missing(error, 'a run', run_id)}") from None
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if name is None and number:
        try:
            found = client.get_experiment(number)
        except MlflowException as error:
            raise ValueError(
                f"MLFLOW_EXPERIMENT_ID: {_missing(error, 'an experiment', number)}") from None
    else:
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = client.get_experiment_by_name(name) or _made(client, name)
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(f"experiment: '{found.name}' is deleted; bring it back with `mlflow "
                         f"experiments restore -x {found.experiment_id}`, or name another one")
    return str(found.experiment_id)


def _missing(error: MlflowException, what: str, number: str) -> str:
    """What is wrong, where the store says that ``number`` is not there; else its error again."""
    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
        raise error
    return f"expected the id of {what} in {shown_uri()}, but got '{number}'"


def _made(client: MlflowClient, name: str) -> Experiment:
    try:
        return client.get_experiment(client.create_experiment(name))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)  # another process was faster, on a server
        if found is None:
            raise error
        return found


def new_run(store: Store, name: str, tags: Mapping[str, str], *, parent: str | None = None) -> str:
    """Make a run, nested under ``parent`` if given; gives its id."""
    nesting = {"mlflow.parentRunId": parent} if parent else {}
    run = store.client.create_run(
        store.experiment_id, run_name=name, tags={**tags, **nesting})
    return str(run.info.run_id)


@contextlib.contextmanager
def ended(store: Store, run_id: str, *, finish: bool = True) -> Iterator[str]:
    """End the run when the block ends: FINISHED, or FAILED with ``wua.error``, or KILLED.

    Args:
        store: where the run is.
        run_id: the run.
        finish: whether a block that succeeds ends the run; an error or a signal always does.
    """
    try:
        yield run_id
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(Exception):  # the store's own failure must not hide the error
            if not killed:
                store.client.set_tag(run_id, Tag.ERROR,
                                     one_line(error, limit=500, bare=WORDED))
        with contextlib.suppress(Exception):
            _terminate(store, run_id, RunStatus.KILLED if killed else RunStatus.FAILED)
        raise
    if finish:
        _terminate(store, run_id, RunStatus.FINISHED)


def _terminate(store: Store, run_id: str, status: int) -> None:
    store.client.set_terminated(run_id, RunStatus.to_string(status))


PAGE = 1000


def pages(
    client: MlflowClient,
    experiments: Sequence[str],
    clause: str,
    order_by: Sequence[str],
    limit: int | None,
) -> list[Run]:
    """The runs of these experiments that a clause of MLflow's finds, at most ``limit``."""
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


def experiment_ids(client: MlflowClient, experiment: str | Sequence[str] | None) -> list[str]:
    """Of the experiment or experiments of these names; of all that are not deleted, if None.

    Raises:
        ValueError: there is none of a name, or it is deleted.
    """
    if experiment is None:
        return [found.experiment_id for found in active(client)]
    ids = []
    for name in [experiment] if isinstance(experiment, str) else experiment:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise ValueError(f"experiment: none is called '{name}' in {shown_uri()}"
                             f"{did_you_mean(name, [one.name for one in active(client)])}")
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise ValueError(f"experiment: '{name}' is deleted")
        ids.append(found.experiment_id)
    return ids


def active(client: MlflowClient) -> list[Experiment]:
    """All experiments that are not deleted."""
    found: list[Experiment] = []
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
