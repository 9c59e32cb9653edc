"""The registry with several processes at it, and through a server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from tests.tracking import registering
from tests.tracking.registering import (
    GOOD,
    aliases_of,
    links_of,
    register_slim,
    saved_slim,
    somebodys,
)
from wua_mlflow.tracking.store import Store, connect

store = registering.store

REGISTERING = """
import sys, time
from dataclasses import replace
import numpy as np
from wua_mlflow.tracking.registry import register
from wua_mlflow.tracking.store import connect
from wua_mlflow.verdict.compare import compare

client = connect("registry").client
verdict = compare(np.ones(1000), np.ones(1000), margin=0.02)
print("ready", flush=True)
sys.stdin.readline()
for run_id in sys.argv[1:]:
    done = register(client, "digits", run_id=run_id, verdict=verdict, comparison_run_id=run_id)
    print(done.version, done.alias, flush=True)
"""


@pytest.mark.slow
def test_several_processes_at_once(store):
    runs = [[saved_slim(store) for _ in range(4)] for _ in range(4)]
    workers = [subprocess.Popen([sys.executable, "-c", REGISTERING, *some], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for some in runs]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        lines = [worker.communicate(timeout=600)[0].split("\n")[:-1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(600)
    assert [len(of_worker) for of_worker in lines] == [4] * 4
    versions, aliases = zip(*(line.split() for line in sum(lines, [])), strict=True)
    assert sorted(map(int, versions)) == list(range(1, 17))
    assert set(aliases) == {"slim"}
    assert aliases_of(store)["slim"] in {of_worker[-1].split()[0] for of_worker in lines}
    versions = store.client.search_model_versions("name = 'digits'")
    assert sorted(version.run_id for version in versions) == sorted(sum(runs, []))
    assert all(version.tags["wua.comparison"] == version.run_id for version in versions)


@pytest.mark.slow
def test_through_a_server(store_uri, tmp_path, monkeypatch, capfd):
    """And it prints nothing, since ``--json`` is read by machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1", "--backend-store-uri", store_uri, "--artifacts-destination",
         str(tmp_path / "artifacts")], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        for _ in range(600):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        _register_through(connect("registry"), capfd)
    finally:
        server.terminate()
        server.wait(600)
        mlflow.set_tracking_uri(store_uri)


def _register_through(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(3, 2)
    first, second = saved_slim(store, model), saved_slim(store)
    capfd.readouterr()
    for run_id in (first, second, first):
        assert register_slim(store, run_id).alias == "slim"
    assert capfd.readouterr() == ("", "")
    assert aliases_of(store) == {"slim": "1"}
    versions = store.client.search_model_versions("name = 'digits'")
    assert {str(version.version): version.run_id for version in versions} \
        == {"1": first, "2": second}
    assert versions[0].tags["wua.verdict.sentence"] == GOOD.sentence
    assert links_of(store, first) == [{"name": "digits", "version": "1"}]
    inputs = torch.rand(4, 3)
    answer = mlflow.pyfunc.load_model("models:/digits@slim").predict(inputs.numpy())
    np.testing.assert_allclose(answer, model(inputs).detach(), rtol=1e-6)
    store.client.set_registered_model_alias("digits", "champion", "1")
    theirs = somebodys(store)
    store.client.set_registered_model_alias("digits", "slim", theirs)
    assert register_slim(store, second).alias is None
    assert aliases_of(store) == {"slim": theirs, "champion": "1"}
