"""How long a sender goes on: a deadline that nothing outlasts, waits that the server asked for, tries that are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_TRIES = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 15.0

Result = TypeVar("Result")


class Problem(Exception):
    """A request that did not do its work; `str()` is the reason.

    `transient`: asking again may help. `in_doubt`: the server may have done it all the same.
    """

    def __init__(
        self, reason: str, *, status: int | None = None, retry_after_s: float | None = None, transient: bool = False,
        in_doubt: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s
        self.transient = transient
        self.in_doubt = in_doubt


class RetryPolicy:
    """A deadline for all requests of a delivery together. `stop()` from another thread ends it after the one in flight."""

    def __init__(self, budget_s: float, *, request_s: float = 30.0) -> None:
        self._deadline_s = time.monotonic() + budget_s
        self._request_s = request_s
        self._stopped = threading.Event()
        self.budget_s = budget_s

    def stop(self) -> None:
        """No request starts after this."""
        self._stopped.set()

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline_s

    def timeout_s(self) -> float:
        """What the next request may take; Problem when there is no time left."""
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0 or self._stopped.is_set():
            raise Problem(f"not done within {self.budget_s:.2g} s")
        return min(self._request_s, left_s)

    def pause(self, seconds: float, why: Problem) -> None:
        """Wait; raises `why` at once when the wait would outlast the deadline."""
        if time.monotonic() + seconds > self._deadline_s or self._stopped.wait(seconds):
            raise why

    def call(self, ask: Callable[[float], Result], *, retry_in_doubt: bool = True) -> Result:
        """`ask(timeout_s)` until it does not fail in passing; a 429 may come as often as time allows."""
        failures = 0
        while True:
            try:
                return ask(self.timeout_s())
            except Problem as problem:
                if not problem.transient or (problem.in_doubt and not retry_in_doubt):
                    raise
                failures += problem.status != 429
                if failures == _TRIES:
                    raise
                self.pause(wait_s(failures, problem), problem)


def wait_s(failures: int, problem: Problem) -> float:
    """What the server asked for, else twice as long each time."""
    if problem.retry_after_s is not None:
        return problem.retry_after_s
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** max(0, failures - 1))
