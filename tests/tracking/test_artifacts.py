"""Places of artifacts that cannot be reached: said in a line, with the remedy, before training."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import serving
from wua_mlflow.tracking import artifacts
from wua_mlflow.tracking.artifacts import check_location, download, why_unreachable
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.store import connect, ended, new_run

AWAY, HERE = "http://mlflow.firm.org:5000", "http://127.0.0.1:5000"


def test_places_that_can_be_written_to_pass(tmp_path):
    for location in (tmp_path / "1", tmp_path / "mlruns" / "1", (tmp_path / "a b").as_uri()):
        check_location(str(location), "sqlite:///mlflow.db")
        check_location(str(location), HERE)
    check_location(str(tmp_path / "1"), AWAY)
    for uri in (AWAY, HERE, "sqlite:///mlflow.db"):
        check_location("mlflow-artifacts:/1", uri)
        check_location("dbfs:/1", uri)


def test_the_folder_of_another_machine_is_not_made_here(tmp_path):
    location = tmp_path / "srv" / "mlruns" / "1"
    with pytest.raises(ValueError) as error:
        check_location(str(location), AWAY)
    assert str(error.value) == (
        f"MLFLOW_TRACKING_URI: this server's artifact root {location.parent} is not reachable from "
        f"here; start the server with --serve-artifacts")
    assert not location.parent.exists()
    with pytest.raises(ValueError, match="this server's artifact root .* is not reachable"):
        check_location(str(tmp_path / "a/b/c/d"), HERE)


def test_the_folder_of_a_store_that_was_moved_is_named(tmp_path):
    location = tmp_path / "old" / "mlruns" / "1"
    with pytest.raises(ValueError, match=f"artifacts of this store lie in {location}, and that "
                                         f"folder is gone; where the store was moved"):
        check_location(str(location), "sqlite:///mlflow.db")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="this store's artifact root .* cannot be written to"):
        check_location(str(tmp_path / "mlruns/1"), "sqlite:///mlflow.db")
    with pytest.raises(ValueError, match="server's .* cannot be .*start the server with --serve"):
        check_location(str(tmp_path / "1"), HERE)


@pytest.mark.parametrize(("location", "package"), [
    ("s3://bucket/1", "boto3"), ("gs://bucket/1", "google-cloud-storage"),
    ("wasbs://c@a.blob.core.windows.net/1", "azure-storage-blob")])
def test_a_bucket_wants_its_library(location, package, monkeypatch):
    monkeypatch.setattr(artifacts, "_installed", lambda module: False)
    with pytest.raises(ValueError, match=f"the package {package} is missing: install it; start"):
        check_location(location, AWAY)
    monkeypatch.setattr(artifacts, "_installed", lambda module: True)
    assert why_unreachable(location, AWAY) == ""


def test_a_moved_store_of_real_runs(store_uri, tmp_path, monkeypatch):
    store = connect("mine")
    with ended(store, new_run(store, "run", {})) as run_id:
        write(store.client, run_id, files={"config.yaml": "a: 1"})
    run = store.client.get_run(run_id)
    with monkeypatch.context() as patch:  # which looks through all saved models for each file
        patch.setattr(MlflowClient, "download_artifacts", None)
        assert download(store.client, run, "config.yaml", str(tmp_path)).read_text() == "a: 1"
    with pytest.raises(ValueError, match=f"^run_id: run {run_id} .run. has no file a.yaml"):
        download(store.client, run, "a.yaml", str(tmp_path))
    shutil.rmtree(Path(run.info.artifact_uri))
    with pytest.raises(ValueError, match=f"artifacts of run {run_id} lay in .*{run_id}/artifacts, "
                                         f"and that folder is gone"):
        download(store.client, run, "config.yaml", str(tmp_path))


@pytest.mark.slow
def test_a_server_that_hands_out_no_artifacts(store_uri, tmp_path, monkeypatch):
    root = tmp_path / "elsewhere" / "srv" / "mlruns"
    with serving(store_uri, tmp_path, "--no-serve-artifacts", "--default-artifact-root",
                 str(root)) as address:
        mlflow.set_tracking_uri(address)
        with pytest.raises(ValueError, match=f"this server's artifact root {root} is not reachable "
                                             f"from here; start the server with --serve-artifacts"):
            connect("mine")
        root.parent.mkdir(parents=True)
        store = connect("mine")
        with ended(store, new_run(store, "run", {})) as run_id:
            write(store.client, run_id, files={"a.txt": "text"})
        assert (root / store.experiment_id / run_id / "artifacts/a.txt").read_text() == "text"
    mlflow.set_tracking_uri(store_uri)
    assert MlflowClient(store_uri).get_run(run_id).info.status == "FINISHED"
