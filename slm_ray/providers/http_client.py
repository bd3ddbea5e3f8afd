"""One address, asked over HTTP/1.1 by aiohttp, and what a connection that failed says about the call.

A plain session without an API library above it: measured, that takes a third of the processor time per call of the
`openai` package's aiohttp client. Any number of connections may be open: how many calls are in flight is decided elsewhere.
A proxy of the environment is used for other machines and never for this one. Keys travel in headers, to the host that they
are for and to no other one that a redirect names.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import certifi
import yarl

CONNECTION_ERRORS = (TimeoutError, aiohttp.ClientError, OSError)
Break = Literal["unconnected", "late", "lost"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CONNECT_TIMEOUT_S = 10.0
_KEPT_ALIVE_S = 5.0  # an idle connection: less than servers keep theirs
_KEY_HEADERS = ("authorization", "api-key")
_MOST_REDIRECTS = 5
_REDIRECTS = (307, 308)  # the others would turn a call into a GET
_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


class HttpError(Exception):
    """An answer that is none: its status, headers and text."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers
        self.text = text


class HttpClient:
    """The connections to one endpoint; it belongs to the event loop that it is first used in."""

    def __init__(self, *, headers: Mapping[str, str], timeout_s: float) -> None:
        self._headers = dict(headers)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: Mapping[str, Any]) -> tuple[Mapping[str, str], str]:
        """Headers and text of the answer; HttpError for a status other than 2xx, one of `CONNECTION_ERRORS` for none."""
        async with self._sent("POST", url, json.dumps(body).encode()) as reply:
            return reply.headers, await _text(reply)

    @asynccontextmanager
    async def stream(
        self, url: str, body: Mapping[str, Any]
    ) -> AsyncIterator[tuple[Mapping[str, str], AsyncIterator[str]]]:
        """Headers and, as they come, lines of the answer; errors as those of `post`."""
        async with self._sent("POST", url, json.dumps(body).encode()) as reply:
            yield reply.headers, _lines(reply.content)

    async def get(self, url: str) -> str:
        """The text of what is there; errors as those of `post`."""
        async with self._sent("GET", url, None) as reply:
            return await _text(reply)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _sent(self, method: str, url: str, body: bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        target, headers = yarl.URL(url, encoded=True), self._headers
        for _ in range(_MOST_REDIRECTS + 1):
            async with self._opened(target).request(
                method, target, data=body, headers=headers, allow_redirects=False
            ) as reply:
                if reply.status not in _REDIRECTS or "Location" not in reply.headers:
                    if not 200 <= reply.status < 300:
                        raise HttpError(reply.status, reply.headers, await _text(reply) or str(reply.reason))
                    yield reply
                    return
            moved = target.join(yarl.URL(reply.headers["Location"]))
            if moved.origin() != target.origin():
                headers = {name: value for name, value in headers.items() if name.lower() not in _KEY_HEADERS}
            target = moved
        raise aiohttp.ClientError(f"more than {_MOST_REDIRECTS} redirects")

    def _opened(self, url: yarl.URL) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=_trusted(), keepalive_timeout=_KEPT_ALIVE_S),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=min(self._timeout_s, _CONNECT_TIMEOUT_S), sock_read=self._timeout_s
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=url.host not in _LOOPBACK,
            )
        return self._session


def broken(error: BaseException) -> tuple[Break, str]:
    """What became of a call that ended in one of `CONNECTION_ERRORS`, and its words.

    `unconnected`: it was never sent. `late`: no answer in time. `lost`: the connection broke after it was made, and the
    call may have been worked on, as it may when it is late.
    """
    words = str(error) or type(error).__name__
    if isinstance(error, _UNCONNECTED):
        return "unconnected", words
    return ("late" if isinstance(error, TimeoutError) else "lost"), words


def _trusted() -> ssl.SSLContext:
    """The certificates that this machine, or SSL_CERT_FILE, trusts; certifi's where it has none."""
    context, paths = ssl.create_default_context(), ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        context.load_verify_locations(certifi.where())
    return context


async def _text(reply: aiohttp.ClientResponse) -> str:
    return (await reply.read()).decode("utf-8", "replace")


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Lines of any length."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
