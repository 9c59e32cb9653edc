"""How long the whole command takes beside what no tool here can avoid: importing torch and mlflow.

Whole processes on a store that exists, in turns, medians. Prints a markdown table, then where the
time of one ``wua run`` goes. Run: ``python benchmarks/startup.py [--rounds 5]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EMPTY_PROJECT = "name: empty\nentry_points:\n  main:\n    command: 'true'\n"

PHASES = '''
import sys
import time
began = last = time.perf_counter()
rows = []
def lap(label):
    global last
    now = time.perf_counter()
    rows.append((label, now - last))
    last = now
import torch
lap("import torch")
import mlflow
lap("import mlflow")
import wua_mlflow.cli.commands
from wua_mlflow.config import load_settings
from wua_mlflow.flops import count_flops, ptflops_forward_flops
from wua_mlflow.pipeline.publish import publish
from wua_mlflow.pipeline.recipe import load_recipe
from wua_mlflow.pipeline.replicates import train_one
from wua_mlflow.pipeline.workflow import run_pipeline
from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import connect
from wua_mlflow.training.latency import measure_latency
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.verdict.compare import compare
lap("import wua_mlflow")
spent = {}
running = []
def timed(function, label):
    # in every module that imported it; a phase within another is counted once, as itself
    def call(*args, **kwargs):
        running.append(0.0)
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            spent[label] = spent.get(label, 0.0) + seconds - running.pop()
            if running:
                running[-1] += seconds
    for name, module in list(sys.modules.items()):
        if name.startswith("wua_mlflow"):
            for key, value in list(vars(module).items()):
                if value is function:
                    setattr(module, key, call)
timed(train_one, "train (with the optimizer's import)")
timed(count_flops, "count FLOPs")
timed(ptflops_forward_flops, "ptflops")
timed(log_model, "export and log models")
timed(analyze, "analyse, with nulls")
timed(write, "write metrics and pictures")
timed(compare, "verdicts")
timed(measure_latency, "latency")
timed(count_looks, "count looks")
timed(publish, "report and views")
timed(load_recipe, "load the data")
store = connect("startup")
lap("connect to the store")
run_pipeline(store, load_settings(None, {"seeds": 1}))
rows += sorted(spent.items(), key=lambda row: -row[1])
rows.append(("the rest of the chain", time.perf_counter() - last - sum(spent.values())))
total = time.perf_counter() - began
for label, seconds in rows:
    print(f"| {label} | {seconds:.2f} | {100 * seconds / total:.0f}% |")
print(f"| total | {total:.2f} | 100% |")
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="the phases alone, to see that it runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        (folder / "empty").mkdir()
        (folder / "empty" / "MLproject").write_text(EMPTY_PROJECT)
        project = ["mlflow", "run", "--env-manager=local"]
        commands = {
            "imports": [sys.executable, "-c", "import torch, mlflow"],
            "wua run": [sys.executable, "-m", "wua_mlflow", "run", "--seeds", "1"],
            "empty mlflow run": [*project, str(folder / "empty")],
            "mlflow run .": [*project, "--experiment-name", "wua", str(ROOT), "-P", "seeds=1"],
        }
        if not options.toy:
            run(commands["wua run"], folder, environment)  # the store exists from here on
            times: dict[str, list[float]] = {label: [] for label in commands}
            for _ in range(options.rounds):
                for label, command in commands.items():
                    times[label].append(run(command, folder, environment))
            print_table(times)
        print("\nWhere the time of `wua run --seeds 1` goes\n\n| phase | seconds | share |\n"
              "|---|---:|---:|")
        phases = subprocess.run([sys.executable, "-c", PHASES], cwd=folder, env=environment,
                                check=True, stdout=subprocess.PIPE, text=True)
        print(phases.stdout)


def run(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Seconds of the whole process."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return time.perf_counter() - began


def print_table(times: dict[str, list[float]]) -> None:
    """Medians, and each ratio against its goal, taken within a round."""
    medians = {label: statistics.median(values) for label, values in times.items()}
    whole = statistics.median(
        w / i for w, i in zip(times["wua run"], times["imports"], strict=True))
    project = statistics.median(
        p / (3 * i + e) for p, i, e in
        zip(times["mlflow run ."], times["imports"], times["empty mlflow run"], strict=True))
    print("| process | median, s | against | goal |\n|---|---:|---:|---:|")
    print(f"| `python -c 'import torch, mlflow'` | {medians['imports']:.2f} | 1 | |")
    print(f"| `wua run --seeds 1` | {medians['wua run']:.2f} | {whole:.2f} × the imports | ≤ 3 |")
    print(f"| empty `mlflow run` | {medians['empty mlflow run']:.2f} | | |")
    print(f"| `mlflow run . -P seeds=1` | {medians['mlflow run .']:.2f} | {project:.2f} × (3 "
          f"imports + the empty run) | ≤ 1 |")


if __name__ == "__main__":
    main()
