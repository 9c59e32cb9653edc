"""Tensors in tuples, lists and dicts, as models take and give them.

Imports nothing but the standard library. Tests: ``tests/test_nested.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["mapped"]


def mapped(value: Any, kinds: type | tuple[type, ...], change: Callable[[Any], Any]) -> Any:
    """The value with everything of these kinds changed, in containers of the same kinds.

    Args:
        value: one of ``kinds``, a tuple (named, too), list or dict (of any class) of such, another
            mapping, which becomes a dict, or something else, which stays as it is.
        kinds: what is changed.
        change: of one of them.

    >>> mapped({"a": [1, "x"], "b": (2, None)}, int, lambda one: one + 1)
    {'a': [2, 'x'], 'b': (3, None)}
    """
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [mapped(part, kinds, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        found = copy.copy(value)
        for name, part in value.items():
            found[name] = mapped(part, kinds, change)
        return found
    if isinstance(value, Mapping):  # a tokenizer's batch, which is no dict
        return {name: mapped(part, kinds, change) for name, part in value.items()}
    return value
