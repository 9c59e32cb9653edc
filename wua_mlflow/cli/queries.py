"""The commands that list runs: ``runs``, ``best``, ``show``; tables, JSON or CSV.

A terminal's table has what fits; JSON and CSV have every column, under the contract's names.
May import: tracking. Tests: ``tests/test_queries.py``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from wua_mlflow.tracking.names import Kind, Metric, Tag, step_tag
from wua_mlflow.tracking.runs import COLUMNS, best, compare_runs, find_run, runs, show_run
from wua_mlflow.tracking.store import shown_uri

__all__ = ["answer"]

NOTHING = "–"
SHOWN = {
    "run_id": ("run", ""), "name": ("name", ""), Tag.VERDICT: ("verdict", ""),
    Tag.TARGET_RUN: ("of run", ""), "data": ("data", ""),
    Metric.ACCURACY_TEST: ("accuracy", ".4f"), Metric.SCORE_TEST: ("score", ".4f"),
    Metric.FLOPS_FORWARD: ("FLOPs", ",.0f"), Metric.PARAMS_TOTAL: ("parameters", ",.0f"),
    Metric.USAGE_EFFECTIVE_WEIGHTS: ("effective", ",.1f"), Metric.LATENCY_P50: ("p50 ms", ",.4g"),
    "status": ("status", ""), Tag.ERROR: ("error", ""),
}
"""Columns of the terminal's table: the heading, and how numbers are written."""
SHOWN_OF_PIPELINES = {
    "run_id": ("run", ""), "name": ("name", ""), Tag.VERDICT: ("verdict", ""),
    Metric.FLOPS_RATIO: ("FLOPs ÷", ".2f"), Metric.PARAMS_RATIO: ("params ÷", ".2f"),
    Metric.SIZE_RATIO: ("size ÷", ".2f"), Metric.LATENCY_RATIO: ("p50 ÷", ".2f"),
    "status": ("status", ""), Tag.ERROR: ("error", ""),
}
"""Ratios are original ÷ slim."""
FIRST_TO_GO = (Metric.USAGE_EFFECTIVE_WEIGHTS, Metric.LATENCY_P50, Metric.PARAMS_TOTAL, "data",
               Metric.SIZE_RATIO)
"""Columns that a narrow terminal does without, after the ids were shortened."""
SHORT_ID, LONGEST_DATA, LONGEST_CELL = 8, 24, 60
UNLIKE_ANYWAY = ("name", "start_time", Tag.PIPELINE, Tag.BASELINE, step_tag("train"),
                 step_tag("analyze"), step_tag("compare"))
"""What differs between any two runs, or is in the table's head."""

Cells = Sequence[Sequence[str]]


def answer(options: argparse.Namespace) -> int:
    """Print what ``options.command`` asks for; gives the exit code."""
    if options.command == "show":
        return _show(options)
    if options.command == "best":
        return _best(options)
    table = runs(options.experiment, options.kind, options.where, order_by=options.order_by or (),
                 limit=options.limit)
    if options.json:
        _print_json(_records(table))
    elif options.csv:
        _print_csv(table)
    elif table.empty:
        print(f"wua: no run of kind '{options.kind}' in {shown_uri()}")
    else:
        print(_terminal(table, _width()))
        if len(table) == options.limit:
            print(f"No more than {options.limit} are shown; --limit N shows more.")
    return 0


def _best(options: argparse.Namespace) -> int:
    found = best(options.experiment, where=options.where)
    table = pd.DataFrame(columns=list(COLUMNS)) if found is None else found.to_frame().T
    if options.json:
        _print_json(None if found is None else _records(table)[0])
    elif options.csv:
        _print_csv(table)
    elif found is None:
        print(f"wua: no variant has the verdict non_inferior in {shown_uri()}")
    else:
        print(_terminal(table, _width()))
    return 1 if found is None else 0


def _show(options: argparse.Namespace) -> int:
    if len(options.run) > 2:
        raise ValueError(f"show: expected one run or two, but got {len(options.run)}")
    found = [find_run(run) for run in options.run]
    said = [show_run(run)["value"] for run in found]
    if len(found) == 1:
        if options.json:
            _print_json(_plain(said[0]))
        elif options.csv:
            _print_csv(said[0].reset_index())
        else:
            print(_one(said[0]))
        return 0
    table = compare_runs(*found)
    if options.json:
        _print_json({"runs": [_plain(values) for values in said], "ratio": _plain(table["ratio"])})
    elif options.csv:
        _print_csv(table.reset_index())
    else:
        print(_two(said, table))
    return 0


def _records(table: pd.DataFrame) -> list[dict[str, object]]:
    return [_plain(record) for record in table.to_dict(orient="records")]


def _plain(values: Mapping[Any, Any] | pd.Series) -> dict[str, object]:
    """As JSON has it: NA as null, times in ISO 8601, numbers in full."""
    def plain(value: Any) -> object:
        if pd.isna(value):
            return None
        if isinstance(value, pd.Timestamp):
            return value.isoformat()
        return value.item() if hasattr(value, "item") else value

    return {str(name): plain(value) for name, value in values.items()}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def _print_csv(table: pd.DataFrame) -> None:
    print(table.to_csv(index=False), end="")


def _width() -> int | None:
    """Of the terminal; None where the output goes elsewhere, and need not fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _terminal(table: pd.DataFrame, width: int | None) -> str:
    """The table's main columns, those without a value left out, within ``width`` where possible."""
    pipelines = Tag.KIND in table and bool((table[Tag.KIND] == Kind.PIPELINE).all())
    shown = {name: _column(table[name], form)
             for name, (_, form) in (SHOWN_OF_PIPELINES if pipelines else SHOWN).items()
             if name in table and bool(table[name].notna().any())}
    if NOTHING in shown.get(Metric.ACCURACY_TEST, [NOTHING]):
        shown.pop(Metric.ACCURACY_TEST, None)
    else:
        shown.pop(Metric.SCORE_TEST, None)
    if "data" in shown:
        shown["data"] = [cell if len(cell) <= LONGEST_DATA
                         else f"…/{cell.rpartition('/')[2][-LONGEST_DATA:]}"
                         for cell in shown["data"]]
    if set(shown["status"]) == {"FINISHED"}:
        del shown["status"]
    text = _aligned(shown)
    for name in ("run_id", *FIRST_TO_GO):
        if width is None or len(text.partition("\n")[0]) <= width:
            break
        if name == "run_id":
            shown[name] = [cell[:SHORT_ID] for cell in shown[name]]
        else:
            shown.pop(name, None)
        text = _aligned(shown)
    return text


def _column(values: Iterable[Any], form: str) -> list[str]:
    """The cells, none of them very long."""
    return [NOTHING if pd.isna(value) else format(value, form) if form
            else str(value)[:LONGEST_CELL] for value in values]


def _aligned(shown: Mapping[str, list[str]]) -> str:
    named = {**SHOWN, **SHOWN_OF_PIPELINES}
    columns = [[named[name][0], *cells] for name, cells in shown.items()]
    return _grid(list(zip(*columns, strict=True)), [bool(named[name][1]) for name in shown])


def _grid(lines: Cells, right: Sequence[bool]) -> str:
    """Lines of cells under each other; ``right`` says which columns are set to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if flag else cell.ljust(width)
                  for cell, width, flag in zip(line, widths, right, strict=True)).rstrip()
        for line in lines)


def _one(said: pd.Series) -> str:
    """What one run says: itself, its tags, its params, its metrics."""
    blocks: list[list[tuple[str, str]]] = [[], [], [], []]
    for name, value in said.items():
        place = 0 if name in COLUMNS else 1 if name.startswith("wua.") else 3 if "/" in name else 2
        if not pd.isna(value):
            blocks[place].append((name, _text(name, value)))
    width = max(len(name) for block in blocks for name, _ in block)
    parts = []
    for place, block in enumerate(blocks):
        edge = max((len(text) for _, text in block), default=0) if place == 3 else 0
        parts.append("\n".join(f"{name.ljust(width)}  {text.rjust(edge)}" for name, text in block))
    return "\n\n".join(filter(None, parts))


def _two(said: Sequence[pd.Series], table: pd.DataFrame) -> str:
    """What two runs say otherwise, then their metrics and the ratio of them."""
    lines = [("", *table.columns)]
    for name in dict.fromkeys([*said[0].index, *said[1].index]):
        texts = [_text(name, values.get(name)) for values in said]
        if name not in table.index and name not in UNLIKE_ANYWAY and texts[0] != texts[1]:
            lines.append((name, *texts, ""))
    lines.append(("",) * 4)
    lines += [(name, *(_text(name, values.get(name)) for values in said),
               _text(name, table["ratio"][name], ratio=True)) for name in table.index]
    return _grid(lines, (False, True, True, True))


def _text(name: str, value: Any, *, ratio: bool = False) -> str:
    if pd.isna(value):
        return "" if ratio else NOTHING
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, str) or "/" not in name:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    large, small = abs(value) >= 1000, 0 < abs(value) < 0.001
    return f"{value:,.1f}" if large else f"{value:.3g}" if small else f"{value:.4f}"
