"""The one retry loop: what is tried again, how long to wait, and when to give up.

Waits grow exponentially with jitter and never undercut what the server asks for; a server that asks for more than
`MAX_WAIT_S` is not waited for. It knows nothing of HTTP clients: a call says that it may pass later by raising
`TryAgain`; every other exception goes through untouched.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

Answer = TypeVar("Answer")

FIRST_WAIT_S = 0.5
LONGEST_BACKOFF_S = 20.0
MAX_WAIT_S = 120.0
_PASSING_STATUSES = frozenset({408, 409, 425, 429})


class TryAgain(Exception):
    """One attempt failed in a way that may pass: a limit, a server error, a broken or slow connection."""

    def __init__(self, reason: str, *, status: int | None = None, wait_s: float | None = None, unheard: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.wait_s = wait_s
        self.unheard = unheard  # no connection was made: nobody may be listening at all


def passes(status: int) -> bool:
    """True for an HTTP status that another attempt may cure."""
    return status in _PASSING_STATUSES or status >= 500


def asked_wait_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) ask for; None when neither is usable."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" not in headers:
            return None
        text = headers["retry-after"]
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now_s is None else now_s))
    except (ValueError, OverflowError):
        return None


def backoff_s(attempt: int) -> float:
    """How long to wait after failed attempt number `attempt` (from 1): doubling, with jitter over the upper half."""
    ceiling = min(LONGEST_BACKOFF_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    return ceiling * random.uniform(0.5, 1.0)


async def persist(call: Callable[[], Awaitable[Answer]], *, max_attempts: int) -> tuple[Answer | TryAgain, int]:
    """Call until it answers; returns (the answer, or the last failure, and how many attempts were made)."""
    attempt = 1
    while True:
        try:
            return await call(), attempt
        except TryAgain as failure:
            wait_s = max(backoff_s(attempt), failure.wait_s or 0.0)
            if attempt >= max_attempts or wait_s > MAX_WAIT_S:
                return failure, attempt
        await asyncio.sleep(wait_s)
        attempt += 1
