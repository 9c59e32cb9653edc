"""What the first hours share: a folder of the user's own, one command, and an answer to act on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["answer", "tried"]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""The most that a first hour may take, on two cores."""
VERDICT = re.compile(r"^Verdict: (As good|Worse, but|Not as good|Inconclusive)", re.MULTILINE)
REASON = re.compile(r"^The (method \w+ finds no width|network has one unit)", re.MULTILINE)


def answer(folder: Path, *words: str) -> str:
    """What ``wua`` prints there, on both streams: exit code 0 and a verdict, or a stated reason."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "wua_mlflow", *words], cwd=folder, text=True,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=SECONDS, check=False)
    print(f"{time.monotonic() - began:.0f} s\n{done.stdout}")
    assert done.returncode == 0, done.stdout
    if words[0] in ("run", "slim"):
        assert VERDICT.search(done.stdout) or REASON.search(done.stdout), done.stdout
    return done.stdout


def tried(hour: Callable[[Path], None]) -> None:
    """Go through a first hour in a new folder; for a script that is run by hand."""
    with tempfile.TemporaryDirectory() as folder:
        hour(Path(folder))
