"""Progress bars are for a person at a terminal; a log file has none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import torch

from wua_mlflow.data.loaders import BatchesWithBar

SCRIPT = """
import contextlib, sys
from wua_mlflow.config import load_settings
from wua_mlflow.data.loaders import BatchesWithBar
from wua_mlflow.pipeline.networks import from_scratch
from wua_mlflow.pipeline.recipe import load_recipe, train_one, train_replicates
from wua_mlflow.usage.analyze import analyze

def work():
    recipe = load_recipe(load_settings(None, {"seeds": 3}))
    network = train_one(recipe, (10,), 30, seed=42, label="training a")
    test = recipe.evaluate(network.model, recipe.split.test, network.kind)
    train_replicates(recipe, from_scratch(recipe, (10,), 3), (network, test), count=3,
                     label="replicates of a")
    analyze(network.model, BatchesWithBar(recipe.split.train.inputs, passes=3, label="analysing a"),
            null=2)

work()
with open(sys.argv[1], "w") as log, contextlib.redirect_stderr(log):
    work()
"""


def test_bars_at_a_terminal_and_none_in_a_log(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    log = tmp_path / "log"
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(log)], env=environment,
                               stderr=slave, cwd=Path(__file__).resolve().parents[2])
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the other end is closed: the process has ended
        pass
    os.close(master)
    assert process.wait() == 0
    for label in ("training a", "replicates of a", "analysing a"):
        assert label in shown.decode()
    assert log.read_text() == ""


def test_watched_inputs_are_whole_in_every_pass() -> None:
    inputs = torch.arange(10_000.0)[:, None]
    watched = BatchesWithBar(inputs, passes=2, label="demo")
    for _ in range(2):
        assert torch.equal(torch.cat(list(watched)), inputs)
