"""A tracking server that asks who one is: what it refuses is one line, before anything is computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.tracking import MlflowClient

from tests.conftest import serving
from wua_mlflow.cli.main import main
from wua_mlflow.pipeline import analyze, replicates, workflow

pytestmark = pytest.mark.slow
ADMIN, READER = ("admin", "a-long-password-1"), ("reader", "a-long-password-2")


def as_user(patch: pytest.MonkeyPatch, user: tuple[str, str]) -> None:
    for name, value in zip(("USERNAME", "PASSWORD"), user, strict=True):
        patch.setenv(f"MLFLOW_TRACKING_{name}", value)


@pytest.fixture
def address(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Of a server with an administrator, and a user who may read everything and write nothing."""
    settings = tmp_path / "auth.ini"
    settings.write_text(f"[mlflow]\ndefault_permission = READ\n"
                        f"database_uri = sqlite:///{tmp_path / 'auth.db'}\n"
                        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
                        f"authorization_function = "
                        f"mlflow.server.auth:authenticate_request_basic_auth\n")
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(settings))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(16))
    with serving(store_uri, tmp_path, "--app-name", "basic-auth", "--artifacts-destination",
                 "artifacts") as address:
        as_user(monkeypatch, ADMIN)
        made = requests.post(f"{address}/api/2.0/mlflow/users/create", auth=ADMIN, timeout=60,
                             json=dict(zip(("username", "password"), READER, strict=True)))
        assert made.status_code == 200, made.text
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow.set_tracking_uri(address)
        yield address
        as_user(monkeypatch, ADMIN)
        mlflow.set_tracking_uri(store_uri)


DATA = ("--data", "rows.csv", "--target", "y", "--hidden", "4", "--epochs", "1", "--seeds", "1",
        "--null-draws", "0")


def test_a_user_without_rights_gets_one_line_before_anything_is_computed(
        address, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(draw.normal(size=(200, 2)), columns=["a", "b"])
    rows.assign(y=np.where(rows["a"] > 0, "yes", "no")).to_csv("rows.csv", index=False)
    assert main(["train", *DATA[:-2]]) == 0
    client = MlflowClient()
    experiment = client.get_experiment_by_name("wua").experiment_id
    (run,) = client.search_runs([experiment])
    (output,) = run.outputs.model_outputs
    capsys.readouterr()

    def computed(*_: object, **__: object) -> None:
        pytest.fail("something was computed")

    for module, name in ((replicates, "fit"), (workflow, "slim_variant"),
                         (analyze, "analyze")):
        monkeypatch.setattr(module, name, computed)
    commands = [["train", *DATA[:-2]], ["run", *DATA],
                ["analyze", "--run-id", run.info.run_id],
                ["analyze", "--model-uri", f"models:/{output.model_id}"],
                ["slim", "--run-id", run.info.run_id, "--null-draws", "0"]]
    for user, status, asked in ((READER, "403", commands),
                                (("reader", "wrong"), "401", commands[:1])):
        as_user(monkeypatch, user)
        for words in asked:
            assert main(words) == 1, words
            printed = capsys.readouterr()
            assert printed.out == ""
            line = printed.err.splitlines()[-1]
            assert line.startswith(f"wua: {address}: ") and status in line, (words, printed.err)
            assert "Traceback" not in printed.err
    as_user(monkeypatch, ADMIN)
    assert len(client.search_runs([experiment])) == 1


def test_whoever_may_read_may_compare(address, monkeypatch, capsys):
    """The look cannot be noted then, and is counted all the same."""
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(draw.normal(size=(300, 2)), columns=["a", "b"])
    rows.assign(y=np.where(rows["a"] > 0, "yes", "no")).to_csv("rows.csv", index=False)
    assert main(["train", *DATA[:-2]]) == 0
    (run,) = MlflowClient().search_runs(["1"])
    capsys.readouterr()
    as_user(monkeypatch, READER)
    assert main(["compare", run.info.run_id, run.info.run_id, "--margin", "0.3"]) in (0, 4)
    assert main(["runs"]) == 0
    assert run.info.run_id in capsys.readouterr().out
