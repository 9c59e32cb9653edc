"""Connecting to real stores, and how runs end: read back through the client."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context import registry
from mlflow.tracking.context.abstract_context import RunContextProvider

from tests.conftest import MLFLOW_VARIABLES
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.store import (
    connect,
    ended,
    new_run,
    shown_uri,
    sqlite_file,
    system_metrics,
)


def test_an_experiment_is_made_once_and_a_deleted_one_is_one_line(store_uri):
    first, again = connect("mine"), connect("mine")
    assert first.experiment_id == again.experiment_id
    assert first.uri == store_uri
    client = MlflowClient(store_uri)
    assert [e.name for e in client.search_experiments()] == ["mine", "Default"]
    client.delete_experiment(first.experiment_id)
    with pytest.raises(ValueError, match="^experiment: 'mine' is deleted; .*restore -x 1"):
        connect("mine")


def test_mlflow_chooses_the_experiment_where_none_is_named(store_uri, monkeypatch):
    client = MlflowClient(store_uri)
    by_name, by_id, of_run = (client.create_experiment(name) for name in ("by name", "b", "c"))
    assert connect().experiment_id == "0"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    assert connect().experiment_id == by_name
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", by_id)
    assert connect().experiment_id == by_id
    assert connect("by name").experiment_id == by_name
    run = client.create_run(of_run)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert connect("by name").experiment_id == connect().experiment_id == of_run
    client.set_terminated(run.info.run_id)


@pytest.mark.parametrize("name", ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"])
def test_what_the_environment_names_and_is_not_there_is_one_line(store_uri, monkeypatch, name):
    monkeypatch.setenv(name, "123456")
    message = f"^{name}: expected the id of an? .* in {{}}, but got '123456'$"
    with pytest.raises(ValueError, match=message.format(store_uri)):
        connect()
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://ann:secret@db/mlflow")
    monkeypatch.setattr("wua_mlflow.tracking.store._WholeCalls",
                        lambda uri: MlflowClient(store_uri))
    with pytest.raises(ValueError, match=message.format("postgresql://…@db/mlflow")):
        connect()


def test_an_experiment_that_another_process_makes_meanwhile_is_taken(store_uri, monkeypatch):
    by_name = MlflowClient.get_experiment_by_name
    made = []

    def too_early(client, name):
        experiment = by_name(client, name)
        if not made:
            made.append(client.create_experiment(name))
        return experiment

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    assert connect("raced").experiment_id == made[0]


def test_a_folder_whose_name_an_address_escapes(store_uri, tmp_path, migrated_database,
                                                monkeypatch):
    folder = tmp_path / "my models 100%25"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(None)
    assert connect("here").uri.startswith("sqlite:///")
    assert not list(tmp_path.rglob("my%20models*/*")), "the lock is not beside the database"
    assert {file.name for file in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


def test_the_file_of_an_address_and_how_it_is_shown_without_its_secrets(store_uri):
    assert str(sqlite_file("sqlite:///mlflow.db")) == "mlflow.db"
    assert str(sqlite_file("sqlite:////data/mlflow.db?timeout=5")) == "/data/mlflow.db"
    assert sqlite_file("sqlite://") is sqlite_file("sqlite:///:memory:") is None
    assert sqlite_file("http://127.0.0.1:5000") is sqlite_file("databricks") is None
    for uri, shown in (
            ("http://ann:secret@host:5000/a", "http://…@host:5000/a"),
            ("https://token@host", "https://…@host"),
            ("postgresql+psycopg2://ann:se/cret@db/mlflow", "postgresql+psycopg2://…@db/mlflow"),
            ("mysql://ann:se@cret@db/mlflow", "mysql://…@db/mlflow"),
            ("mssql://db/mlflow?user=ann&password=secret", "mssql://db/mlflow?…")):
        assert shown_uri(uri) == shown
    for uri in ("http://host:5000", "databricks://profile", "sqlite:////home/ann@work/mlflow.db",
                "file:///home/a?b", "/home/ann/mlruns"):
        assert shown_uri(uri) == uri
    assert shown_uri() == store_uri


def test_a_block_that_succeeds_ends_the_run_or_leaves_it_open_for_the_next_step(store_uri):
    store = connect("mine")
    parent = new_run(store, "parent", {"wua.kind": "pipeline"})
    with ended(store, parent):
        child = new_run(store, "child", {}, parent=parent)
        for finish, status in ((False, "RUNNING"), (True, "FINISHED")):
            with ended(store, child, finish=finish):
                pass
            assert store.client.get_run(child).info.status == status
    run = MlflowClient(store_uri).get_run(child)
    assert run.info.end_time >= run.info.start_time
    assert (run.info.run_name, run.data.tags["mlflow.parentRunId"]) == ("child", parent)
    assert MlflowClient(store_uri).get_run(parent).data.tags["wua.kind"] == "pipeline"


@pytest.mark.parametrize(("error", "status", "line"), [
    (ValueError("epochs: expected\n  a number"), "FAILED", "epochs: expected a number"),
    (RuntimeError("out of memory"), "FAILED", "RuntimeError: out of memory"),
    (MemoryError(), "FAILED", "MemoryError"),
    (SystemExit(0), "FAILED", "SystemExit: 0"),
    (KeyboardInterrupt(), "KILLED", None),
])
@pytest.mark.parametrize("finish", [True, False])
def test_a_block_that_does_not_succeed_ends_the_run(store_uri, error, status, line, finish):
    store = connect("mine")
    run_id = new_run(store, "run", {})
    with pytest.raises(type(error)), ended(store, run_id, finish=finish):
        raise error
    run = MlflowClient(store_uri).get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get("wua.error") == line


def gone(*_, **__):
    raise MlflowException("the store is gone")


@pytest.mark.parametrize("broken", ["set_tag", "set_terminated"])
def test_a_store_that_fails_does_not_hide_the_error(store_uri, monkeypatch, broken):
    store = connect("mine")
    run_id = new_run(store, "run", {})
    monkeypatch.setattr(store.client, broken, gone)
    with pytest.raises(ValueError, match="^the user's mistake$"), ended(store, run_id):
        raise ValueError("the user's mistake")
    other = MlflowClient(store_uri)
    if broken == "set_tag":
        assert other.get_run(run_id).info.status == "FAILED"
    else:
        with pytest.raises(MlflowException, match="gone"), ended(store, run_id):
            pass  # a success that the store does not take is an error
        assert other.get_run(run_id).info.status == "RUNNING"
        other.set_terminated(run_id)


@pytest.mark.slow
def test_processes_that_start_on_a_fresh_database_all_succeed(tmp_path):
    script = ("from wua_mlflow.tracking.store import connect, ended, new_run\n"
              "store = connect('shared')\n"
              "with ended(store, new_run(store, 'run', {})): pass\n")
    uri = f"sqlite:///{tmp_path / 'new folder' / 'mlflow.db'}"
    environment = {key: value for key, value in os.environ.items() if key not in MLFLOW_VARIABLES}
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE,
                                  env={**environment, "MLFLOW_TRACKING_URI": uri}, text=True)
                 for _ in range(4)]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    client = MlflowClient(uri)
    shared = client.get_experiment_by_name("shared").experiment_id
    assert [run.info.status for run in client.search_runs([shared])] == ["FINISHED"] * 4


ODD_FOLDERS = ["a b", "a%20b", "a#b", "a?b=c", "a&b", "it's", 'a"b', "%", "%2F", "a;b", "Größe",
               "a%20b #?&'\"c;ü%"]


def written_and_read(folder: Path) -> Path:
    """Where a run's file lies below the folder, after it was read through the client."""
    store = connect("odd")
    with ended(store, new_run(store, "run", {})) as run_id:
        write(store.client, run_id, files={"a/b.txt": "text"})
    assert Path(store.client.download_artifacts(run_id, "a/b.txt")).read_text() == "text"
    (path,) = folder.rglob("b.txt")
    return path


@pytest.mark.parametrize("name", ODD_FOLDERS)
def test_artifacts_land_in_the_folder_that_the_store_is_in(name, odd_folder, migrated_database):
    folder = odd_folder(name)
    shutil.copy(migrated_database, folder / "mlflow.db")
    assert written_and_read(folder.parent).is_relative_to(folder / "mlruns")
    assert sqlite_file(mlflow.get_tracking_uri()) == folder / "mlflow.db"
    assert shown_uri() == mlflow.get_tracking_uri()


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_FOLDERS[-1:])
def test_a_store_is_made_in_a_folder_of_any_name(name, odd_folder):
    folder = odd_folder(name)
    assert written_and_read(folder.parent).is_relative_to(folder / "mlruns")
    assert (folder / "mlflow.db").is_file()


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    """Makes a folder, goes there, and uses MLflow's default store in it."""
    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        return folder

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(None)
    yield make
    mlflow.set_tracking_uri(before)
    assert "_MLFLOW_SERVER_ARTIFACT_ROOT" not in os.environ


def test_a_run_has_what_start_run_gives_it_and_plugins_are_asked(store_uri, monkeypatch):
    class OurPlugin(RunContextProvider):
        def in_context(self):
            return True

        def tags(self):
            return {"team": "vision", "wua.kind": "never ours"}

    registry._run_context_provider_registry.register(OurPlugin)
    try:
        store = connect("mine")
        with ended(store, new_run(store, "run", {"wua.kind": "variant"})) as run_id:
            pass
        with mlflow.start_run(experiment_id=store.experiment_id) as theirs:
            pass
    finally:
        registry._run_context_provider_registry._registry.pop()
    ours, started = (MlflowClient(store_uri).get_run(run).data.tags
                     for run in (run_id, theirs.info.run_id))
    for tag in ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "team",
                "mlflow.source.git.commit"):
        assert ours.get(tag) == started.get(tag), tag
    assert ours["mlflow.user"] not in ("", "unknown") and ours["mlflow.source.name"]
    assert ours["wua.kind"] == "variant"
    assert MlflowClient(store_uri).get_run(run_id).info.user_id == ours["mlflow.user"]


def test_two_experiments_in_the_environment_are_refused(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    with pytest.raises(ValueError, match="^MLFLOW_EXPERIMENT_NAME: expected 'Default', .*'team'$"):
        connect()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")
    assert connect().experiment_id == "0"


def no_psutil(*_, **__):
    raise ImportError("no psutil")


def test_system_metrics_are_logged_where_mlflow_s_variable_asks(store_uri, monkeypatch, capsys):
    system_metrics_monitor = pytest.importorskip("mlflow.system_metrics.system_metrics_monitor")
    store = connect("mine")
    with ended(store, new_run(store, "quiet", {})) as quiet, system_metrics(store, quiet):
        pass
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    client = MlflowClient(store_uri)
    with ended(store, new_run(store, "measured", {})) as run_id, system_metrics(store, run_id):
        for _ in range(6000):
            if client.get_run(run_id).data.metrics:
                break
            time.sleep(0.05)
    names = {name for name in client.get_run(run_id).data.metrics if name.startswith("system/")}
    assert "system/cpu_utilization_percentage" in names
    assert client.get_run(quiet).data.metrics == {}
    monkeypatch.setattr(system_metrics_monitor, "SystemMetricsMonitor", no_psutil)
    with ended(store, new_run(store, "unmeasured", {})) as other, system_metrics(store, other):
        pass
    assert "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING: not logged: " in capsys.readouterr().err
    assert client.get_run(other).info.status == "FINISHED"
