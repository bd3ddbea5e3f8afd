"""What a chat model needs of whoever decides how fast an endpoint is asked.

The limiter that learns an endpoint's limit from its answers belongs to the evaluation; this module is only the seam.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class RateLimiter(Protocol):
    """In front of every attempt: `ticket = await acquire()`, then `accepted(ticket)` or `rejected(ticket, …)`.

    An attempt that ends in neither, a broken connection or a server error, says nothing about a limit.
    """

    async def acquire(self) -> int:
        """Wait until an attempt may start; returns the number of the limit that it starts under."""
        ...

    def accepted(self, ticket: int) -> None:
        """The endpoint took the attempt, whatever it answered."""
        ...

    def rejected(self, ticket: int, retry_after_s: float | None) -> None:
        """The endpoint answered HTTP 429, and perhaps how long to wait."""
        ...

    def close(self) -> None:
        """No attempt starts any more: the endpoint has refused one in a way that it would refuse them all.

        Whoever waits in `acquire` waits until it is cancelled, which the error of that one attempt brings about.
        """
        ...


class Unlimited:
    """No limit: for a single question, and for models that are no endpoint."""

    def __init__(self) -> None:
        self._closed = False

    async def acquire(self) -> int:
        """At once, until it is closed."""
        if self._closed:
            await asyncio.Event().wait()
        return 0

    def accepted(self, ticket: int) -> None:
        """Nothing to learn."""

    def rejected(self, ticket: int, retry_after_s: float | None) -> None:
        """Nothing to learn."""

    def close(self) -> None:
        """No attempt starts any more."""
        self._closed = True
