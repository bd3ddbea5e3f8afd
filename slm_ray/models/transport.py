"""The HTTP client behind the `openai` package's clients, and what a connection that failed says about the call.

It is that package's own client over aiohttp, which takes about half the processor time of its default one. What it
makes of aiohttp's errors is not enough for us (a reset in the middle of a call comes out as a failure to connect), so
they are told apart by what aiohttp said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai

CONNECTION_ERRORS = (TimeoutError, openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError)
Break = Literal["unconnected", "late", "lost"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CONNECT_TIMEOUT_S = 10.0
_CONNECTIONS = 65_535  # as many as there are ports: how many calls are in flight is decided elsewhere
_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.ProxyError)


def http_client(url: str, timeout_s: float) -> httpx2.AsyncClient:
    """The HTTP client to reach `url` with; a proxy from the environment is never asked for this very machine."""
    return openai.DefaultAioHttpClient(
        trust_env=urlsplit(url).hostname not in _LOOPBACK,
        timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S)),
        limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=None),
    )


def broken(error: BaseException) -> tuple[Break, str]:
    """What became of a call that ended in one of `CONNECTION_ERRORS`, and the innermost words for it.

    `unconnected`: it was never sent. `late`: no answer in time. `lost`: the connection broke after it was made, and the
    call may have been worked on, as it may when it is late.
    """
    chain = list(_causes(error))
    words = next((text for cause in reversed(chain) if (text := str(cause))), type(chain[-1]).__name__)
    if any(isinstance(cause, _UNCONNECTED) for cause in chain):
        return "unconnected", words
    return ("late" if any(isinstance(cause, TimeoutError) for cause in chain) else "lost"), words


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
