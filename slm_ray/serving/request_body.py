"""The body of a request, read whole within bounds: of one body, of all large ones that are coming in at once, and of time.

A body holds memory before anybody has decided on the request, so that many slow large ones would fill it, or keep all other
large ones out. Plain ASGI.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope

from slm_ray.serving.failures import refusal

MAX_BODY_BYTES = 8 * 2**20
SMALL_BODY_BYTES = 64 * 2**10  # bodies up to this are not counted
MAX_ARRIVING_BYTES = 64 * 2**20  # of all larger ones that are not whole yet
MAX_ARRIVAL_S = 60.0  # of one body: 8 MiB at a megabit per second


class Refused(Exception):
    """A request that is not passed on; `field` is the one at fault."""

    def __init__(self, message: str, *, field: str | None = None, status: int = 400, code: str = "invalid_value"):
        super().__init__(message)
        self.status, self.code, self.field = status, code, field

    def response(self) -> JSONResponse:
        """What the client is told."""
        if self.status == 429:
            return refusal(429, self.code, str(self), "rate_limit_error", retry_after_s=1)
        return refusal(self.status, self.code, str(self), param=self.field)


class Gone(Exception):
    """The client left before its request was whole."""


class Arriving:
    """All bodies that one front is reading."""

    def __init__(self) -> None:
        self._bytes = 0  # of large ones

    async def whole(self, scope: Scope, receive: Receive) -> bytes:
        """The body; Gone where the client left.

        Refused where it is too large (413), comes beside too many large ones (429), or is not whole in time (408).
        """
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(MAX_ARRIVAL_S):
                return await self._read(receive)
        except TimeoutError:
            late = f"the body was not whole after {MAX_ARRIVAL_S:g} s; send it faster, or less"
            raise Refused(late, status=408, code="request_timeout") from None

    async def _read(self, receive: Receive) -> bytes:
        parts, size, counted = [], 0, 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return b"".join(parts)
                if size > SMALL_BODY_BYTES:
                    self._bytes, counted = self._bytes + size - counted, size
                    if self._bytes > MAX_ARRIVING_BYTES:
                        raise Refused(
                            "many large requests are coming in; try again later", status=429, code="rate_limit_exceeded"
                        )
        finally:
            self._bytes -= counted


def _too_large() -> Refused:
    return Refused(f"the body is above {MAX_BODY_BYTES // 2**20} MiB; send less", status=413, code="request_too_large")


def replayed(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever the client does next (it may leave)."""
    unread = True

    async def again() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def decoded(body: bytes) -> dict[str, Any]:
    """A request; Refused for what is none."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the body is no JSON in UTF-8 ({error})", code="invalid_json") from None
    if not isinstance(request, dict):
        raise Refused("the body is JSON but no object", code="invalid_json")
    return request
