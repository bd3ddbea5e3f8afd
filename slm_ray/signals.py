"""Ctrl-C, SIGTERM (what `ray job stop` sends) and SIGHUP (a closed terminal), handled here and nowhere else.

Within a `SignalGuard` the first signal raises KeyboardInterrupt. Those that follow leave the clean-up it has started
alone: they are answered with one line. One that comes a minute later raises again, because then the first was lost in
somebody's callback, or the clean-up hangs. `deferred` holds a signal back until a block is done. Who ignores SIGHUP, as
`nohup` does, means that the job goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOST_AFTER_S = 60.0


@dataclass(slots=True)
class _State:
    """What the guards of one process share; guards nest."""

    before: dict[signal.Signals, Any] = field(default_factory=dict)
    guards: int = 0
    deferring: int = 0
    is_pending: bool = False
    raised_at_s: float | None = None
    has_answered: bool = False


_state = _State()


class SignalGuard:
    """A context manager in which these signals raise KeyboardInterrupt, once.

    A guard within another one puts the handlers back in place (`ray.init` has one of its own for SIGTERM) and shares the
    outer one's state. Where the outermost ends, the handlers are what they were; with `ends_process` they are
    ignored from there on, so that nothing breaks into what the interpreter still does. Does nothing outside the main
    thread, where Python allows no handlers.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self._is_active = False

    def __enter__(self) -> SignalGuard:
        self._is_active = threading.current_thread() is threading.main_thread()
        if self._is_active:
            before = {number: signal.signal(number, _handle) for number in _handled()}
            if not _state.guards:
                _state.before = before
            _state.guards += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_active:
            return
        _state.guards -= 1
        if _state.guards:
            return
        for number, handler in _state.before.items():
            signal.signal(number, signal.SIG_IGN if self._ends_process else handler)
        _state.raised_at_s, _state.is_pending, _state.has_answered = None, False, False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within the block raises at its end."""
        if not self._is_active:
            yield
            return
        _state.deferring += 1
        try:
            yield
        finally:
            _state.deferring -= 1
        if _state.is_pending and not _state.deferring:
            _raise()


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Whatever the block does to the handlers of these signals is undone at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_signal() -> None:
    """Sleep until a signal raises KeyboardInterrupt; to be called within a guard."""
    while True:
        signal.pause()


def _handled() -> list[signal.Signals]:
    return [one for one in _SIGNALS if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


def _handle(number: int, frame: FrameType | None) -> None:
    is_cleaning_up = _state.raised_at_s is not None and time.monotonic() - _state.raised_at_s < _LOST_AFTER_S
    if is_cleaning_up or _state.is_pending:
        if not _state.has_answered:
            _state.has_answered = True
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, b"stopping...\n")  # not print: the signal may have come in the middle of one
        return
    if _state.deferring:
        _state.is_pending = True
        return
    _raise()


def _raise() -> None:
    _state.is_pending, _state.raised_at_s = False, time.monotonic()
    raise KeyboardInterrupt
