"""What was cut and logged is served without this package, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wua_mlflow.pipeline.models import cnn, mlp
from wua_mlflow.pruning.cut import cut
from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.store import connect, ended, new_run

BATCHES = (1, 3, 64)
SECONDS = 600

BLOCKED = '''
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "wua_mlflow":
            raise ImportError(f"{name} is not to be imported here")

sys.modules["wua_mlflow"] = None
sys.meta_path.insert(0, Blocker())
'''
"""``sitecustomize.py`` of a machine that has MLflow and torch, and nothing of ours."""

PREDICTING = '''
import sys
import mlflow, numpy as np

for name in ("wua_mlflow", "wua_mlflow.tracking"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: this proves nothing")
folder, *uris = sys.argv[1:]
for number, uri in enumerate(uris):
    predict = mlflow.pyfunc.load_model(uri).predict
    with np.load(f"{folder}/{number}.npz") as arrays:
        answers = {name: predict(inputs) for name, inputs in arrays.items()}
    np.savez(f"{folder}/{number}-answers.npz", **answers)
assert not [name for name, module in sys.modules.items()
            if name.startswith("wua_mlflow") and module is not None]
'''


class Sentences(nn.Module):
    """Token ids, through a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.recurrent, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.recurrent(self.embedding(x))[0][:, -1])


class Pictures(nn.Module):
    """Attention over the rows of a picture."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        rows = x.squeeze(1)
        return self.head(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))


CASES = {
    "classes": (lambda: mlp((7,), (4,), 3, "multiclass"), lambda n: torch.rand(n, 4), {}),
    "regression": (lambda: mlp((7, 5), (4,), 1, "regression"), lambda n: torch.rand(n, 4),
                   {"fc1": [0, 2], "fc2": [4]}),
    "convolutions": (lambda: cnn((3, 5), (1, 8, 8), 4, "multiclass"),
                     lambda n: torch.rand(n, 1, 8, 8), {"conv2": [1, 3, 4]}),
    "attention": (Pictures, lambda n: torch.rand(n, 1, 8, 8), {"attention": [1, 2]}),
    "tokens": (Sentences, lambda n: torch.randint(20, (n, 5)),
               {"recurrent": [0, 2, 3, 5, 7], "embedding": [0, 1, 5]}),
}
"""What makes the network and its inputs, and the units that stay of it."""


@dataclass(frozen=True)
class Logged:
    """A model that was logged, where it is, and inputs of several sizes with its own answers."""

    uri: str
    inputs: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]


@pytest.fixture
def bare(tmp_path, store_uri):
    """The environment of a process that has nothing of ours, and may unpickle nothing."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return {**os.environ, "PYTHONPATH": str(folder), "MLFLOW_TRACKING_URI": store_uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def _logged(case: str, *, by: str = "model") -> Logged:
    torch.manual_seed(len(case))
    build, draw, keep = CASES[case]
    model, store = build(), connect("serving")
    if keep:
        model = cut(model, draw(6), keep).model
    with ended(store, new_run(store, case, {})) as run_id:
        model_id, _ = log_model(store.client, run_id, store.experiment_id, model, draw(6))
    inputs = {str(size): draw(size) for size in BATCHES}
    model.eval()
    with torch.no_grad():
        answers = {size: model(batch).numpy() for size, batch in inputs.items()}
    uri = f"runs:/{run_id}/model" if by == "run" else f"models:/{model_id}"
    return Logged(uri, {size: batch.numpy() for size, batch in inputs.items()}, answers)


@pytest.mark.slow
def test_predictions_without_this_package_and_without_pickle(bare, tmp_path):
    models = [_logged(case, by=by) for case, by in zip(
        CASES, ("model", "run", "model", "run", "model"), strict=True)]
    for number, model in enumerate(models):
        np.savez(tmp_path / f"{number}.npz", **model.inputs)
    done = subprocess.run(
        [sys.executable, "-c", PREDICTING, str(tmp_path), *(model.uri for model in models)],
        env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, model in enumerate(models):
        with np.load(tmp_path / f"{number}-answers.npz") as answers:
            assert set(answers) == set(map(str, BATCHES))
            for size, answer in answers.items():
                np.testing.assert_allclose(answer, model.answers[size], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "by"), [("regression", "run"), ("tokens", "model")])
def test_served_over_http(bare, tmp_path, case, by):
    model = _logged(case, by=by)
    with _serving(model.uri, bare, tmp_path) as address:
        for size, inputs in model.inputs.items():
            answers = _post(address, {"inputs": inputs.tolist()})["predictions"]
            np.testing.assert_allclose(answers, model.answers[size], rtol=1e-5, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            _post(address, {"inputs": [[["no", "numbers"]]]})


@contextmanager
def _serving(uri: str, environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Address of ``mlflow models serve``, which ends with the block; its children with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager",
               "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env={**environment, "PATH": path}, cwd=folder,
                                  stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(server, address, folder / "log")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(600)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(600)


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow models serve does not answer:\n{log.read_text()[-2000:]}")


def _post(address: str, content: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(f"{address}/invocations", json.dumps(content).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)
