"""What a chat model needs of a rate limiter."""

from __future__ import annotations

from typing import Protocol


class RateLimiter(Protocol):
    """In front of every attempt."""

    async def acquire(self) -> int: ...
    def accepted(self, ticket: int) -> None: ...
    def rejected(self, ticket: int, retry_after_s: float | None = None) -> None: ...
    def close(self) -> None: ...


class Unlimited:
    """For one call."""

    async def acquire(self) -> int:
        return 0

    def accepted(self, ticket: int) -> None: ...
    def rejected(self, ticket: int, retry_after_s: float | None = None) -> None: ...
    def close(self) -> None: ...
