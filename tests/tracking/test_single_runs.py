"""One run or two: the best, by the beginning of an id, side by side; looks; controls; results."""

import importlib
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from mlflow.store.tracking import sqlalchemy_store
from mlflow.tracking import MlflowClient

from wua_mlflow.tracking import search
from wua_mlflow.tracking.runs import (
    best,
    compare_runs,
    controls_of,
    count_looks,
    find_control,
    find_run,
    look_of,
    record_pair,
    result_of,
    runs,
    show_run,
)
from wua_mlflow.tracking.store import connect, ended, new_run


def test_the_best_is_the_smallest_that_is_non_inferior(populated, calls):
    assert best()["name"] == "slim 5"
    assert [name for name, _ in calls] == ["search_experiments", *["search_runs"] * 3]
    assert best("other")["run_id"] == populated["slim 6"]
    assert best(where="metrics.`accuracy/test` > 0.89")["name"] == "slim 6"
    assert best(where="metrics.`accuracy/test` > 0.99") is None
    assert best(by="accuracy/test")["name"] == "slim 5"
    assert best()["flops/forward"] == 30
    assert best(by="accuracy/test", where="metrics.`flops/forward` > 30")["name"] == "slim 6"
    with pytest.raises(ValueError, match="^by: .* got 'flops/foward'; did you mean 'flops/forward"):
        best(by="flops/foward")
    with pytest.raises(ValueError, match="^by: expected the name of a metric, but got 'a`b'"):
        best(by="a`b")
    with pytest.raises(ValueError, match="^where, order_by: MLflow refuses 'nonsense'"):
        best(where="nonsense")


@pytest.mark.parametrize(("values", "searches"), [
    ([5.0, 3.0, 4.0], 1), ([3.0] * 7, 3), ([1e300, 2e22, 1e22, 2.5e300], 3), ([-0.5, -1e-7, 2], 1),
    (list(range(12, 0, -1)), None), (list(range(12)), None), ([2.0] * 6 + [1.0] * 6, None),
    ([0.1 * number for number in range(9, 0, -1)], None), ([None, 7, None, 8, 7], 1)])
def test_the_best_in_a_few_searches_of_a_few_runs(writer, calls, monkeypatch, values, searches):
    """However they are ordered; of several that are as small it is the newest."""
    monkeypatch.setitem(best.__globals__, "SAMPLE", 4)  # the package has a function "runs"
    verdict = {"wua.verdict": "non_inferior", "wua.verdict.method": "Tango's"}
    made = [(number, value, writer.run(f"slim {number}", tags=verdict, metrics={} if value is None
                                       else {"flops/forward": float(value)}))
            for number, value in enumerate(values)]
    writer.run("inferior", tags={**verdict, "wua.verdict": "inferior"},
               metrics={"flops/forward": -1e6})
    least = min(value for value in values if value is not None)
    newest = max(number for number, value, _ in made if value == least)
    rows = []
    unchanged = MlflowClient.search_runs

    def counted(self, *args, **options):
        page = unchanged(self, *args, **options)
        rows.append(len(page))
        return page

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    smallest = best()
    assert (smallest["name"], smallest["flops/forward"]) == (f"slim {newest}", least)
    assert smallest.attrs["note"] == ""
    found = [options for name, options in calls if name == "search_runs"]
    assert [name for name, _ in calls if name != "search_runs"] == ["search_experiments"]
    assert all("metrics" not in str(options["order_by"]) for options in found)
    assert searches is None or len(found) - 2 == searches
    assert len(found) <= 12 and sum(rows) <= 4 * (len(found) - 2) and max(rows) <= 4


@pytest.mark.parametrize(("methods", "note"), [
    (("t", "t", "t"), ""), ((), ""),
    (("t", "t", "Tango"), "The verdicts do not compare, as their methods differ: t (slim 0, slim "
                          "1); Tango (slim 2)."),
    (("t", "t", None), "By what method an older version made the verdict on slim 2 is not known."),
    (("t", "Tango", ""), "The verdicts do not compare, as their methods differ: t (slim 0); Tango "
                         "(slim 1). By what method an older version made the verdict on slim 2 is "
                         "not known."),
    (["t"] * 8 + ["Tango"], "The verdicts do not compare, as their methods differ: t (slim 0, slim "
                            "1, slim 2, slim 3, slim 4 and 3 more); Tango (slim 8)."),
])
def test_verdicts_of_several_methods_are_not_mixed(writer, methods, note):
    """In every table, and with the best, which is chosen among them; no verdict has no method."""
    original = writer.run("oversized", metrics={"flops/forward": 9.0})
    tags = [{"wua.verdict": "non_inferior"} | ({} if method is None else
                                               {"wua.verdict.method": method})
            for method in methods]
    ids = [writer.run(f"slim {number}", metrics={"flops/forward": float(number)}, tags=each)
           for number, each in enumerate(tags)]
    newest_last = runs(order_by="attributes.start_time ASC")
    assert newest_last.attrs["note"] == note
    if ids:
        assert best()["name"] == "slim 0"
        alike = "(slim 0, slim 1, slim 2, slim 3, slim 4 and 3 more)", "(slim 0, slim 1)"
        for names in alike:  # those by the method of the best are not looked for
            note = note.replace(f"t {names};", "t (slim 0);")
        assert best().attrs["note"] == note
        assert compare_runs(original, ids[0]).attrs["note"] == ""
        assert show_run(ids[0]).attrs["note"] == ""
    if len(ids) == 3:
        pair = compare_runs(ids[0], ids[2]).attrs["note"]
        assert bool(pair) == (methods[0] != methods[2])
        alone = show_run(ids[2]).attrs["note"]
        assert bool(alone) == (not methods[2])
        assert ("older version" in pair) == bool(alone)


def test_two_runs_side_by_side_and_ratios_that_are_na_and_alike_names_with_ids(populated, writer):
    table = compare_runs(populated["oversized 10"], populated["slim 7"])
    assert table.columns.tolist() == ["oversized 10", "slim 7", "ratio"]
    assert table.index.tolist() == ["accuracy/test", "flops/forward", "latency/p50_ms",
                                    "compare/looks"]
    assert table.loc["flops/forward"].tolist() == [60, 42, pytest.approx(60 / 42)]
    assert table.loc["latency/p50_ms"].isna().tolist() == [False, True, True]
    assert set(map(str, table.dtypes)) == {"Float64"}
    pair = [writer.run(name, metrics={"usage/shift": shift, "loss/test": 0.0, "size/bytes": 4.0})
            for name, shift in (("a", -0.5), ("b", 0.25))]
    assert compare_runs(*pair)["ratio"].isna().to_dict() == {
        "loss/test": True, "size/bytes": False, "usage/shift": True}
    with pytest.raises(ValueError, match=f"^b: expected another run than a, .* {pair[0]}$"):
        compare_runs(pair[0], pair[0][:12])
    for names in (("slim 7", "slim 7"), ("ratio", "slim 7")):
        pair = [writer.run(name, metrics={"loss/test": 1.0}) for name in names]
        assert compare_runs(*pair).columns.tolist() == [
            *(f"{name} ({run_id[:8]})" for name, run_id in zip(names, pair, strict=True)), "ratio"]


def test_a_run_or_two_take_a_call_each(populated, calls):
    """By the beginning of its id two, of which the search gives at most three runs."""
    show_run(populated["slim 7"])
    compare_runs(populated["slim 7"], populated["slim 5"])
    assert [name for name, _ in calls] == ["get_run"] * 3
    calls.clear()
    show_run(populated["slim 7"][:8])
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"]
    assert calls[1][1]["max_results"] == 3


def test_everything_about_one_run_and_one_line_where_there_is_none(populated):
    assert show_run(populated["slim 7"])["value"].to_dict() == {
        "run_id": populated["slim 7"], "name": "slim 7", "status": "FINISHED", "lr": 0.01,
        "start_time": pd.Timestamp("2023-11-14 22:13:21+00:00"), "wua.kind": "variant",
        "wua.test_digest": "d1", "wua.verdict": "inconclusive", "batch_size": "64", "epochs": 60,
        "hidden": "7", "accuracy/test": 0.873, "flops/forward": 42, "compare/looks": 1}
    for run_id in ("abc", "slim 7", "0123456789abcdef" * 2, "", "100%", "ffff"):
        with pytest.raises(ValueError, match="^run: no run") as caught:
            show_run(run_id)
        assert f"'{run_id}'" in str(caught.value) and "\n" not in str(caught.value)


def test_the_beginning_of_an_id_is_enough(populated, calls):
    for name, run_id in populated.items():
        assert find_run(run_id[:12]).info.run_name == name
    assert [name for name, _ in calls] == ["search_experiments", "search_runs"] * len(populated)
    calls.clear()
    assert find_run(populated["slim 7"]).info.run_name == "slim 7"
    assert [name for name, _ in calls] == ["get_run"]


def test_the_beginning_of_several_ids_names_them(writer, monkeypatch):
    ids = [f"abcd{number:028x}" for number in range(2)]
    remaining = iter(ids)
    monkeypatch.setattr(sqlalchemy_store, "uuid",
                        SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(remaining))))
    for name in ("slim 7", "slim 8"):
        writer.run(name)
    with pytest.raises(ValueError, match=rf"'abcd' fits {ids[1]} \(slim 8\), {ids[0]} \(slim 7\)$"):
        find_run("abcd")
    assert find_run(ids[0][:-1] + "0").info.run_name == "slim 7"


@pytest.mark.parametrize(("read", "argument"), [(find_run, "0" * 32), (find_run, "0000"),
                                                (runs, "nobody's")])
def test_what_is_not_there_is_said_without_the_stores_password(populated, store_uri, monkeypatch,
        read, argument):
    for module in (runs.__globals__, search.__dict__):
        monkeypatch.setitem(module, "open_client", lambda: MlflowClient(store_uri))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://ann:secret@db/mlflow")
    with pytest.raises(ValueError, match="in postgresql://…@db/mlflow(; `wua runs` lists them)?$"):
        read(argument)


def test_looks_at_a_test_set(populated, monkeypatch):
    """A pair is a look once, and another margin or order is another; a tag has room for so many."""
    client = MlflowClient()
    assert count_looks(client, "d1") == 3
    assert count_looks(client, "d1", besides=populated["slim 6"]) == 2
    assert count_looks(client, "d2") == 0
    first, second = (client.create_experiment(name) for name in ("first", "second"))
    for experiment in (first, first, second):
        record_pair(client, experiment, "d1", ("a", "b"), look_of(0.02, 0.95))
    assert count_looks(client, "d1") == 4
    record_pair(client, first, "d1", ("a", "b"), look_of(0.03, 0.95))
    record_pair(client, first, "d1", ("b", "a"), look_of(0.02, 0.95))
    assert count_looks(client, "d1") == 6
    # the package has a function of that name, too
    monkeypatch.setattr(importlib.import_module("wua_mlflow.tracking.runs"), "_MOST", 3)
    for number in range(5):
        record_pair(client, first, "d9", ("a", str(number)), "0.02 at 0.95")
    assert count_looks(client, "d9") == 3


CONTROL = "oversized-same-budget"


def _made(store, variant, *, epochs="5", train="done", **tags):
    run_id = new_run(store, variant, {f"wua.{name}": value for name, value in {
        "kind": "variant", "variant": variant, "step.train": train, **tags}.items()})
    store.client.log_param(run_id, "epochs", epochs)
    store.client.set_terminated(run_id)
    return run_id


def test_a_control_has_the_same_original_the_same_budget_and_is_trained(store_uri):
    store = connect("lineage")
    _made(store, CONTROL, baseline="b", epochs="5")
    _made(store, CONTROL, baseline="a", epochs="6")
    _made(store, CONTROL, baseline="a", epochs="5", train="failed")
    _made(store, "slim", baseline="a", epochs="5")
    assert find_control(store.client, store.experiment_id, "a", 5) is None
    control = _made(store, CONTROL, baseline="a", epochs="5")
    assert find_control(store.client, store.experiment_id, "a", 5) == control


def test_the_controls_of_a_slim_one_and_the_result_of_a_pipeline_are_as_noted(store_uri):
    store = connect("lineage")
    first, second = (_made(store, CONTROL, baseline="a") for _ in range(2))

    def controls(**tags):
        return controls_of(store.client, store.experiment_id, _made(store, "slim", **tags))

    assert controls(baseline="a", controls=f"{first},{second}") == [first, second]
    store.client.delete_run(first)
    for named in ({"controls": f"{first},{second}"}, {"controls": f"{'0' * 32},{second}"}, {}):
        assert controls(baseline="a", **named) == [second]
    assert controls(baseline="b") == []
    with ended(store, new_run(store, "pipeline", {"wua.kind": "pipeline"})) as pipeline:
        assert result_of(store.client, pipeline) is None
        store.client.set_tag(pipeline, "wua.result", "r")
        assert result_of(store.client, pipeline) == "r"
