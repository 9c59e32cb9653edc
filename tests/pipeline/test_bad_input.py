"""Wrong settings, data, runs and stores: one line, an exit code, runs that end as FAILED."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests import mistakes
from tests.mistakes import all_runs, line_of, table
from wua_mlflow.cli.main import main

here = mistakes.here


SETTINGS = [
    ("--epochs -1", "epochs: expected a whole number of at least 1, but got '-1'"),
    ("--epochs 0", "epochs: expected a whole number of at least 1, but got '0'"),
    ("--epochs abc", "epochs: expected a whole number, but got 'abc'"),
    ("--epochs nan", "epochs: expected a whole number, but got 'nan'"),
    ("--epochs 2.5", "epochs: expected a whole number, but got '2.5'"),
    ("--lr 0", "lr: expected a number above 0, but got '0'"),
    ("--lr nan", "lr: expected a number above 0, but got 'nan'"),
    ("--lr inf", "lr: expected a number above 0, but got 'inf'"),
    ("--lr -1", "lr: expected a number above 0, but got '-1'"),
    ("--hidden 0", "hidden: expected whole numbers of at least 1, e.g. 64,32, but got '0'"),
    ("--hidden 8,nan", "hidden: expected whole numbers of at least 1, e.g. 64,32, but got '8,nan'"),
    ("--hidden -8", "hidden: expected whole numbers of at least 1, e.g. 64,32, but got '-8'"),
    ("--slim-hidden few",
     "slim_hidden: expected auto, or whole numbers of at least 1, e.g. 40,20, but got 'few'"),
    ("--batch-size 0", "batch_size: expected full, or a whole number of at least 1, but got '0'"),
    ("--seeds 0", "seeds: expected a whole number of at least 1, but got '0'"),
    ("--seed -1", "seed: expected a whole number of at least 0, but got '-1'"),
    ("--seed 4294967296", "seed: expected a number below 4294967296, but got '4294967296'"),
    ("--margin nan", "margin: expected a number of at least 0 and below 1, but got 'nan'"),
    ("--margin -0.1", "margin: expected a number of at least 0 and below 1, but got '-0.1'"),
    ("--margin 2", "margin: expected a number of at least 0 and below 1, but got '2'"),
    ("--confidence 0", "confidence: expected a number above 0 and below 1, but got '0'"),
    ("--confidence 95", "confidence: expected a number above 0 and below 1, but got '95'"),
    ("--patience 0", "patience: expected a whole number of at least 1, but got '0'"),
    ("--null-draws -1", "null_draws: expected a whole number of at least 0, but got '-1'"),
    ("--threads 0", "threads: expected a whole number of at least 1, but got '0'"),
    ("--criterion entropy", "criterion: expected output, input, wanda, magnitude, taylor, "
                            "package.module:function, or several of them, each once, but got "
                            "'entropy'"),
    ("--width-method best", "width_method: expected 'auto', 'effective', 'rank', "
                            "'projection', 'ablation' or 'search', "
                            "but got 'best'"),
    ("--optimizer adamw", "optimizer: expected 'adam' or 'sgd', but got 'adamw'"),
    ("--task classes", "task: expected 'binary', 'multiclass' or 'regression', but got 'classes'"),
    ("--device gpu", "device: expected cpu, auto, mps, cuda or cuda:N, but got 'gpu'"),
    ("--gate perhaps", "gate: expected true or false, but got 'perhaps'"),
    ("--config dgits", "config: expected a YAML file or one of breast_cancer, digits, usecase, but "
                       "got 'dgits'; did you mean 'digits'?"),
    ("--config nowhere.yaml", "config: no such file: nowhere.yaml"),
    ("--config folder.yaml", "config: folder.yaml cannot be read: "),
    ("--config broken.yaml", "config: broken.yaml is not valid YAML: while parsing a flow"),
    ("--config list.yaml", "config: expected 'key: value' lines in list.yaml, but got a list"),
    ("--config nested.yaml", "epochs: expected a whole number, but got {'a': 1}"),
    ("--config unknown.yaml", "epohcs: no such setting; did you mean 'epochs'?"),
]


def test_a_wrong_setting_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in SETTINGS:
        line = line_of(["run", *words.split()], 2, capsys)
        assert line.startswith(message), words
    assert all_runs() == []


DATA = [
    ("nowhere.csv", "data: expected a file, but 'nowhere.csv' does not exist"),
    ("folder.csv", "data: expected a file, but 'folder.csv' is a folder"),
    ("digitz", "data: expected one of usecase, digits, .* but got 'digitz'; did you mean 'digits'"),
    ("empty.csv", "data: expected rows in empty.csv, but the file is empty"),
    ("header.csv", "data: expected rows in header.csv, but it has only a header"),
    ("binary.csv", "data: could not read binary.csv: "),
    ("none.parquet", "data: could not read none.parquet: "),
    ("none.npz", "data: .*none.npz"),
    ("good.csv", "target: expected a column of good.csv, which has 'a', 'b', 'c', 'y', but got "
                 "none"),
    ("good.csv --target z", "target: expected a column of good.csv, which has .*, but got 'z'"),
    ("nan.csv --target y", "data: expected finite numbers, but column 'b' of nan.csv has NaN in 1 "
                           "of 60 rows"),
    ("inf.csv --target y", "data: expected finite numbers, but column 'b' of inf.csv has infinity"),
    ("text.csv --target y", "data: expected numbers, but column 'b' of text.csv has text in 1 of "
                            "60 rows, such as 'lots'"),
    ("no_target.csv --target y", "target: expected a value in every row, but column 'y' of "
                                 "no_target.csv has none in 1 of 60 rows"),
    ("few.csv --target y", "data: expected at least 20 rows to make three parts of, but got 12"),
    ("rare.csv --target y", "target: expected at least 10 rows of each class .* class 'maybe' has "
                            "1"),
    ("one_class.csv --target y", "target: expected at least two different values, .* all are 'no'"),
    ("diabetes --task binary", "task: binary expected two classes, but the target has"),
    ("good.csv --target y --task regression", "target: expected numbers in a regression"),
    ("good.csv --target y --model cnn", "data: expected images, .* shape \\(3,\\)"),
    ("digits --target y", "target: expected none beside data 'digits', but got 'y'"),
    ("no_such:data", "data: expected a module in the current folder or among .* 'no_such'"),
    ("bad_parts:dada", "data: expected a name in the module bad_parts .* did you mean 'data'"),
    ("bad_parts:data_raises", "data: expected data from bad_parts:data_raises, but got KeyError: "
                              "'of the data'"),
    ("bad_parts:data_exits", "RuntimeError: sys.exit\\(3\\) was called on the way"),
    ("bad_parts:data_of_two", "data: expected bad_parts:data_of_two to return \\(train, "
                              "validation, test\\), but got 2 parts"),
    ("bad_parts:data_of_other_shapes", "data: expected inputs of shape \\(2,\\) in test, as in "
                                       "train, but got \\(1,\\)"),
    ("bad_parts:data_with_nan", "data: expected finite numbers, but the inputs of train has NaN"),
]


def test_wrong_data_fail_the_pipeline(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for words, message in DATA:
        lines.append(line_of(["run", "--seeds", "1", "--data", *words.split()], 1, capsys))
        assert re.match(message, lines[-1]), (words, lines[-1])
    runs = all_runs()
    assert [run.info.status for run in runs] == ["FAILED"] * len(DATA)
    for run, line in zip(runs, lines, strict=True):
        assert run.data.tags["wua.kind"] == "pipeline"
        assert run.data.tags["wua.error"] in (line, "SystemExit: 3")


@pytest.mark.parametrize("command", ["analyze", "slim", "compare"])
def test_an_unknown_run(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id, message in [
        ("nope", "run_id: no run has the id 'nope'"),
        ("f" * 32, f"run_id: no run has the id '{'f' * 32}' in this store; `wua runs` lists them"),
        ("abcd", "run_id: no run's id begins with 'abcd'"),
        ("../mlruns", "run_id: no run has the id '../mlruns'"),
    ]:
        line = line_of([command, "--run-id", run_id], 1, capsys)
        assert line.startswith(message), line
    assert all_runs() == []


def test_a_run_that_is_no_trained_variant(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--data", "bad_parts:data", "--hidden", "6", "--epochs", "2", "--seeds", "1",
          "--model", "bad_parts:nan"])
    capsys.readouterr()
    pipeline, variant = all_runs()
    other = MlflowClient().create_run("0", run_name="of another tool").info.run_id
    MlflowClient().set_terminated(other)
    ids = pipeline.info.run_id, variant.info.run_id
    for command in ("analyze", "slim", "compare"):
        assert line_of([command, "--run-id", ids[0]], 1, capsys) == (
            f"run_id: expected a variant's run, but {ids[0]} (bad_parts:data 6) is a pipeline's; "
            f"`wua runs` lists the variants")
        assert line_of([command, "--run-id", ids[1]], 1, capsys) == (
            f"run_id: expected a trained variant, but the training of {ids[1]} (oversized 6) is "
            f"failed")
        assert line_of([command, "--run-id", other], 1, capsys) == (
            f"run_id: expected a variant's run, but {other} (of another tool) was not made by "
            f"wua; `wua runs` lists the variants")


def test_steps_of_a_variant_that_cannot_be_taken(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "good.csv", "--target", "y", "--hidden", "6", "--epochs", "2",
                 "--seeds", "1", "--model", "mlp"]) == 0
    capsys.readouterr()
    (variant,) = all_runs()
    run_id = variant.info.run_id
    assert line_of(["compare", "--run-id", run_id], 1, capsys).startswith(
        f"run_id: expected the run of a slim variant, but {run_id} is oversized 6")
    assert line_of(["slim", "--run-id", run_id, "--slim-hidden", "9", "--margin", "0.2"], 1,
                   capsys) == (
        "slim_hidden: expected widths of at most the original's (6), but got 9")
    (here / "good.csv").write_text(table(61))
    assert line_of(["analyze", "--run-id", run_id], 1, capsys).endswith(
        f"good.csv has changed since run {run_id} was made: the test part's digest differs")
    (here / "good.csv").unlink()
    assert "does not exist" in line_of(["analyze", "--run-id", run_id], 1, capsys)
    (again,) = all_runs()
    assert again.info.status == "FINISHED"


def test_a_deleted_experiment(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = MlflowClient()
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    line = line_of(["run", "--experiment", "gone"], 1, capsys)
    assert line == (f"experiment: 'gone' is deleted; bring it back with `mlflow experiments "
                    f"restore -x {number}`, or name another one")
    assert line_of(["runs", "--experiment", "gone"], 1, capsys) == "experiment: 'gone' is deleted"
    line = line_of(["runs", "--experiment", "wau"], 1, capsys)
    assert line.startswith("experiment: ")
    assert "'wau'" in line


@pytest.mark.parametrize("words", [["run"], ["runs"], ["best"], ["analyze", "--run-id", "abcd"],
                                   ["compare", "abcd", "dcba"]])
def test_no_tracking_server(
    words: list[str], here: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Said after one attempt; MLflow alone would go on trying for minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    assert line_of(words, 1, capsys) == (
        "MLFLOW_TRACKING_URI: expected a tracking server at http://…@127.0.0.1:1, but none answers "
        "there: ConnectionError")


@pytest.mark.parametrize(("uri", "message"), [
    ("sqlite:////dev/null/mlflow.db", "MLFLOW_TRACKING_URI: expected a store that can be opened, "
                                      "but sqlite:////dev/null/mlflow.db cannot: "),
    ("sqlite:///junk.db", "sqlite:///junk.db: DatabaseError: (sqlite3.DatabaseError) file is not "
                          "a database"),
    ("sqlite:///file:mlflow.db?mode=ro&uri=true", "attempt to write a readonly database"),
    ("nowhere://", "nowhere://: UnsupportedModelRegistryStoreURIException: "),
])
def test_a_store_that_cannot_be_written(
    uri: str, message: str, here: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    (here / "junk.db").write_text("no database\n" * 99)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    line = line_of(["run", "--seeds", "1", "--epochs", "1"], 1, capsys)
    assert message in line
    assert "[SQL:" not in line
    mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")
    assert all_runs() == []
