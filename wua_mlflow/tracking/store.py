"""The connection to MLflow, and runs that always end: FINISHED, FAILED or KILLED.

May import: mlflow, filelock, names. Tests: ``tests/tracking/test_store.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import RunStatus
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.names import Tag

__all__ = ["Store", "Terminated", "connect", "ended", "inherited_run", "new_run", "one_line"]

SQLITE = "sqlite:///"


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM); runs end as KILLED, as for Ctrl-C."""


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
    """
    uri = mlflow.get_tracking_uri()
    client = MlflowClient(uri)
    lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if uri.startswith(SQLITE) and uri != SQLITE:
        database = Path(uri.removeprefix(SQLITE))
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{database}.lock")
    with lock:
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if inherited_run() else None
        if experiment_id is None:
            name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
            found = client.get_experiment_by_name(name)
            experiment_id = found.experiment_id if found else client.create_experiment(name)
    return Store(client, experiment_id, uri)


def inherited_run() -> str | None:
    """The run that ``mlflow run`` made for this process, if it did."""
    return os.environ.get("MLFLOW_RUN_ID") or None


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
    except KeyboardInterrupt:
        _terminate(store, run_id, RunStatus.KILLED)
        raise
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            with contextlib.suppress(Exception):  # the store's own failure must not hide the error
                store.client.set_tag(run_id, Tag.ERROR, one_line(error))
        _terminate(store, run_id, RunStatus.FAILED)
        raise
    if finish:
        _terminate(store, run_id, RunStatus.FINISHED)


def one_line(error: BaseException) -> str:
    """The error as one line of at most 500 characters, its type named unless it is ours to word."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, ValueError | FileNotFoundError)
    return (text if known else f"{type(error).__name__}: {text}")[:500]


def _terminate(store: Store, run_id: str, status: int) -> None:
    store.client.set_terminated(run_id, RunStatus.to_string(status))
