"""SIGINT, SIGTERM and SIGHUP as exceptions, deferred while a run is written or ended.

Imports the standard library only. Tests: ``tests/test_signals.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["Stopped", "allow_signals", "defer_signals", "goes_on", "handle_signals"]


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name))
IMPATIENT = 3
"""So many signals within one deferred block end the process at once."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; ``exit_code`` is the shell's for it, 130 for Ctrl-C.

    ``count`` says the how-manieth signal it is since ``handle_signals`` began.
    """

    def __init__(self, number: int, count: int = 1) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.count = count


def goes_on(stop: KeyboardInterrupt) -> bool:
    """Whether it is a first Ctrl-C, after which work goes on with the best so far.

    A second one ends the command, and any other signal does.

    >>> goes_on(KeyboardInterrupt()), goes_on(Stopped(signal.SIGTERM))
    (True, False)
    >>> goes_on(Stopped(signal.SIGINT)), goes_on(Stopped(signal.SIGINT, count=2))
    (True, False)
    """
    return getattr(stop, "exit_code", 130) == 130 and getattr(stop, "count", 1) == 1


class _State(threading.local):  # Python handles signals in the main thread alone
    depth = 0
    waiting = 0
    number = 0
    count = 0


_state = _State()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise ``Stopped`` in this block, which must be the main thread's.

    A signal that the process was started to ignore (``nohup``, a job in the background) stays
    ignored; handlers are put back afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in SIGNALS
              if (handler := signal.getsignal(number)) in defaults}
    hook = sys.unraisablehook
    _state.depth = _state.waiting = _state.count = 0
    for number in before:
        signal.signal(number, _stop)
    sys.unraisablehook = partial(_send_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """A block that is not interrupted: a signal that comes meanwhile is raised at its end."""
    before = _state.depth
    _state.depth = before + 1
    try:
        yield
    finally:
        _state.depth = before  # also where a signal broke off a block within
        _raise_waiting()


@contextlib.contextmanager
def allow_signals() -> Iterator[None]:
    """A block within one of ``defer_signals`` that may be interrupted nevertheless."""
    before = _state.depth
    _state.depth = before - 1
    try:
        _raise_waiting()
        yield
    finally:
        _state.depth = before


def _stop(number: int, _frame: FrameType | None) -> None:
    _state.count += 1
    if not _state.depth:
        raise Stopped(number, _state.count)
    _state.waiting += 1
    _state.number = number
    if _state.waiting >= IMPATIENT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _send_again(hook: Callable[[Any], object], dropped: Any) -> None:
    """Python drops an error of a callback, such as the import system has: no signal is lost so."""
    if isinstance(dropped.exc_value, Stopped):
        number = dropped.exc_value.exit_code - 128
        _state.count -= 1
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        hook(dropped)


def _raise_waiting() -> None:
    if _state.waiting and not _state.depth:
        _state.waiting = 0
        raise Stopped(_state.number, _state.count)
