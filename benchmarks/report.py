"""The report of 40 million weights beside the tutorial's way: time, memory, exactness.

One thread, in turns, medians of the rounds' ratios; memory in a process of its own. Prints
markdown. Run: ``python benchmarks/report.py [--rounds 7]``.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from wua_mlflow.usage.criteria import WeightedImportance
from wua_mlflow.usage.statistics import Summary, summarize

UNITS, INPUTS = 10_000, 4_000
TIMES = (1, 4)
"""As many units, for the memory."""


def layer(units: int | None = None) -> tuple[Tensor, Tensor]:
    """A weight, and the scale of each unit's importance; float32."""
    generator = torch.Generator().manual_seed(0)
    units = units or UNITS
    weight = torch.empty(units, INPUTS).normal_(0, 0.02, generator=generator)
    return weight, torch.rand(units, 1, generator=generator) * 3


def tutorials_way(weight: Tensor, scale: Tensor) -> dict[str, float]:
    """Its library's report: whole arrays, 1e-8 added to each p, a float32 running sum."""
    importance = (weight.abs() * scale).numpy()
    p = importance.ravel() / importance.sum()
    padded = p + 1e-8
    entropy = float(scipy.stats.entropy(padded / padded.sum()))
    descending = np.sort(p)[::-1]
    top = int(np.searchsorted(np.cumsum(descending), 0.9)) + 1
    return {"entropy": entropy, "effective_weights": math.exp(entropy),
            "top90": top / p.size, "low": float((importance < 1e-2).mean())}


def ours(weight: Tensor, scale: Tensor, *, compiled: bool) -> Summary:
    return summarize(
        WeightedImportance(weight, scale), tuple(weight.shape), low=0.01, compiled=compiled
    )


def speed(rounds: int) -> None:
    weight, scale = layer()
    jobs: dict[str, Callable[[], object]] = {
        "the tutorial's way (numpy, scipy)": lambda: tutorials_way(weight, scale),
        "ours": lambda: ours(weight, scale, compiled=False),
    }
    if importlib.util.find_spec("numba"):
        jobs["ours, compiled by numba (warm)"] = lambda: ours(weight, scale, compiled=True)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:
                seconds[name].append(time.perf_counter() - start)
            elif "compiled" in name:
                cold = time.perf_counter() - start
    base, goals = next(iter(seconds.values())), ("", "≥ 8", "")
    if len(jobs) == 2:
        print("The compiled report is left out: numba is not installed; "
              "`make bench` installs it.\n")
    print("| report of 40 million weights | seconds | times as fast | goal |\n|---|---:|---:|---|")
    for (name, found), goal in zip(seconds.items(), goals, strict=False):
        ratio = statistics.median(a / b for a, b in zip(base, found, strict=True))
        print(f"| {name} | {statistics.median(found):.3f} | {ratio:.1f} | {goal} |")
    if len(jobs) > 2:
        print(f"\nThe first compiled report of a process took {cold:.1f} s.")


def exactness() -> None:
    weight, scale = layer()
    importance = (weight.abs() * scale).double().numpy().ravel()
    p = importance / importance.sum()
    entropy = -float((p * np.log(p)).sum())
    held = np.sort(importance)[::-1].cumsum()
    top = int(np.searchsorted(held, 0.9 * held[-1])) + 1
    found, tutorial = ours(weight, scale, compiled=False), tutorials_way(weight, scale)
    print("\n| figure | float64 reference | ours | the tutorial's way |\n|---|---:|---:|---:|")
    print(f"| entropy, relative error | | {abs(found.usage.entropy / entropy - 1):.0e} | "
          f"{abs(tutorial['entropy'] / entropy - 1):.0e} |")
    print(f"| effective weights | {math.exp(entropy):,.0f} | {found.usage.effective:,.0f} | "
          f"{tutorial['effective_weights']:,.0f} |")
    print(f"| weights that hold 90% | {top:,} | {round(found.usage.top90_share * p.size):,} | "
          f"{round(tutorial['top90'] * p.size):,} |")


def memory() -> None:
    print("\n| weights | extra memory of the report, MiB | compiled | goal |\n"
          "|---:|---:|---:|---|")
    for units in (times * UNITS for times in TIMES):
        taken = [subprocess.run([sys.executable, __file__, "--memory-of", str(units), *how],
                                check=True, capture_output=True, text=True).stdout.strip()
                 for how in ([], ["--compiled"])]
        print(f"| {units * INPUTS:,} | {' | '.join(taken)} | ≤ 64 |")


def grown(units: int, *, compiled: bool) -> None:
    """How much memory the report took beyond what the process held before it (Linux)."""
    ours(*layer(300), compiled=compiled)  # loads the code
    weight, scale = layer(units)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = held("VmRSS")
    ours(weight, scale, compiled=compiled)
    print(f"{(held('VmHWM') - before) / 1024:.0f}")


def held(what: str) -> int:
    """A figure of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", type=int)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options = parser.parse_args()
    if options.toy:
        globals().update(UNITS=1_000, INPUTS=400, TIMES=(1,))
        options.rounds = 1
    torch.set_num_threads(1)
    if options.memory_of:
        grown(options.memory_of, compiled=options.compiled)
        return
    speed(options.rounds)
    exactness()
    memory()


if __name__ == "__main__":
    main()
