"""The HTTP client behind the `openai` package's clients, and what a connection that failed says about the call.

It is that package's own client over aiohttp, which takes about half the processor time of its default one, with the two
steps cut short that take most of the rest: a request that differs from an earlier one in its body alone is built from that
one, and where no proxy is to be asked `Direct` hands it to aiohttp and takes a whole answer back at once. What the package
makes of aiohttp's errors is not enough for us (a reset in the middle of a call comes out as a failure to connect), so
they are told apart by what aiohttp said.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import aiohttp
import httpx2
import openai
import yarl

CONNECTION_ERRORS = (TimeoutError, openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError)
Break = Literal["unconnected", "late", "lost"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CONNECT_TIMEOUT_S = 10.0
_KEPT_ALIVE_S = 5.0  # an idle connection: less than servers keep theirs
_CONNECTIONS = 65_535  # as many as there are ports: how many calls are in flight is decided elsewhere
_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.ProxyError)
_STREAMED = "text/event-stream"


def http_client(url: str, timeout_s: float) -> httpx2.AsyncClient:
    """The HTTP client to reach `url` with; a proxy from the environment is never asked for this very machine."""
    near = urlsplit(url).hostname in _LOOPBACK
    timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
    if near or not getproxies():
        return _Client(transport=Direct(secure=urlsplit(url).scheme == "https"), trust_env=not near, timeout=timeout)
    return _Client(
        timeout=timeout,
        limits=httpx2.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=None, keepalive_expiry=_KEPT_ALIVE_S
        ),
    )


class _Client(openai.DefaultAioHttpClient):
    """As its parent, at a fifth of the work for every request but the first of its kind."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._alike: dict[Any, tuple[httpx2.URL, httpx2.Headers, dict[str, Any]]] = {}

    def build_request(self, method: str, url: Any, **given: Any) -> httpx2.Request:
        """The request that the parent would build, without cookies."""
        content, headers = given.pop("content", None), given.pop("headers", None)
        if not isinstance(content, bytes) or not isinstance(headers, list):
            return super().build_request(method, url, content=content, headers=headers, **given)
        alike = (method, str(url), tuple(headers), *((name, str(value)) for name, value in given.items() if value))
        if alike not in self._alike:
            self.cookies.clear()
            built = super().build_request(method, url, content=content, headers=headers, **given)
            del built.headers["content-length"]
            self._alike[alike] = built.url, built.headers, built.extensions
        where, headers, extensions = self._alike[alike]
        request = httpx2.Request(
            method, where, headers=headers, stream=httpx2.ByteStream(content), extensions=extensions
        )
        request.headers["Content-Length"] = str(len(content))
        request.read()
        return request


class _ReadOnce:
    """Part of a client of the package: an address is put together once, and not for every call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._read: dict[str, httpx2.URL] = {}

    def _prepare_url(self, url: str) -> httpx2.URL:
        if url not in self._read:
            self._read[url] = super()._prepare_url(url)  # type: ignore[misc]
        return self._read[url]


class Client(_ReadOnce, openai.AsyncOpenAI):
    """The package's client of an OpenAI-compatible endpoint."""


class AzureClient(_ReadOnce, openai.AsyncAzureOpenAI):
    """The package's client of an Azure OpenAI resource."""


class Direct(httpx2.AsyncBaseTransport):
    """HTTP/1.1 by aiohttp, without proxies. Errors come out as aiohttp raises them; redirects are the client's to follow."""

    def __init__(self, *, secure: bool) -> None:
        # Where http is asked, a redirect may still lead to https, which is checked by aiohttp's own context.
        self._ssl: ssl.SSLContext | bool = httpx2.create_ssl_context() if secure else True
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send, and return with the whole body; a stream of events is returned when it begins."""
        limit = request.extensions.get("timeout", {})
        reply = await self._opened().request(
            request.method, _url(str(request.url)), headers=request.headers.multi_items(),
            data=await request.aread() or None, allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                connect=limit.get("pool"), sock_connect=limit.get("connect"), sock_read=limit.get("read")
            ),
        )  # fmt: skip
        if reply.headers.get("Content-Type", "").startswith(_STREAMED):
            stream: httpx2.AsyncByteStream = _Events(reply)
        else:
            stream = httpx2.ByteStream(await reply.read())
        return httpx2.Response(
            reply.status, headers=list(reply.raw_headers), stream=stream,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": (reply.reason or "").encode()},
        )  # fmt: skip

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # it belongs to the event loop that it is made in
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._ssl, keepalive_timeout=_KEPT_ALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session


@functools.lru_cache(maxsize=64)
def _url(text: str) -> yarl.URL:
    return yarl.URL(text, encoded=True)


class _Events(httpx2.AsyncByteStream):
    """A body that is read as it comes."""

    def __init__(self, reply: aiohttp.ClientResponse) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._reply.content.iter_any():
            yield chunk

    async def aclose(self) -> None:
        self._reply.release()


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
