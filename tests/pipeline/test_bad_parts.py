"""Models and trainers that fail: one line, an exit code, runs that end as FAILED."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import mistakes
from tests.mistakes import all_runs, line_of
from wua_mlflow.cli.main import main
from wua_mlflow.pipeline import recipe
from wua_mlflow.training import fit

here = mistakes.here


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


def test_what_can_be_known_before_training_fails_before(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for words, message in EARLY:
        lines.append(line_of(["run", "--seeds", "1", *words.split()], 1, capsys))
        assert re.match(message, lines[-1]), (words, lines[-1])
    runs = all_runs()
    assert [(run.info.status, run.data.tags["wua.kind"]) for run in runs] == [
        ("FAILED", "pipeline")] * len(EARLY)
    assert [run.data.tags["wua.error"] for run in runs] == lines


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


def test_training_that_fails_fails_variant_and_pipeline(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for words, message in TRAINING:
        lines.append(line_of(["run", "--seeds", "1", "--epochs", "4", *words.split()], 1, capsys))
        assert re.match(message, lines[-1]), (words, lines[-1])
    runs = all_runs()
    for line, pipeline, variant in zip(lines, runs[::2], runs[1::2], strict=True):
        assert [run.data.tags["wua.kind"] for run in (pipeline, variant)] == ["pipeline", "variant"]
        for run in (pipeline, variant):
            assert run.info.status == "FAILED"
            assert line.startswith(run.data.tags["wua.error"][:490])
        assert variant.data.tags["wua.step.train"] == "failed"
        assert pipeline.info.run_name == "usecase 10"


def test_a_replicate_that_diverges_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wua_mlflow.pipeline import networks

    real = recipe.train_one

    def second_fails(*args: object, **kwargs: int) -> object:
        if kwargs["seed"] == 43:
            raise fit.TrainingDiverged("training: the loss became nan in epoch 9")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(networks, "train_one", second_fails)
    line = line_of(["train", "--seeds", "3", "--epochs", "1"], 1, capsys)
    assert line == "training: the loss became nan in epoch 9 (in replicate 1, seed 43)"
    (variant,) = all_runs()
    assert (variant.info.status, variant.data.tags["wua.error"]) == ("FAILED", line)


def test_a_pipeline_that_fails_half_way_keeps_what_was_done(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--data", "bad_parts:data", "--hidden", "6", "--slim-hidden", "3", "--seeds",
             "1", "--epochs", "2", "--slim-epochs", "1", "--null-draws", "1", "--margin", "0.2",
             "--model", "bad_parts:nan_if_slim"]
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
    words = ["run", "--hidden", "1", "--seeds", "1", "--epochs", "1", "--null-draws", "0",
             "--register", "narrow"]
    said = "The network has one unit in every layer; no width is below that."
    assert main(words) == 0
    assert capsys.readouterr() == (
        f"{said}\nNot registered as 'narrow': there is no slim model.\n", "")
    pipeline, variant = all_runs()
    assert [run.info.status for run in (pipeline, variant)] == ["FINISHED", "FINISHED"]
    assert pipeline.data.tags["mlflow.note.content"] == f"**No narrower network.** {said}"
    assert "wua.verdict" not in pipeline.data.tags
    assert main([*words, "--gate"]) == 4, "the question stays open"


def test_a_network_that_cannot_be_exported_is_kept_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--seeds", "1", "--epochs", "1", "--model", "bad_parts:branching"]) == 0
    (variant,) = all_runs()
    assert variant.data.tags["wua.unexported"].startswith(
        "model: torch.export cannot save it as pt2: ")
    said = capsys.readouterr().out.splitlines()
    assert main(["analyze", "--run-id", variant.info.run_id]) == 0, said


def test_a_factory_that_has_changed_since(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "bad_parts:fine", "--epochs", "1", "--seeds", "1"]) == 0
    capsys.readouterr()
    (variant,) = all_runs()
    sys.modules["bad_parts"].fine = sys.modules["bad_parts"].ignoring  # type: ignore[attr-defined]
    line = line_of(["analyze", "--run-id", variant.info.run_id], 1, capsys)
    assert line.startswith("model: bad_parts:fine builds another network now than when run "
                           f"{variant.info.run_id} was made: ")
