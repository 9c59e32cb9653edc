"""A real MLflow server, with what ``wua run`` left in it, and Chromium; both once a module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from playwright.sync_api import Error, sync_playwright

from tests.conftest import MLFLOW_VARIABLES, serving

CHROMIUM = os.environ.get("WUA_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
REQUIRED = os.environ.get("WUA_REQUIRE_BROWSER") == "1"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")


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
    """A new visitor's page on a laptop, 1440 × 900 pixels."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(600_000)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def served_store(browser, migrated_database, tmp_path_factory):
    """The server's store; after ``browser``, so that a skip is quick."""
    folder = tmp_path_factory.mktemp("server")
    return f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"


@pytest.fixture(scope="module")
def server(served_store):
    """Address of a server on a store of its own."""
    with serving(served_store, Path(served_store.removeprefix("sqlite:///")).parent) as address:
        yield address


@pytest.fixture(scope="module")
def pipeline(server, tmp_path_factory):
    """What a user gets who runs the use case against the server."""
    kept = {name: value for name, value in os.environ.items() if name not in MLFLOW_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "wua_mlflow", "run", "--seeds", "2", "--null-draws", "2",
         "--experiment", "wua"],
        env={**kept, "MLFLOW_TRACKING_URI": server, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path_factory.mktemp("user"), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    view, report = re.findall(r"http://\S+", done.stdout)[-2:]
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("wua")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    whole, *variants = sorted(runs, key=lambda run: run.data.tags["wua.kind"] != "pipeline")
    return Pipeline(server, view, report, whole, tuple(variants))
