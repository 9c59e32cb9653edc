"""Every benchmark: ``python benchmarks [--toy]``.

``--toy``: each for a few seconds, two at a time, to see that all of them run; the figures then
mean nothing. Without it each has a process of its own, one after the other, and hours pass.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import runpy
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

COMMANDS = (
    ("calibration", "--trials", "2000"), ("remedies", "--trials", "2000"),
    ("bootstrap",), ("uneven",), ("settle",), ("peer_parity",), ("looks",), ("gate",),
    ("pipelines",),
    ("scores",), ("latency_interval",), ("knee",), ("search",), ("answers",), ("readme",),
    ("cut_knee",),
    ("fidelity",), ("pruning",), ("pruning", "--blind"), ("report",), ("streaming",),
    ("flops", "--rounds", "21"), ("zoo",),
    ("rescaling",), ("monitor",), ("startup",), ("large_data",), ("gpu",), ("queries",),
    ("pages",),
)
"""What ``make bench`` runs. ``knee_sweep`` is not among them: its results are kept in ``data``."""
FOLDER = Path(__file__).parent


def main() -> int:
    """Run them; the exit code says whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="seconds, to see that they run")
    if not parser.parse_args().toy:
        codes = [subprocess.call([sys.executable, str(FOLDER / f"{name}.py"), *options])
                 for name, *options in COMMANDS]
        return max(codes)
    names = dict.fromkeys([*(name for name, *_ in COMMANDS), "knee_sweep"])
    failed = run_toys(list(reversed(names)))
    print(f"\n{len(names) - len(failed)} of {len(names)} run at toy size"
          + "".join(f"; {name} failed" for name in failed))
    return bool(failed)


def run_toys(names: list[str]) -> list[str]:
    """Run these scripts as ``--toy``, two at a time; gives those that failed.

    The two processes import torch and MLflow once each; the last ones are short, so that both end
    about together.
    """
    failed = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
        names_of = {processes.submit(run_toy, name): name for name in names}
        for done in as_completed(names_of):
            well, printed = done.result()
            print(printed, flush=True)
            failed += [] if well else [names_of[done]]
    return failed


def run_toy(name: str) -> tuple[bool, str]:
    """Run one script as ``--toy`` in this process; whether it ran, and what it printed."""
    began, sys.argv = time.perf_counter(), [f"{name}.py", "--toy"]
    well = True
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print(f"\n== {name}")
        try:
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        except Exception:
            traceback.print_exc(file=sys.stdout)
            well = False
        print(f"({time.perf_counter() - began:.0f} s)")
    return well, printed.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
