"""What the tests of users' mistakes share: wrong files and modules, and the one line expected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from wua_mlflow.cli.main import main

PARTS = '''
import sys
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, widths, forward):
        super().__init__()
        self.a, self.b = nn.Linear(2, widths[0]), nn.Linear(widths[0], 1)
        self.how = forward
    def forward(self, x):
        return self.how(self.b(self.a(x)))

def fine(widths): return Net(widths, lambda z: z)
def nan(widths): return Net(widths, lambda z: z * float("nan"))
def pair(widths): return Net(widths, lambda z: ("a", "b"))
def ignoring(widths): return nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1))
def raising(widths): raise ValueError("of the\\nfactory")
def exiting(widths): sys.exit(0)
def nothing(widths): return None
def other_inputs(widths): return nn.Sequential(nn.Linear(3, widths[0]), nn.Linear(widths[0], 1))
def other_outputs(widths): return nn.Sequential(nn.Linear(2, widths[0]), nn.Linear(widths[0], 3))
def nan_if_slim(widths): return nan(widths) if widths[0] == 3 else fine(widths)
class Branching(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.a, self.b = nn.Linear(2, widths[0]), nn.Linear(widths[0], 1)
    def forward(self, x):
        return self.b(self.a(x)) if x.sum() > 0 else self.b(-self.a(x))
def branching(widths): return Branching(widths)

def odd(widths):
    """Layers whose names no file could have, or would share."""
    net = nn.Sequential(nn.Linear(2, widths[0]))
    for name in ("x" * 300, "x" * 299 + "y", "../a\\n b", "FC", "fc", "$\\\\frac$"):
        net.add_module(name.replace(".", "\u2024"), nn.Linear(widths[0], widths[0]))
    net.add_module("last", nn.Linear(widths[0], 1))
    return net

def trainer_raises(model, data, budget, seed): raise ValueError("of the\\ntrainer")
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
'''


def table(rows: int = 60) -> str:
    """A CSV file of three features and a target."""
    features = np.random.default_rng(0).normal(size=(rows, 3)).round(3)
    return "a,b,c,y\n" + "".join(
        f"{a},{b},{c},{'yes' if a + b + c > 0 else 'no'}\n" for a, b, c in features)


@pytest.fixture
def here(store_uri: str, tmp_path: Path) -> Iterator[Path]:
    """A folder with the user's files in it."""
    (tmp_path / "bad_parts.py").write_text(PARTS)
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "good.csv").write_text(table())
    (tmp_path / "unknown.yaml").write_text("epohcs: 3\n")
    (tmp_path / "nested.yaml").write_text("epochs: {a: 1}\n")
    (tmp_path / "folder.yaml").mkdir()
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("bad_parts", "exits"):
        sys.modules.pop(name, None)


def all_runs(kind: str = "") -> list[Run]:
    """Every run of the store, or every one of a kind, the oldest first."""
    client = MlflowClient()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    clause = f"tags.`wua.kind` = '{kind}'" if kind else ""
    return list(client.search_runs(everywhere, clause, order_by=["attributes.start_time ASC"]))


def line_of(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line, without a traceback, and nothing on stdout.

    Notes on the data and on networks that were trained before it failed aside.
    """
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    *notes, line = printed.err.splitlines()
    assert all(note.startswith(("wua: note: ", "wua: data: ")) for note in notes), notes
    assert line.startswith("wua: ")
    return line.removeprefix("wua: ")
