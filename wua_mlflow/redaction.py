"""Passwords of addresses, kept out of whatever is shown or stored; all of it goes through here.

A tracking address may hold one (``http://ann:pw@host``, ``postgresql://ann:pw@host/db``); MLflow,
SQLAlchemy and requests put addresses into their messages. Imports the standard library only.
Tests: ``tests/test_redaction.py``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO, cast
from urllib.parse import unquote

__all__ = ["redacted", "redacted_address", "redacted_output", "without_user"]


_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_USER = re.compile(
    r"(?<=://)(?:[^\s/:'\"<>]*:[^\s'\"<>]*|[^\s/@'\"<>]*)@")
"""Of an address what stands before the host; a password may hold ``/`` and ``@`` as they are."""
_OPTION = re.compile(
    r"([?&;][\w.\-]*(?:pass|pwd|secret|token|key)[\w.\-]*=)[^\s&;'\"#]+", re.IGNORECASE)
_SHORTEST, _SHORTEST_WORD = 4, 12
"""Characters of a password, and of one of letters alone, that is looked for without its address."""


def redacted(text: str) -> str:
    """The text without the passwords in it.

    >>> redacted("cannot open postgresql://ann:se/cret@db:5432/x?sslpassword=y&a=b")
    'cannot open postgresql://…@db:5432/x?sslpassword=…&a=b'
    >>> redacted("sqlite:////tmp/a@b/mlflow.db, models:/net@slim, ann@host")
    'sqlite:////tmp/a@b/mlflow.db, models:/net@slim, ann@host'
    """
    for secret in _secrets():
        text = text.replace(secret, "…")
    if "://" in text:
        text = _USER.sub("…@", text)
    return _OPTION.sub(r"\1…", text)


def redacted_address(address: str) -> str:
    """An address that stands alone, as it may be shown; its password may hold anything.

    >>> redacted_address("postgresql://ann:a b'c@db:5432/mlflow")
    'postgresql://…@db:5432/mlflow'
    """
    return redacted(re.sub("//.*@", "//…@", address))


def without_user(address: str) -> str:
    """An address that can be opened and shown: no user, no password.

    >>> without_user("https://ann:pw@host:5000/mlflow")
    'https://host:5000/mlflow'
    """
    return re.sub("//.*@", "//", address)


def _secrets() -> list[str]:
    """The user's own passwords, as they are written and as they are meant; the longest first."""
    found = {os.environ.get(name, "") for name in _SECRETS}
    for name in _ADDRESSES:
        address = os.environ.get(name, "")
        user = re.search("//(.*)@", address)
        if user is None:
            continue
        name, _, password = user[1].partition(":")
        common = {name, unquote(name)}
        found |= {password, unquote(password)} - common
        found |= {part for part in re.split(r"[/#?\s]", password) if part != password} - common
    return sorted((secret for secret in found if len(secret) >= (
        _SHORTEST_WORD if secret.isalpha() else _SHORTEST)), key=len, reverse=True)


class _Redacting:
    """A stream that writes no password; anything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_output() -> Iterator[None]:
    """Within the block nothing that is printed shows a password: logs and tracebacks of others too.

    Without a password in MLflow's variables everything stays as it is.
    """
    if not _secrets() and not any("@" in os.environ.get(name, "") for name in _ADDRESSES):
        yield
        return
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Redacting(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
