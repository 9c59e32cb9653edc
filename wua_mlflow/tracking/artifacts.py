"""Where a store keeps artifacts: whether that can be reached from here, said before it is needed.

Tests: ``tests/tracking/test_artifacts.py``.
"""

from __future__ import annotations

import contextlib
import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

__all__ = ["check_location", "download", "why_unreachable"]


LIBRARIES = {
    "s3": ("boto3", "boto3"),
    "gs": ("google.cloud.storage", "google-cloud-storage"),
    "wasbs": ("azure.storage.blob", "azure-storage-blob"),
    "abfss": ("azure.storage.filedatalake", "azure-storage-file-datalake"),
    "hdfs": ("pyarrow", "pyarrow"),
}
"""By the scheme of a place: the module that MLflow's client needs to write there, its package."""
HERE = ("localhost", "127.0.0.1", "::1")


def check_location(location: str, tracking_uri: str) -> None:
    """Whether artifacts can be written to an experiment's place from here; nothing is written.

    A server that hands out artifacts itself (``--serve-artifacts``, MLflow's default) always can.

    Args:
        location: as the experiment or a run has it.
        tracking_uri: of the store.

    Raises:
        ValueError: they cannot; the line says what is in the way.
    """
    reason = why_unreachable(location, tracking_uri)
    if reason:
        raise ValueError(reason)
    folder = _folder(location)
    if folder is not None and not os.access(_nearest(folder), os.W_OK | os.X_OK):
        raise ValueError(f"MLFLOW_TRACKING_URI: {_root(folder, tracking_uri)} cannot be written to "
                         f"from here{_remedy(tracking_uri)}")


def why_unreachable(location: str, tracking_uri: str) -> str:
    """Why nothing that lies in an experiment's or a run's place can be read; '' where it can.

    Args:
        location: its artifact URI.
        tracking_uri: of the store.
    """
    scheme = urlsplit(location).scheme
    if scheme in LIBRARIES and not _installed(LIBRARIES[scheme][0]):
        return (f"MLFLOW_TRACKING_URI: artifacts of this store lie at {scheme}://…, for which the "
                f"package {LIBRARIES[scheme][1]} is missing: install it{_remedy(tracking_uri)}")
    folder = _folder(location)
    if folder is None or _could_be_there(folder, tracking_uri):
        return ""
    if _served(tracking_uri):
        return (f"MLFLOW_TRACKING_URI: {_root(folder, tracking_uri)} is not reachable from "
                f"here{_remedy(tracking_uri)}")
    return (f"MLFLOW_TRACKING_URI: artifacts of this store lie in {folder}, and that folder is "
            f"gone; where the store was moved, put a link there, or name another experiment")


def download(client: MlflowClient, run: Run, path: str, folder: str) -> Path:
    """Download a file of a run into ``folder``.

    Raises:
        ValueError: it is not there; the line says whether the store was moved, or the server does
            not hand out artifacts.
    """
    try:
        with contextlib.suppress(Exception):
            place_of_run = get_artifact_repository(run.info.artifact_uri, client.tracking_uri)
            found = place_of_run.download_artifacts(path, folder)  # type: ignore[no-untyped-call]
            return Path(found)
        # this looks through the saved models of the experiment for each file
        return Path(client.download_artifacts(run.info.run_id, path, folder))
    except (MlflowException, OSError) as error:
        place = _folder(run.info.artifact_uri)
        gone = place is not None and not place.exists()
        reason = why_unreachable(run.info.artifact_uri, client.tracking_uri)
        if not reason and gone:
            reason = (f"MLFLOW_TRACKING_URI: artifacts of run {run.info.run_id} lay in {place}, "
                      f"and that folder is gone; where the store was moved, put a link there")
        if not reason and place is not None and not (place / path).exists():
            reason = (f"run_id: run {run.info.run_id} ({run.info.run_name}) has no file {path}, "
                      f"from which it would be made again")
        if not reason:
            raise
        raise ValueError(reason) from error


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that holds it
        return False


def _folder(location: str) -> Path | None:
    """The folder of this machine that an artifact URI names; None of any other place.

    >>> _folder("file:///srv/mlruns/1").as_posix(), _folder("mlflow-artifacts:/1")
    ('/srv/mlruns/1', None)
    """
    if urlsplit(location).scheme not in ("", "file"):
        return None
    return Path(local_file_uri_to_path(location))  # type: ignore[no-untyped-call]


def _could_be_there(folder: Path, tracking_uri: str) -> bool:
    """Whether a folder is there, or is still to be made by the first run of its experiment.

    On another machine's server a path like ``/srv/mlruns`` that is not mounted here would be made
    here, and the artifacts lost in it.
    """
    made_later = (folder, folder.parent, folder.parent.parent)
    away = _served(tracking_uri) and urlsplit(tracking_uri).hostname not in HERE
    return any(place.exists() for place in made_later[:2 if away else 3])


def _nearest(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _root(folder: Path, tracking_uri: str) -> str:
    return f"this {'server' if _served(tracking_uri) else 'store'}'s artifact root {folder.parent}"


def _remedy(tracking_uri: str) -> str:
    return "; start the server with --serve-artifacts" if _served(tracking_uri) else ""


def _served(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://"))
