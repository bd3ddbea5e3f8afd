"""The one retry loop: what is tried again, how long to wait, and when to give up.

A server that says how long to wait is asked again after that and a little more, never earlier, up to `MAX_WAIT_S`; without
its word waits grow exponentially with jitter. A rate-limited attempt (429) does not count against `max_attempts`:
only the deadline ends that. It knows nothing of HTTP: a call says that it may pass later by raising `RetryableError`; every
other exception goes through untouched.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

RATE_LIMITED = 429
FIRST_WAIT_S = 0.5
LONGEST_BACKOFF_S = 20.0
MAX_WAIT_S = 900.0
_LATE = 0.1  # of the wait asked for, at most: so that rows limited together do not come back together
_PASSING_STATUSES = frozenset({408, 409, 425, 429})


class RetryableError(Exception):
    """One attempt failed in a way that may pass: a limit, a server error, a broken or slow connection."""

    def __init__(
        self, reason: str, *, status: int | None = None, retry_after_s: float | None = None,
        possibly_billed: bool = False, unconnected: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        self.possibly_billed = possibly_billed  # sent and never answered: maybe billed
        self.unconnected = unconnected  # no connection was made: nobody may be listening at all


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryResult(Generic[Answer]):
    """What came of it, how many calls that took, and how many of them were sent and never answered."""

    result: Answer | RetryableError
    attempts: int
    possibly_billed: int


def passes(status: int) -> bool:
    """True for an HTTP status that another attempt may cure."""
    return status in _PASSING_STATUSES or status >= 500


def retry_after_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) ask for; None when neither is usable.

    A date is taken by the clock of the server that names it (its `Date`), and by ours where it says nothing of that.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        text = headers["retry-after"]
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        now_s = time.time() if now_s is None else now_s
        return max(0.0, _moment_s(text) - (_moment_s(headers["date"]) if "date" in headers else now_s))
    except (ValueError, OverflowError):
        return None


def _moment_s(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


def backoff_s(attempt: int) -> float:
    """How long to wait after failed attempt number `attempt` (from 1): doubling, with jitter over the upper half."""
    ceiling = min(LONGEST_BACKOFF_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 16))
    return ceiling * random.uniform(0.5, 1.0)


def next_wait_s(failure: RetryableError, attempt: int) -> float:
    """Seconds until the next attempt: what the server asked for and up to a tenth more, else the back-off."""
    if failure.retry_after_s is None:
        return backoff_s(attempt)
    return max(failure.retry_after_s, FIRST_WAIT_S / 10) * random.uniform(1.0, 1.0 + _LATE)


async def retry(
    call: Callable[[], Awaitable[Answer]], *, max_attempts: Callable[[], int], retry_deadline_s: float
) -> RetryResult[Answer]:
    """Call until it answers, until `max_attempts()` calls failed otherwise than by 429, or until the deadline.

    A deadline of 0 is one call, whatever comes of it.
    """
    started_s = time.monotonic()
    attempts = failed = possibly_billed = 0
    while True:
        attempts += 1
        try:
            return RetryResult(result=await call(), attempts=attempts, possibly_billed=possibly_billed)
        except RetryableError as failure:
            failed += failure.status != RATE_LIMITED
            possibly_billed += failure.possibly_billed
            wait_s = next_wait_s(failure, attempts)
            late = time.monotonic() + wait_s > started_s + retry_deadline_s
            if failed >= max_attempts() or late or (failure.retry_after_s or 0.0) > MAX_WAIT_S:
                given_up = _named(failure, retry_deadline_s, late=late) if retry_deadline_s else failure
                return RetryResult(result=given_up, attempts=attempts, possibly_billed=possibly_billed)
        await asyncio.sleep(wait_s)


def _named(failure: RetryableError, retry_deadline_s: float, *, late: bool) -> RetryableError:
    """The failure with what has ended the waiting, where that is a wait and not the number of attempts."""
    asked = f"Retry-After asks for {failure.retry_after_s:g} s" if failure.retry_after_s is not None else "another wait"
    if (failure.retry_after_s or 0.0) > MAX_WAIT_S:
        failure.reason += f" ({asked}, and none above {MAX_WAIT_S:g} s is waited for; run the same command again then)"
    elif late:
        failure.reason += (
            f" ({asked}, which ends after generation.retry_deadline_s {retry_deadline_s:g}; raise it to wait)"
        )
    return failure
