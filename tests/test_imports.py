"""Finding ``package.module:name`` in hand-made modules, and one line for each way it can fail."""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from wua_mlflow.imports import load_object

_numbers = itertools.count()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _module(folder: Path, text: str) -> str:
    name = f"wua_dotted_{next(_numbers)}"
    (folder / f"{name}.py").write_text(text)
    return name


def _fails(reference: str, root: Path | None = None) -> str:
    with pytest.raises(ValueError) as raised:
        load_object(reference, argument="model", root=root)
    message = str(raised.value)
    assert message.startswith("model: ")
    assert "\n" not in message
    return message


def test_what_is_in_the_current_folder_a_package_the_root_or_installed(folder):
    name = _module(folder, "def build(widths):\n    return sum(widths)\n")
    for _ in range(3):
        assert load_object(f"{name}:build", argument="model")([1, 2]) == 3
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1
    later = _module(folder, "class Net:\n    size = 7\n")  # written after the first look
    assert load_object(f"{later}:Net", argument="model")().size == 7
    for place in ("package", "root"):
        (folder / place).mkdir()
    (folder / "package" / "part.py").write_text("class Net:\n    size = 8\n")
    assert load_object("package.part:Net", argument="model")().size == 8
    name = _module(folder, "def build():\n    return 'current'\n")
    (folder / "root" / f"{name}.py").write_text("def build():\n    return 'root'\n")
    assert load_object(f"{name}:build", argument="model", root=folder / "root")() == "root"
    assert load_object("collections:OrderedDict", argument="model") is OrderedDict
    text = f"def build():\n    from {later} import Net\n    return Net.size\n"
    assert load_object(f"{_module(folder, text)}:build", argument="model")() == 7


def test_a_malformed_reference_and_a_module_that_is_not_there(folder):
    for reference in ("", "build", "model.build", "model:", ":build", "a:b:c", "./m:build",
                      "a..b:c", ".m:build", "m.py:build", "my-model:build", "m:build.now",
                      "m: build"):
        assert _fails(reference) == ("model: expected package.module:name, such as "
                                     f"my_module:build, but got {reference!r}")
    for module, missing in (("wua_no_such", "wua_no_such"), ("wua_no_such.deep", "wua_no_such"),
                            ("json.wua_no_such", "json.wua_no_such"), ("math.deep", "math.deep")):
        assert _fails(f"{module}:f").endswith(f"but found none named {missing!r}")


@pytest.mark.parametrize(("text", "expected"), [
    ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ("import wua_no_such_dependency\n",
     "ModuleNotFoundError: No module named 'wua_no_such_dependency'"),
    ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
    ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ("def build(:\n", "SyntaxError: "),
])
def test_a_module_that_raises(folder, text, expected):
    name = _module(folder, text)
    assert f"expected to import {name}, but it raised {expected}" in _fails(f"{name}:build")


def test_a_name_that_is_not_there_or_cannot_be_called_and_what_is_behind_an_error(folder):
    with pytest.raises(ValueError) as raised:
        load_object(f"{_module(folder, '1 / 0')}:build", argument="model")
    assert isinstance(raised.value.__cause__, ZeroDivisionError), "for the traceback"
    with pytest.raises(KeyboardInterrupt):
        load_object(f"{_module(folder, 'raise KeyboardInterrupt')}:build", argument="model")
    name = _module(folder, "def build(): ...\ndef _biuld(): ...\nWIDTHS = [3]\n")
    message = _fails(f"{name}:biuld")
    assert message.endswith("but got 'biuld'; did you mean 'build'?")
    assert str(folder / f"{name}.py") in message
    assert _fails(f"{name}:zzz").endswith("but got 'zzz'")
    assert _fails(f"{name}:WIDTHS") == (
        f"model: expected {name}:WIDTHS to be a function or a class, but got list")
