"""SIGINT, SIGTERM and SIGHUP: the runs under way end as KILLED, whenever the signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine
from torch import nn

from tests.mistakes import all_runs
from wua_mlflow.cli import main as main_module
from wua_mlflow.cli.main import main
from wua_mlflow.signals import Stopped, allow_signals, defer_signals, handle_signals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

ARGUMENTS = ["run", "--model", "tests.test_signals:model", "--seeds", "1", "--null-draws", "1"]


def model(widths: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(2, widths[0]), nn.ReLU(), nn.Linear(widths[0], 1))


def stop_in_training(model, data, budget, seed):
    signal.raise_signal(signal.Signals[os.environ["STOP_BY"]])
    return model


def stop_in_slim_training(model, data, budget, seed):
    return stop_in_training(model, data, budget, seed) if budget == 2 else model


@pytest.fixture(autouse=True)
def default_handlers():
    """A process in the background ignores SIGINT, and passes that on."""
    before = {number: signal.signal(number, handler) for number, handler in zip(
        NUMBERS, (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL), strict=True)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def statuses(kind: str) -> list[str]:
    return [run.info.status for run in all_runs(kind)]


def test_a_signal_is_raised_handlers_are_put_back_and_an_ignored_signal_stays_ignored():
    """With the shell's exit code."""
    for number in NUMBERS:
        with pytest.raises(Stopped, match=number.name) as stop, handle_signals():
            signal.raise_signal(number)
        assert stop.value.exit_code == 128 + number
        assert isinstance(stop.value, KeyboardInterrupt)
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


def test_a_held_block_is_finished_first_and_a_released_block_within_is_not():
    done = []
    with pytest.raises(Stopped), handle_signals():
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("held")
        done.append("not here")
    with pytest.raises(Stopped), handle_signals(), defer_signals():
        try:
            with allow_signals():
                signal.raise_signal(signal.SIGTERM)
                done.append("not here")
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("a second signal does not break the cleaning up")
    with pytest.raises(Stopped), handle_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        done.append("held until it is released")
        with allow_signals():
            done.append("not here")
    with pytest.raises(Stopped) as stop, handle_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("of the block")
    assert isinstance(stop.value.__context__, ValueError)
    assert done == ["held", "a second signal does not break the cleaning up",
                    "held until it is released"]


def test_a_signal_in_a_callback_whose_errors_python_drops_is_sent_again():
    """As in the callbacks of the import system: Ctrl-C would be lost."""
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped), handle_signals():
        Dropped()
        signal.sigtimedwait([], 60)


def test_three_signals_end_even_a_held_block():
    script = ("import signal\nfrom wua_mlflow.signals import *\n"
              "with handle_signals(), defer_signals():\n"
              "    for _ in range(9):\n"
              "        signal.raise_signal(signal.SIGTERM); print('held', flush=True)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout.splitlines() == ["held", "held"]


@pytest.mark.parametrize(("number", "code", "line"), [
    ("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_in_training_kills_variant_and_pipeline(store_uri, monkeypatch, capsys, number,
                                                         code, line):
    monkeypatch.setenv("STOP_BY", number)
    assert main([*ARGUMENTS, "--train", "tests.test_signals:stop_in_training"]) == code
    assert capsys.readouterr().err == f"wua: {line}\n"
    (variant,), (pipeline,) = all_runs("variant"), all_runs("pipeline")
    assert (variant.info.status, pipeline.info.status) == ("KILLED", "KILLED")
    assert variant.data.tags["wua.step.train"] == "failed"
    assert "wua.error" not in variant.data.tags


def test_variants_that_were_done_stay_finished(store_uri, monkeypatch):
    monkeypatch.setenv("STOP_BY", "SIGTERM")
    arguments = [*ARGUMENTS, "--epochs", "3", "--slim-epochs", "2", "--slim-hidden", "4",
                 "--train", "tests.test_signals:stop_in_slim_training"]
    assert main(arguments) == 143
    assert statuses("variant") == ["FINISHED", "KILLED"]
    assert statuses("pipeline") == ["KILLED"]


@pytest.mark.parametrize("method", ["create_run", "set_terminated"])
def test_a_signal_while_a_run_is_made_or_ended_leaves_none_open(store_uri, monkeypatch, method):
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


@pytest.mark.parametrize("table", ["tags", "latest_metrics"])
def test_a_signal_within_a_transaction_waits_for_its_end(store_uri, table, capsys):
    """Broken off, it would keep the database locked and its runs open."""
    executed, signals, sent = list[str](), list[str](), f"INSERT INTO {table} "

    def after(*arguments: Any) -> None:
        executed.append(arguments[2].partition("(")[0])
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


def test_another_threads_blocks_hold_nothing():
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with handle_signals(), defer_signals():  # nor does it change the handlers
            inside.set()
            done.wait(600)

    with ThreadPoolExecutor(1) as pool:
        before = signal.getsignal(signal.SIGTERM)
        pool.submit(work)
        inside.wait(600)
        assert signal.getsignal(signal.SIGTERM) == before
        with pytest.raises(Stopped), handle_signals():
            signal.raise_signal(signal.SIGTERM)
        done.set()


@pytest.mark.parametrize("reached", [True, False])
def test_the_run_of_mlflow_run_is_killed(store_uri, monkeypatch, reached):
    """Also where the command never got to it."""
    client = MlflowClient()
    experiment = client.create_experiment("of mlflow run")
    inherited = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", inherited)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("STOP_BY", "SIGTERM")
    if not reached:
        monkeypatch.setattr(main_module, "_execute", lambda _: signal.raise_signal(signal.SIGTERM))
    trainer = "tests.test_signals:stop_in_training"
    assert main(["train", *ARGUMENTS[1:-2], "--train", trainer]) == 143
    assert client.get_run(inherited).info.status == "KILLED"
    assert statuses("variant") == ["KILLED"] * reached


def test_the_command_itself(store_uri, tmp_path):
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
