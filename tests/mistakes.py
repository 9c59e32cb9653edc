"""What the tests of users' mistakes share: wrong files and modules, and the one line expected."""

from __future__ import annotations

import re
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


def all_runs(kind: str = "") -> list[Run]:
    """Every run of the store, or every one of a kind, the oldest first."""
    client = MlflowClient()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    clause = f"tags.`wua.kind` = '{kind}'" if kind else ""
    return list(client.search_runs(everywhere, clause, order_by=["attributes.start_time ASC"]))


def line_of(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line, without a traceback, and nothing on stdout."""
    assert main(words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("wua: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err.removeprefix("wua: ").rstrip("\n")
