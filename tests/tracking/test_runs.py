"""Tables of runs: what a plain client wrote by hand comes back in them, in few calls."""

import gc
import math
from datetime import UTC, datetime

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.conftest import serving
from wua_mlflow.tracking.runs import (
    best,
    compare_runs,
    history,
    runs,
    seeds_judged_before,
    show_run,
)


def test_a_row_a_variant_newest_first_in_columns_with_types(populated):
    table = runs()
    assert table["name"].tolist() == ["slim 6", "slim 5", "slim 7", "oversized 10"]
    assert table["run_id"].tolist() == [populated[name] for name in table["name"]]
    assert table["status"].tolist() == ["FINISHED"] * 4
    assert table["start_time"].iloc[-1] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert table.columns.tolist() == [
        "run_id", "name", "status", "start_time", "wua.kind", "wua.test_digest", "wua.variant",
        "wua.verdict", "batch_size", "epochs", "hidden", "lr", "accuracy/test", "flops/forward",
        "latency/p50_ms", "compare/looks"]
    assert table["flops/forward"].dtype == table["epochs"].dtype == "Int64"
    assert table["flops/forward"].tolist() == [36, 30, 42, 60]
    assert table["lr"].dtype == table["accuracy/test"].dtype == float
    assert isinstance(table["start_time"].dtype, pd.DatetimeTZDtype)
    assert table["hidden"].tolist() == ["6", "5", "7", "10"]
    assert table.loc[2, ["epochs", "lr", "batch_size"]].tolist() == [60, 0.01, "64"]
    row = table.iloc[1]  # what a run lacks is NA
    assert row[row.isna()].index.tolist() == [
        "wua.variant", "batch_size", "epochs", "lr", "latency/p50_ms", "compare/looks"]


def test_experiments_and_kinds_and_mlflows_filter_order_and_limit(populated, calls):
    for experiment, names in (
            ("other", ["slim 6"]), ("Default", ["slim 5", "slim 7", "oversized 10"]),
            (["other", "Default"], ["slim 6", "slim 5", "slim 7", "oversized 10"])):
        assert runs(experiment)["name"].tolist() == names
    assert runs(kind="pipeline")["name"].tolist() == ["pipeline"]
    assert runs(kind="trial").empty
    row = runs(kind="step").iloc[0]  # a param does not take the place of the run's own fields
    assert (row["run_id"], row["name"]) == (populated["step"], "step")
    assert row["wua.target_run"] == populated["slim 7"]
    calls.clear()
    table = runs(where="metrics.`accuracy/test` > 0.874", limit=2,
                 order_by="metrics.`flops/forward` ASC")
    assert table["name"].tolist() == ["slim 5", "slim 6"]
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"]
    assert calls[1][1]["max_results"] == 2
    assert calls[1][1]["order_by"] == ["metrics.`flops/forward` ASC"]
    several = runs(order_by=["tags.`wua.verdict` DESC", "metrics.`flops/forward` DESC"])
    assert several["name"].tolist()[:2] == ["slim 6", "slim 5"]


def test_a_call_a_page_and_none_a_run_and_every_page_of_experiments(writer, calls, monkeypatch):
    names = [f"run {number}" for number in range(12)]
    for name in names:
        writer.run(name)
    monkeypatch.setattr("wua_mlflow.tracking.search.PAGE", 5)
    monkeypatch.setattr("wua_mlflow.tracking.search.SORTED_PAGE", 5)
    for limit, sizes in ((None, [5, 5, 5]), (7, [5, 2]), (10, [5, 5]), (3, [3]), (100, [5, 5, 5])):
        calls.clear()
        assert runs("Default", limit=limit)["name"].tolist() == names[::-1][:limit]
        assert [name for name, _ in calls] == [
            "get_experiment_by_name", *["search_runs"] * len(sizes)]
        assert [options["max_results"] for _, options in calls[1:]] == sizes
    calls.clear()
    for order in ("attributes.start_time ASC", "metrics.`flops/forward` ASC"):
        assert len(runs("Default", order_by=order)) == 12
    assert [options["order_by"] for name, options in calls if name == "search_runs"] == [
        ["attributes.start_time ASC"]] * 3 + [[]] * 3, "by a metric it is sorted here"
    for number in range(4):
        writer.run(f"of {number}", experiment=writer.client.create_experiment(f"e{number}"))
    search = MlflowClient.search_experiments
    monkeypatch.setattr(MlflowClient, "search_experiments",
                        lambda self, **options: search(self, **{**options, "max_results": 2}))
    assert runs()["name"].tolist() == [*(f"of {number}" for number in range(3, -1, -1)),
                                       *names[::-1]]


def _beside_mlflow(where="", **options):
    """Our table, and MLflow's of the same runs by the documented filter, with our names."""
    clause = f"tags.`wua.kind` = 'variant'{where and ' AND '}{where}"
    found = mlflow.search_runs(search_all_experiments=True, filter_string=clause, **options)
    return runs(where=where or None, **options), found


@pytest.mark.parametrize("options", [
    {}, {"where": "metrics.`accuracy/test` > 0.875"}, {"where": "params.hidden = '7'"},
    {"where": "tags.`wua.verdict` = 'non_inferior' AND metrics.`flops/forward` < 33"},
    {"order_by": ["metrics.`flops/forward` DESC"]}, {"order_by": ["metrics.loss ASC"]},
    {"order_by": ["metrics.`latency/p50_ms`", "metric.`accuracy/test` desc"]},
    {"order_by": ["metrics.`compare/looks` DESC"]},
    {"order_by": ["metrics.`compare/looks`", "attributes.start_time ASC"]},
    {"order_by": ["tags.`wua.verdict` ASC", "metrics.`flops/forward` ASC"]}])
def test_mlflows_own_search_gives_the_same_rows_cell_by_cell(populated, options):
    """In the same order, with equal numbers, and the same texts."""
    ours, theirs = _beside_mlflow(**options)
    assert ours["run_id"].tolist() == theirs["run_id"].tolist() != []
    for prefix in ("metrics.", "params.", "tags."):
        names = {name.removeprefix(prefix) for name in theirs if name.startswith(prefix)}
        names = {name for name in names if prefix != "tags." or name.startswith("wua.")}
        assert names <= {*ours}
        for name in names:
            mine, other = ours[name], theirs[prefix + name]
            assert mine.isna().tolist() == other.isna().tolist(), name
            number = prefix == "metrics." or name in ("epochs", "lr")
            convert = float if number else str
            assert [*map(convert, mine.dropna())] == [*map(convert, other.dropna())], name
    assert set(ours) - {"name", "run_id", "status", "start_time"} == {
        name.partition(".")[2] for name in theirs
        if name.startswith(("metrics.", "params.", "tags.wua."))}
    assert ours["status"].tolist() == theirs["status"].tolist()
    assert ours["start_time"].tolist() == theirs["start_time"].tolist()


def test_only_the_columns_that_are_asked_for_in_their_order(populated, calls):
    names = ["hidden", "flops/forward", "wua.verdict", "mlflow.runName", "name", "compare/churn",
             "patience"]
    table = runs(columns=names, order_by="metrics.`accuracy/test` DESC")
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"]
    assert table.columns.tolist() == names
    assert table["hidden"].tolist() == ["6", "10", "5", "7"], "sorted by what is no column"
    assert table["flops/forward"].dtype == "Int64"
    assert table["mlflow.runName"].tolist() == table["name"].tolist()
    assert table[["compare/churn", "patience"]].isna().all(axis=None), "of the contract, NA"
    whole = runs()
    for column in whole:
        assert runs(columns=column)[column].equals(whole[column]), column
    assert runs("other", kind="trial", columns=["name", "whatever"]).columns.tolist() == [
        "name", "whatever"]
    with pytest.raises(ValueError, match="^columns: .* none of these 4 runs has 'flops/foward'; "
                                         "did you mean 'flops/forward'"):
        runs(columns=["name", "flops/foward"])


def test_the_garbage_collector_is_left_as_it_was(populated, monkeypatch):
    seen = []
    search = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", lambda *args, **options: seen.append(
        gc.isenabled()) or search(*args, **options))
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            runs()
            with pytest.raises(ValueError, match="MLflow refuses"):
                runs(where="nonsense")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
    assert seen == [False] * 4


@pytest.mark.slow
def test_through_a_server_it_is_all_the_same(populated, store_uri, tmp_path):
    """Tables, orders, the best and its note, histories, and MLflow's own search."""
    def asked():
        return [runs(), runs(columns=["name", "flops/forward"], order_by="metrics.`flops/forward`"),
                runs(order_by="tags.`wua.verdict` DESC"), runs(where="tags.`wua.verdict` IS NULL"),
                best().to_frame(), history(populated["slim 7"], "accuracy/test")]

    expected, note = asked(), best().attrs["note"]
    assert note
    with serving(store_uri, tmp_path) as address:
        mlflow.set_tracking_uri(address)
        for table, other in zip(asked(), expected, strict=True):
            pd.testing.assert_frame_equal(table, other)
        assert best().attrs["note"] == note
        ours, theirs = _beside_mlflow("metrics.`accuracy/test` > 0.875")
        assert ours["run_id"].tolist() == theirs["run_id"].tolist() != []
        mlflow.set_tracking_uri(store_uri)


@pytest.mark.parametrize("names", ["loss/train", ["loss/train", "score/test_by_seed"]])
def test_all_points_of_a_metric_by_step(writer, calls, monkeypatch, names):
    run_id = writer.run("slim", metrics={"flops/forward": 1.0})
    points = [(step, step / 8, 1000 * (50 - step)) for step in range(1, 8)]
    writer.client.log_batch(run_id, [
        Metric(name, value, when, step) for name in ("loss/train", "score/test_by_seed")
        for step, value, when in points])
    monkeypatch.setattr("mlflow.tracking._tracking_service.client.GET_METRIC_HISTORY_MAX_RESULTS",
                        3)
    table = history(run_id[:8], names)
    several = not isinstance(names, str)
    assert table.columns.tolist() == ["metric"] * several + ["step", "value", "timestamp"]
    copies = 2 if several else 1
    assert table["step"].tolist() == [step for step, _, _ in points] * copies
    assert table["value"].tolist() == [value for _, value, _ in points] * copies
    assert table["timestamp"].iloc[0] == datetime(1970, 1, 1, 0, 0, 49, tzinfo=UTC)
    if several:
        assert table["metric"].tolist() == [name for name in names for _ in points]
    assert [name for name, _ in calls].count("get_metric_history") == copies
    with pytest.raises(ValueError, match=f"^metric: run {run_id} has none that is called 'loss/tra"
                                         f"ni'; did you mean 'loss/train'"):
        history(run_id, "loss/trani")


def test_the_score_by_seed_is_no_column_unless_asked_for(writer):
    first, second = (writer.run(name, metrics={"score/test": score, "score/test_by_seed": 0.5})
                     for name, score in (("a", 0.9), ("b", 0.8)))
    name = "score/test_by_seed"
    assert name not in runs() and name not in show_run(first).index
    assert name not in compare_runs(first, second).index
    assert runs(columns=["name", name])[name].tolist() == [0.5, 0.5]


SLIM = {"wua.variant": "slim", "wua.test_digest": "d1", "wua.widths": "7",
        "wua.verdict.recipe": "inconclusive", "wua.verdict.seeds": "8, 3 beyond the plan"}


@pytest.mark.parametrize(("tags", "params", "seeds"), [
    ({}, {}, 8), ({}, {"device": "cuda"}, 8), ({"wua.verdict.seeds": None}, {}, 5),
    ({"wua.verdict.seeds": None}, {"seeds": "auto"}, 0), ({"wua.verdict.recipe": ""}, {}, 0),
    ({}, {"lr": "0.1"}, 0), ({"wua.widths": "6"}, {}, 0), ({"wua.test_digest": "d2"}, {}, 0),
    ({"wua.structure": "fc1 7"}, {}, 0), ({"wua.variant": "slim-2"}, {}, 0),
    ({}, {"seeds": "20"}, 0),  # the same plan
    ({"wua.baseline": "alike"}, {}, 8), ({"wua.baseline": "unlike"}, {}, 0),
    ({"wua.baseline": None}, {}, 0), ({"wua.baseline": "0" * 32}, {}, 0)])
def test_seeds_of_an_earlier_verdict_on_the_same_recipes(writer, tags, params, seeds):
    """The other way round there is nothing earlier."""
    original, alike, unlike = (writer.run("oversized", tags={"wua.widths": widths})
                               for widths in ("10", "10", "12"))
    names = {"alike": alike, "unlike": unlike}
    tags = {key: names.get(value, value) for key, value in
            {**SLIM, "wua.baseline": original, **tags}.items() if value is not None}
    earlier = writer.run("slim 7", tags=tags, params={"lr": "0.01", "seeds": "5", **params})
    now = writer.run("slim 7", tags={**SLIM, "wua.baseline": original},
                     params={"lr": "0.01", "seeds": "20"})
    assert seeds_judged_before(writer.client, now) == seeds
    assert seeds_judged_before(writer.client, earlier) == 0


@pytest.mark.parametrize(("seeds", "table", "judged"), [
    ("auto", "groups: who, drop_columns: [id, day]", 0), ("5-40", "groups: who, drop_columns: id, "
                                                          "drop_columns: day", 0),
    ("5-40", "groups: who, drop_columns: [id, day]", 8), ("5-40", "groups: who", 0)])
def test_a_run_of_an_earlier_version_had_its_params_by_other_names(writer, seeds, table, judged):
    """The same plan is the same verdict; a table that cannot be read is no run's of the same."""
    original = writer.run("oversized", tags={"wua.widths": "10"})
    tags = {**SLIM, "wua.baseline": original}
    writer.run("slim 7", tags=tags, params={
        "lr": "0.01", "seeds": "auto", "max_seeds": "20", "groups": "who",
        "drop_columns": "id,day"})
    now = writer.run("slim 7", tags=tags, params={"lr": "0.01", "seeds": seeds, "table": table})
    assert seeds_judged_before(writer.client, now) == judged


def test_deleted_runs_and_experiments_are_not_listed(populated):
    client = MlflowClient()
    client.delete_run(populated["slim 5"])
    client.delete_experiment(client.get_experiment_by_name("other").experiment_id)
    assert runs()["name"].tolist() == ["slim 7", "oversized 10"]
    with pytest.raises(ValueError, match="^experiment: 'other' is deleted$"):
        runs("other")


def test_no_runs_make_an_empty_table_and_reading_no_database(store_uri, tmp_path):
    table = runs()
    assert table.empty and table.columns.tolist() == ["run_id", "name", "status", "start_time"]
    assert best() is None
    file = tmp_path / "elsewhere" / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    assert runs().empty and best() is None
    for ask in (lambda: runs("wua"), lambda: show_run("abcd" * 8)):
        with pytest.raises(ValueError, match=f"there is no sqlite:///{file}$"):
            ask()
    assert not file.parent.exists()
    mlflow.set_tracking_uri(store_uri)


@pytest.mark.parametrize(("arguments", "message"), [
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
def test_what_cannot_be_asked_is_one_line(populated, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        runs(**arguments)
    assert "\n" not in str(caught.value)


def test_a_store_that_fails_is_not_a_wrong_filter(populated, monkeypatch):
    def fails(*_, **__):
        raise MlflowException("connection refused")

    monkeypatch.setattr(MlflowClient, "search_runs", fails)
    with pytest.raises(MlflowException, match="connection refused"):
        runs(where="metrics.loss > 1")
    monkeypatch.undo()


def test_params_of_a_project_are_as_they_were_given(writer):
    writer.run("project", tags={"wua.widths": "128,64"}, params={
        "hidden": "''", "model": "", "target": "None", "data": "'my data/it'\"'\"'s.csv'",
        "epochs": "50.0", "seed": "abc", "lr": "''"})
    writer.run("own widths before the tag's", tags={"wua.widths": "9"}, params={"hidden": "10"})
    assert runs()["hidden"].tolist() == ["10", "128,64"]
    row = runs().iloc[1]
    assert row["data"] == "my data/it's.csv"
    assert row["epochs"] == 50
    assert row[["model", "target", "seed", "lr"]].isna().all()


@pytest.mark.parametrize("value", [10.5, math.inf])
def test_a_count_that_is_no_whole_number_is_shown_as_it_is(writer, value):
    run_id = writer.run("odd", metrics={"flops/forward": value, "params/total": 3.0, "alpha": 1.5},
                        params={"alpha": "a metric's name"})
    table = runs()
    stored = writer.client.get_run(run_id).data.metrics["flops/forward"]
    assert table["flops/forward"].tolist() == [stored] and stored >= 10.5
    assert table["params/total"].dtype == "Int64"
    assert table["alpha"].tolist() == [1.5] and table.columns.is_unique


def test_mlflow_s_variables_choose_the_experiment_where_none_is_named(writer, monkeypatch):
    other = writer.client.create_experiment("other")
    here, there = writer.run("here"), writer.run("there", experiment=other)
    assert set(runs()["run_id"]) == {here, there}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert list(runs()["run_id"]) == [there]
    assert list(runs("Default")["run_id"]) == [here]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "others")
    with pytest.raises(ValueError, match="^MLFLOW_EXPERIMENT_NAME: experiment: none is called "
                                         "'others'.*other"):
        runs()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert list(runs()["run_id"]) == [here]
