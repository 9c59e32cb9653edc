"""Wrong words, files and models on the command line: one line each, that begins with the cause."""

from __future__ import annotations

import os

import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from tests.mistakes import all_runs, here  # noqa: F401 - a fixture
from wua_mlflow.cli.main import main

LONG = "9" * 5000
NOT_YAML = "config: expected a YAML file or one of breast_cancer, digits, usecase, but got "
WIDTHS = "hidden: expected whole numbers of at least 1, e.g. 64,32, but got "
FILES = {
    "null.yaml": "hidden: null\n", "nan.yaml": "lr: .nan\n", "list.yaml": "hidden: [[1]]\n",
    "bool.yaml": "hidden: true\n", "date.yaml": "data: 2020-01-01\n", "half.yaml": "epochs: 1.5\n",
    "set.yaml": "layers: !!set {a}\n", "int.yaml": "model: 3\n", "listed.yaml": "data: [a, b]\n",
    "bom.yaml": "\ufeffepochs: x\n", "tab.yaml": "epochs:\t1\n\tlr: 2\n",
    "trust.yaml": "trust: code"}
SETTINGS = [
    ("--config null.yaml", f"{WIDTHS}None"), ("--config nan.yaml", "lr: expected a number above 0"),
    ("--config list.yaml", f"{WIDTHS}[[1]]"), ("--config bool.yaml", "hidden: expected a value"),
    ("--config date.yaml", "data: expected a valid string"),
    ("--config half.yaml", "epochs: expected a whole number, but got 1.5"),
    ("--config set.yaml", "layers: expected names of layers"),
    ("--config int.yaml", "model: expected a valid string, but got 3"),
    ("--config listed.yaml", "data: expected a valid string, but got ['a', 'b']"),
    ("--config bom.yaml", "epochs: expected a whole number, but got 'x'"),
    ("--config tab.yaml", "config: tab.yaml is not valid YAML: "),
    ("--config trust.yaml", "config: trust is given on the command line alone, but trust.yaml has"),
    ("--config fifo.yaml", "config: fifo.yaml cannot be read: it is not a file"),
    ("--config /dev/zero", f"{NOT_YAML}'/dev/zero'"), ("--config .", f"{NOT_YAML}'.'"),
    ("--config ..yaml", "config: no such file: ..yaml"),
    (f"--config {'x' * 999}.yaml", "config: …xxx"),
    (f"--epochs {LONG}", "epochs: expected a whole number, but got '999"),
    (f"--hidden {LONG}", f"{WIDTHS}'999"), ("--hidden 64,,32", f"{WIDTHS}'64,,32'"),
    ("--hidden 1e3", f"{WIDTHS}'1e3'"), ("--hidden ٣", f"{WIDTHS}'٣'"),
    ("--seed -0x1", "seed: expected a whole number, but got '-0x1'"),
    ("--seeds 0", "seeds: expected auto, a whole number of at least 1, or a range from 5, e.g. "
                  "5-40, but got '0'"),
    ("--lr 1e400", "lr: expected a number above 0, but got '1e400'"),
    ("--margin 2%", "margin: expected 0 or a number from"),
    ("--margin 0,02", "margin: expected 0 or a number from"),
    ("--confidence 95", "confidence: expected a number from"),
    ("--device CPU", "device: expected cpu, auto, mps, cuda or cuda:N, but got 'CPU'"),
    (f"--device cuda:{LONG}", "device: expected cpu, auto, mps, cuda or cuda:N, but got 'cuda:999"),
    (f"--threads {LONG}", "threads: expected a whole number"),
    (f"--experiment {'x' * 501}", "experiment: expected a name in one line of at most 500 char"),
    ("--experiment a\x1b[2Jb", "experiment: expected a name in one line of at most 500 characters, "
                               "but got 'a\\x1b[2Jb'"),
    ("--task Binary", "task: expected 'binary', 'multiclass', "),
    ("--score F1", "score: expected accuracy, "), ("--criterion ,", "criterion: expected output, "),
    (f"--criterion {'a' * 9999}", "criterion: expected output, "),
    ("--class-margin all", "class_margin: expected none, or a number above 0 and below 1"),
    ("--slim-hidden auto,3", "slim_hidden: expected auto, effective, rank, projection, "),
    ("--epochs 1 --epochs x", "epochs: expected a whole number, but got 'x'"),
    ("extra", "extra: expected options only after wua run"),
    ("-x", "-x: no such option of wua run"),
    (f"--{'x' * 999} 1", f"--{'x' * 200}"),
    ("--epochs", "--epochs: expected a value, but got none"),
]
COMMANDS = [
    ("run --model :", "model: expected package.module:name, such as my_module:build, but got ':'"),
    ("run --model mlp:", "model: expected package.module:name"),
    ("run --model os:path", "model: expected os:path to be a function or a class, but got module"),
    ("run --train t.py:f", "train: expected package.module:name"),
    ("run --data /", "data: expected a file ending in "),
    ("run --data folder.yaml", "data: expected one of usecase, "),
    ("run --data http://x/y.csv", "data: expected a file, but 'http://x/y.csv' does not exist"),
    (f"run --data {'x' * 5000}", "data: expected one of usecase, "),
    (f"run --data {'x' * 5000}.csv", "data: expected a file, but 'xxx"),
    ("run --data ~nobody-here/x.csv", "data: expected a file, but '~nobody-here/x.csv' does not"),
    (f"analyze --model mlp --state {'x' * 5000}", "state: expected a .safetensors file, but 'xxx"),
    (f"compare {'x' * 5000}.csv good.csv", "compare: expected a file of predictions, but 'xxx"),
    ("run --target y", "target: expected none beside data 'usecase', but got 'y'"),
    (f"run --register {'x' * 300}", "register: expected a name of at most 256 characters, but got"),
    ("run --register a/b", "register: expected a name without any of / : ?, but got 'a/b'"),
    ("run --threads 100000", "threads: expected at most 1024, but got 100000"),
    ("analyze --run-id %", "run_id: no run has the id '%' in "),
    ("analyze --run-id ';--", "run_id: no run has the id '';--' in "),
    ("analyze --model mlp --state folder.yaml", "state: expected a .safetensors file, but 'folder"),
    ("analyze --model mlp --state empty.safetensors", "state: expected a .safetensors file, but '"),
    ("analyze --model mlp --state junk.pt", "state: expected a state dict, but 'junk.pt' cannot"),
    ("analyze --model mlp --state module.pt", "state: expected a state dict, but 'module.pt' holds "
     "other objects (torch.nn.modules.linear.Linear), and unpickling them would run whatever code"),
    ("analyze --model mlp --state script.pt", "state: expected a state dict, but 'script.pt' is "
     "a TorchScript archive, "),
    ("analyze --model mlp --state list.pt", "state: expected a state dict, but 'list.pt' holds a"),
    ("analyze --model mlp --state nested.pt", "state: expected tensors alone, but 'nested.pt' has"),
    ("analyze --model mlp --state /dev/zero", "state: expected a .safetensors file, but '/dev/"),
    ("slim --run-id models:/", "run_id: expected a model that a variant's run of wua logged"),
    ("slim --run-id http://127.0.0.1:1/x", "model URI http://127.0.0.1:1/x: cannot be had: "),
    ("slim --run-id ftp://ann:s3cret-pw@127.0.0.1:1/x", "model URI ftp://…@127.0.0.1:1/x: "),
    ("compare models:/x/1 models:/y/1", "model URI models:/x/1: cannot be loaded: "),
    ("compare bad_parts.py good.csv", "compare: expected a run id, a model URI such as"),
    ("compare folder.csv good.csv", "compare: expected a file of predictions, but 'folder.csv' is"),
    (f"compare {'x' * 9999} y", "compare: expected a run id, a model URI such as"),
    ("runs --where '", "where, order_by: MLflow refuses \"'\": "),
    ("runs --order-by x,y;", "where, order_by: MLflow refuses 'x,y;': "),
    ("show ../x", "run: no run has the id '../x' in "), ("show a b c", "show: expected one run or"),
    (f"best --experiment {'x' * 999}", "experiment: none is called 'xxx"),
    ("predict models:/x/1 good.csv", "model: expected a run's id or a model's URI"),
]


@pytest.fixture
def folder(here):  # noqa: F811
    for name, text in FILES.items():
        (here / name).write_text(text)
    os.mkfifo(here / "fifo.yaml")
    (here / "folder.csv").mkdir()
    (here / "empty.safetensors").touch()
    (here / "junk.pt").write_bytes(b"\x80junk")
    torch.save(nn.Linear(2, 1), here / "module.pt")
    torch.save([1], here / "list.pt")
    torch.save({"a": {"b": torch.ones(1)}}, here / "nested.pt")
    return here


def only_line(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """All that the command says."""
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("wua: ")
    return printed.err.removeprefix("wua: ").removesuffix("\n")


def check(line: str, expected: str) -> None:
    assert line.startswith(expected)
    assert line.isprintable() and len(line) <= 500, "one line"
    assert "Error: " not in line[:30] and "s3cret" not in line


def test_a_wrong_setting_is_one_short_line_and_nothing_is_begun(folder, capsys):
    for words, expected in SETTINGS:
        line = only_line(["run", *words.split(" ")], 2, capsys)
        check(line, expected)
        assert len(line) <= 300
    assert all_runs() == []


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_wrong_word_of_any_command_is_one_line(folder, capsys):
    torch.jit.save(torch.jit.script(nn.Linear(2, 1)), folder / "script.pt")
    capsys.readouterr()
    for words, expected in COMMANDS:
        check(only_line(words.split(" "), 1, capsys), expected)


def test_names_of_anybodys_runs_move_no_cursor(here, capsys):  # noqa: F811
    """As a run on a shared store may be called; JSON escapes them by itself."""
    client = MlflowClient()
    name = "slim\x1b]0;title\x07\r\x1b[2J\u202e\nnext"
    run_id = client.create_run("0", run_name=name, tags={
        "wua.kind": "variant", "wua.error": name}).info.run_id
    client.log_param(run_id, "data", name)
    client.set_terminated(run_id)
    for words in ("runs", f"show {run_id}", f"show {run_id} {run_id[:8]}"):
        main(words.split())
        printed = "".join(capsys.readouterr())
        assert all(character == "\n" or character.isprintable() for character in printed), words
