"""Reading runs: what a plain client wrote by hand comes back in tables, in few calls."""

from __future__ import annotations

import math
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking import sqlalchemy_store
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking import best, compare_runs, runs
from wua_mlflow.tracking import runs as the_function
from wua_mlflow.tracking.runs import count_looks, find_run, show_run
from wua_mlflow.tracking.store import sqlite_file

READING = the_function.__globals__
BEGAN = 1_700_000_000_000
"""2023-11-14 22:13:20 UTC, in milliseconds."""


class Writer:
    """Makes runs with a plain client, each a second after the one before."""

    def __init__(self, uri: str):
        self.client, self.made = MlflowClient(uri), 0

    def run(self, name, *, experiment="0", kind="variant", tags=None, params=None,
            metrics=None) -> str:
        start = BEGAN + 1000 * self.made
        self.made += 1
        run_id = self.client.create_run(experiment, start, run_name=name).info.run_id
        given = {**({"wua.kind": kind} if kind else {}), **(tags or {})}
        self.client.log_batch(
            run_id, [Metric(key, value, 0, 0) for key, value in (metrics or {}).items()],
            [Param(key, value) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in given.items()])
        self.client.set_terminated(run_id)
        return run_id


@pytest.fixture
def writer(store_uri):
    return Writer(store_uri)


@pytest.fixture(scope="module")
def written(tmp_path_factory, migrated_database):
    """A database with four variants in two experiments, and runs that are no variants.

    Also their ids by name.
    """
    database = shutil.copy(migrated_database, tmp_path_factory.mktemp("runs") / "mlflow.db")
    writer = Writer(f"sqlite:///{database}")
    other = writer.client.create_experiment("other")
    made = {
        "oversized 10": writer.run(
            "oversized 10", tags={"wua.variant": "oversized", "wua.test_digest": "d1"},
            params={"hidden": "10", "epochs": "50", "lr": "0.01", "batch_size": "full"},
            metrics={"flops/forward": 60.0, "accuracy/test": 0.885, "latency/p50_ms": 0.5}),
        "slim 7": writer.run(
            "slim 7", tags={"wua.verdict": "inconclusive", "wua.test_digest": "d1"},
            params={"hidden": "7", "epochs": "60", "lr": "0.01", "batch_size": "64"},
            metrics={"flops/forward": 42.0, "accuracy/test": 0.873, "compare/looks": 1.0}),
        "slim 5": writer.run(
            "slim 5", tags={"wua.verdict": "non_inferior", "wua.test_digest": "d1"},
            params={"hidden": "5"}, metrics={"flops/forward": 30.0, "accuracy/test": 0.88}),
        "slim 6": writer.run(
            "slim 6", experiment=other,
            tags={"wua.verdict": "non_inferior", "wua.test_digest": "d1"},
            params={"hidden": "6"}, metrics={"flops/forward": 36.0, "accuracy/test": 0.9}),
        "pipeline": writer.run("pipeline", kind="pipeline", tags={"wua.test_digest": "d1",
                                                                  "wua.verdict": "inferior"}),
        "somebody's": writer.run("somebody's", kind=None, metrics={"flops/forward": 1.0}),
    }
    made["step"] = writer.run("step", kind="step", params={"run_id": made["slim 7"], "name": "x"},
                              tags={"wua.target_run": made["slim 7"]})
    return database, made


@pytest.fixture
def populated(store_uri, written) -> dict[str, str]:
    """The ids by name, and the store that has the runs."""
    database, made = written
    shutil.copy(database, sqlite_file(store_uri))
    return made


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods that the reading side calls, each with its keyword arguments."""
    noted = []

    class Counted(MlflowClient):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name.startswith("_") or not callable(found):
                return found
            return lambda *args, **kwargs: noted.append((name, kwargs)) or found(*args, **kwargs)

    monkeypatch.setitem(READING, "MlflowClient", Counted)
    return noted


def test_a_row_a_variant_newest_first(populated):
    table = runs()
    assert table["name"].tolist() == ["slim 6", "slim 5", "slim 7", "oversized 10"]
    assert table["run_id"].tolist() == [populated[name] for name in table["name"]]
    assert table["status"].tolist() == ["FINISHED"] * 4
    assert table["start_time"].iloc[-1] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert table.columns.tolist() == [
        "run_id", "name", "status", "start_time",
        "wua.kind", "wua.test_digest", "wua.variant", "wua.verdict",
        "batch_size", "epochs", "hidden", "lr",
        "accuracy/test", "flops/forward", "latency/p50_ms", "compare/looks"]


def test_columns_have_types(populated):
    table = runs().set_index("name")
    assert table["flops/forward"].dtype == table["epochs"].dtype == "Int64"
    assert table["flops/forward"].to_dict() == {
        "oversized 10": 60, "slim 7": 42, "slim 5": 30, "slim 6": 36}
    assert table["lr"].dtype == table["accuracy/test"].dtype == float
    assert table.loc["slim 7", ["epochs", "lr", "batch_size"]].tolist() == [60, 0.01, "64"]
    assert table["hidden"].tolist() == ["6", "5", "7", "10"]
    assert isinstance(table["start_time"].dtype, pd.DatetimeTZDtype)


def test_what_a_run_lacks_is_na(populated):
    row = runs().set_index("name").loc["slim 5"]
    lacking = ["wua.variant", "batch_size", "epochs", "lr", "latency/p50_ms", "compare/looks"]
    assert row[row.isna()].index.tolist() == lacking


@pytest.mark.parametrize(("experiment", "names"), [
    ("other", ["slim 6"]),
    ("Default", ["slim 5", "slim 7", "oversized 10"]),
    (["other", "Default"], ["slim 6", "slim 5", "slim 7", "oversized 10"]),
])
def test_experiments(populated, experiment, names):
    assert runs(experiment)["name"].tolist() == names


def test_other_kinds(populated):
    assert runs(kind="pipeline")["name"].tolist() == ["pipeline"]
    assert runs(kind="trial").empty


def test_a_param_does_not_take_the_place_of_the_runs_own_fields(populated):
    row = runs(kind="step").iloc[0]
    assert (row["run_id"], row["name"]) == (populated["step"], "step")
    assert row["wua.target_run"] == populated["slim 7"]


def test_filter_order_and_limit_are_mlflows(populated, calls):
    table = runs(where="metrics.`accuracy/test` > 0.874", limit=2,
                 order_by="metrics.`flops/forward` ASC")
    assert table["name"].tolist() == ["slim 5", "slim 6"]
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"]
    assert calls[1][1]["max_results"] == 2
    assert calls[1][1]["order_by"] == ["metrics.`flops/forward` ASC"]
    several = runs(order_by=["tags.`wua.verdict` DESC", "metrics.`flops/forward` DESC"])
    assert several["name"].tolist()[:2] == ["slim 6", "slim 5"]


@pytest.mark.parametrize(("limit", "sizes"), [(None, [5, 5, 5]), (7, [5, 2]), (10, [5, 5]),
                                              (3, [3]), (100, [5, 5, 5])])
def test_a_call_a_page_and_none_a_run(writer, calls, monkeypatch, limit, sizes):
    names = [f"run {number}" for number in range(12)]
    for name in names:
        writer.run(name)
    monkeypatch.setitem(READING, "PAGE", 5)
    assert runs("Default", limit=limit)["name"].tolist() == names[::-1][:limit]
    assert [name for name, _ in calls] == ["get_experiment_by_name"] + ["search_runs"] * len(sizes)
    assert [kwargs["max_results"] for _, kwargs in calls[1:]] == sizes


def test_every_experiment_is_searched_where_a_page_does_not_hold_them(writer, monkeypatch):
    for number in range(4):
        writer.run(f"run {number}", experiment=writer.client.create_experiment(f"e{number}"))
    search = MlflowClient.search_experiments
    monkeypatch.setattr(MlflowClient, "search_experiments",
                        lambda self, **given: search(self, **{**given, "max_results": 2}))
    assert sorted(runs()["name"]) == [f"run {number}" for number in range(4)]


def test_deleted_runs_and_experiments_are_not_listed(populated):
    client = MlflowClient()
    client.delete_run(populated["slim 5"])
    client.delete_experiment(client.get_experiment_by_name("other").experiment_id)
    assert runs()["name"].tolist() == ["slim 7", "oversized 10"]
    with pytest.raises(ValueError, match="^experiment: 'other' is deleted$"):
        runs("other")


def test_no_runs_make_an_empty_table(store_uri):
    table = runs()
    assert table.empty and table.columns.tolist() == ["run_id", "name", "status", "start_time"]
    assert best() is None


def test_reading_does_not_make_a_database(store_uri, tmp_path):
    file = tmp_path / "elsewhere" / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    assert runs().empty and best() is None
    for ask in (lambda: runs("wua"), lambda: show_run("abcd" * 8)):
        with pytest.raises(ValueError, match=f"there is no sqlite:///{file}$"):
            ask()
    assert not file.parent.exists()
    mlflow.set_tracking_uri(store_uri)


@pytest.mark.parametrize(("given", "said"), [
    ({"experiment": "othr"}, "experiment: none is called 'othr' in .*; did you mean 'other'"),
    ({"experiment": ["other", "zzz"]}, "experiment: none is called 'zzz' in sqlite.*mlflow.db$"),
    ({"kind": "varant"}, "kind: expected one of pipeline, .* but got 'varant'; did you mean 'var"),
    ({"kind": "x' OR ''='"}, "kind: expected one of pipeline"),
    ({"limit": 0}, "limit: expected a whole number of at least 1, but got 0$"),
    ({"limit": -3}, "limit: expected a whole number of at least 1, but got -3$"),
    ({"where": "accuracy/test > 0.9"}, "where, order_by: MLflow refuses 'accuracy/test > 0.9': .*"
     "; a name with / stands in backticks, as in metrics.`accuracy/test` > 0.9$"),
    ({"where": "metrics.loss > 1 OR metrics.loss < 0"}, "where, order_by: MLflow refuses .*'OR'$"),
    ({"where": "params.seeds > 3"}, "where, order_by: .*Expected a quoted string"),
    ({"where": "tags.`wua.variant` = 'sl"}, "where, order_by: MLflow refuses"),
    ({"order_by": "metrics.`flops/forward` UPWARDS"}, "where, order_by: .*Invalid ordering key"),
])
def test_what_cannot_be_asked_is_one_line(populated, given, said):
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        runs(**given)
    assert "\n" not in str(caught.value)


def test_a_store_that_fails_is_not_a_wrong_filter(populated, monkeypatch):
    def fails(*_, **__):
        raise MlflowException("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_runs", fails)
        with pytest.raises(MlflowException, match="connection refused"):
            runs(where="metrics.loss > 1")


def test_params_of_a_project_are_as_they_were_given(writer):
    writer.run("project", tags={"wua.widths": "128,64"}, params={
        "hidden": "''", "model": "", "target": "None", "data": "'my data/it'\"'\"'s.csv'",
        "epochs": "50.0", "seed": "abc", "lr": "''"})
    row = runs().iloc[0]
    assert row["hidden"] == "128,64"
    assert row["data"] == "my data/it's.csv"
    assert row["epochs"] == 50
    assert row[["model", "target", "seed", "lr"]].isna().all()


def test_own_widths_come_before_the_tag(writer):
    writer.run("old", tags={"wua.widths": "9"}, params={"hidden": "10"})
    writer.run("without a param", tags={"wua.widths": "9"})
    assert runs()["hidden"].tolist() == ["9", "10"]


@pytest.mark.parametrize("value", [10.5, math.inf])
def test_a_count_that_is_no_whole_number_is_shown_as_it_is(writer, value):
    writer.run("odd", metrics={"flops/forward": value, "params/total": 3.0})
    table = runs()
    held = writer.client.get_run(table["run_id"][0]).data.metrics["flops/forward"]
    assert table["flops/forward"].tolist() == [held] and held >= 10.5
    assert table["params/total"].dtype == "Int64"


def test_a_metric_that_is_called_like_a_param(writer):
    writer.run("twice", params={"alpha": "text"}, metrics={"alpha": 1.5})
    table = runs()
    assert table["alpha"].tolist() == [1.5] and table.columns.is_unique


def test_the_best_is_the_smallest_that_is_non_inferior(populated, calls):
    assert best()["name"] == "slim 5"
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"]
    assert calls[1][1]["max_results"] == 1
    assert best("other")["run_id"] == populated["slim 6"]
    assert best(where="metrics.`accuracy/test` > 0.89")["name"] == "slim 6"
    assert best(where="metrics.`accuracy/test` > 0.99") is None
    assert best(by="accuracy/test")["name"] == "slim 5"
    assert best()["flops/forward"] == 30


def test_the_best_by_a_metric_that_no_variant_has_is_an_error(populated):
    with pytest.raises(ValueError, match="^by: .* got 'flops/foward'; did you mean 'flops/forward"):
        best(by="flops/foward")


def test_two_runs_side_by_side(populated):
    table = compare_runs(populated["oversized 10"], populated["slim 7"])
    assert table.columns.tolist() == ["oversized 10", "slim 7", "ratio"]
    assert table.index.tolist() == ["accuracy/test", "flops/forward", "latency/p50_ms",
                                    "compare/looks"]
    assert table.loc["flops/forward"].tolist() == [60, 42, pytest.approx(60 / 42)]
    assert table.loc["latency/p50_ms"].isna().tolist() == [False, True, True]
    assert set(map(str, table.dtypes)) == {"Float64"}


def test_a_ratio_of_what_is_not_above_zero_is_na(writer):
    pair = [writer.run(name, metrics={"usage/shift": shift, "loss/test": 0.0, "size/bytes": 4.0})
            for name, shift in (("a", -0.5), ("b", 0.25))]
    assert compare_runs(*pair)["ratio"].isna().to_dict() == {
        "loss/test": True, "size/bytes": False, "usage/shift": True}


@pytest.mark.parametrize("names", [("slim 7", "slim 7"), ("ratio", "slim 7")])
def test_names_that_would_be_taken_for_each_other_have_the_id_beside_them(writer, names):
    pair = [writer.run(name, metrics={"loss/test": 1.0}) for name in names]
    assert compare_runs(*pair).columns.tolist() == [
        *(f"{name} ({run_id[:8]})" for name, run_id in zip(names, pair, strict=True)), "ratio"]


def test_a_run_is_not_compared_with_itself(populated):
    run_id = populated["slim 7"]
    with pytest.raises(ValueError, match=f"^b: expected another run than a, .* {run_id}$"):
        compare_runs(run_id, run_id[:12])


def test_everything_about_one_run(populated):
    said = show_run(populated["slim 7"])["value"]
    assert said.to_dict() == {
        "run_id": populated["slim 7"], "name": "slim 7", "status": "FINISHED",
        "start_time": pd.Timestamp(BEGAN + 1000, unit="ms", tz="UTC"),
        "wua.kind": "variant", "wua.test_digest": "d1", "wua.verdict": "inconclusive",
        "batch_size": "64", "epochs": 60, "hidden": "7", "lr": 0.01,
        "accuracy/test": 0.873, "flops/forward": 42, "compare/looks": 1}


def test_the_beginning_of_an_id_is_enough(populated, calls):
    for name, run_id in populated.items():
        assert find_run(run_id[:12]).info.run_name == name
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"] * len(populated)
    calls.clear()
    assert find_run(populated["slim 7"]).info.run_name == "slim 7"
    assert [name for name, _ in calls] == ["get_run"]


def test_the_beginning_of_several_ids_names_them(writer, monkeypatch):
    ids = [f"abcd{number:028x}" for number in range(2)]
    left = iter(ids)
    monkeypatch.setattr(sqlalchemy_store, "uuid",
                        SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(left))))
    for name in ("slim 7", "slim 8"):
        writer.run(name)
    with pytest.raises(ValueError, match=rf"'abcd' fits {ids[1]} \(slim 8\), {ids[0]} \(slim 7\)$"):
        find_run("abcd")
    assert find_run(ids[0][:-1] + "0").info.run_name == "slim 7"


@pytest.mark.parametrize("run_id", ["abc", "slim 7", "0123456789abcdef" * 2, "", "100%", "ffff"])
def test_a_run_that_is_not_there_is_one_line(populated, run_id):
    with pytest.raises(ValueError, match="^run: no run") as caught:
        find_run(run_id)
    assert f"'{run_id}'" in str(caught.value) and "\n" not in str(caught.value)


def test_looks_at_a_test_set(populated):
    client = MlflowClient()
    assert count_looks(client, "d1") == 3
    assert count_looks(client, "d1", besides=populated["slim 6"]) == 2
    assert count_looks(client, "d2") == 0
