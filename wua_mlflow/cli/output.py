"""What the commands print: an analysis by layer, the verdicts as sentences.

Tests: ``tests/cli/test_main.py``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from wua_mlflow.display import summary_text, table_text
from wua_mlflow.errors import group_by_reason
from wua_mlflow.pipeline.analyze import Analysis
from wua_mlflow.pipeline.compare_external import ExternalComparison
from wua_mlflow.report.answer import figures_text
from wua_mlflow.tracking.names import Kind, Metric, Tag, further_layers_table, keys_of, step_tag
from wua_mlflow.tracking.run_table import OWN
from wua_mlflow.verdict.text import FLOPS_ONE_SAMPLE

__all__ = [
    "external_text", "print_analysis", "record", "records", "run_text", "runs_text",
    "terminal_width", "two_runs_text",
]


def print_analysis(analysis: Analysis) -> None:
    """A line for the model, one a layer, and what was left out or could not be had."""
    usage = analysis.usage
    print(f"{analysis.name}: {usage.effective_weights:,.4f} effective weights of "
          f"{usage.weights:,}; run {analysis.run_id}")
    print(summary_text(replace(usage.summary(), title="", notes=()), whole=True))
    others = analysis.parameters - usage.weights
    if others > 0:
        print(f"  not in this table: {others:,} of the model's {analysis.parameters:,} parameters "
              f"(biases, norms, what is named below)")
    for names, reason in group_by_reason(usage.skipped):
        print(f"  {names}: not analysed: {reason}")
    keys = keys_of(analysis.usages)
    for criterion, other in list(analysis.usages.items())[1:]:
        print(f"{criterion}: {other.effective_weights:,.4f} effective weights of "
              f"{other.weights:,}; {further_layers_table(criterion, keys)}")
    for remark in analysis.remarks:
        print(remark)


def external_text(result: ExternalComparison) -> str:
    """The comparison of any two models: the verdict, what settles it, the figures of both."""
    comparison = result.comparison
    verdict = (result.report.headline, comparison.artifact.settle, *comparison.notes)
    blocks = ("\n".join(filter(None, verdict)), figures_text(result.report), result.caution)
    return "\n\n".join(filter(None, blocks))


NOTHING = "–"
SHOWN = {
    "run_id": ("run", ""), "name": ("name", ""), Tag.VERDICT: ("verdict", ""),
    Tag.TARGET_RUN: ("of run", ""), "data": ("data", ""),
    Metric.ACCURACY_TEST: ("accuracy", ".4f"), Metric.SCORE_TEST: ("score", ".4f"),
    Tag.SCORE: ("which is", ""),
    Metric.FLOPS_FORWARD: (FLOPS_ONE_SAMPLE, ",.0f"), Metric.PARAMS_TOTAL: ("parameters", ",.0f"),
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


def record(values: Mapping[Any, Any] | pd.Series) -> dict[str, object]:
    """As JSON has it: NA as null, times in ISO 8601, numbers in full."""
    def plain(value: Any) -> object:
        if pd.isna(value):
            return None
        if isinstance(value, pd.Timestamp):
            return value.isoformat()
        return value.item() if hasattr(value, "item") else value

    return {str(name): plain(value) for name, value in values.items()}


def records(table: pd.DataFrame) -> list[dict[str, object]]:
    """A record a row."""
    return [record(row) for row in table.to_dict(orient="records")]


def terminal_width() -> int | None:
    """Characters a line; None where the output goes elsewhere, and need not fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def runs_text(table: pd.DataFrame, width: int | None) -> str:
    """The table's main columns, those without a value left out, within ``width`` where possible."""
    pipelines = Tag.KIND in table and bool((table[Tag.KIND] == Kind.PIPELINE).all())
    shown = {name: _column(table[name], form)
             for name, (_, form) in (SHOWN_OF_PIPELINES if pipelines else SHOWN).items()
             if name in table and bool(table[name].notna().any())}
    no_accuracy = NOTHING in shown.get(Metric.ACCURACY_TEST, [NOTHING])
    for name in (Metric.ACCURACY_TEST,) if no_accuracy else (Metric.SCORE_TEST, Tag.SCORE):
        shown.pop(name, None)
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
    return table_text(list(zip(*columns, strict=True)), [bool(named[name][1]) for name in shown])


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


def run_text(values: pd.Series) -> str:
    """All of one run in four blocks: the run itself, its tags, its params, its metrics."""
    blocks: list[list[tuple[str, str]]] = [[], [], [], []]
    for name, value in values.items():
        block = 0 if name in OWN else 1 if name.startswith("wua.") else 3 if "/" in name else 2
        if not pd.isna(value):
            blocks[block].append((name, _text(name, value)))
    width = max(len(name) for block in blocks for name, _ in block)
    edge = max((len(text) for _, text in blocks[3]), default=0)
    blocks[3] = [(name, text.rjust(edge)) for name, text in blocks[3]]
    return "\n\n".join("\n".join(f"{name.ljust(width)}  {text}" for name, text in block)
                       for block in blocks if block)


UNLIKE_ANYWAY = ("name", "start_time", Tag.PIPELINE, Tag.BASELINE, step_tag("train"),
                 step_tag("analyze"), step_tag("compare"))
"""What differs between any two runs, or is in the table's head."""


def two_runs_text(pair: Sequence[pd.Series], table: pd.DataFrame) -> str:
    """Where two runs differ, then their metrics and the ratio of them."""
    lines = [("", *table.columns)]
    for name in dict.fromkeys([*pair[0].index, *pair[1].index]):
        texts = [_text(name, values.get(name)) for values in pair]
        if name not in table.index and name not in UNLIKE_ANYWAY and texts[0] != texts[1]:
            lines.append((name, *texts, ""))
    lines.append(("",) * 4)
    lines += [(name, *(_text(name, values.get(name)) for values in pair),
               _text(name, table["ratio"][name], ratio=True)) for name in table.index]
    return table_text(lines, (False, True, True, True))
