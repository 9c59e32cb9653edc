"""Every mistake that a user can make: one line, an exit code, runs that end as FAILED."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from wua_mlflow.cli import main

PARTS = '''
import sys
import numpy as np
import torch
from torch import nn

number = 3

class Net(nn.Module):
    def __init__(self, widths, forward):
        super().__init__()
        self.a, self.b = nn.Linear(2, widths[0]), nn.Linear(widths[0], 1)
        self.how = forward
    def forward(self, x):
        return self.how(self.b(self.a(x)))

def fine(widths): return Net(widths, lambda z: z)
def nan(widths): return Net(widths, lambda z: z * float("nan"))
def squeezed(widths): return Net(widths, lambda z: z[:, 0])
def pair(widths): return Net(widths, lambda z: (z, z))
def ignoring(widths): return nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1))
def raising(widths): raise RuntimeError("of the\\nfactory")
def exiting(widths): sys.exit(0)
def nothing(widths): return None
def no_arguments(): return None
def two_widths(widths): return nn.Linear(widths[0], widths[1])
def other_inputs(widths): return nn.Sequential(nn.Linear(3, widths[0]), nn.Linear(widths[0], 1))
def other_outputs(widths): return nn.Sequential(nn.Linear(2, widths[0]), nn.Linear(widths[0], 2))
def normed(widths):
    return nn.Sequential(nn.Linear(2, widths[0]), nn.BatchNorm1d(widths[0]),
                         nn.Linear(widths[0], 1))
def nan_if_slim(widths): return nan(widths) if widths[0] == 3 else fine(widths)
class Branching(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.a, self.b = nn.Linear(2, widths[0]), nn.Linear(widths[0], 1)
    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else self.b(-self.a(x))
def branching(widths): return Branching(widths)

def keep(model, data, budget, seed): return model
def trainer_raises(model, data, budget, seed): raise ValueError("of the\\ntrainer")
def trainer_exits(model, data, budget, seed): sys.exit("done")
def trainer_returns_none(model, data, budget, seed): pass
def trainer_of_one(model): return model
def trainer_of_another(model, data, budget, seed): return nn.Linear(2, 1)
def trainer_wraps(model, data, budget, seed):
    wrapped = nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 1), nn.Sigmoid())
    wrapped.a, wrapped.b = wrapped[0], wrapped[1]
    return wrapped
def trainer_to_nan(model, data, budget, seed):
    with torch.no_grad():
        model.a.weight.fill_(float("nan"))
    return model

def data(seed):
    draw = np.random.default_rng(seed)
    def part(n):
        x = draw.normal(size=(n, 2)).astype("float32")
        return x, (x.sum(1) > 0).astype("int64")
    return part(100), part(40), part(60)
def data_raises(seed): raise KeyError("of the data")
def data_exits(seed): sys.exit(3)
def data_of_two(seed): return data(seed)[:2]
def data_of_other_shapes(seed):
    train, validation, test = data(seed)
    return train, validation, (test[0][:, :1], test[1])
def data_with_nan(seed):
    train, validation, test = data(seed)
    train[0][4, 1] = float("nan")
    return train, validation, test
'''


def table(rows: int = 60, **columns: object) -> str:
    """A CSV file of three features and a target; a column may be given a value for one row."""
    draw = np.random.default_rng(0)
    values: dict[str, list[object]] = {name: [*draw.normal(size=rows).round(3)] for name in "abc"}
    values["y"] = ["yes" if sum(row) > 0 else "no"  # type: ignore[arg-type]
                   for row in zip(*values.values(), strict=True)]
    for name, value in columns.items():
        values[name][7] = value
    lines = [",".join(map(str, row)) for row in zip(*values.values(), strict=True)]
    return "\n".join([",".join(values), *lines]) + "\n"


@pytest.fixture
def here(store_uri: str, tmp_path: Path) -> Iterator[Path]:
    """A folder with the user's files in it."""
    (tmp_path / "bad_parts.py").write_text(PARTS)
    (tmp_path / "broken_syntax.py").write_text("def model(widths:\n")
    (tmp_path / "broken_import.py").write_text("import no_such_package\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b,y\n")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "good.csv").write_text(table())
    (tmp_path / "nan.csv").write_text(table(b="nan"))
    (tmp_path / "inf.csv").write_text(table(b="inf"))
    (tmp_path / "text.csv").write_text(table(b="lots"))
    (tmp_path / "no_target.csv").write_text(table(y=""))
    (tmp_path / "few.csv").write_text(table(12))
    (tmp_path / "rare.csv").write_text(table(y="maybe"))
    (tmp_path / "one_class.csv").write_text(re.sub("yes", "no", table()))
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    (tmp_path / "none.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "broken.yaml").write_text("epochs: [1\n")
    (tmp_path / "unknown.yaml").write_text("epohcs: 3\n")
    (tmp_path / "list.yaml").write_text("- epochs\n")
    (tmp_path / "nested.yaml").write_text("epochs: {a: 1}\n")
    (tmp_path / "folder.yaml").mkdir()
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("bad_parts", "broken_syntax", "broken_import", "exits"):
        sys.modules.pop(name, None)


def all_runs() -> list[Run]:
    client = MlflowClient()
    everywhere = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(everywhere, order_by=["attributes.start_time ASC"]))


def line_of(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line, without a traceback, and nothing on stdout."""
    assert main(words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("wua: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err.removeprefix("wua: ").rstrip("\n")


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
    ("--criterion entropy", "criterion: expected 'output' or 'magnitude', but got 'entropy'"),
    ("--width-method best", "width_method: expected 'effective', but got 'best'"),
    ("--optimizer adamw", "optimizer: expected 'adam' or 'sgd', but got 'adamw'"),
    ("--task classes", "task: expected 'binary', 'multiclass' or 'regression', but got 'classes'"),
    ("--device gpu", "device: expected cpu, auto, mps, cuda or cuda:N, but got 'gpu'"),
    ("--gate perhaps", "gate: expected true or false, but got 'perhaps'"),
    ("--config dgits", "config: expected a YAML file or one of breast_cancer, digits, usecase, but "
                       "got 'dgits' (did you mean 'digits'?)"),
    ("--config nowhere.yaml", "config: no such file: nowhere.yaml"),
    ("--config folder.yaml", "config: folder.yaml cannot be read: "),
    ("--config broken.yaml", "config: broken.yaml is not valid YAML: while parsing a flow"),
    ("--config list.yaml", "config: expected 'key: value' lines in list.yaml, but got a list"),
    ("--config nested.yaml", "epochs: expected a whole number, but got {'a': 1}"),
    ("--config unknown.yaml", "epohcs: no such setting (did you mean 'epochs'?)"),
]


@pytest.mark.parametrize(("words", "message"), SETTINGS, ids=[words for words, _ in SETTINGS])
def test_a_wrong_setting_starts_nothing(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line_of(["run", *words.split()], 2, capsys).startswith(message)
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
    ("one_class.csv --target y", "target: expected at least two different values .* all are 'no'"),
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


@pytest.mark.parametrize(("words", "message"), DATA, ids=[words for words, _ in DATA])
def test_wrong_data_fail_the_pipeline(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(["run", "--seeds", "1", "--data", *words.split()], 1, capsys)
    assert re.match(message, line), line
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["wua.kind"]) == ("FAILED", "pipeline")
    assert run.data.tags["wua.error"] in (line, "SystemExit: 3")


EARLY = [
    ("--model resnet", "model: expected mlp, cnn or package.module:factory, but got 'resnet'"),
    ("--model mpl", "model: expected mlp, cnn or .*, but got 'mpl'; did you mean 'mlp'"),
    ("--model no_such:model", "model: expected a module in the current folder .* 'no_such'"),
    ("--model bad_parts:fin", "model: expected a name in the module bad_parts .* 'fine'"),
    ("--model bad_parts:number", "model: expected bad_parts:number to be a function or a class"),
    ("--model bad_parts.fine:", "model: expected package.module:name, .* but got"),
    ("--model broken_syntax:model", "model: expected to import broken_syntax, .* SyntaxError"),
    ("--model broken_import:model", "model: expected to import broken_import, .*'no_such_package'"),
    ("--model exits:model", "model: expected to import exits, but it raised SystemExit"),
    ("--model bad_parts:ignoring", "model: expected a factory that builds the widths it is given, "
                                   "but width 1 of 1 \\(10\\) changes no layer"),
    ("--model bad_parts:raising", "model: bad_parts:raising failed with the widths 10: "
                                  "RuntimeError: of the factory$"),
    ("--model bad_parts:exiting", "model: bad_parts:exiting failed with the widths 10: SystemExit"),
    ("--model bad_parts:two_widths", "model: bad_parts:two_widths failed with the widths 10: "
                                     "IndexError: tuple index out of range"),
    ("--model bad_parts:no_arguments", "model: bad_parts:no_arguments failed with the widths 10: "
                                       "TypeError: no_arguments\\(\\) takes 0 positional"),
    ("--model bad_parts:nothing", "model: expected bad_parts:nothing to return a torch.nn.Module, "
                                  "but it returned NoneType"),
    ("--hidden 100000000000", "hidden: no mlp of the widths 100000000000 can be made: "),
    ("--slim-hidden 12", "slim_hidden: expected widths of at most the original's \\(10\\), but got "
                         "12"),
    ("--slim-hidden 10", "slim_hidden: expected at least one width below the original's \\(10\\)"),
    ("--slim-hidden 5,5", "slim_hidden: expected 1 widths, as the original has \\(10\\), but got "
                          "2 \\(5,5\\)"),
    ("--train no_such:trainer", "train: expected a module in the current folder .* 'no_such'"),
    ("--train bad_parts:number", "train: expected bad_parts:number to be a function or a class"),
    ("--threads 100000000", "threads: expected at most 1024, but got 100000000"),
    ("--device cuda:77", "device: cuda:77 cannot be used here: "),
]


@pytest.mark.parametrize(("words", "message"), EARLY, ids=[words for words, _ in EARLY])
def test_what_can_be_known_before_training_fails_before(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(["run", "--seeds", "1", *words.split()], 1, capsys)
    assert re.match(message, line), line
    (run,) = all_runs()
    assert (run.info.status, run.data.tags["wua.kind"]) == ("FAILED", "pipeline")
    assert run.data.tags["wua.error"] == line


FINE = "--model bad_parts:fine"
TRAINING = [
    ("--lr 1e30", "training: the outputs became NaN or infinite in epoch 2; a smaller learning "
                  "rate than lr=1e\\+30 may help"),
    (f"{FINE} --lr 1e30", "training: the loss became nan in epoch [23]; a smaller"),
    ("--model bad_parts:nan", "training: the loss became nan in epoch 1; a smaller"),
    ("--model bad_parts:other_inputs", "model: does not take the data's inputs of shape "
                                       "\\(batch, 2\\): mat1 and mat2 shapes"),
    ("--model bad_parts:other_outputs", "model: expected outputs of shape \\(batch, 1\\) for this "
                                        "binary task, but got \\(batch, 2\\)"),
    ("--model bad_parts:squeezed", "model: expected outputs of shape \\(batch, 1\\) for this "
                                   "binary task, but got \\(batch,\\)"),
    ("--model bad_parts:pair", "model: expected outputs of shape \\(batch, 1\\) .* got tuple"),
    ("--model bad_parts:normed --batch-size 333", "model: bad_parts:normed cannot be trained with "
                                                  "batch_size=333: ValueError: Expected more than"),
    ("--model bad_parts:branching", "model: torch.export cannot save it as pt2: "),
    (f"{FINE} --train bad_parts:trainer_raises", "train: bad_parts:trainer_raises failed: "
                                                 "ValueError: of the trainer$"),
    (f"{FINE} --train bad_parts:trainer_exits", "train: bad_parts:trainer_exits failed: "
                                                "SystemExit: done$"),
    (f"{FINE} --train bad_parts:trainer_of_one", "train: bad_parts:trainer_of_one failed: "
                                                 "TypeError: trainer_of_one\\(\\) takes 1"),
    (f"{FINE} --train bad_parts:trainer_returns_none", "train: expected .* to return the trained "
                                                       "torch.nn.Module, but it returned NoneType"),
    (f"{FINE} --train bad_parts:trainer_of_another", "train: expected .* to return the network it "
                                                     "was given, .* one of other parameters: "),
    (f"{FINE} --train bad_parts:trainer_wraps", "train: expected .* to return the network it was "
                                                "given, .* one of other parameters: "),
    (f"{FINE} --train bad_parts:trainer_to_nan", "model: expected finite outputs, but got NaN"),
]


@pytest.mark.parametrize(("words", "message"), TRAINING, ids=[words for words, _ in TRAINING])
def test_training_that_fails_fails_variant_and_pipeline(
    words: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(["run", "--seeds", "1", "--epochs", "4", *words.split()], 1, capsys)
    assert re.match(message, line), line
    pipeline, variant = all_runs()
    assert [run.data.tags["wua.kind"] for run in (pipeline, variant)] == ["pipeline", "variant"]
    for run in (pipeline, variant):
        assert run.info.status == "FAILED"
        assert line.startswith(run.data.tags["wua.error"][:490])
    assert variant.data.tags["wua.step.train"] == "failed"
    assert pipeline.info.run_name == "usecase 10"


def test_a_replicate_that_diverges_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wua_mlflow.pipeline import recipe

    real = recipe.train_one

    def second_fails(*args: object, **kwargs: int) -> object:
        if kwargs["seed"] == 43:
            raise recipe.TrainingDiverged("training: the loss became nan in epoch 9")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe, "train_one", second_fails)
    line = line_of(["train", "--seeds", "3", "--epochs", "1"], 1, capsys)
    assert line == "training: the loss became nan in epoch 9 (in replicate 1, seed 43)"
    (variant,) = all_runs()
    assert (variant.info.status, variant.data.tags["wua.error"]) == ("FAILED", line)


def test_a_pipeline_that_fails_half_way_keeps_what_was_done(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--data", "bad_parts:data", "--hidden", "6", "--slim-hidden", "3", "--seeds",
             "1", "--epochs", "2", "--slim-epochs", "1", "--null-draws", "1", "--model",
             "bad_parts:nan_if_slim"]
    line = line_of(words, 1, capsys)
    assert line.startswith("training: the loss became nan in epoch 1")
    pipeline, oversized, control, slim = all_runs()
    assert [run.info.status for run in (oversized, control, slim, pipeline)] == [
        "FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert oversized.data.tags["wua.step.train"] == oversized.data.tags["wua.step.analyze"] == \
        control.data.tags["wua.step.train"] == "done"
    assert slim.data.tags["wua.step.train"] == "failed"
    assert slim.data.tags["wua.error"] == pipeline.data.tags["wua.error"] == line
    assert "wua.verdict" not in pipeline.data.tags


def test_nothing_narrower_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--hidden", "1", "--seeds", "1", "--epochs", "1", "--null-draws", "0"]
    assert line_of(words, 1, capsys) == (
        "slim_hidden: auto found no width below the original's (1); name smaller ones, if any")
    assert sorted(run.info.status for run in all_runs()) == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("command", ["analyze", "slim", "compare"])
@pytest.mark.parametrize(("run_id", "message"), [
    ("nope", "run_id: no run has the id 'nope' in this store|run_id: no run has the id 'nope'"),
    ("f" * 32, f"run_id: no run has the id '{'f' * 32}' in this store; `wua runs` lists them"),
    ("abcd", "run_id: no run's id begins with 'abcd'"),
    ("../mlruns", "run_id: no run has the id '../mlruns'"),
])
def test_an_unknown_run(
    command: str, run_id: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of([command, "--run-id", run_id], 1, capsys)
    assert re.match(message, line), line
    assert all_runs() == []


@pytest.mark.parametrize("command", ["analyze", "slim", "compare"])
def test_a_run_that_is_no_trained_variant(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["run", "--data", "bad_parts:data", "--hidden", "6", "--epochs", "2", "--seeds", "1",
          "--model", "bad_parts:nan"])
    capsys.readouterr()
    pipeline, variant = all_runs()
    ids = pipeline.info.run_id, variant.info.run_id
    assert line_of([command, "--run-id", ids[0]], 1, capsys) == (
        f"run_id: expected a variant's run, but {ids[0]} (bad_parts:data 6) is a pipeline's; "
        f"`wua runs` lists the variants")
    assert line_of([command, "--run-id", ids[1]], 1, capsys) == (
        f"run_id: expected a trained variant, but the training of {ids[1]} (oversized 6) is failed")
    other = MlflowClient().create_run("0", run_name="of another tool").info.run_id
    MlflowClient().set_terminated(other)
    assert line_of([command, "--run-id", other], 1, capsys) == (
        f"run_id: expected a variant's run, but {other} (of another tool) was not made by wua; "
        f"`wua runs` lists the variants")


def test_steps_of_a_variant_that_cannot_be_taken(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "good.csv", "--target", "y", "--hidden", "6", "--epochs", "2",
                 "--seeds", "1", "--model", "mlp"]) == 0
    capsys.readouterr()
    (variant,) = all_runs()
    run_id = variant.info.run_id
    assert line_of(["compare", "--run-id", run_id], 1, capsys).startswith(
        f"run_id: {run_id} is oversized 6, which has no original to be compared with")
    assert line_of(["slim", "--run-id", run_id, "--slim-hidden", "9"], 1, capsys) == (
        "slim_hidden: expected widths of at most the original's (6), but got 9")
    (here / "good.csv").write_text(table(61))
    assert line_of(["analyze", "--run-id", run_id], 1, capsys).endswith(
        f"good.csv has changed since run {run_id} was made: the test part's digest differs")
    (here / "good.csv").unlink()
    assert "does not exist" in line_of(["analyze", "--run-id", run_id], 1, capsys)
    (again,) = all_runs()
    assert again.info.status == "FINISHED"


def test_a_factory_that_has_changed_since(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "bad_parts:fine", "--epochs", "1", "--seeds", "1"]) == 0
    capsys.readouterr()
    (variant,) = all_runs()
    sys.modules["bad_parts"].fine = sys.modules["bad_parts"].ignoring  # type: ignore[attr-defined]
    line = line_of(["analyze", "--run-id", variant.info.run_id], 1, capsys)
    assert line.startswith("model: bad_parts:fine builds another network now than when run "
                           f"{variant.info.run_id} was made: ")


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
