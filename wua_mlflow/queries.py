"""The commands that list runs: ``runs``, ``best``, ``show``; tables, JSON or CSV.

May import: tracking. Tests: ``tests/test_queries.py``.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd

from wua_mlflow.tracking.names import Metric, Tag
from wua_mlflow.tracking.runs import best, compare_runs, runs, show_run

__all__ = ["answer"]

SHOWN = {
    "run_id": "run", "name": "name", Tag.VERDICT: "verdict", "data": "data",
    Metric.ACCURACY_TEST: "accuracy", Metric.SCORE_TEST: "score", Metric.FLOPS_FORWARD: "FLOPs",
    Metric.PARAMS_TOTAL: "parameters", Metric.USAGE_EFFECTIVE_WEIGHTS: "effective",
    Metric.LATENCY_P50: "p50 ms", "status": "status",
}
"""Columns of the terminal's table; the other formats have every column."""


def answer(options: argparse.Namespace) -> int:
    """Print what ``options.command`` asks for; gives the exit code."""
    if options.command == "show":
        return _show(options)
    if options.command == "best":
        found = best(options.experiment, where=options.where)
        table = pd.DataFrame() if found is None else found.to_frame().T
        empty = "no variant has the verdict non_inferior"
    else:
        order = [options.order_by] if options.order_by else []
        table = runs(options.experiment, options.kind, options.where, order_by=order,
                     limit=options.limit)
        empty = f"no run of kind '{options.kind}'"
    if table.empty and not (options.json or options.csv):
        print(f"wua: {empty}")
        return 1 if options.command == "best" else 0
    _print(table, options, _terminal(table))
    return 1 if options.command == "best" and table.empty else 0


def _show(options: argparse.Namespace) -> int:
    if len(options.run) > 2:
        raise ValueError(f"show: expected one run or two, but got {len(options.run)}")
    table = compare_runs(*options.run) if len(options.run) == 2 else show_run(options.run[0])
    text = table.to_string(float_format=_number, na_rep="–")
    _print(table.reset_index(), options, text)
    return 0


def _print(table: pd.DataFrame, options: argparse.Namespace, text: str) -> None:
    if options.json:
        records = json.loads(table.to_json(orient="records", date_format="iso"))
        print(json.dumps(records, indent=1))
    elif options.csv:
        print(table.to_csv(index=False), end="")
    else:
        print(text)


def _terminal(table: pd.DataFrame) -> str:
    columns = [column for column in SHOWN if column in table.columns]
    if Metric.ACCURACY_TEST in columns and Metric.SCORE_TEST in columns \
            and table[Metric.ACCURACY_TEST].notna().all():
        columns.remove(Metric.SCORE_TEST)
    shown = table[columns].rename(columns=SHOWN)
    return str(shown.to_string(index=False, na_rep="–", float_format=_number))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
