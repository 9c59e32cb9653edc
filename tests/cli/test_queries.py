"""``wua runs``, ``best`` and ``show``, through the command line, on a real store."""

from __future__ import annotations

import io
import json
import re
import shutil

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from tests.conftest import MLFLOW_VARIABLES
from tests.mistakes import line_of
from tests.tracking.conftest import Writer
from wua_mlflow.cli import commands
from wua_mlflow.cli.main import main
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import sqlite_file

THIRD = 1 / 3
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def written(tmp_path_factory, migrated_database):
    """A database, and in it a pipeline with an original and a slim variant, and one that failed.

    Also their ids by name.
    """
    database = shutil.copy(migrated_database, tmp_path_factory.mktemp("queries") / "mlflow.db")
    writer, ids = Writer(f"sqlite:///{database}", minutes=1), {}

    def run(name, tags, params, metrics, status="FINISHED"):
        ids[name] = writer.run(name, kind=None, tags=tags, params=params, metrics=metrics)
        writer.client.set_terminated(ids[name], status)

    variant = {"wua.kind": "variant", "wua.test_digest": DIGEST}
    method = {"wua.verdict.method": "t"}
    run("digits 128-64 → 75-46", {"wua.kind": "pipeline", "wua.verdict": "non_inferior", **method},
        {},
        {"compare/flops_ratio": 1.9545, "compare/latency_ratio": 1.03})
    run("oversized 128-64", {**variant, "wua.variant": "oversized"},
        {"data": "digits", "hidden": "128,64", "epochs": "40", "seed": "42"},
        {"accuracy/test": 0.9722, "score/test": 0.9722, "flops/forward": 34048.0,
         "params/total": 17226.0, "usage/effective_weights": 10746.82, "latency/p50_ms": 0.02456,
         "usage/shift": 0.0022})
    run("slim 75-46", {**variant, "wua.variant": "slim", "wua.verdict": "non_inferior",
                       "wua.baseline": ids["oversized 128-64"], **method},
        {"data": "digits", "hidden": "75,46", "epochs": "40", "seed": "42"},
        {"accuracy/test": THIRD, "score/test": THIRD, "flops/forward": 17420.0,
         "params/total": 8841.0, "usage/effective_weights": 5591.8, "latency/p50_ms": 12.3456,
         "loss/train": 0.00056, "usage/shift": -0.0419})
    run("slim 1", {**variant, "wua.error": "epochs: expected a number, but got 'many'"},
        {"data": "/home/somebody/with/a/long/path/measurements.csv"}, {}, "FAILED")
    return database, ids


@pytest.fixture
def made(written, tmp_path, monkeypatch):
    """The ids by name; the store that has the runs is shared, so only read it."""
    database, ids = written
    for name in MLFLOW_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    return ids


def _lines(capsys, *arguments: str, code: int = 0) -> list[str]:
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def _json(capsys, *arguments: str):
    return json.loads("\n".join(_lines(capsys, *arguments, "--json")))


def _csv(capsys, *arguments: str, **options) -> pd.DataFrame:
    assert main([*arguments, "--csv"]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out), **options)


def _cells(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_table_of_runs_aligned_and_without_columns_that_say_nothing(made, capsys):
    head, failed, slim, original = _lines(capsys, "runs")
    assert _cells(head) == ["run", "name", "verdict", "data", "score", "FLOPs, one sample",
                            "parameters", "effective", "p50 ms", "status", "error"]
    assert _cells(slim) == [made["slim 75-46"], "slim 75-46", "non_inferior", "digits", "0.3333",
                            "17,420", "8,841", "5,591.8", "12.35", "FINISHED", "–"]
    assert _cells(original)[2:9] == ["–", "digits", "0.9722", "34,048", "17,226", "10,746.8",
                                     "0.02456"]
    assert _cells(failed)[3:] == ["…/measurements.csv", *["–"] * 5, "FAILED",
                                  "epochs: expected a number, but got 'many'"]
    lines = _lines(capsys, "runs", "--where", "attributes.status = 'FINISHED'")
    assert _cells(lines[0]) == ["run", "name", "verdict", "data", "accuracy", "FLOPs, one sample",
                                "parameters", "effective", "p50 ms"]
    assert len({len(line) for line in lines}) == 1
    for column in ("name", "verdict", "data"):
        start = lines[0].index(column)
        assert all(line[start - 1] == " " and line[start] != " " for line in lines)
    end = lines[0].index("FLOPs, one sample") + len("FLOPs, one sample")
    assert [line[:end].split()[-1] for line in lines] == ["sample", "17,420", "34,048"]


def test_no_runs_and_those_of_regressions_which_have_a_score(store_uri, written, capsys):
    assert _lines(capsys, "runs") == [f"wua: no run of kind 'variant' in {store_uri}"]
    assert _lines(capsys, "runs", "--json") == ["[]"]
    assert _lines(capsys, "runs", "--csv") == ["run_id,name,status,start_time"]
    shutil.copy(written[0], sqlite_file(store_uri))
    client = MlflowClient()
    run_id = client.create_run("0", run_name="oversized 8").info.run_id
    client.log_batch(run_id, [Metric("score/test", 0.5, 0, 0)], [], [RunTag("wua.kind", "variant")])
    client.set_terminated(run_id)
    lines = _lines(capsys, "runs", "--where", "metrics.`score/test` > 0")
    assert "score" in _cells(lines[0]) and "accuracy" not in lines[0]
    assert [next(cell for cell in _cells(line) if cell.startswith("0.")) for line in lines[1:]] \
        == ["0.5000", "0.3333", "0.9722"]


@pytest.mark.parametrize(("width", "longest_id", "columns"), [
    (None, 32, 9), (140, 32, 9), (110, 8, 9), (90, 8, 7), (80, 8, 6), (70, 8, 5), (20, 8, 5)])
def test_a_narrow_terminal_shortens_ids_and_then_drops_columns(made, capsys, monkeypatch, width,
        longest_id, columns):
    monkeypatch.setattr(commands, "terminal_width", lambda: width)
    lines = _lines(capsys, "runs", "--where", "attributes.status = 'FINISHED'")
    assert {len(_cells(line)[0]) for line in lines[1:]} == {longest_id}
    assert len(_cells(lines[0])) == columns
    if width and width >= 70:
        assert len(lines[0]) <= width


def test_the_table_of_pipelines_and_a_limit_that_says_there_may_be_more(made, capsys):
    head, line = _lines(capsys, "runs", "--kind", "pipeline")
    assert _cells(head) == ["run", "name", "verdict", "FLOPs ÷", "p50 ÷"]
    assert _cells(line) == [made["digits 128-64 → 75-46"], "digits 128-64 → 75-46",
                            "non_inferior", "1.95", "1.03"]
    lines = _lines(capsys, "runs", "--limit", "2", "--order-by", "metrics.`flops/forward` ASC")
    assert [_cells(line)[1] for line in lines[1:3]] == ["slim 75-46", "oversized 128-64"]
    assert lines[3:] == ["No more than 2 are shown; --limit N shows more."]


def test_json_has_everything_in_full_and_csv_comes_back_as_it_was(made, capsys):
    failed, slim, original = _json(capsys, "runs")
    assert slim["accuracy/test"] == THIRD
    assert slim["flops/forward"] == 17420 and isinstance(slim["flops/forward"], int)
    assert (slim["epochs"], slim["hidden"], slim["run_id"]) == (40, "75,46", made["slim 75-46"])
    assert slim["start_time"] == "2023-11-14T22:15:20+00:00"
    assert failed["accuracy/test"] is None and failed["flops/forward"] is None
    assert original["wua.verdict"] is None
    assert set(failed) == set(slim) == set(original) == set(runs().columns)
    table, expected = _csv(capsys, "runs", dtype={"epochs": "Int64"}), runs()
    assert table.columns.tolist() == expected.columns.tolist()
    assert table["accuracy/test"].tolist()[1:] == [THIRD, 0.9722]
    assert table["flops/forward"].astype("Int64").equals(expected["flops/forward"])
    assert table["name"].tolist() == ["slim 1", "slim 75-46", "oversized 128-64"]
    assert pd.isna(table["epochs"][0])


def test_the_best(made, capsys, written):
    slim = made["slim 75-46"]
    assert _cells(_lines(capsys, "best")[1])[:3] == [slim, "slim 75-46", "non_inferior"]
    best = _json(capsys, "best")
    assert (best["run_id"], best["flops/forward"]) == (slim, 17420)
    assert _csv(capsys, "best")["run_id"].tolist() == [slim]
    none = ("best", "--where", "metrics.`accuracy/test` > 0.9")
    assert _lines(capsys, *none, code=1) == [
        f"wua: no variant has the verdict non_inferior in sqlite:///{written[0]}"]
    assert _lines(capsys, *none, "--json", code=1) == ["null"]
    assert _lines(capsys, *none, "--csv", code=1) == ["run_id,name,status,start_time"]


def test_one_run(made, capsys):
    lines = _lines(capsys, "show", made["slim 75-46"])
    assert lines.count("") == 3
    assert dict(_cells(line) for line in lines if line) == {
        "run_id": made["slim 75-46"], "name": "slim 75-46", "status": "FINISHED",
        "start_time": "2023-11-14 22:15:20 UTC", "wua.kind": "variant", "wua.variant": "slim",
        "wua.verdict": "non_inferior", "wua.test_digest": DIGEST, "data": "digits",
        "wua.verdict.method": "t",
        "wua.baseline": made["oversized 128-64"], "hidden": "75,46", "epochs": "40", "seed": "42",
        "accuracy/test": "0.3333", "score/test": "0.3333", "flops/forward": "17,420",
        "params/total": "8,841", "usage/effective_weights": "5,591.8", "usage/shift": "-0.0419",
        "latency/p50_ms": "12.3456", "loss/train": "0.00056"}
    short = made["slim 75-46"][:12]
    record = _json(capsys, "show", short)
    assert (record["name"], record["accuracy/test"], record["epochs"]) == ("slim 75-46", THIRD, 40)
    values = _csv(capsys, "show", short).set_index("name")["value"]
    assert (values["wua.verdict"], float(values["accuracy/test"])) == ("non_inferior", THIRD)


def test_two_runs(made, capsys):
    pair = made["oversized 128-64"], made["slim 75-46"]
    head, *lines = _lines(capsys, "show", *pair)
    assert _cells(head) == ["oversized 128-64", "slim 75-46", "ratio"]
    rows = {cells[0]: cells[1:] for cells in map(_cells, lines)}
    expected = {"run_id": list(pair), "hidden": ["128,64", "75,46"],
                "wua.verdict": ["–", "non_inferior"], "loss/train": ["–", "0.00056"],
                "flops/forward": ["34,048", "17,420", f"{34048 / 17420:.4f}"],
                "usage/shift": ["0.0022", "-0.0419"]}
    assert {name: rows[name] for name in expected} == expected
    assert not {"epochs", "data", "start_time", "wua.baseline", "name"} & set(rows)
    record = _json(capsys, "show", *pair)
    assert [run["name"] for run in record["runs"]] == ["oversized 128-64", "slim 75-46"]
    assert record["runs"][1]["accuracy/test"] == THIRD
    assert record["ratio"]["flops/forward"] == 34048 / 17420
    assert record["ratio"]["loss/train"] is None
    assert _csv(capsys, "show", *pair).columns.tolist() == [
        "metric", "oversized 128-64", "slim 75-46", "ratio"]


def test_a_note_on_verdicts_of_several_methods(store_uri, written, capsys):
    """Under the table; beside what machines read on standard error."""
    shutil.copy(written[0], sqlite_file(store_uri))
    client = MlflowClient()
    slim = {"wua.kind": "variant", "wua.verdict": "non_inferior"}
    other, older = (client.create_run("0", run_name=name, tags={**slim, **tags}).info.run_id
                    for name, tags in (("other", {"wua.verdict.method": "Tango"}), ("older", {})))
    for run_id in (other, older):
        client.log_metric(run_id, "flops/forward", 99999.0)
        client.set_terminated(run_id)
    note = ("The verdicts do not compare, as their methods differ: {}. By what method an older "
            "version made the verdict on older is not known.")
    by_flops, newest_first = "t (slim 75-46); Tango (other)", "Tango (other); t (slim 75-46)"
    assert _lines(capsys, "runs")[-2:] == ["", note.format(newest_first)]
    assert _lines(capsys, "best")[-2:] == ["", note.format(by_flops)]
    assert _lines(capsys, "show", older)[-1].startswith("By what method an older version")
    assert _lines(capsys, "show", other, older)[-1].startswith("By what method an older version")
    for form in ("--json", "--csv"):
        assert main(["best", form]) == 0
        out, err = capsys.readouterr()
        assert err == f"wua: note: {note.format(by_flops)}\n" and "Tango" not in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["runs", "--experiment", "Defualt"], "experiment: none is called 'Defualt' in .*'Default'"),
    (["runs", "--where", "accuracy/test > 0.9"], "where, order_by: MLflow refuses .*backticks"),
    (["show", "0" * 32], "run: no run has the id '0{32}' in .*; `wua runs` lists them"),
    (["show", "a", "b", "c"], "show: expected one run or two, but got 3"),
])
def test_what_cannot_be_answered_is_one_line(made, capsys, arguments, message):
    assert re.match(message, line_of(arguments, 1, capsys))
