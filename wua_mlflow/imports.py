"""The user's own parts, each named ``package.module:name``: finding and importing them.

Imports the standard library only. Tests: ``tests/test_imports.py``.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from wua_mlflow.errors import did_you_mean, one_line

__all__ = ["load_object"]


_MISSING = object()


def load_object(reference: str, *, argument: str, root: str | Path | None = None) -> Any:
    """The function or class that ``reference`` names.

    As with ``python -m``, the current folder (and ``root``, before it) is put in front of
    ``sys.path`` and stays there, so that the user's code may import its neighbours later too.

    Args:
        reference: ``package.module:name``.
        argument: what the user calls the option that held it; the messages begin with it.
        root: a second folder to import from, such as that of the configuration file.

    Raises:
        ValueError: one line; the reference is malformed, the module is not there or fails while
            it is imported, the name is not in it, or what it names cannot be called.

    >>> load_object("collections:Counter", argument="model")("aab")["a"]
    2
    """
    module_name, name = _parsed(reference, argument)
    _make_importable(Path.cwd())
    if root is not None:
        _make_importable(Path(root))
    module = _imported(module_name, argument)
    found = getattr(module, name, _MISSING)
    if found is _MISSING:
        place = getattr(module, "__file__", None) or "no file"
        raise ValueError(
            f"{argument}: expected a name in the module {module_name} ({place}), "
            f"but got {name!r}{did_you_mean(name, _public(module))}"
        )
    if not callable(found):
        raise ValueError(
            f"{argument}: expected {reference} to be a function or a class, "
            f"but got {type(found).__name__}"
        )
    return found


def _parsed(reference: str, argument: str) -> tuple[str, str]:
    module, _, name = str(reference).partition(":")
    well_formed = all(part.isidentifier() for part in [*module.split("."), name])
    if not well_formed or module.endswith(".py"):
        raise ValueError(
            f"{argument}: expected package.module:name, such as my_module:build, "
            f"but got {reference!r}"
        )
    return module, name


def _make_importable(folder: Path) -> None:
    path = os.path.abspath(folder)
    if sys.path[:1] != [path]:
        sys.path[:] = [path, *(entry for entry in sys.path if entry != path)]


def _imported(module: str, argument: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{argument}: expected a module in the current folder or among the installed "
                f"packages, but found none named {error.name!r}"
            ) from error
        raise ValueError(
            f"{argument}: expected to import {module}, but it raised {one_line(error)}"
        ) from error


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]
