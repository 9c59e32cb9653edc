"""``wua analyze`` of a user's own model: what it prints, what it refuses, several processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file
from torch import multiprocessing

from tests.mistakes import all_runs, line_of
from wua_mlflow.cli.main import main

PARTS = '''
import os
import torch
from torch import nn

number = 3

class Net(nn.Module):
    def __init__(self, first=5):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, first), nn.Linear(first, 4), nn.Linear(4, 3)
    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

def net(): return Net()
def raising(): raise RuntimeError("of the\\nfactory")
def nothing(): pass
def of_two(a, b): return Net()
def in_the_second():
    if os.environ.get("RANK") == "1":
        raise RuntimeError("only here")
    return Net()

def pairs(seed): return [(torch.rand(8, 6), torch.randint(3, (8,))) for _ in range(7)]
def inputs(seed): return [x for x, _ in pairs(seed)]
def generated(seed): return iter(inputs(seed))
def wrong(seed): return [torch.rand(8, 5)]
def nan(seed): return [torch.rand(8, 6), torch.full((8, 6), float("nan"))]
def none(seed): pass
def cross_entropy(outputs, targets): return nn.functional.cross_entropy(outputs, targets)
def bad_loss(outputs, targets): return outputs.logits
def of_outputs(outputs, targets): return outputs
def squares(weight): return weight ** 2
def greedy(weight, hessian): return weight ** 2
def failing(weight): return weight / {}["none"]
def failing_reader(batch): return {}["x"]
'''
OWN = ["analyze", "--model", "own_parts:net", "--data", "own_parts:pairs", "--null-draws", "0"]


@pytest.fixture
def here(store_uri, tmp_path):
    (tmp_path / "own_parts.py").write_text(PARTS)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_parts", None)


def table_of(run: Run, name: str = "layers") -> dict:
    path = MlflowClient().download_artifacts(run.info.run_id, f"usage/{name}.json")
    return json.loads(Path(path).read_text())


def test_it_prints_the_table_and_the_run(here, capsys):
    assert main([*OWN, "--criterion", "magnitude,own_parts:squares"]) == 0
    printed = capsys.readouterr()
    (run,) = all_runs()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert re.fullmatch(rf"net: [\d.]+ effective weights of 50; run {run.info.run_id}", lines[0])
    assert re.split(r"  +", lines[1]) == ["layer", "kind", "weights", "units", "effective", "share",
                                          "dead units", "entropy", "rank", "FLOPs, one sample"]
    assert [line.split()[0] for line in (*lines[2:4], lines[5])] == ["a", "b", "all"]
    assert lines[6] == ("  not in this table: 24 of the model's 74 parameters "
                        "(biases, norms, what is named below)")
    assert lines[7] == "  c: not analysed: the output layer: its units are the model's outputs"
    assert re.fullmatch(r"squares: [\d.]+ effective weights of 50; usage/layers_squares.json",
                        lines[8])
    assert len(lines) == 9
    assert run.data.metrics["params/analyzed"] == 50
    assert table_of(run)["data"][0][table_of(run)["columns"].index("effective_rank")] > 1


def test_a_configuration_names_the_model_too(here, capsys):
    (here / "mine.yaml").write_text("model: own_parts:Net\ndata: own_parts:pairs\nhidden: 7\n"
                                    "null_draws: 0\n")
    (here / "own_parts.py").write_text(PARTS.replace("first=5", "widths=(5,)").replace(
        "super()", "first, = widths; super()"))
    assert main(["analyze", "--config", "mine.yaml"]) == 0
    assert capsys.readouterr().out.startswith("oversized 7: ")
    assert main(["analyze", "--config", "mine.yaml", "--hidden", "9"]) == 0
    assert capsys.readouterr().out.startswith("oversized 9: ")


WRONG = {
    "--run-id abc --layers a": "run_id: a variant is analysed with its own model and data, so "
                               "expected nothing like layers beside it; ",
    "--run-id abc --model mlp": "run_id: a variant is analysed with its own model and data, so "
                                "expected nothing like model beside it; ",
    "--layers ,a": "layers: expected names among a, b, c, but got ''$",
    "--layers a,bb": "layers: expected names among a, b, c, but got 'bb'; did you mean 'b'\\?$",
    "--batch-to-inputs own_parts:frist": "batch_to_inputs: expected a name in the module own_parts",
    "--batch-to-inputs own_parts:failing_reader": "batch_to_inputs: own_parts:failing_reader "
                                                  "failed: KeyError: 'x'$",
    "--data digits": "run_id: expected the id of a variant's run, but got none; .* or name a "
                     "model: --model package.module:factory --data DATA$",
    "--model own_parts:raising": "model: own_parts:raising failed: RuntimeError: of the factory$",
    "--model own_parts:nothing": "model: expected own_parts:nothing to return a torch.nn.Module, "
                                 "but it returned NoneType$",
    "--model own_parts:of_two": "model: own_parts:of_two failed with the widths 64,32: TypeError",
    "--model own_parts:net --hidden 5": "model: own_parts:net failed with the widths 5: TypeError: "
                                        "net\\(\\) takes 0 positional",
    "--model own_parts:nett": "model: expected a name in the module own_parts .*'net'",
    "--model resnet": "model: expected mlp, cnn or package.module:factory, but got 'resnet'",
    "--state none.safetensors": "state: expected a .safetensors file, but 'none.safetensors' does "
                                "not exist$",
    "--state own_parts.py": "state: expected a .safetensors file, but 'own_parts.py' cannot be "
                            "read as one: ",
    "--state other.safetensors": "state: expected all tensors of the model, but "
                                 "'other.safetensors' has no 'b.bias' \\(and 2 more\\)$",
    "--state shape.safetensors": "state: expected 'a.weight' of shape \\(5, 6\\), as in the "
                                 "model, but 'shape.safetensors' has \\(4, 6\\)$",
    "--data own_parts:none": "data: expected own_parts:none to return batches .* but got NoneType$",
    "--data own_parts:wrong": "RuntimeError: mat1 and mat2 .* \\(in layer 'a', batch 0\\)$",
    "--data own_parts:nan": "layer a: expected a finite .* by batch 1, which is not finite itself$",
    "--data own_parts:generated --null-draws 1": "data: expected batches that can be gone over "
                                                 "again, ",
    "--data own_parts:pairs --target y": "target: expected none beside data 'own_parts:pairs'",
    "--criterion taylor": "loss: the criterion taylor needs a function of outputs and targets",
    "--criterion taylor --data own_parts:inputs --loss own_parts:cross_entropy":
        "data: the criterion taylor needs targets, but the batches are inputs alone; ",
    "--criterion taylor --loss nowhere:loss": "loss: expected a module in the current folder .* "
                                              "'nowhere'$",
    "--criterion taylor --loss own_parts:bad_loss": "loss: own_parts:bad_loss failed: "
                                                    "AttributeError: ",
    "--criterion taylor --loss own_parts:of_outputs": "loss: expected a scalar tensor",
    "--criterion own_parts:greedy": "criterion: expected a function of weight and some of ",
    "--criterion own_parts:failing": "layer a: criterion: own_parts:failing failed: KeyError: "
                                     "'none'$",
    "--criterion own_parts:number": "criterion: expected own_parts:number to be a function",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_one_line(words, here, capsys):
    tensors = {"a.weight": torch.ones(5, 6), "a.bias": torch.ones(5), "b.weight": torch.ones(4, 5)}
    save_file(tensors, "other.safetensors")
    save_file({**tensors, "a.weight": torch.ones(4, 6), "b.bias": torch.ones(4),
               "c.weight": torch.ones(3, 4), "c.bias": torch.ones(3)}, "shape.safetensors")
    arguments = ["analyze", *words.split()]
    if "--run-id" not in words and words != "--data digits":
        for option, value in (("--model", "own_parts:net"), ("--data", "own_parts:pairs"),
                              ("--null-draws", "0")):
            arguments += [] if option in arguments else [option, value]
    line = line_of(arguments, 2 if "--run-id" in words else 1, capsys)
    assert re.match(WRONG[words], line), line
    for run in all_runs():  # there is one only where the model had been made
        assert run.info.status == "FAILED"
        assert line.startswith(run.data.tags["wua.error"][:490])
        assert run.data.tags["wua.step.analyze"] == "failed"


def test_torchrun_is_for_analyze_alone(here, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1",
                        "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    assert line_of(["train"], 2, capsys) == ("train: expected one process, but torchrun started 2; "
                                             "several are for analyze alone")
    monkeypatch.setenv("RANK", "1")
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "", "the second process says nothing"
    assert all_runs() == []


Printed = tuple[int, str, str]
"""The exit code, the standard output and the standard error."""


def _process(rank: int, ports: list[int], commands: list[list[str]], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "TORCHELASTIC_RUN_ID": "none"}
    results: list[Printed] = []
    for port, words in zip(ports, commands, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        results.append((code, out.getvalue(), err.getvalue()))
    (folder / f"{rank}.json").write_text(json.dumps(results))


def in_two_processes(folder: Path, commands: list[list[str]]) -> list[list[Printed]]:
    """By command what each of two processes printed, in the environment that torchrun makes."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in commands]
        ports = [free.getsockname()[1] for free in sockets]
    multiprocessing.start_processes(  # a fork spares the second import of torch and mlflow
        _process, (ports, commands, folder), nprocs=2, start_method="fork")
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return [[tuple(printed) for printed in pair] for pair in zip(*results, strict=True)]


def frames_of(run: Run, *names: str) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame(table["data"], columns=table["columns"])
            for name, table in {name: table_of(run, name) for name in names}.items()}


def assert_close(frames, others):
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(frame, others[name], rtol=1e-6, atol=0)


def runs_in(experiment: str) -> list[Run]:
    client = MlflowClient()
    entry = client.get_experiment_by_name(experiment)
    return list(client.search_runs([entry.experiment_id])) if entry else []


@pytest.mark.slow
def test_two_processes(here, capsys, monkeypatch):
    """A model, a run, an error of one process before its run, and one on the way.

    The first process alone writes and prints, also an experiment that the store lacks.
    """
    assert main(["train", "--epochs", "2", "--seeds", "1"]) == 0
    (variant,) = all_runs()
    of_run = ["analyze", "--run-id", variant.info.run_id, "--criterion", "output,taylor",
              "--null-draws", "1"]
    of_model = [*OWN[:5], "--criterion", "output,input,wanda,magnitude,taylor", "--loss",
                "own_parts:cross_entropy", "--null-draws", "2", "--experiment"]
    # a database that this process has not opened: no connection is shared with the forks
    shutil.copy("mlflow.db", "of_two.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'of_two.db'}")
    mlflow.set_tracking_uri(None)
    model_printed, run_printed, not_made, not_finite = in_two_processes(here, [
        [*of_model, "two"], of_run,
        [*OWN[:2], "own_parts:in_the_second", *OWN[3:], "--experiment", "not made"],
        [*OWN[:4], "own_parts:nan", *OWN[5:], "--experiment", "not finite"]])

    assert main([*of_model, "one"]) == 0
    (alone,), (two,) = runs_in("one"), runs_in("two")
    (code, out, _), second = model_printed
    assert (code, second[:2]) == (0, (0, "")), model_printed
    assert out.count(f" effective weights of 50; run {two.info.run_id}\n") == 1
    assert alone.data.metrics == pytest.approx(two.data.metrics, rel=1e-6)
    names = ("layers", "layers_input", "layers_wanda", "layers_magnitude", "layers_taylor")
    assert_close(frames_of(alone, *names), frames_of(two, *names))
    assert two.data.metrics["flops/forward"] == 2 * (6 * 5 + 5 * 4 + 4 * 3)
    assert table_of(two)["samples"] == 56

    client = MlflowClient()
    assert [code for code, *_ in run_printed] == [0, 0], run_printed
    entropies = client.get_metric_history(variant.info.run_id, "usage/entropy")
    assert len(entropies) == 1, "one process wrote"
    assert table_of(variant)["samples"] == 1000
    before = frames_of(variant, "layers", "layers_taylor")
    assert main(of_run) == 0
    assert_close(before, frames_of(variant, "layers", "layers_taylor"))

    assert not_made == [(1, "", "wua: RuntimeError: process 1: ValueError: model: "
                         "own_parts:in_the_second failed: RuntimeError: only here\n"), (1, "", "")]
    assert runs_in("not made") == []

    assert [code for code, *_ in not_finite] == [1, 1], not_finite
    (line,) = [line for *_, err in not_finite for line in err.splitlines()
               if line.startswith("wua: ")]
    assert "process 1: ValueError: layer a: expected a finite" in line
    (run,) = runs_in("not finite")
    assert (run.info.status, run.data.tags["wua.error"]) == ("FAILED", line.removeprefix("wua: "))


@pytest.mark.slow
def test_torchrun_gives_the_figures_of_one_process(here):
    """``torch.distributed.run`` is what the script ``torchrun`` calls."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "wua_mlflow", *OWN, "--experiment", "two"], capture_output=True, text=True,
        timeout=600)
    assert done.returncode == 0, done.stderr
    assert main([*OWN, "--experiment", "one"]) == 0
    (alone,), (two,) = runs_in("one"), runs_in("two")
    assert done.stdout.count(f" effective weights of 50; run {two.info.run_id}\n") == 1
    assert alone.data.metrics == pytest.approx(two.data.metrics, rel=1e-6)
    assert_close(frames_of(alone, "layers"), frames_of(two, "layers"))
