"""The user's own files, and parts named ``package.module:name``: finding and importing them.

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

__all__ = ["existing_file", "is_reference", "load_object", "local_path"]


def local_path(name: str) -> Path:
    """The path of that name; ``~`` is a home folder's where there is one.

    >>> str(local_path("~nobody-of-this-name/rows.csv"))
    '~nobody-of-this-name/rows.csv'
    """
    return Path(os.path.expanduser(name))


def existing_file(name: str, what: str) -> Path:
    """The path of a file that is there.

    Args:
        name: as the user gave it.
        what: begins the message of an error, such as ``data: expected a file``.

    Raises:
        ValueError: it is a folder, or does not exist; a name may be of any length.
    """
    path = local_path(name)
    if not os.path.isfile(path):
        reason = "is a folder" if os.path.isdir(path) else "does not exist"
        raise ValueError(f"{what}, but {name!r} {reason}")
    return path


def is_reference(text: str) -> bool:
    """Whether it has the form ``package.module:name``; nothing else is ever imported.

    >>> is_reference("nets.small:build"), is_reference("nets.py:build"), is_reference("rows.csv")
    (True, False, False)
    """
    module_name, _, name = text.partition(":")
    parts = [*module_name.split("."), name]
    return not module_name.endswith(".py") and all(part.isidentifier() for part in parts)


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
    module_name, _, name = str(reference).partition(":")
    if not is_reference(str(reference)):
        raise ValueError(f"{argument}: expected package.module:name, such as my_module:build, but "
                         f"got {reference!r}")
    for folder in (Path.cwd(), root):
        if folder is not None:
            _make_importable(folder)
    module = _imported(module_name, argument)
    if not hasattr(module, name):
        public = [public for public in vars(module) if not public.startswith("_")]
        raise ValueError(f"{argument}: expected a name in the module {module_name} "
                         f"({getattr(module, '__file__', None) or 'no file'}), but got {name!r}"
                         f"{did_you_mean(name, public)}")
    entity = getattr(module, name)
    if not callable(entity):
        raise ValueError(f"{argument}: expected {reference} to be a function or a class, but got "
                         f"{type(entity).__name__}")
    return entity


def _make_importable(folder: str | Path) -> None:
    path = os.path.abspath(folder)
    if sys.path[:1] != [path]:
        sys.path[:] = [path, *(entry for entry in sys.path if entry != path)]


def _imported(module: str, argument: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{argument}: expected a module in the current folder or among the "
                             f"installed packages, but found none named {error.name!r}") from error
        raise ValueError(f"{argument}: expected to import {module}, but it raised "
                         f"{one_line(error)}") from error
