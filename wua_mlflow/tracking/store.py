"""The connection to MLflow, and runs that always end: FINISHED, FAILED or KILLED.

Tests: ``tests/tracking/test_store.py``.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment, LifecycleStage
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import get_results_from_paginated_fn
from sqlalchemy.engine import make_url

from wua_mlflow.errors import WORDED, did_you_mean, one_line
from wua_mlflow.redaction import redacted, redacted_address
from wua_mlflow.signals import defer_signals
from wua_mlflow.tracking.artifacts import check_location
from wua_mlflow.tracking.names import Tag
from wua_mlflow.tracking_uri import check_tracking_uri

__all__ = [
    "Store", "active", "chosen_experiment", "connect", "ended", "experiment_ids", "inherited_run",
    "new_run", "open_client", "or_none", "run_name", "shown_uri", "sqlite_file",
    "system_metrics",
]


T = TypeVar("T")


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
        ValueError: the tracking URI is none, the experiment is deleted, a run or an experiment that
            MLflow's environment variables name does not exist, or its artifacts cannot be kept.
    """
    uri = mlflow.get_tracking_uri()
    check_tracking_uri(uri)
    if database := sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    with _opening(uri), _artifacts_here():
        client = _WholeCalls(uri)  # this opens the database already
        found = _experiment(client, experiment)
    check_location(str(found.artifact_location), uri)
    return Store(client, str(found.experiment_id), uri)


class _WholeCalls(MlflowClient):
    """MLflow's client, but a signal is raised after the call under way, never within it.

    A transaction that is broken off keeps the database locked for as long as the traceback holds
    its session: the run could not be ended then.
    """

    def __getattribute__(self, name: str) -> Any:
        member = super().__getattribute__(name)
        return defer_signals()(member) if inspect.ismethod(member) else member


def open_client() -> MlflowClient:
    """A client to read with; it waits while another process initialises the database."""
    uri = mlflow.get_tracking_uri()
    check_tracking_uri(uri)
    with _opening(uri), _artifacts_here():
        return MlflowClient(uri)


ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""MLflow's own variable for the default place of artifacts; it has no public one for a client."""


@contextlib.contextmanager
def _artifacts_here() -> Iterator[None]:
    """Have the artifacts of a store that is opened in the block land here, whatever here is called.

    MLflow takes the path of the default place, ``mlruns`` here, for a quoted one: in a folder
    ``a%20b`` artifacts would land in ``a b``; and a path with both kinds of quotation marks breaks
    its SQL. As an address of the scheme ``file:`` it is read as it is meant.
    """
    root = Path("mlruns").absolute()
    odd = "%" in str(root) or {"'", '"'} <= set(str(root))
    if not odd or ARTIFACT_ROOT in os.environ:
        yield
        return
    os.environ[ARTIFACT_ROOT] = root.as_uri()
    try:
        yield
    finally:
        del os.environ[ARTIFACT_ROOT]


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
    address, options, _ = uri.partition("?")
    return redacted_address(address) + (options and "?…")


def inherited_run() -> str | None:
    """The run that ``mlflow run`` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def or_none(get: Callable[[str], T], run_id: str) -> T | None:
    """What a client's method gets by an id; None where the store has nothing of that id."""
    try:
        return get(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _experiment(client: MlflowClient, name: str | None) -> Experiment:
    if inherited_run():
        run = _named_by("MLFLOW_RUN_ID", client.get_run, "a run")
        return client.get_experiment(run.info.experiment_id)
    if name is None and os.environ.get("MLFLOW_EXPERIMENT_ID"):
        experiment = _by_id(client)
    else:
        name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        experiment = client.get_experiment_by_name(name) or _made(client, name)
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(f"experiment: '{experiment.name}' is deleted; bring it back with `mlflow "
                         f"experiments restore -x {experiment.experiment_id}`, or name another one")
    return experiment


def _by_id(client: MlflowClient) -> Experiment:
    experiment = _named_by("MLFLOW_EXPERIMENT_ID", client.get_experiment, "an experiment")
    by_name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment.name
    if by_name != experiment.name:
        raise ValueError(f"MLFLOW_EXPERIMENT_NAME: expected '{experiment.name}', which is the "
                         f"experiment of MLFLOW_EXPERIMENT_ID={experiment.experiment_id}, but got "
                         f"'{by_name}'")
    return experiment


def chosen_experiment(client: MlflowClient) -> str | None:
    """The id of the experiment that MLflow's variables name; None where they name none.

    Raises:
        ValueError: there is no such one.
    """
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return str(_by_id(client).experiment_id)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return None
    try:
        return experiment_ids(client, name)[0]
    except ValueError as error:
        raise ValueError(f"MLFLOW_EXPERIMENT_NAME: {error}") from None


def _named_by(variable: str, get: Callable[[str], T], kind: str) -> T:
    value = os.environ[variable]
    entity = or_none(get, value)
    if entity is None:
        raise ValueError(f"{variable}: expected the id of {kind} in {shown_uri()}, but got "
                         f"'{value}'")
    return entity


def _made(client: MlflowClient, name: str) -> Experiment:
    try:
        return client.get_experiment(client.create_experiment(name))
    except MlflowException as error:
        experiment = client.get_experiment_by_name(name)  # another process made it, on a server
        if experiment is None:
            raise error
        return experiment


RUN_NAME_CHARACTERS = 250
"""PostgreSQL refuses a longer one; what it is of lies in the run's tags."""


def run_name(name: str) -> str:
    """A run's name as every store holds it."""
    return name if len(name) <= RUN_NAME_CHARACTERS else f"{name[:RUN_NAME_CHARACTERS - 1]}…"


def new_run(store: Store, name: str, tags: Mapping[str, str], *, parent: str | None = None) -> str:
    """Make a run, nested under ``parent`` if given; gives its id.

    It has the tags that ``mlflow.start_run`` gives: user, source, commit, those of plugins.
    """
    nesting = {"mlflow.parentRunId": parent} if parent else {}
    context = resolve_tags({"mlflow.runName": name, **tags})  # user, source, commit, plugins' tags
    tags = {key: redacted(str(value)) for key, value in context.items()}
    named = {"mlflow.runName": run_name(tags["mlflow.runName"])}
    run = store.client.create_run(store.experiment_id, run_name=run_name(redacted(name)),
                                  tags={**tags, **named, **nesting})
    return str(run.info.run_id)


def tags_with_passwords(store: Store, run_id: str) -> dict[str, str]:
    """Tags by which a run that ``mlflow run`` made shows a password, as of its source's address.

    They are given as they may be shown; ``write`` would leave the password out anyway.
    """
    tags = store.client.get_run(run_id).data.tags
    return {key: redacted(value) for key, value in tags.items() if redacted(value) != value}


@contextlib.contextmanager
def system_metrics(store: Store, run_id: str) -> Iterator[None]:
    """Log the machine's load to a run during the block, where MLflow's own variable asks for it.

    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING``, as for ``mlflow.start_run``; a machine that cannot
    be measured gets a warning.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():  # type: ignore[no-untyped-call]
        yield
        return
    try:
        from mlflow.system_metrics import system_metrics_monitor

        monitor: Any = system_metrics_monitor.SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, resume_logging=True, tracking_uri=store.uri)
        monitor.start()
    except Exception as error:  # as MLflow does
        print(f"wua: note: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING: not logged: "
              f"{one_line(error, limit=200)}", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        monitor.finish()


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
                store.client.set_tag(run_id, Tag.ERROR, one_line(error, limit=500, bare=WORDED))
        with contextlib.suppress(Exception):
            store.client.set_terminated(run_id, "KILLED" if killed else "FAILED")
        raise
    if finish:
        store.client.set_terminated(run_id)


def experiment_ids(client: MlflowClient, experiment: str | Sequence[str] | None) -> list[str]:
    """Of the experiment or experiments of these names; of all that are not deleted, if None.

    Raises:
        ValueError: there is none of a name, or it is deleted.
    """
    if experiment is None:
        return [entry.experiment_id for entry in active(client)]
    ids = []
    for name in [experiment] if isinstance(experiment, str) else experiment:
        entry = client.get_experiment_by_name(name)
        if entry is None:
            raise ValueError(f"experiment: none is called '{name}' in {shown_uri()}"
                             f"{did_you_mean(name, [entry.name for entry in active(client)])}")
        if entry.lifecycle_stage != LifecycleStage.ACTIVE:
            raise ValueError(f"experiment: '{name}' is deleted")
        ids.append(entry.experiment_id)
    return ids


PAGE = 1000
"""Experiments a search."""


def active(client: MlflowClient) -> list[Experiment]:
    """All experiments that are not deleted."""
    def page(size: int, token: str | None) -> PagedList[Experiment]:
        return client.search_experiments(max_results=size, page_token=token)

    return list(get_results_from_paginated_fn(page, PAGE))  # type: ignore[no-untyped-call]
