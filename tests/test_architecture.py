"""Rules that hold for every file of the package, read from its source.

The import contracts in ``pyproject.toml`` (``make lint``) say which package may import which.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wua_mlflow"
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"):
        ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
SCRIPTS = sorted((ROOT / "pipelines").glob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"


def attributes(tree: ast.Module) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level, also under ``if`` and ``try``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target)
                      if isinstance(name, ast.Name)}
    return names


def defines_something(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign)
               and not ast.unparse(node).startswith("__all__") for node in tree.body)


def docstring_of(tree: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(tree) or ""


def test_there_is_something_to_read():
    assert {"wua_mlflow", "wua_mlflow.hooks", "wua_mlflow.tracking.log",
            "wua_mlflow.usage.tracing.tracer"} <= set(TREES)
    assert "mlflow" in set(imported(TREES["wua_mlflow.tracking.search"]))
    assert SCRIPTS


def test_imports_are_absolute_and_nothing_imports_the_scripts():
    for module, tree in TREES.items():
        names = set(imported(tree))
        assert not {name for name in names if name.startswith((".", "pipelines"))}, module
    for script in SCRIPTS:
        names = set(imported(ast.parse(script.read_text(encoding="utf-8"))))
        assert names == {"sys", "wua_mlflow.cli.main"}, script


def test_figures_are_made_without_global_state_and_only_one_module_hooks_models():
    for module, tree in TREES.items():
        assert not {name for name in imported(tree) if "pyplot" in name or "pylab" in name}, module
        assert not attributes(tree) & {"pyplot", "rcParams"}, module
    hooking = {module for module, tree in TREES.items()
               if any(re.fullmatch(r"register_\w*hook", name) for name in attributes(tree))}
    assert hooking == {"wua_mlflow.hooks"}


def test_modules_are_named_by_what_they_are_about():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "tools"}
    assert {module for module in TREES if vague & set(module.split("."))} == set()


def test_all_is_explicit_and_its_names_exist_and_are_documented():
    for module, tree in TREES.items():
        names = exported(tree)
        assert names is not None or not defines_something(tree), f"{module} has no __all__"
        assert len(names or ()) == len(set(names or ())), module
        assert set(names or ()) <= defined(tree), module
        undocumented = {node.name for node in tree.body
                        if isinstance(node, ast.ClassDef | ast.FunctionDef)
                        and node.name in (names or ()) and not docstring_of(node)
                        and "overload" not in map(ast.unparse, node.decorator_list)}
        assert undocumented == set(), module


def test_a_folder_says_in_one_line_what_it_is_for():
    for module, tree in TREES.items():
        assert docstring_of(tree), f"{module} has no docstring"
        if (PACKAGE.parent / Path(*module.split("."))).is_dir() and "." in module \
                and not defines_something(tree):
            assert len(docstring_of(tree).splitlines()) == 1, module


def test_the_tests_that_a_module_names_are_there():
    for module, tree in TREES.items():
        named = re.findall(r"tests/[\w/]+(?:\.py)?", docstring_of(tree))
        assert named or not defines_something(tree) or module.count(".") == 0, \
            f"{module} names no test"
        assert [name for name in named if not (ROOT / name).exists()] == [], module
