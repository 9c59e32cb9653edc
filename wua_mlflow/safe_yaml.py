"""A YAML mapping from a file that may be anybody's, read within limits.

Aliases can make a few lines stand for gigabytes, deep nesting exhausts the stack, of two equal
keys PyYAML drops one without a word, and long numbers take minutes to convert: all are refused.
Tests: ``tests/test_config.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["YamlRefused", "parse_mapping", "read_mapping"]

MOST_BYTES = 1_000_000
DEEPEST = 20
MOST_DIGITS = 100


class YamlRefused(ValueError):  # noqa: N818 - what became of the file
    """The file is not read; the message ends a sentence that begins with the file's name."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that the file holds; an empty one where it holds nothing.

    Raises:
        YamlRefused: it is no such file, or beyond a limit.
        FileNotFoundError: there is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.yaml")
    ...     _ = file.write_text("epochs: 3\\nepochs: 4")
    ...     read_mapping(file)
    Traceback (most recent call last):
    wua_mlflow.safe_yaml.YamlRefused: has the key 'epochs' twice (line 2)
    """
    return parse_mapping(_text(path))


def parse_mapping(text: str) -> dict[str, Any]:
    """The mapping that a text holds; errors as of ``read_mapping``.

    >>> parse_mapping("{impute: mean}")
    {'impute': 'mean'}
    """
    try:
        values = yaml.load(text, Loader=_BoundedLoader)
    except YamlRefused:
        raise
    except Exception as error:  # PyYAML lets errors of dates, numbers and text through
        raise YamlRefused(f"is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise YamlRefused(f"has no 'key: value' lines, but a {type(values).__name__}")
    return values


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise YamlRefused("cannot be read: it is not a file")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise YamlRefused(f"is too large: {size:,} bytes; at most {MOST_BYTES:,} are read")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, YamlRefused):
        raise
    except UnicodeDecodeError as error:
        raise YamlRefused(f"cannot be read: it is not text in UTF-8 (byte {error.start:,})") \
            from None
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise YamlRefused(f"cannot be read: {reason}") from None


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's own safe loader, which here refuses what has no end or two meanings."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise YamlRefused(f"has an alias{_where(event)}; write the value out")
        self.depth += 1
        if self.depth > DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise YamlRefused(f"is nested more than {DEEPEST} levels deep{_where(event)}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise YamlRefused(f"has a key that is no name{_where(key)}: {_beginning(key)}")
            if key.value in keys:
                raise YamlRefused(f"has the key {_beginning(key)} twice{_where(key)}")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _bounded_int(loader: _BoundedLoader, node: Any) -> Any:
    if len(node.value) > MOST_DIGITS:
        raise YamlRefused(f"has a number of {len(node.value):,} digits{_where(node)}")
    return loader.construct_yaml_int(node)


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _bounded_int)


def _where(place: Any) -> str:
    return f" (line {place.start_mark.line + 1:,})"


def _beginning(key: Any) -> str:
    value = key.value if isinstance(key.value, str) else key.tag.rpartition(":")[2]
    return repr(value if len(value) <= 40 else f"{value[:39]}…")
