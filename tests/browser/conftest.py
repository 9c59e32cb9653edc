"""A real MLflow server, with what ``wua run`` left in it, and Chromium; both once a module."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from playwright.sync_api import Error, sync_playwright

CHROMIUM = os.environ.get("WUA_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
REQUIRED = os.environ.get("WUA_REQUIRE_BROWSER") == "1"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
SECONDS = 600


@dataclass(frozen=True)
class Pipeline:
    """One ``wua run --seeds 2`` of the tutorial's use case, with the addresses that it printed."""

    server: str
    view: str
    report: str
    run: Run
    variants: tuple[Run, ...]


@pytest.fixture(scope="module")
def browser():
    """Chromium; without it the tests skip, or fail where WUA_REQUIRE_BROWSER=1."""
    if not Path(CHROMIUM).exists():
        missing = f"no Chromium at {CHROMIUM}; WUA_CHROMIUM names another place"
        pytest.fail(missing) if REQUIRED else pytest.skip(missing)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        except Error as error:
            if REQUIRED:
                raise
            pytest.skip(f"Chromium does not start: {error.message.splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A new visitor's page, 1600 × 1000 pixels."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(SECONDS * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def server(browser, migrated_database, tmp_path_factory):
    """Address of a server on a store of its own; after ``browser``, so that a skip is quick."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_database, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
               "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder,
                                   env=_environment(), start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/health", process, folder / "log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=SECONDS)


@pytest.fixture(scope="module")
def pipeline(server, tmp_path_factory):
    """What a user gets who runs the use case against the server."""
    done = subprocess.run(
        [sys.executable, "-m", "wua_mlflow", "run", "--seeds", "2", "--null-draws", "2",
         "--experiment", "wua"],
        env=_environment(MLFLOW_TRACKING_URI=server), cwd=tmp_path_factory.mktemp("user"),
        capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    view, report = re.findall(r"http://\S+", done.stdout)[-2:]
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("wua")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    whole, *variants = sorted(found, key=lambda run: run.data.tags["wua.kind"] != "pipeline")
    return Pipeline(server, view, report, whole, tuple(variants))


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **more}


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the MLflow server did not start: {log.read_text()[-1000:]}")
