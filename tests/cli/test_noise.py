"""What a tracking server would print of itself does not come through."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_server_makes_no_noise(store_uri: str, tmp_path: Path) -> None:
    """MLflow prints an address for each run that ends; JSON would not be JSON any more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri, "--workers",
         "1", "--artifacts-destination", "artifacts", "--port", str(port)], cwd=tmp_path, env=quiet,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        done = subprocess.run(
            [sys.executable, "-m", "wua_mlflow", "run", "--data", "iris", "--hidden", "6",
             "--epochs", "1", "--seeds", "1", "--null-draws", "1", "--json",
             "--margin", "0.2"], cwd=tmp_path,
            env={**quiet, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}, capture_output=True,
            text=True, timeout=600)
    finally:
        server.terminate()
        server.wait(600)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["artifact"]["examples"] == 45
