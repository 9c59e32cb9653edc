"""Progress on standard error: bars at a terminal, elsewhere plain lines, seldom.

A stage says what it is about and, where nothing else does, every ten seconds that it goes on; the
lines of bars within one another are joined, with the time that is left. The answer is on standard
output. Silent where the variable ``TQDM_DISABLE`` is set, and in every process but the first.
Tests: ``tests/test_progress.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

__all__ = ["Bar", "duration", "hushed", "keep", "kept", "say", "stage"]


LINE_S, SILENT_S = 5.0, 10.0
"""Plain lines of bars are at least so far apart; nothing is silent for longer than the second."""
DELAY_S = 1.0
"""What is over sooner has no bar."""


class _Shown:
    """What is shown now: the stages and bars under way, and when something was last written."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self.bars: list[Bar] = []
        self.written = time.monotonic()
        self.kept: list[str] = []
        self.hushed = False


_now = _Shown()


def say(words: str) -> None:
    """A line of its own, such as the result of one width."""
    if not _is_silent():
        _write(f"wua: {words}")


def keep(words: str) -> None:
    """Note what would be left if the process were stopped now; said where it is (``kept``)."""
    if words not in _now.kept:
        _now.kept.append(words)


def kept() -> list[str]:
    """What was noted since it was last asked for."""
    notes, _now.kept = _now.kept, []
    return notes


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing is said in the block, while the user is asked something."""
    _now.hushed = True
    try:
        yield
    finally:
        _now.hushed = False


@contextlib.contextmanager
def stage(words: str, *, begin: bool = True) -> Iterator[None]:
    """A part of the work, of which the beginning is said, and that it goes on.

    Args:
        words: what is done.
        begin: whether the beginning is said; else only if it takes long.
    """
    if _is_silent():
        yield
        return
    if begin:
        say(words)
    _now.stages.append((words, time.monotonic()))
    done = threading.Event()
    beat = threading.Thread(target=_say_that_it_goes_on, args=(done, len(_now.stages)), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        _now.stages.pop()
        if not _now.stages:
            _now.bars.clear()


class Bar(tqdm):  # type: ignore[misc]
    """A bar at a terminal, else its part of a line.

    >>> [number for number in Bar(range(3), desc="counting", unit="number")]
    [0, 1, 2]
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, *, desc: str | None = None,
        total: float | None = None, unit: str = "step", at_most: float | None = None,
    ) -> None:
        """``at_most``: seconds after which it ends, however far it is."""
        self.at_terminal = sys.stderr.isatty()
        silent = _is_silent()
        if not silent:
            _now.bars.append(self)
        self.began = time.monotonic()
        self.at_most = math.inf if at_most is None else at_most
        super().__init__(iterable, desc=desc, total=total, unit=unit, leave=False, disable=silent,
                         delay=DELAY_S, dynamic_ncols=True,
                         mininterval=0.1 if self.at_terminal else 1.0)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Draw it, or write the line of all bars if the last one was some time ago."""
        if self.disable:
            return False
        if self.at_terminal:
            return super().display(msg, pos)  # type: ignore[no-any-return]
        if time.monotonic() - _now.written >= LINE_S:
            _write(_line())
        return True

    def close(self) -> None:
        """Take it away."""
        if self in _now.bars:
            del _now.bars[_now.bars.index(self):]
        super().close()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def words(self) -> str:
        """What it counts, and how far it is."""
        counted = f"{self.unit} {self.n:,.0f}" + (f" of {self.total:,.0f}" if self.total else "")
        return " ".join(filter(None, (f"{self.desc.removesuffix(': ')}:" if self.desc else "",
                                      counted, f"({self.postfix})" if self.postfix else "")))


def _is_silent() -> bool:
    return bool(os.environ.get("TQDM_DISABLE")) or os.environ.get("RANK", "0") != "0"


def _write(line: str) -> None:
    _now.written = time.monotonic()
    with contextlib.suppress(ValueError, OSError):  # standard error is closed
        if sys.stderr.isatty():
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _line() -> str:
    """The bars from the outermost in, else the stage; and the time that is left, or was taken."""
    bars = list(_now.bars)
    done = 0.0
    for bar in reversed(bars):
        done = min(1.0, (bar.n + done) / bar.total) if bar.total else 0.0
    words, began = _now.stages[-1] if _now.stages else ("", time.monotonic())
    what = "; ".join(bar.words for bar in bars if bar.n or bar is bars[0]) or words
    elapsed = time.monotonic() - (bars[0].began if bars else began)
    if 0.02 < done < 1:
        left = min(elapsed * (1 - done) / done, max(0.0, bars[0].at_most - elapsed))
        return f"wua: {what}; about {duration(left)} left"
    return f"wua: {what}; {duration(elapsed)} so far"


def _say_that_it_goes_on(done: threading.Event, depth: int) -> None:
    """Until it is done, where nothing else was written; only of the innermost stage."""
    while not done.wait(1.0):
        drawn = _now.hushed or bool(_now.bars) and _now.bars[-1].at_terminal
        if len(_now.stages) == depth and not drawn and \
                time.monotonic() - _now.written >= SILENT_S - 1:
            _write(_line())


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.41), duration(18), duration(600), duration(11_000)
    ('0.4 s', '18 s', '10 minutes', '3.1 hours')
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
