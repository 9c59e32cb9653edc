"""What the first hours share: a folder of the user's own, one command, and an answer to act on."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

__all__ = ["answer", "tried"]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""The most that a first hour may take, on two cores."""
VERDICT = re.compile(r"^Verdict: (As good|Worse, but|Not as good|Inconclusive)", re.MULTILINE)
REASON = re.compile(r"^The (method \w+ finds no width|network has one unit)", re.MULTILINE)


def answer(folder: Path, *words: str) -> str:
    """What ``wua`` prints there, on both streams: exit code 0 and a verdict, or a stated reason."""
    code, printed = run(folder, words)
    assert code == 0, printed
    if words[0] in ("run", "slim"):
        assert VERDICT.search(printed) or REASON.search(printed), printed
    return printed


def as_a_process(folder: Path, words: Sequence[str]) -> tuple[int, str]:
    """The exit code, and what is printed."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "wua_mlflow", *words], cwd=folder, text=True,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=SECONDS, check=False)
    print(f"{time.monotonic() - began:.0f} s\n{done.stdout}")
    return done.returncode, done.stdout


def in_this_process(folder: Path, words: Sequence[str]) -> tuple[int, str]:
    """The same without a process of its own, whose imports take longer than a small run."""
    from wua_mlflow.cli.main import main

    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed), chdir(folder):
        code = main(list(words))
    return code, printed.getvalue()


run = as_a_process
"""How a command is run."""


def tried(hour: Callable[[Path], None]) -> None:
    """Go through a first hour in a new folder; for a script that is run by hand."""
    with tempfile.TemporaryDirectory() as folder:
        hour(Path(folder))
