"""Fixtures: a real SQLite store, migrated once a test run and copied for each test that asks."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from _pytest.doctest import DoctestModule
from PIL import Image

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ["TQDM_DISABLE"] = "1"
# what tests name is no code that the person at this machine has named
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="wua-tests-state-")
# the tutorial's figures to the last digit, on any processor; see pipeline/machine.py
os.environ["MKL_CBWR"] = "COMPATIBLE"

gc.set_threshold(100_000)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wua_mlflow.config import Settings

MLFLOW_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
                    "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
MOST_STORES = 20
"""That are kept open."""


@pytest.fixture(scope="session", autouse=True)
def own_modules_are_named() -> Iterator[None]:
    """The functions of the tests' own modules count as named: runs that are made of them by the
    pipeline's functions, without a command, are read again."""
    from wua_mlflow.pipeline import trust

    check = trust.Trust.check_code

    def with_ours(self: trust.Trust, settings: Settings, run_id: str) -> None:
        self.named |= {each for each in trust.references_of(settings)
                       if each[1].startswith("tests.")}
        check(self, settings, run_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust.Trust, "check_code", with_ours)
        yield


@pytest.fixture(scope="session")
def quick_stores() -> Iterator[None]:
    """Stores of this process wait for no disk, and MLflow loads its migrations once.

    It does so for each store that it opens, to see that its tables are the newest.
    """
    from mlflow.store.db import utils
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def without_disk(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            with suppress(sqlite3.DatabaseError):  # no database: MLflow says so by itself
                connection.execute("PRAGMA synchronous = OFF")
                connection.execute("PRAGMA journal_mode = MEMORY")

    event.listen(Engine, "connect", without_disk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_latest_schema_revision",
                      cache(utils._get_latest_schema_revision))
        yield
    event.remove(Engine, "connect", without_disk)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory, quick_stores: None) -> Path:
    """An empty MLflow database: a fresh one costs seconds, a copy a tenth of one.

    Shared by the worker processes of one test run, made by whichever comes first.
    """
    from filelock import FileLock
    from mlflow.tracking import MlflowClient

    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    database = shared / "migrated.db"
    with FileLock(f"{database}.lock"):
        if not database.exists():
            fresh = shared / "fresh.db"
            MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
            fresh.rename(database)
    return database


def blank_pictures(patch: pytest.MonkeyPatch) -> None:
    """Figures are made, and saved as one white pixel: to draw them takes a third of a short run."""
    def save(figure: Figure, file: Path | IO[bytes], **_: object) -> None:
        Image.new("1", (1, 1), 1).save(file, format="png")

    patch.setattr("matplotlib.figure.Figure.savefig", save)


def forget_experiment() -> None:
    """``mlflow.set_experiment`` sets a variable and one of MLflow's own, both of a store that is
    another one for the next test."""
    from mlflow.tracking import fluent

    fluent._active_experiment_id = None
    for name in MLFLOW_VARIABLES[:3]:
        os.environ.pop(name, None)


def forget_stores() -> None:
    """MLflow keeps each store that it opened, with its engine and what that has compiled.

    Hundreds take gigabytes, and seconds of each garbage collection.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
    from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

    if len(SqlAlchemyStore._engine_map) < MOST_STORES:
        return
    for registry in (TrackingStoreRegistry, ModelRegistryStoreRegistry):
        registry._get_store_with_resolved_uri.cache_clear()
    while SqlAlchemyStore._engine_map:
        SqlAlchemyStore._engine_map.popitem()[1].dispose()


@pytest.fixture
def store_uri(
    tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A store of the test's own; the test runs in its folder, and must leave no run open.

    Pictures that its runs log are blank.
    """
    import mlflow
    from mlflow.entities import ViewType
    from mlflow.tracking import MlflowClient

    for name in MLFLOW_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    blank_pictures(monkeypatch)
    forget_experiment()
    mlflow.set_tracking_uri(uri)
    yield uri
    assert mlflow.active_run() is None, "the test left a run active"
    forget_experiment()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    client = MlflowClient(uri)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    still_open = client.search_runs(everywhere, "attributes.status = 'RUNNING'",
                                    run_view_type=ViewType.ALL)
    assert [run.info.run_name for run in still_open] == [], "the test left runs RUNNING"
    forget_stores()


@contextmanager
def serving(store_uri: str, folder: Path, *options: str) -> Iterator[str]:
    """The address of an MLflow server on that store, with its artifacts in the folder."""
    options = options or ("--artifacts-destination", "artifacts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1", "--backend-store-uri", store_uri, *options], cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(600)


@pytest.fixture
def server(store_uri: str, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on the test's store."""
    with serving(store_uri, tmp_path) as address:
        yield address


def pytest_configure(config):
    """What the tests run in: the process that only hands them out to others needs none of it."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    import torch

    torch.set_num_threads(1)
    if config.getoption("markexpr") == "not slow":  # as where it is not installed:
        sys.modules.setdefault("pytorch_lightning", None)  # mlflow.pytorch would import it


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Tests have no examples in their docstrings: they are not gone through for these."""
    found = yield
    return [each for each in found if not isinstance(each, DoctestModule)]


def pytest_collection_finish():
    """What is there by now stays: the garbage collection need not go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Whole runs of `mlflow run` first: the longest test leaves no worker alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("project") is None)
