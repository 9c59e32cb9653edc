"""How long questions to a store of many variants take, beside MLflow's own ``search_runs``.

Stores of 1,000 and 10,000 variants, each with 20 metrics, 10 params and 20 tags, on SQLite and
through an MLflow server on 127.0.0.1. Within a round the jobs of a store take turns in one process;
a row's ratio is the median over the rounds of (ours ÷ MLflow's in the same round). What reads the
whole store is asked in every third round. On SQLite the seconds are the processor's, which other
work on the machine does not lengthen; through a server the clock's. The memory is the peak of a
process of its own above what it had before the question. Prints markdown.
Run: ``python benchmarks/queries.py [--rounds 6] [--sizes 1000 10000] [--no-server] [--few]``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"

import mlflow
import sqlalchemy
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.runs import best, runs, show_run

PARAMS = {"data": "digits", "epochs": "40", "hidden": "128,64", "criterion": "output",
          "optimizer": "adam", "batch_size": "64", "lr": "0.001", "seed": "42", "seeds": "5",
          "device": "cpu"}
METRICS = (
    "score/train", "score/validation", "score/test", "accuracy/train", "accuracy/validation",
    "accuracy/test", "loss/test", "flops/forward", "flops/inference", "flops/training",
    "params/total", "params/analyzed", "size/bytes", "usage/effective_weights", "usage/entropy",
    "usage/effective_share", "usage/top90_share", "usage/low_share", "latency/p50_ms",
    "compare/artifact_delta")
TAGS = {
    "wua.kind": "variant", "wua.version": "1.0", "wua.flop_convention": "2 a multiply-accumulate",
    "wua.step.train": "done", "wua.step.analyze": "done", "wua.task": "multiclass",
    "wua.test_digest": "0123456789abcdef" * 4, "wua.epochs_trained": "40",
    "wua.criterion": "output", "wua.null_kind": "initial", "wua.confidence": "0.95",
    "mlflow.user": "somebody", "mlflow.source.name": "wua", "mlflow.source.type": "LOCAL",
    "mlflow.runColor": "#1f77b4", "mlflow.runType": "evaluation"}


def fill(database: Path, variants: int) -> None:
    """A store of so many variants, every second one slim with a verdict, written in bulk."""
    uri = f"sqlite:///{database}"
    MlflowClient(uri).search_experiments(max_results=1)  # makes and migrates it
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine, only=["runs", "tags", "params", "metrics", "latest_metrics"])
    draw, began = random.Random(0), 1_700_000_000_000
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables.tables}
    for number in range(variants):
        run_id = f"{draw.getrandbits(128):032x}"
        start = began + 60_000 * number
        slim = number % 2 == 1
        name = f"{'slim' if slim else 'oversized'} {number}"
        rows["runs"].append({
            "run_uuid": run_id, "name": name, "source_type": "UNKNOWN", "source_name": "",
            "entry_point_name": "", "user_id": "somebody", "status": "FINISHED",
            "start_time": start, "end_time": start + 30_000, "source_version": "",
            "lifecycle_stage": "active", "artifact_uri": f"mlflow-artifacts:/0/{run_id}/artifacts",
            "experiment_id": 0})
        tags = {**TAGS, "mlflow.runName": name, "wua.variant": "slim" if slim else "oversized",
                "wua.widths": str(number % 128), "wua.pipeline": f"{number // 2:032x}"}
        if slim:
            verdict = draw.choice(("non_inferior", "inferior", "inconclusive"))
            tags |= {"wua.verdict": verdict, "wua.verdict.artifact": verdict,
                     "wua.verdict.method": "Tango's score interval"}
        rows["tags"] += [{"key": key, "value": value, "run_uuid": run_id}
                         for key, value in tags.items()]
        rows["params"] += [{"key": key, "value": value, "run_uuid": run_id}
                           for key, value in PARAMS.items()]
        for key in METRICS:
            value = float(draw.randrange(10**6)) if key.startswith(("flops", "params", "size")) \
                else draw.random()
            point = {"key": key, "value": value, "timestamp": start, "step": 0, "is_nan": False,
                     "run_uuid": run_id}
            rows["metrics"].append(point)
            rows["latest_metrics"].append(point)
    with engine.begin() as connection:
        for name in ("runs", "tags", "params", "metrics", "latest_metrics"):
            connection.execute(sqlalchemy.insert(tables.tables[name]), rows[name])
    engine.dispose()


@dataclass(frozen=True)
class Question:
    """One question, and MLflow's own way to ask it.

    Attributes:
        text: how it is asked of us.
        ours: gives the ids of the runs that it found.
        theirs: the same; None where another question's is taken.
        whole: whether it reads the whole store.
        served: whether it is asked through a server, too.
    """

    text: str
    ours: Callable[[], list[str]]
    theirs: Callable[[], list[str]] | None
    whole: bool = False
    served: bool = True


def questions(known: str) -> list[Question]:
    """What is asked; ``known`` is the id of a run."""
    high, small = "metrics.`accuracy/test` > 0.95", "metrics.`flops/forward` ASC"
    settled = "tags.`wua.verdict` = 'non_inferior'"

    def ours(**options: Any) -> Callable[[], list[str]]:
        return lambda: runs("Default", **options)["run_id"].tolist()

    def theirs(where: str = "", **options: Any) -> Callable[[], list[str]]:
        clause = " AND ".join(["tags.`wua.kind` = 'variant'", *filter(None, [where])])
        return lambda: mlflow.search_runs(
            experiment_names=["Default"], filter_string=clause, **options)["run_id"].tolist()

    def smallest() -> list[str]:
        found = best("Default")
        return [] if found is None else [found["run_id"]]

    return [
        Question("`best()`", smallest, theirs(settled, order_by=[small], max_results=1)),
        Question("what `wua show` does", lambda: [show_run(known[:12])["value"]["run_id"]],
                 lambda: [mlflow.get_run(known).info.run_id]),
        Question("`runs(limit=50)`", ours(limit=50), theirs(max_results=50)),
        Question("`runs(where=…)`, one in twenty", ours(where=high), theirs(high)),
        Question("`runs()`", ours(), theirs(), whole=True),
        Question("`runs(columns=…)`, three of them",
                 ours(columns=["run_id", "accuracy/test", "flops/forward"]), None, whole=True,
                 served=False),
        Question("`runs(order_by=…)`, a metric", ours(order_by=small), theirs(order_by=[small]),
                 whole=True, served=False),
    ]


def seconds(
    job: Callable[[], list[str]], clock: Callable[[], float]
) -> tuple[float, list[str]]:
    gc.collect()
    began = clock()
    found = job()
    return clock() - began, found


def ask(
    uri: str, rounds: int, *, served: bool, few: bool = False
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds by question and round, ours and MLflow's; both must find the same runs."""
    mlflow.set_tracking_uri(uri)
    clock = time.perf_counter if served else time.process_time
    known = str(runs("Default", limit=1)["run_id"].iloc[0])  # and the store is open from here on
    asked = [question for question in questions(known)
             if (question.served or not served) and not (few and question.whole)]
    times: dict[str, tuple[list[float], list[float]]] = {q.text: ([], []) for q in asked}
    for number in range(rounds):
        before: tuple[float, list[str]] = (0.0, [])
        for question in asked if number % 3 == 0 else (q for q in asked if not q.whole):
            ours = seconds(question.ours, clock)
            theirs = before = seconds(question.theirs, clock) if question.theirs else before
            if ours[1] != theirs[1]:
                raise RuntimeError(f"{question.text}: not the same runs")
            times[question.text][0].append(ours[0])
            times[question.text][1].append(theirs[0])
    return times


def megabytes(uri: str, whose: str) -> int:
    """The peak of a process that asks for all runs, above what it had before, in MB."""
    found = subprocess.run([sys.executable, __file__, "--memory", whose, uri], check=True,
                           stdout=subprocess.PIPE, text=True)
    return int(found.stdout)


def print_megabytes(whose: str, uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    question = next(each for each in questions("") if each.text == "`runs()`")
    runs("Default", limit=1)
    before = peak()
    job = question.ours if whose == "ours" else question.theirs
    assert job is not None, "both can ask for all runs"
    job()
    print(round((peak() - before) / 1024))  # from KiB


def peak() -> int:
    """Of this process's memory so far, in KiB; ``getrusage`` would give the parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@contextlib.contextmanager
def serving(database: Path) -> Iterator[str]:
    """The address of an MLflow server on that store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
         "--workers", "1", "--backend-store-uri", f"sqlite:///{database}"],
        cwd=database.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--no-server", action="store_true", help="on SQLite alone")
    parser.add_argument("--few", action="store_true",
                        help="only what reads a part of the store, and no memory")
    parser.add_argument("--memory", nargs=2, metavar=("WHOSE", "URI"), help=argparse.SUPPRESS)
    parser.add_argument("--toy", action="store_true",
                        help="one small store on SQLite, to see that it runs")
    options = parser.parse_args()
    if options.memory:
        print_megabytes(*options.memory)
        return
    if options.toy:
        options.rounds, options.sizes = 1, [20]
    print("| variants | store | question | ours, s | MLflow's, s | ours ÷ MLflow's |\n"
          "|---:|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        grown: dict[tuple[str, str], list[float]] = {}
        peaks = []
        for size in options.sizes:
            database = Path(name) / f"{size}.db"
            fill(database, size)
            uri = f"sqlite:///{database}"
            report(size, "SQLite", ask(uri, options.rounds, served=False, few=options.few), grown)
            if not options.few:
                peaks.append((size, "SQLite", *peaks_of(uri)))
            if not (options.toy or options.no_server):
                with serving(database) as address:
                    report(size, "server",
                           ask(address, options.rounds, served=True, few=options.few), grown)
                    if not options.few:
                        peaks.append((size, "server", *peaks_of(address)))
    print(f"\nFrom {options.sizes[0]:,} to {options.sizes[-1]:,} variants the time grows by\n")
    print("| question | SQLite | server |\n|---|---:|---:|")
    for text in dict.fromkeys(text for text, _ in grown):
        cells = [f"{grown[text, place][-1] / grown[text, place][0]:.1f} ×"
                 if (text, place) in grown else "–" for place in ("SQLite", "server")]
        print(f"| {text} | {' | '.join(cells)} |")
    print("\nThe peak of memory of a process that asks for all runs, above what it had before\n")
    print("| variants | store | `runs()`, MB | `mlflow.search_runs`, MB |\n|---:|---|---:|---:|")
    for size, place, ours, theirs in peaks:
        print(f"| {size:,} | {place} | {ours:,} | {theirs:,} |")


def peaks_of(uri: str) -> tuple[int, int]:
    return megabytes(uri, "ours"), megabytes(uri, "theirs")


def report(size: int, place: str, times: Mapping[str, tuple[list[float], list[float]]],
           grown: dict[tuple[str, str], list[float]]) -> None:
    """Medians, and the median of the ratios within a round."""
    for text, (ours, theirs) in times.items():
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        grown.setdefault((text, place), []).append(statistics.median(ours))
        print(f"| {size:,} | {place} | {text} | {statistics.median(ours):.2f} | "
              f"{statistics.median(theirs):.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
