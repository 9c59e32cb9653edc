"""The arrows between the modules, read from their imports; nothing is run but the light imports."""

from __future__ import annotations

import ast
import graphlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wua_mlflow"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
SCRIPTS = sorted((ROOT / "pipelines").glob("*.py"))

ONLY_IN = {
    "mlflow": ("wua_mlflow.tracking", "wua_mlflow.pipeline", "wua_mlflow.cli.main"),
    "lightning": ("wua_mlflow.integrations",),
    "pytorch_lightning": ("wua_mlflow.integrations",),
    "transformers": ("wua_mlflow.integrations",),
    "torch_pruning": ("wua_mlflow.slimming",),
    "ray": ("wua_mlflow.pipeline.sweep",),
    "optuna": ("wua_mlflow.pipeline.sweep", "wua_mlflow.widths.retrain_search"),
    "ptflops": ("wua_mlflow.flops",),
    "pydantic": ("wua_mlflow.config", "wua_mlflow.config"),
    "matplotlib": ("wua_mlflow.plots", "wua_mlflow.pipeline", "wua_mlflow.tutorial",
                   "wua_mlflow.tracking"),
}
"""Where a third party's package may be imported, for types or for use."""

SHELL = ("wua_mlflow.__main__", "wua_mlflow.cli.main")
MAY_IMPORT = {
    "pipeline": ("wua_mlflow.pipeline", "wua_mlflow.cli.main"),
    "tracking": ("wua_mlflow.tracking", "wua_mlflow.integrations", "wua_mlflow.pipeline",
                 "wua_mlflow.cli.main"),
    "cli": ("wua_mlflow.__main__",),
}
"""Who may import each part of the shell, besides itself."""


@dataclass(frozen=True)
class Import:
    """One imported module; ``typing`` under TYPE_CHECKING, ``lazy`` inside a function."""

    name: str
    typing: bool
    lazy: bool


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, typing: bool, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, typing, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in FILES]
            found.extend(Import(name, typing, lazy) for name in modules)
            if len(modules) < len(inner):
                found.append(Import(module, typing, lazy))
        for child in ast.iter_child_nodes(node):
            visit(child, typing or is_type_checking(node),
                  lazy or isinstance(node, ast.FunctionDef))

    visit(tree_of(path), False, False)
    return found


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def own_imports(module: str) -> list[Import]:
    return [one for one in imports_of(FILES[module]) if inside(one.name, ("wua_mlflow",))]


CORE = [module for module in FILES if module.count(".") == 1
        and FILES[module].name != "__init__.py" and module not in SHELL]
"""The library: every module directly in the package but the command line's."""


def test_there_is_something_to_read():
    assert {"wua_mlflow", "wua_mlflow.usage.results", "wua_mlflow.tracking.log"} <= set(FILES)
    assert {"wua_mlflow.usage.analyze", "wua_mlflow.hooks", "wua_mlflow.tutorial"} <= set(CORE)
    assert any(one.name == "mlflow" for one in imports_of(FILES["wua_mlflow.tracking.runs"]))
    assert SCRIPTS


@pytest.mark.parametrize("package", ONLY_IN)
def test_third_parties_are_imported_only_where_they_belong(package):
    importers = {module for module, path in FILES.items()
                 if any(inside(one.name, (package,)) for one in imports_of(path))}
    assert {module for module in importers if not inside(module, ONLY_IN[package])} == set()


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_nobody_below_imports_the_shell(part):
    target = f"wua_mlflow.{part}"
    importers = {module for module in FILES
                 if any(inside(one.name, (target,)) for one in own_imports(module))}
    assert {module for module in importers
            if not inside(module, (target, *MAY_IMPORT[part]))} == set()


def test_nothing_imports_the_scripts_and_they_import_the_command_line_alone():
    for path in FILES.values():
        assert not [one for one in imports_of(path) if inside(one.name, ("pipelines",))], path
    for script in SCRIPTS:
        names = [one.name for one in imports_of(script) if one.name != "sys"]
        assert names == ["wua_mlflow.cli.main"], script


def test_plots_import_no_more_than_result_types():
    for module in FILES:
        if inside(module, ("wua_mlflow.plots",)):
            for one in own_imports(module):
                allowed = ("wua_mlflow.plots", "wua_mlflow.usage.results")
                assert inside(one.name, allowed), f"{module} imports {one.name}"


@pytest.mark.parametrize("module", CORE)
def test_the_library_imports_what_its_docstring_says(module):
    """Of the package itself; ``May import: torch, hooks.`` names ``wua_mlflow.hooks``."""
    docstring = ast.get_docstring(tree_of(FILES[module])) or ""
    sentence = re.search(r"May import: (.*?)\.?\s+Tests?: |May import: (.*)", docstring, re.DOTALL)
    words = sentence[0].replace("wua_mlflow.", "") if sentence else ""
    named = set(re.findall(r"[a-z_]+", words))
    for one in own_imports(module):
        if not one.typing and one.name != "wua_mlflow":
            part = one.name.split(".")[1]
            assert part in named, f"{module} imports {one.name}: its docstring does not say so"


def test_the_library_imports_no_shell():
    for module in CORE:
        for one in own_imports(module):
            shell = (*SHELL, "wua_mlflow.tracking", "wua_mlflow.pipeline",
                     "wua_mlflow.integrations")
            assert not inside(one.name, shell), f"{module} imports {one.name}"


def test_imports_form_no_circle():
    arrows = {module: {one.name for one in own_imports(module)
                       if not one.typing and not one.lazy and one.name != module}
              for module in FILES}
    order = list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError
    assert set(order) >= set(FILES)


@pytest.mark.parametrize("module", FILES)
def test_no_global_figures(module):
    for one in imports_of(FILES[module]):
        assert not inside(one.name, ("matplotlib.pyplot", "pylab")), module
    used = {node.attr for node in ast.walk(tree_of(FILES[module]))
            if isinstance(node, ast.Attribute)}
    assert not used & {"pyplot", "rcParams"}, module


@pytest.mark.parametrize("module", [m for m in FILES if m != "wua_mlflow.hooks"])
def test_only_one_module_hooks_models(module):
    used = {node.attr for node in ast.walk(tree_of(FILES[module]))
            if isinstance(node, ast.Attribute)}
    assert not {name for name in used if re.fullmatch(r"register_\w*hook", name)}, module


def test_modules_are_named_by_what_they_are_about():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "tools"}
    assert {module for module in FILES if vague & set(module.split("."))} == set()


@pytest.mark.parametrize("module", FILES)
def test_no_module_is_long(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 300


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
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def is_bare(tree: ast.Module) -> bool:
    """A docstring alone, or a script that defines nothing."""
    return not any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign)
                   for node in tree.body)


@pytest.mark.parametrize("module", FILES)
def test_all_is_explicit_and_its_names_exist(module):
    tree = tree_of(FILES[module])
    names = exported(tree)
    if names is None:
        assert is_bare(tree), f"{module} has no __all__"
        return
    assert len(names) == len(set(names))
    assert set(names) <= defined(tree)


@pytest.mark.parametrize("module", FILES)
def test_what_is_exported_is_documented(module):
    tree = tree_of(FILES[module])
    assert ast.get_docstring(tree), f"{module} has no docstring"
    undocumented = {node.name for node in tree.body
                    if isinstance(node, ast.ClassDef | ast.FunctionDef)
                    and node.name in (exported(tree) or []) and not ast.get_docstring(node)
                    and "overload" not in map(ast.unparse, node.decorator_list)}
    assert undocumented == set()


@pytest.mark.parametrize("module", CORE)
def test_the_library_says_where_its_tests_are_and_they_are_there(module):
    docstring = ast.get_docstring(tree_of(FILES[module])) or ""
    named = re.findall(r"tests/[\w/]+\.py", docstring)
    assert named, f"{module} names no test"
    assert [name for name in named if not (ROOT / name).exists()] == []
