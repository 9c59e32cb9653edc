"""Wrong settings, data, models, trainers, runs and stores: one line, an exit code, FAILED runs."""

import json
import re
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from tests import mistakes
from tests.mistakes import all_runs, line_of, table
from tests.pipeline.slimming_cases import HERE, with_exports, without_exports
from wua_mlflow.cli.main import main

here = mistakes.here


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_exports(monkeypatch)


SETTINGS = [
    ("--lr -1", "lr: expected a number above 0, but got '-1'"),
    ("--seed 4294967296", "seed: expected a number below 4294967296, but got '4294967296'"),
    ("--task classes", "task: expected 'binary', 'multiclass', 'regression', 'multilabel', "),
    ("--config folder.yaml", "config: folder.yaml cannot be read: it is not a file"),
    ("--config nested.yaml", "epochs: expected a whole number, but got {'a': 1}"),
    ("--config unknown.yaml", "config: no such setting 'epohcs' in unknown.yaml; did you mean "
                              "'epochs'?"),
]


def test_a_wrong_setting_starts_nothing(here, capsys):
    for words, message in SETTINGS:
        assert line_of(["run", *words.split()], 2, capsys).startswith(message), words
    assert all_runs() == []


EARLY = [  # what can be known before training fails before
    ("--data nowhere.csv", "data: expected a file, but 'nowhere.csv' does not exist"),
    ("--data bad_parts:data_raises", "data: expected data from bad_parts:data_raises, but got "
                                     "KeyError: 'of the data'"),
    ("--data bad_parts:data_exits", "RuntimeError: sys.exit\\(3\\) was called on the way"),
    (f"--data {HERE}:one_class", "test data: expected examples of at least two classes, but all "),
    ("--model mpl", "model: expected mlp, cnn or package.module:factory, but got 'mpl'; did you "
                    "mean 'mlp'"),
    ("--model exits:model", "model: expected to import exits, but it raised SystemExit"),
    ("--model bad_parts:ignoring", "model: expected a factory that builds the widths it is given, "
                                   "but width 1 of 1 \\(10\\) changes no layer"),
    ("--model bad_parts:raising", "model: bad_parts:raising failed with the widths 10: "
                                  "ValueError: of the factory$"),
    ("--model bad_parts:exiting", "model: bad_parts:exiting failed with the widths 10: SystemExit"),
    ("--model bad_parts:nothing", "model: expected bad_parts:nothing to return a torch.nn.Module, "
                                  "but it returned NoneType"),
    ("--hidden 100000000000", "hidden: no mlp of the widths 100000000000 can be made: "),
    ("--slim-hidden 12", "slim_hidden: expected widths of at most the original's \\(10\\), but got "
                         "12"),
    ("--train no_such:trainer", "train: expected a module in the current folder .* 'no_such'"),
]
FINE = "--model bad_parts:fine"
TRAINING = [
    ("--lr 1e30", "training: the outputs became NaN or infinite in epoch 2; a smaller learning "
                  "rate than lr=1e\\+30 may help"),
    ("--model bad_parts:other_inputs", "model: does not take the data's inputs of shape "
                                       "\\(batch, 2\\): mat1 and mat2 shapes"),
    ("--model bad_parts:other_outputs", "model: expected outputs of shape \\(batch, 1\\) for this "
                                        "binary task, but got \\(batch, 3\\)$"),
    ("--model bad_parts:pair", "model: expected outputs of shape \\(batch, 1\\) .* got tuple"),
    (f"{FINE} --train bad_parts:trainer_raises", "train: bad_parts:trainer_raises failed: "
                                                 "ValueError: of the trainer$"),
    (f"{FINE} --train bad_parts:trainer_to_nan", "model: expected finite outputs, but got NaN"),
]


def test_what_fails_fails_the_pipeline_and_the_variant_under_way(here, capsys):
    lines = []
    for words, message in EARLY + TRAINING:
        lines.append(line_of(["run", "--seeds", "1", "--epochs", "4", *words.split()], 1, capsys))
        assert re.match(message, lines[-1]), (words, lines[-1])
    runs = all_runs()
    assert [run.info.status for run in runs] == ["FAILED"] * (len(EARLY) + 2 * len(TRAINING))
    pipelines = [run for run in runs if run.data.tags["wua.kind"] == "pipeline"]
    for line, run in zip(lines, pipelines, strict=True):
        error = run.data.tags["wua.error"]
        assert error == "SystemExit: 3" or line.startswith(error[:490])
    variants = [run for run in runs if run.data.tags["wua.kind"] == "variant"]
    for pipeline, variant in zip(pipelines[len(EARLY):], variants, strict=True):
        assert variant.data.tags["wua.error"] == pipeline.data.tags["wua.error"]
        assert variant.data.tags["wua.step.train"] == "failed"
        assert pipeline.info.run_name == "usecase 10"


def test_a_pipeline_that_fails_half_way_keeps_what_was_done(here, capsys):
    words = ("run --data bad_parts:data --model bad_parts:nan_if_slim --hidden 6 --slim-hidden 3 "
             "--seeds 1 --epochs 2 --slim-epochs 1 --null-draws 1 --margin 0.2")
    line = line_of(words.split(), 1, capsys)
    assert line.startswith("training: the loss became nan in epoch 1")
    pipeline, oversized, control, slim = all_runs()
    assert [run.info.status for run in (oversized, control, slim, pipeline)] == [
        "FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert oversized.data.tags["wua.step.train"] == oversized.data.tags["wua.step.analyze"] == \
        control.data.tags["wua.step.train"] == "done"
    assert slim.data.tags["wua.step.train"] == "failed"
    assert slim.data.tags["wua.error"] == pipeline.data.tags["wua.error"] == line
    assert "wua.verdict" not in pipeline.data.tags


def test_nothing_narrower_is_found(here, capsys):
    words = "--hidden 1 --seeds 1 --epochs 1 --null-draws 0 --register narrow"
    reason = "The network has one unit in every layer; no width is below that."
    assert main(["run", *words.split()]) == 0
    assert capsys.readouterr() == (
        f"{reason}\nNot registered as 'narrow': there is no slim model.\n", "")
    pipeline, variant = all_runs()
    assert [run.info.status for run in (pipeline, variant)] == ["FINISHED", "FINISHED"]
    assert pipeline.data.tags["mlflow.note.content"] == f"**No narrower network.** {reason}"
    assert "wua.verdict" not in pipeline.data.tags
    assert main(["run", *words.split(), "--gate"]) == 4, "the question stays open"


def test_a_network_that_cannot_be_exported_is_still_a_variant(here, monkeypatch):
    with_exports(monkeypatch)
    assert main(["train", "--seeds", "1", "--epochs", "1", "--model", "bad_parts:branching"]) == 0
    (variant,) = all_runs()
    assert variant.data.tags["wua.unexported"].startswith(
        "model: torch.export cannot save it as pt2: ")
    assert main(["analyze", "--run-id", variant.info.run_id, "--null-draws", "0"]) == 0


def test_a_network_whose_layers_have_names_that_no_file_can_have(here):
    """Through training, the analysis and the cut; the table says what each layer is called."""
    words = ("--data bad_parts:data --hidden 3 --seeds 1 --epochs 1 --null-draws 0 --how prune "
             "--slim-hidden effective")
    assert main(["run", "--model", "bad_parts:odd", *words.split()]) == 0
    (variant, *_) = all_runs("variant")
    client, run_id = MlflowClient(), variant.info.run_id
    table = json.loads(Path(client.download_artifacts(run_id, "usage/layers.json")).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    names = [name for name, _ in sys.modules["bad_parts"].odd((3,)).named_children()][:-1]
    assert [row["layer"] for row in rows] == names
    assert {f"layers/{row['key']}/entropy" for row in rows} <= set(variant.data.metrics)


def test_a_factory_that_has_changed_since(here, capsys):
    assert main(["train", "--model", "bad_parts:fine", "--epochs", "1", "--seeds", "1"]) == 0
    capsys.readouterr()
    (variant,) = all_runs()
    sys.modules["bad_parts"].fine = sys.modules["bad_parts"].ignoring  # type: ignore[attr-defined]
    assert line_of(["analyze", "--run-id", variant.info.run_id], 1, capsys).startswith(
        f"model: bad_parts:fine builds another network now than when run {variant.info.run_id} was "
        "made: ")


def test_an_unknown_run(here, capsys):
    for command in ("analyze", "slim", "compare"):
        for run_id, message in (
            ("nope", "no run has the id 'nope'"),
            ("f" * 32, f"no run has the id '{'f' * 32}' in this store; `wua runs` lists them"),
            ("abcd", "no run's id begins with 'abcd'"),
            ("../mlruns", "no run has the id '../mlruns'"),
        ):
            line = line_of([command, "--run-id", run_id], 1, capsys)
            assert line.startswith(f"run_id: {message}")
    assert all_runs() == []


def test_a_run_that_is_no_trained_variant(here, capsys):
    main(["run", "--data", "bad_parts:data", "--hidden", "6", "--epochs", "2", "--seeds", "1",
          "--model", "bad_parts:nan"])
    capsys.readouterr()
    pipeline, variant = (run.info.run_id for run in all_runs())
    other = MlflowClient().create_run("0", run_name="of another tool").info.run_id
    MlflowClient().set_terminated(other)
    for command in ("analyze", "slim", "compare"):
        assert line_of([command, "--run-id", pipeline], 1, capsys) == (
            f"run_id: expected a variant's run, but {pipeline} (bad_parts:data 6) is a pipeline's; "
            f"`wua runs` lists the variants")
        assert line_of([command, "--run-id", variant], 1, capsys) == (
            f"run_id: expected a trained variant, but the training of {variant} (oversized 6) is "
            "failed")
        assert line_of([command, "--run-id", other], 1, capsys) == (
            f"run_id: expected a variant's run, but {other} (of another tool) was not made by "
            f"wua; `wua runs` lists the variants")


def test_data_that_have_changed_since(here, capsys):
    words = "train --data good.csv --target y --hidden 6 --epochs 2 --seeds 1 --model mlp"
    assert main(words.split()) == 0
    capsys.readouterr()
    run_id = all_runs()[0].info.run_id
    (here / "good.csv").write_text(table(61))
    assert line_of(["analyze", "--run-id", run_id], 1, capsys).endswith(
        f"good.csv has changed since run {run_id} was made: the test part's digest differs")
    (here / "good.csv").unlink()
    assert "does not exist" in line_of(["analyze", "--run-id", run_id], 1, capsys)
    assert [run.info.status for run in all_runs()] == ["FINISHED"]


def test_a_deleted_experiment(here, capsys):
    client = MlflowClient()
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    assert line_of(["run", "--experiment", "gone"], 1, capsys) == (
        f"experiment: 'gone' is deleted; bring it back with `mlflow experiments restore -x {number}"
        "`, or name another one")
    assert line_of(["runs", "--experiment", "gone"], 1, capsys) == "experiment: 'gone' is deleted"
    assert re.match("experiment: .*'wau'", line_of(["runs", "--experiment", "wau"], 1, capsys))


def test_no_tracking_server(here, monkeypatch, capsys):
    """Said after one attempt; MLflow alone would go on trying for minutes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    for words in ("run", "runs", "compare abcd dcba"):
        assert line_of(words.split(), 1, capsys) == (
            "MLFLOW_TRACKING_URI: expected a tracking server at http://…@127.0.0.1:1, but none "
            "answers there: ConnectionError")


def test_a_store_that_cannot_be_written(here, monkeypatch, capsys):
    (here / "junk.db").write_text("no database\n" * 99)
    for uri, message in (
        ("sqlite:////dev/null/mlflow.db", "MLFLOW_TRACKING_URI: expected a store that can be "
                                          "opened, but sqlite:////dev/null/mlflow.db cannot: "),
        ("sqlite:///junk.db", "sqlite:///junk.db: DatabaseError: (sqlite3.DatabaseError) file is "
                              "not a database"),
        ("sqlite:///file:mlflow.db?mode=ro&uri=true", "attempt to write a readonly database"),
        ("nowhere://", "MLFLOW_TRACKING_URI: expected an address that MLflow knows, but got "
                       "'nowhere://'; as in http://127.0.0.1:5000, "),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        line = line_of(["run", "--seeds", "1", "--epochs", "1"], 1, capsys)
        assert message in line
        assert "[SQL:" not in line
    mlflow.set_tracking_uri(f"sqlite:///{here / 'mlflow.db'}")
    assert all_runs() == []
