"""SIGINT, SIGTERM and SIGHUP: the runs under way end as KILLED, whenever the signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from wua_mlflow.cli.main import main
from wua_mlflow.signals import Stopped, allow_signals, defer_signals, handle_signals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

STOPPING = """
import os, signal
from torch import nn

def model(widths):
    return nn.Sequential(nn.Linear(2, widths[0]), nn.ReLU(), nn.Linear(widths[0], 1))

def stop_in_training(model, data, budget, seed):
    os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
    return model

def stop_in_slim_training(model, data, budget, seed):
    if budget == 2:
        os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
    return model
"""


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Whoever started the tests may have had them ignore a signal (``nohup`` does)."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def users_module(store_uri: str, tmp_path: Path) -> Iterator[str]:
    """``stopping_parts``, in the folder of the test, out of the way afterwards."""
    (tmp_path / "stopping_parts.py").write_text(STOPPING)
    path = list(sys.path)
    yield "stopping_parts"
    sys.path[:] = path
    sys.modules.pop("stopping_parts", None)


def runs_by_kind() -> dict[str, list[Run]]:
    client = MlflowClient()
    everywhere = [found.experiment_id for found in client.search_experiments()]
    found: dict[str, list[Run]] = {}
    for run in client.search_runs(everywhere, order_by=["attributes.start_time ASC"]):
        found.setdefault(run.data.tags.get("wua.kind", ""), []).append(run)
    return found


def statuses(kind: str) -> list[str]:
    return [run.info.status for run in runs_by_kind().get(kind, [])]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_with_the_shells_exit_code(number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name) as stop, handle_signals():
        signal.raise_signal(number)
    assert stop.value.exit_code == 128 + number
    assert isinstance(stop.value, KeyboardInterrupt)


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        others = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        with handle_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) != others[0]
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == others
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_leaves_the_handlers_alone() -> None:
    handlers = []

    def work() -> None:
        with handle_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_a_held_block_is_finished_first() -> None:
    done = []
    with pytest.raises(Stopped), handle_signals():
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("to the end")
        done.append("not here")
    assert done == ["to the end"]


def test_a_released_block_within_is_not() -> None:
    done = []
    with pytest.raises(Stopped), handle_signals(), defer_signals():
        try:
            with allow_signals():
                signal.raise_signal(signal.SIGTERM)
                done.append("not here")
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("a second signal does not break the cleaning up")
    assert done == ["a second signal does not break the cleaning up"]


def test_a_signal_that_waits_is_raised_where_the_block_is_released() -> None:
    done = []
    with pytest.raises(Stopped), handle_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        done.append("still held")
        with allow_signals():
            done.append("not here")
    assert done == ["still held"]


def test_an_error_in_a_held_block_gives_way_to_the_signal() -> None:
    with pytest.raises(Stopped) as stop, handle_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("of the block")
    assert isinstance(stop.value.__context__, ValueError)


def test_three_signals_end_even_a_held_block() -> None:
    script = ("import signal\nfrom wua_mlflow.signals import *\n"
              "with handle_signals(), defer_signals():\n"
              "    for _ in range(9):\n"
              "        signal.raise_signal(signal.SIGTERM); print('held', flush=True)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.splitlines() == ["held", "held"]


ARGUMENTS = ["run", "--model", "stopping_parts:model", "--seeds", "1", "--null-draws", "1"]


@pytest.mark.parametrize(("number", "code", "said"), [
    ("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_in_training_kills_variant_and_pipeline(
    users_module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: str, code: int, said: str,
) -> None:
    monkeypatch.setenv("STOP_BY", number)
    assert main([*ARGUMENTS, "--train", f"{users_module}:stop_in_training"]) == code
    assert capsys.readouterr().err == f"wua: {said}\n"
    (variant,), (pipeline,) = runs_by_kind()["variant"], runs_by_kind()["pipeline"]
    assert (variant.info.status, pipeline.info.status) == ("KILLED", "KILLED")
    assert variant.data.tags["wua.step.train"] == "failed"
    assert "wua.error" not in variant.data.tags


def test_variants_that_were_done_stay_finished(
    users_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP_BY", "SIGTERM")
    arguments = [*ARGUMENTS, "--epochs", "3", "--slim-epochs", "2", "--slim-hidden", "4",
                 "--train", f"{users_module}:stop_in_slim_training"]
    assert main(arguments) == 143
    assert statuses("variant") == ["FINISHED", "KILLED"]
    assert statuses("pipeline") == ["KILLED"]


@pytest.mark.parametrize("method", ["create_run", "set_terminated"])
def test_a_signal_while_a_run_is_made_or_ended_leaves_none_open(
    users_module: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The second call: for ``create_run`` the variant's, after the pipeline's own."""
    calls = []
    real = getattr(MlflowClient, method)

    def signalled(self: MlflowClient, *args: object, **kwargs: object) -> object:
        calls.append(method)
        if method == "create_run" and len(calls) == 2 or method == "set_terminated":
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, method, signalled)
    assert main(["run", "--seeds", "1", "--epochs", "1", "--slim-epochs", "1"]) == 143
    variant = "KILLED" if method == "create_run" else "FINISHED"
    assert (statuses("variant"), statuses("pipeline")) == ([variant], ["KILLED"])


@pytest.mark.parametrize("table", ["params", "tags", "latest_metrics"])
def test_a_signal_within_a_transaction_waits_for_its_end(
    store_uri: str, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken off, it would keep the database locked and its runs open."""
    executed, signals, sent = list[str](), list[str](), f"INSERT INTO {table} "

    def after(*given: Any) -> None:
        executed.append(given[2].partition("(")[0])
        if (executed.count("INSERT INTO runs "), executed[-1]) == (2, sent) and not signals:
            signals.append(sent)
            signal.raise_signal(signal.SIGTERM)

    event.listen(Engine, "after_cursor_execute", after)
    try:
        code = main(["run", "--seeds", "1", "--epochs", "1", "--null-draws", "0"])
    finally:
        event.remove(Engine, "after_cursor_execute", after)
    assert (signals, code, capsys.readouterr().err) == ([sent], 143, "wua: terminated\n")
    assert (statuses("variant"), statuses("pipeline")) == (["KILLED"], ["KILLED"])


def test_another_threads_blocks_hold_nothing() -> None:
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with defer_signals():
            inside.set()
            done.wait(600)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        with pytest.raises(Stopped), handle_signals():
            inside.wait(600)
            signal.raise_signal(signal.SIGTERM)
        done.set()


def test_the_run_of_mlflow_run_is_killed(
    users_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("of mlflow run")
    inherited = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", inherited)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("STOP_BY", "SIGTERM")
    assert main(["train", *ARGUMENTS[1:-2], "--train", f"{users_module}:stop_in_training"]) == 143
    assert client.get_run(inherited).info.status == "KILLED"
    assert statuses("variant") == ["KILLED"]


def test_the_run_of_mlflow_run_is_killed_where_the_command_never_got_to_it(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wua_mlflow.cli import main as main_module

    client = MlflowClient()
    inherited = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", inherited)
    monkeypatch.setattr(main_module, "_execute", lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(["run"]) == 143
    assert client.get_run(inherited).info.status == "KILLED"


def test_the_command_itself(store_uri: str, tmp_path: Path) -> None:
    """A process of its own, interrupted while it trains replicate after replicate."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wua_mlflow", "run", "--seeds", "1000000"], cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            if statuses("variant") == ["RUNNING"] or process.poll() is not None:
                break
            time.sleep(0.2)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (130, "wua: interrupted\n")
    assert (statuses("variant"), statuses("pipeline")) == (["KILLED"], ["KILLED"])
