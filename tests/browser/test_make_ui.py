"""``make ui``'s script: waits for the server, and prints an address that opens the comparison."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import expect

from tests.conftest import MLFLOW_VARIABLES
from wua_mlflow.tracking.ui_view import latest_view

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SCRIPT = ("-m", "wua_mlflow.cli.ui")


@pytest.fixture
def started(tmp_path, migrated_database):
    """What the script printed till it said where to look; it is ended by a signal."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("wua", artifact_location=str(tmp_path / "mlruns"))
    pipeline = client.create_run(experiment, run_name="digits 64 → 8", tags={
        "wua.kind": "pipeline", "wua.verdict": "non_inferior"}).info.run_id
    client.create_run(experiment, run_name="slim 8", tags={
        "wua.kind": "variant", "wua.pipeline": pipeline, "wua.verdict": "non_inferior"})
    latest_view(client, experiment, pipeline, "digits 64 → 8", classification=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    kept = {name: value for name, value in os.environ.items() if name not in MLFLOW_VARIABLES}
    process = subprocess.Popen([sys.executable, *SCRIPT, "--port", port], cwd=tmp_path, env=kept,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = [process.stdout.readline()]
    while lines[-1] and "/#/" not in lines[-1]:
        lines.append(process.stdout.readline())
    second = subprocess.run([sys.executable, *SCRIPT, "--port", port], cwd=tmp_path, env=kept,
                            capture_output=True, text=True, timeout=600)
    yield "".join(lines), second
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 0
    with socket.socket() as knock:
        assert knock.connect_ex(("127.0.0.1", int(port))), "the server is still there"


def test_it_prints_the_last_comparison_once_it_answers_and_refuses_a_port_that_is_taken(
        page, started):
    printed, second = started
    assert "MLflow's UI is ready; the last comparison, digits 64 → 8:" in printed
    (address,) = re.findall(r"http://\S+", printed)
    page.goto(address)
    expect(page.get_by_text("Latest: digits 64 → 8")).to_be_visible()
    expect(page.get_by_role("link", name="slim 8", exact=True)).to_be_visible()
    assert second.returncode == 1 and second.stderr.startswith("wua: port ")
    assert "make ui PORT=" in second.stderr and second.stderr.count("\n") == 1
