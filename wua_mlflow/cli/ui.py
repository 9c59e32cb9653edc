"""``make ui``: MLflow's UI on this folder's ``mlflow.db``, with the address of the last comparison.

Without MLflow's job runner, which takes gigabytes, and without telemetry. Ctrl-C ends it.
Tests: ``tests/browser/test_make_ui.py``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

__all__ = ["answers", "last_comparison", "main"]


STORE = "sqlite:///mlflow.db"
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
EVERYWHERE = ("0.0.0.0", "::")


def answers(address: str) -> bool:
    """Whether the server is ready."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def last_comparison(address: str) -> str:
    """Where to look: the view of the last pipeline's variants; the UI's first page without one."""
    from mlflow.tracking import MlflowClient

    from wua_mlflow.tracking.runs import runs
    from wua_mlflow.tracking.ui_view import LATEST_KEY, view_address

    pipelines = runs(kind="pipeline", where="tags.`wua.verdict` != ''", limit=1)
    if pipelines.empty:
        return f"{address}  (no comparison yet: `make run` makes one)"
    run = MlflowClient().get_run(pipelines["run_id"].iloc[0])
    return f"the last comparison, {run.info.run_name}:\n  " + view_address(
        address, run.info.experiment_id, LATEST_KEY)


def main() -> int:
    """Start the server, wait until it answers, say where to look, and stay until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    address = f"http://{'127.0.0.1' if options.host in EVERYWHERE else options.host}:{options.port}"
    with socket.socket() as knock:
        taken = not knock.connect_ex((address.rpartition("/")[2].partition(":")[0], options.port))
    if taken:
        print(f"wua: port {options.port} is taken, perhaps by a UI that is open: {address}; "
              f"`make ui PORT={options.port + 1}` starts another", file=sys.stderr)
        return 1
    os.environ |= {**QUIET, "MLFLOW_TRACKING_URI": STORE}
    for ending in (signal.SIGINT, signal.SIGTERM):  # a job in the background ignores the first
        signal.signal(ending, signal.default_int_handler)
    server = subprocess.Popen([
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", STORE,
        "--host", options.host, "--port", str(options.port), "--workers", "1"])
    try:
        while server.poll() is None and not answers(address):
            time.sleep(0.3)
        if server.poll() is None:
            print(f"\nMLflow's UI is ready; {last_comparison(address)}\n", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    raise SystemExit(main())
