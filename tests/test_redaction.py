"""Passwords of tracking addresses: nothing that is printed or stored shows one."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import sqlalchemy
from mlflow.tracking import MlflowClient

from tests.mistakes import here  # noqa: F401 - a fixture
from tests.pipeline.slimming_cases import without_exports
from wua_mlflow.cli import commands
from wua_mlflow.cli import main as command_line
from wua_mlflow.cli.main import main
from wua_mlflow.redaction import redacted, redacted_output, without_user
from wua_mlflow.tracking.log import dataset_inputs, write
from wua_mlflow.tracking.store import Store, connect, ended, new_run, shown_uri

SECRET = "s3cret-pw"
ADDRESSES = [
    f"http://ann:{SECRET}@host:5000/mlflow", f"https://{SECRET}@host", f"http://:{SECRET}@host",
    f"postgresql://ann:{SECRET}@db:5432/mlflow", f"postgresql+psycopg2://ann:{SECRET}@db/x",
    f"postgresql://db/x?user=ann&password={SECRET}", f"mysql+pymysql://a@b:{SECRET}@db/x",
    f"postgresql://ann:a/b@c:{SECRET}@db/x", f"mssql://db/x?sslmode=a;pwd={SECRET};b=c",
    f"s3://key:{SECRET}@bucket/path", f"http://ann:{SECRET}%40@host",
    f"https://host/path?api_key={SECRET}#x", f"http://host/?sslPassword={SECRET}"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_in_any_text_loses_its_password_alone(address):
    for text in (address, f"cannot reach '{address}' (<{address}>), sorry", f"a={address}\nb"):
        assert SECRET not in redacted(text)
        assert redacted(redacted(text)) == redacted(text)
    assert redacted(f"so {address}, then").startswith("so ") and "host" in address.replace(
        "db", "host").replace("bucket", "host")
    assert SECRET not in shown_uri(address)


@pytest.mark.parametrize("text", [
    "sqlite:////home/ann@work/a:b@c/mlflow.db", "file:///a:b@c", "models:/net@slim", "ann@host: 3",
    "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
    "value = 3; key = 4", "see https://arxiv.org/abs/2405.14147 (a:b@c)", "a ? b : c@d"])
def test_what_is_no_password_stays(text):
    assert redacted(text) == text


def test_the_users_own_is_found_without_its_address(monkeypatch):
    """Whole, decoded, and where a part of it was taken for a port or a path."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{SECRET}%2Fx/tail1@host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-of-mine")
    for text in (f"denied: {SECRET}%2Fx/tail1", f"port '{SECRET}%2Fx'", f"{SECRET}/x/tail1",
                 "tail1", "Bearer t0ken-of-mine"):
        shown = redacted(text)
        assert SECRET not in shown and "tail1" not in shown and "t0ken" not in shown
    for uri in ("http://mlflow:mlflow@host", "http://ann:@host", "http://ann:a@host",
                "postgresql://postgres:accuracy@host"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert redacted("mlflow says: an accuracy") == "mlflow says: an accuracy"
        assert "mlflow:mlflow" not in redacted(uri) and ":accuracy" not in redacted(uri)


def test_an_address_to_open_has_no_user():
    assert without_user(ADDRESSES[0]) == "http://host:5000/mlflow"
    assert without_user("https://host:1") == "https://host:1"


def test_what_others_print_within_a_command(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    with redacted_output():
        print("out", ADDRESSES[0])
        print(f"err {ADDRESSES[0]}", file=sys.stderr, flush=True)
        sys.stderr.writelines(["lines ", ADDRESSES[0], "\n"])
        with contextlib.redirect_stdout(sys.stderr):
            print("redirected", ADDRESSES[0])
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": f"log {ADDRESSES[0]}"}))
        assert not sys.stdout.isatty()
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    for word in ("err", "lines", "redirected", "log"):
        assert f"{word} http://…@host:5000/mlflow" in printed.err
    assert printed.out == "out http://…@host:5000/mlflow\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    stream = sys.stdout
    with redacted_output():
        assert sys.stdout is stream, "nothing to hide"


@pytest.mark.parametrize("address", [
    f"http://ann:{SECRET}@127.0.0.1:1", f"http://ann:{SECRET}@127.0.0.1:99999",
    f"http://ann:{SECRET}/x#y@127.0.0.1:1", f"http://ann:{SECRET} x@127.0.0.1:1",
    f"postgresql://ann:{SECRET}@127.0.0.1:1/db", f"postgresql+psycopg2://ann:{SECRET}@127.0.0.1/x",
    f"postgresql://ann:{SECRET}@127.0.0.1:port/db", f"postgresql://h/db?password={SECRET}",
    f"nowhere://ann:{SECRET}@127.0.0.1:1/db"])
def test_no_error_of_a_store_shows_it(address, here, monkeypatch, capfd):  # noqa: F811
    """Nor does its traceback; one line without --debug, as ever."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    for words in ("train --seeds 1 --epochs 1", "runs", "best", "show abcd", "compare abcd dcba",
                  "analyze --run-id abcd", "train --debug", "runs --debug"):
        assert main(words.split()) in (1, 2)
        printed = capfd.readouterr()
        assert SECRET not in printed.out + printed.err
        if "--debug" not in words:
            assert printed.err.startswith("wua: ") and printed.err.count("\n") == 1
    mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")


def everything_in(folder: Path) -> bytes:
    """The bytes of all files, those of the database too."""
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_that_is_written_to_a_run_holds_it(here):  # noqa: F811
    store = connect("passwords")
    address = ADDRESSES[3]
    with ended(store, new_run(store, f"of {address}", {"wua.adopted": address})) as run_id:
        write(store.client, run_id, params={"state": address}, tags={"wua.unexported": address},
              files={"config.yaml": f"data: {address}\n", "a/report.md": address})
    with pytest.raises(ValueError), ended(store, new_run(store, "fails", {})):
        raise ValueError(f"cannot reach {address}")
    (inputs,) = dataset_inputs(address, address, [("train", np.zeros(2), np.zeros(2), "0" * 12)])
    store.client.log_inputs(run_id, datasets=[inputs])
    content = everything_in(here)
    assert b"postgresql://\xe2\x80\xa6@db" in content and SECRET.encode() not in content


def run_and_grep(folder: Path, capsys, words: str) -> str:
    """What the commands print, after everything was looked through."""
    assert main(["run", *words.split()]) == 0
    printed = "".join(capsys.readouterr())
    (pipeline, *_) = MlflowClient().search_runs(["1"], "tags.`wua.kind` = 'pipeline'")
    for command in ("runs", f"show {pipeline.info.run_id}", "runs --kind pipeline --json"):
        assert main(command.split()) == 0
        printed += "".join(capsys.readouterr())
    assert SECRET not in printed
    assert SECRET.encode() not in everything_in(folder)
    return printed


QUICK = "--data bad_parts:data --hidden 3 --slim-hidden 2 --seeds 1 --epochs 1 --null-draws 0"


def test_a_pipeline_on_postgresql_shows_it_nowhere(here, monkeypatch, capsys):  # noqa: F811
    """As far as goes without a server: the store's address is one, its runs are in SQLite."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[3])
    monkeypatch.setattr(command_line, "_check_database", lambda _: None)
    without_exports(monkeypatch)
    open_store = commands.connected
    monkeypatch.setattr(commands, "connected", lambda settings: replace(
        open_store(settings), uri=ADDRESSES[3]))
    printed = run_and_grep(here, capsys, QUICK)
    assert 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"' in printed
    assert "http://127.0.0.1:5000/#/" in printed


@pytest.mark.slow
def test_a_pipeline_on_a_server_shows_it_nowhere(here, server, monkeypatch, capsys):  # noqa: F811
    address = server.replace("http://", f"http://ann:{SECRET}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    printed = run_and_grep(here, capsys, QUICK)
    assert f"  {server}/#/experiments/" in printed, "an address that opens"


@pytest.fixture
def database():
    """The address of a PostgreSQL server of the test's own; without one the test skips.

    It fails where WUA_REQUIRE_POSTGRESQL=1.
    """
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = places[-1] if places else Path(shutil.which("initdb") or "/none/initdb").parent
    if not (programs / "initdb").exists():
        missing = "no PostgreSQL: initdb is neither on the PATH nor in /usr/lib/postgresql"
        pytest.fail(missing) if os.environ.get("WUA_REQUIRE_POSTGRESQL") == "1" else \
            pytest.skip(missing)
    account = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    (folder / "password").write_text(SECRET)

    def call(program: str, *words: str) -> None:
        done = subprocess.run(
            [programs / program, *words], cwd=folder, text=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, **account)
        assert done.returncode == 0, done.stderr

    call("initdb", "-D", "data", "-U", "ann", "--pwfile=password", "-A", "scram-sha-256", "-N")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call("pg_ctl", "-D", "data", "-w", "-l", "log", "start", "-o",
         f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off")
    yield f"postgresql+psycopg2://ann:{SECRET}@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_pipeline_on_a_database_shows_it_nowhere(
        here, database, monkeypatch, capsys):  # noqa: F811
    """Nor do its tables; a wrong password, or no server, is said in one line at once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    mlflow.set_tracking_uri(database)
    printed = run_and_grep(here, capsys, QUICK)
    assert 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"' in printed
    engine = sqlalchemy.create_engine(database)
    tables = sqlalchemy.inspect(engine).get_table_names()
    with engine.connect() as connection:
        rows = [connection.execute(sqlalchemy.text(f'select * from "{table}"')).all()
                for table in tables]
    engine.dispose()
    assert sum(map(len, rows)) > 50 and SECRET not in repr(rows)
    for address, reason in (
            (database.replace(SECRET, f"{SECRET}X"), "password authentication failed"),
            (database.replace("/postgres", "/none"), 'database "none" does not exist'),
            (f"postgresql+psycopg2://ann:{SECRET}@127.0.0.1:1/x", "Connection refused"),
            (f"postgresql+nodriver://ann:{SECRET}@127.0.0.1/x", "Can't load plugin")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert main(["runs"]) == 1
        line = capsys.readouterr().err
        assert line.startswith("wua: MLFLOW_TRACKING_URI: expected a database at postgresql+")
        assert reason in line and line.count("\n") == 1 and SECRET not in line
    mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")


@pytest.mark.parametrize(("variables", "made", "address"), [
    ({}, False, "http://127.0.0.1:5000"), ({"MLFLOW_PORT": "7"}, False, "http://127.0.0.1:7"),
    ({"MLFLOW_HOST": "box", "PORT": "8"}, False, "http://box:5000"),
    ({"PORT": "8", "MLFLOW_PORT": "7"}, True, "http://127.0.0.1:8"),
    ({"ADDRESS": "0.0.0.0", "PORT": ""}, True, "http://127.0.0.1:5000")])
def test_printed_addresses_fit_what_starts_the_ui(variables, made, address, tmp_path, monkeypatch):
    """``make ui`` shows ``mlflow.db`` of the repository, and no other store."""
    monkeypatch.chdir(tmp_path)
    for name in ("ADDRESS", "PORT", "MLFLOW_HOST", "MLFLOW_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if made:
        (tmp_path / "Makefile").touch()
        (tmp_path / "MLproject").touch()
    store = Store(None, "1", f"sqlite:///{tmp_path}/mlflow.db")  # type: ignore[arg-type]
    assert commands._local_address(store) == address
    other = replace(store, uri="sqlite:////a b/it's.db")
    assert commands._ui_command(store) == (
        "make ui" if made else f"mlflow ui --backend-store-uri {store.uri}")
    assert commands._ui_command(other) == (
        "mlflow ui --backend-store-uri 'sqlite:////a b/it'\"'\"'s.db'")


def test_a_run_that_mlflow_run_made_loses_its_sources_password(here, monkeypatch):  # noqa: F811
    client = MlflowClient()
    run_id = client.create_run("0", tags={
        "mlflow.source.name": f"https://ann:{SECRET}@github.com/a/b",
        "mlflow.source.git.repoURL": f"https://{SECRET}@github.com/a/b"}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert main(["train", *QUICK.split()[:4], "--seeds", "1", "--epochs", "1"]) == 0
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow.source.name"] == "https://…@github.com/a/b"
    assert tags["mlflow.source.git.repoURL"] == "https://…@github.com/a/b"
    assert os.environ["MLFLOW_RUN_ID"] == run_id
