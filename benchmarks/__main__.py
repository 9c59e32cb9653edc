"""Every benchmark, one after the other: ``python benchmarks [--toy]``.

``--toy``: each for a few seconds, in this process, to see that all of them run; the figures then
mean nothing. Without it each has a process of its own, as its timings want, and hours pass.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import time
import traceback
from pathlib import Path

COMMANDS = (
    ("startup",), ("calibration", "--trials", "2000"), ("remedies", "--trials", "2000"),
    ("bootstrap",), ("uneven",), ("settle",), ("peer_parity",), ("looks",), ("gate",),
    ("pipelines",),
    ("scores",), ("latency_interval",), ("knee",), ("search",), ("answers",), ("readme",),
    ("cut_knee",),
    ("fidelity",), ("pruning",), ("pruning", "--blind"), ("report",), ("streaming",),
    ("flops", "--rounds", "21"),
    ("rescaling",), ("monitor",), ("large_data",), ("gpu",), ("queries",), ("pages",),
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
    failed = [name for name in names if not runs_as_toy(name)]
    print(f"\n{len(names) - len(failed)} of {len(names)} run at toy size"
          + "".join(f"; {name} failed" for name in failed))
    return bool(failed)


def runs_as_toy(name: str) -> bool:
    """Run one script as ``--toy`` in this process; an error is printed."""
    print(f"\n== {name}", flush=True)
    began, sys.argv = time.perf_counter(), [f"{name}.py", "--toy"]
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    except Exception:
        traceback.print_exc()
        return False
    print(f"({time.perf_counter() - began:.0f} s)")
    return True


if __name__ == "__main__":
    raise SystemExit(main())
