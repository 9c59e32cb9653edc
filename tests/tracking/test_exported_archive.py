"""Exported graphs that would run their author's code when loaded: told from those that do not.

That torch does run it was seen with torch 2.13: each of the texts below made its file.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from wua_mlflow.tracking.exported_archive import foreign_code

Edit = Callable[[str], str]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    exported = torch.export.export(nn.Linear(3, 2), (torch.rand(4, 3),),
                                   dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, path)
    return path


def edited(archive: Path, edit: Edit) -> Path:
    path = archive.with_name("edited.pt2")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for record in source.infolist():
            content = source.read(record)
            if record.filename.endswith("models/model.json"):
                text = edit(content.decode())
                assert text != content.decode()
                content = text.encode()
            target.writestr(record, content)
    return path


def guarded(guard: str) -> Edit:
    return lambda text: json.dumps({**json.loads(text), "guards_code": [guard]})


def sized(size: str) -> Edit:
    return lambda text: text.replace('"expr_str": "', f'"expr_str": "{size} or ', 1)


def computed(operator: str) -> Edit:
    return lambda text: text.replace("torch.ops.aten.linear.default", operator)


@pytest.mark.parametrize(("edit", "what"), [
    (sized("open(chr(104),chr(119))"), r"the size .open\(chr\(104"),
    (sized("Max('exec(1)')"), "the size"), (sized("[c for c in ()]"), "the size"),
    (sized("(lambda: 0)()"), "the size"), (sized("Symbol.__class__"), "the size"),
    (sized("f'{1}'"), "the size"), (sized("exec"), "the size"),
    (guarded("open('g','w') is None"), "the guard"), (guarded("1) or exec('2'"), "the guard"),
    (guarded("L.__class__"), "the guard"), (guarded("(x := 1)"), "the guard"),
    (guarded("1\n  import os"), "the guard"),
    (computed("torch.os.system"), "the operator 'torch.os.system'"),
    (computed("torch.ops.load_library"), "the operator"),
    (computed("torch.ops.aten.__class__.mro"), "the operator"),
    (computed("torch.hub.load"), "the operator"), (computed("_operator.methodcaller"), "the op"),
    (computed("#evil"), "the operator"),
])
def test_what_would_run_as_code_is_named(archive, edit, what):
    path = edited(archive, edit)
    assert re.match(what, foreign_code(path))
    assert foreign_code(archive) == ""


@pytest.mark.parametrize("edit", [
    guarded("L['x'].size()[0] >= 2"), guarded("Eq(Mod(L['args'][0].size()[1], 8), 0)"),
    sized("FloorDiv(Symbol('s0', positive=True, integer=True), Integer(2))"),
    computed("torch.ops.aten._softmax.default"), computed("torch.ops.torchvision.nms.default"),
    computed("torch.ops.higher_order.cond"), computed("torch.sym_max"), computed("math.ceil")])
def test_arithmetic_and_operators_are_no_code(archive, edit):
    assert foreign_code(edited(archive, edit)) == ""
