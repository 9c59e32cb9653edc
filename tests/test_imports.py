"""Finding ``package.module:name`` in hand-made modules, and one line for each way it can fail."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from wua_mlflow.errors import did_you_mean, one_line
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


def test_a_function_of_the_current_folder(folder):
    name = _module(folder, "def build(widths):\n    return sum(widths)\n")
    assert load_object(f"{name}:build", argument="model")([1, 2]) == 3


def test_a_class_in_a_package(folder):
    package = folder / "wua_dotted_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("class Net:\n    size = 7\n")
    assert load_object("wua_dotted_package.part:Net", argument="model")().size == 7


def test_an_installed_one():
    from collections import OrderedDict

    assert load_object("collections:OrderedDict", argument="model") is OrderedDict


def test_the_root_comes_before_the_current_folder(folder):
    name = _module(folder, "def build():\n    return 'current'\n")
    other = folder / "other"
    other.mkdir()
    (other / f"{name}.py").write_text("def build():\n    return 'root'\n")
    assert load_object(f"{name}:build", argument="model", root=other)() == "root"


def test_a_module_may_import_its_neighbour_later(folder):
    neighbour = _module(folder, "VALUE = 5\n")
    text = f"def build():\n    from {neighbour} import VALUE\n    return VALUE\n"
    assert load_object(f"{_module(folder, text)}:build", argument="model")() == 5


def test_the_search_path_does_not_grow(folder):
    name = _module(folder, "def build(): ...\n")
    for _ in range(3):
        load_object(f"{name}:build", argument="model")
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_a_module_written_after_the_first_look(folder):
    name = _module(folder, "def build(): ...\n")
    load_object(f"{name}:build", argument="model")
    later = _module(folder, "def build():\n    return 1\n")
    assert load_object(f"{later}:build", argument="model")() == 1


@pytest.mark.parametrize(
    "reference", ["", "build", "model.build", "model:", ":build", "a:b:c", "./m:build", "a..b:c",
                  ".m:build", "m.py:build", "my-model:build", "m:build.now", "m: build"],
)
def test_a_malformed_reference(folder, reference):
    assert _fails(reference) == (
        "model: expected package.module:name, such as my_module:build, " f"but got {reference!r}"
    )


@pytest.mark.parametrize(("reference", "missing"), [("wua_no_such:f", "wua_no_such"),
                                                    ("wua_no_such.deep:f", "wua_no_such"),
                                                    ("json.wua_no_such:f", "json.wua_no_such"),
                                                    ("math.deep:f", "math.deep")])
def test_a_module_that_is_not_there(folder, reference, missing):
    assert _fails(reference).endswith(f"but found none named {missing!r}")


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


def test_the_cause_is_kept_for_the_traceback(folder):
    name = _module(folder, "1 / 0\n")
    with pytest.raises(ValueError) as raised:
        load_object(f"{name}:build", argument="model")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_interruption_passes(folder):
    name = _module(folder, "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_object(f"{name}:build", argument="model")


def test_a_missing_name_gets_the_nearest_and_the_file(folder):
    name = _module(folder, "def build(): ...\ndef _biuld(): ...\n")
    message = _fails(f"{name}:biuld")
    assert message.endswith("but got 'biuld'; did you mean 'build'?")
    assert str(folder / f"{name}.py") in message


def test_a_missing_name_without_a_near_one(folder):
    name = _module(folder, "def build(): ...\n")
    assert _fails(f"{name}:zzz").endswith("but got 'zzz'")


def test_something_that_cannot_be_called(folder):
    name = _module(folder, "WIDTHS = [3]\n")
    assert _fails(f"{name}:WIDTHS") == (
        f"model: expected {name}:WIDTHS to be a function or a class, but got list"
    )


def test_nearest_and_one_line():
    assert did_you_mean("wien", ["wine", "iris"]) == "; did you mean 'wine'?"
    assert did_you_mean("zzz", ["wine", "iris"]) == ""
    assert one_line(ValueError("a\n\tb")) == "ValueError: a b"
    assert len(one_line(ValueError("word " * 1000))) < 320
