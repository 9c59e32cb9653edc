"""The report of the shipped use case against the files in ``tests/golden``.

Two checks, apart from each other: the text, and the figures with their labels. To write the files
anew: ``python tests/test_golden_report.py --write``.
"""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest

GOLDEN = Path(__file__).parent / "golden"
REPORTS = ("report.md", "report.html")
CELLS = GOLDEN / "cells.json"
TICK_S = 1 / 1024
"""What the clock of the latencies goes on by at each look: a binary fraction, so ratios are 1."""
UNSTEADY_ROWS = "training, seconds|bytes on disk"
"""Rows that depend on the machine; the saved file holds the path of the installation."""
NUMBER = re.compile(r"(?<![\w.])[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?[%×]?")

Table = dict[str, dict[str, str]]
"""Cells by the label of their row, then by that of their column."""


def make_reports() -> dict[str, str]:
    """Run the use case in the tracking store that is set; gives the masked reports by name."""
    from mlflow.tracking import MlflowClient

    from wua_mlflow.cli.main import main
    from wua_mlflow.tracking.runs import runs
    from wua_mlflow.training.latency import measure_latency

    ticks = itertools.count()
    with mock.patch.dict(measure_latency.__kwdefaults__, clock=lambda: next(ticks) * TICK_S):
        assert main(["run"]) == 0
    (run_id,) = runs(kind="pipeline")["run_id"]
    paths = {name: Path(MlflowClient().download_artifacts(run_id, name)) for name in REPORTS}
    return {name: masked(path.read_text(encoding="utf-8")) for name, path in paths.items()}


def masked(report: str) -> str:
    """The report without what differs from run to run or from machine to machine.

    Tags of HTML are set on lines of their own, so that a difference can be read.
    """
    report = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,(picture)", report)
    report = re.sub(r"\bm-[0-9a-f]{32}\b|\b[0-9a-f]{32}\b", "(id)", report)
    report = re.sub(r"https?://[^\s\"<)]+", "(address)", report)
    report = re.sub(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?", "(date)", report)
    rows = rf"^\| (?:{UNSTEADY_ROWS})\s*\|.*$|<tr><td>(?:{UNSTEADY_ROWS})</td>.*?</tr>"
    report = re.sub(rows, lambda row: NUMBER.sub("(number)", row[0]), report, flags=re.M)
    return report.replace("><", ">\n<").rstrip("\n") + "\n"


def _of_html(report: str) -> tuple[str, list[list[list[str]]]]:
    """The text of a page, and the cells of its tables."""

    def text(part: str, between: str) -> str:
        return html.unescape(re.sub(r"<[^>]+>", between, part))

    tables = [[[text(cell, "") for cell in re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row, re.S)]
               for row in table.split("</tr>")[:-1]]
              for table in re.findall(r"<table.*?</table>", report, re.S)]
    return text(re.sub(r"<(style|script).*?</\1>", "", report, flags=re.S), " "), tables


def _of_markdown(report: str) -> tuple[str, list[list[list[str]]]]:
    blocks = re.findall(r"(?:^\|.*\n)+", report, flags=re.M)
    tables = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
              for block in blocks]
    return report, [[rows[0], *rows[2:]] for rows in tables]


def _labelled(rows: list[list[str]]) -> Table:
    head, *body = [[cell.strip() for cell in row] for row in rows]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def figures(name: str, report: str) -> dict[str, object]:
    """The cells of a report's tables by their labels, and all its numbers in order."""
    text, tables = _of_html(report) if name.endswith(".html") else _of_markdown(report)
    return {"tables": [_labelled(rows) for rows in tables], "numbers": NUMBER.findall(text)}


@pytest.fixture(scope="module")
def reports(tmp_path_factory, migrated_database):
    """One run for all tests; its pictures are masked anyway."""
    from tests.conftest import blank_pictures

    with pytest.MonkeyPatch.context() as patch:
        blank_pictures(patch)
        yield _reports_in(tmp_path_factory.mktemp("golden"), migrated_database, patch)


def _reports_in(folder: Path, database: Path | None, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """The reports of a run in a store of its own; a fresh database where none is given."""
    import mlflow

    for variable in [name for name in os.environ if name.startswith("MLFLOW_")]:
        if variable not in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
            patch.delenv(variable)
    if database is not None:
        shutil.copy(database, folder / "mlflow.db")
    patch.chdir(folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    try:
        return make_reports()
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REPORTS)
def test_the_text(reports, name):
    assert reports[name].splitlines() == (GOLDEN / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", REPORTS)
def test_the_figures_and_their_labels(reports, name):
    assert figures(name, reports[name]) == json.loads(CELLS.read_text(encoding="utf-8"))[name]


def test_the_files_hold_the_tutorials_figures():
    """Of the two networks, as the tutorial prints them; and both reports have the same tables."""
    stored = json.loads(CELLS.read_text(encoding="utf-8"))
    for name in REPORTS:
        table = stored[name]["tables"][0]
        rows = {label: (row["oversized 10"], row["slim 7"]) for label, row in table.items()}
        assert rows["accuracy, training data"] == ("0.8850", "0.8730")
        assert rows["FLOPs, training, tutorial's count"] == ("12,200,000", "10,320,000")
        assert rows["FLOPs, inference, tutorial's count"] == ("122,000", "86,000")
        assert rows["effective weights"] == ("15.7751", "11.2361")
        assert rows["entropy, nats"] == ("2.7584", "2.4191")
    assert stored["report.md"]["tables"] == stored["report.html"]["tables"]


def test_what_is_masked():
    run = "0123456789abcdef" * 2
    row = "<tr><td>training, seconds</td><td>0.04</td><td>1.20×</td></tr>"
    assert masked(f"data:image/png;base64,iVBORw0KGgo= run {run} on 2026-01-31 10:20:30") == \
        "data:image/png;base64,(picture) run (id) on (date)\n"
    assert masked(row).splitlines()[2:4] == ["<td>(number)</td>"] * 2
    assert masked("| training, seconds | 0.04 | 1.20× |") == \
        "| training, seconds | (number) | (number) |\n"
    assert masked("| accuracy | 0.8850 |") == "| accuracy | 0.8850 |\n"


def _write() -> None:
    import conftest  # noqa: F401  (the settings of the tests)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        written = _reports_in(Path(folder), None, patch)
    for name, report in written.items():
        (GOLDEN / name).write_text(report, encoding="utf-8")
    cells = {name: figures(name, report) for name, report in written.items()}
    CELLS.write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    _write()
