"""Progress bars are for a person at a terminal; a log file has none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

from wua_mlflow.data.loaders import Watched

SCRIPT = """
from wua_mlflow.config import load_settings
from wua_mlflow.data.loaders import Watched
from wua_mlflow.pipeline.networks import scratch
from wua_mlflow.pipeline.recipe import load_recipe, train_one
from wua_mlflow.pipeline.recipe import train_replicates
from wua_mlflow.usage.analyze import analyze
recipe = load_recipe(load_settings(None, {"seeds": 3}))
one = train_one(recipe, (10,), 30, seed=42, label="training a")
test = recipe.evaluate(one.model, recipe.split.test, one.kind)
train_replicates(recipe, scratch(recipe, (10,), 3), (one, test), count=3,
                 label="replicates of a")
analyze(one.model, Watched(recipe.split.train.inputs, passes=3, label="analysing a"), null=2)
"""


def _stderr(terminal: bool) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    command = [sys.executable, "-c", SCRIPT]
    root = Path(__file__).resolve().parents[2]
    if not terminal:
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root,
                              check=True, timeout=120).stderr
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen(command, env=environment, stderr=slave, cwd=root)
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # the other end is closed: the process has ended
        pass
    os.close(master)
    assert process.wait(timeout=120) == 0
    return seen.decode()


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_on_training_replicates_and_analysis(terminal: bool) -> None:
    text = _stderr(terminal)
    for label in ("training a", "replicates of a", "analysing a"):
        assert (label in text) == terminal
    if not terminal:
        assert text == ""


def test_watched_inputs_are_whole_in_every_pass() -> None:
    inputs = torch.arange(10_000.0)[:, None]
    watched = Watched(inputs, passes=2, label="demo")
    for _ in range(2):
        assert torch.equal(torch.cat(list(watched)), inputs)
