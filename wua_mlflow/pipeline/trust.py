"""Whose code may run: what the user named, now or before; anything else is asked for or refused.

A run's ``config.yaml`` names the model, the data and more as ``package.module:name``, and lies on a
store that others write to. Nothing of it is imported unless the user named the same thing for the
same setting: on this command line, in the configuration file that they gave, in an earlier command
in this folder (a record in the user's own state folder, outside any store), by answering yes, or
wholesale by ``--trust code``. Tests: ``tests/pipeline/test_trust.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from wua_mlflow.config import CODE, Settings
from wua_mlflow.errors import printable
from wua_mlflow.imports import is_reference

__all__ = ["Ask", "Trust", "references_of", "remember"]


Ask = Callable[[str], bool]
"""Puts a question to the user; whether the answer is yes."""
Reference = tuple[str, str]
"""A setting, and the ``package.module:name`` that it holds."""
LONGEST, MOST_NAMED = 60, 3
"""Characters of a name, and names, in a line."""
MOST_KEPT = 500
"""References that a folder's record holds."""
WAIT_S = 5


def references_of(settings: Settings) -> list[Reference]:
    """The code that settings name, by setting.

    >>> references_of(Settings(model="nets:build", criterion="output,mine:rule", data="a.csv"))
    [('model', 'nets:build'), ('criterion', 'mine:rule')]
    """
    parts = ((name, part.strip()) for name in CODE
             for part in str(getattr(settings, name) or "").split(","))
    return [(name, part) for name, part in parts if is_reference(part)]


@dataclass
class Trust:
    """What the user lets run.

    Attributes:
        code: whether anything may, unasked.
        pickle: whether pickled models are loaded.
        named: what the user named.
        ask: puts the question whether more may run; nobody is asked, if None.
    """

    code: bool = False
    pickle: bool = False
    named: set[Reference] = field(default_factory=set)
    ask: Ask | None = None

    @classmethod
    def by(cls, settings: Settings, ask: Ask | None = None) -> Trust:
        """As settings say that came from the user."""
        allowed = settings.trust or ()
        return cls("code" in allowed, "pickle" in allowed, set(references_of(settings)), ask)

    def check_code(self, settings: Settings, run_id: str) -> None:
        """Whether the code that a run's settings name may be imported.

        Raises:
            ValueError: one line with all names; nothing was imported.
        """
        if self.code:
            return
        unknown = [each for each in dict.fromkeys(references_of(settings))
                   if each not in self.named]
        if unknown:
            known = _remembered()
            unknown = [each for each in unknown if each not in known]
        if not unknown:
            return
        what = _listed(unknown)
        if self.ask and self.ask(f"Run {run_id} names code that you have not named in this folder: "
                                 f"{what}. Import and call it?"):
            self.named.update(unknown)
            _write(unknown)
            return
        named = " ".join(f"--{setting.replace('_', '-')} {_short(reference)}"
                         for setting, reference in unknown[:MOST_NAMED])
        raise ValueError(f"trust: run {run_id} names code that you have not named in this folder: "
                         f"{what}; name it yourself ({named}), or let it run: --trust code")


def _listed(references: Iterable[Reference]) -> str:
    named = [f"{_short(reference)} ({setting})" for setting, reference in references]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


def _short(reference: str) -> str:
    text = printable(reference)
    return text if len(text) <= LONGEST else f"{text[:LONGEST - 1]}…"


# What the user named before


def remember(settings: Settings) -> None:
    """Note for later commands in this folder which code the user's own settings name."""
    _write(references_of(settings))


def _record() -> Path | None:
    """The file of the record; None where the user has no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    with contextlib.suppress(RuntimeError):
        folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
        return folder / "wua-mlflow" / "named_code.json"
    return None


def _remembered() -> set[Reference]:
    """What was named in this folder; nothing where there is no record of the user's own."""
    return {(setting, reference) for setting, reference in _folders().get(_here(), ())}


def _here() -> str:
    return os.path.realpath(os.curdir)


def _folders() -> dict[str, list[tuple[str, str]]]:
    path = _record()
    try:
        if path is None or path.stat().st_uid != os.getuid():
            return {}
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(folder): [(str(setting), str(reference)) for setting, reference in entries]
                for folder, entries in record["folders"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none yet, or none of ours: everything is asked again


def _write(references: Iterable[Reference]) -> None:
    """Add to the record; where it cannot be written, everything is asked again another time."""
    path, new = _record(), list(references)
    if path is None or not new or set(new) <= _remembered():
        return
    with contextlib.suppress(OSError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock", timeout=WAIT_S):
            folders = _folders()
            folders[_here()] = list(dict.fromkeys([*folders.get(_here(), ()), *new]))[-MOST_KEPT:]
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({"folders": folders}, indent=1), encoding="utf-8")
            fresh.replace(path)
