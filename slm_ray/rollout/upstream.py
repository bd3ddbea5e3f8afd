"""The two sides of a route as they are asked: one chat-completions address each, the client's own body, one pool of connections.

A provider gives address, key and model name; only `model` is replaced in the body, and what comes back is handed on byte
for byte, a stream as it arrives. Nothing is asked twice here: whoever calls decides what a failure leads to. Whoever stops
waiting closes the connection, so that the other side stops too. A redirect is a failure: the key goes to no other host.
A key is in `Target.headers` only, which no repr shows.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from slm_ray.costs.data_residency import host_of, is_loopback
from slm_ray.errors import ConfigError
from slm_ray.providers.answer import Outcome, one_line, read_answer
from slm_ray.providers.provider import ChatProvider
from slm_ray.providers.spec import parse
from slm_ray.providers.streamed import StreamError, read_stream
from slm_ray.traffic.record import Arm

MAX_ANSWER_BYTES = 32 * 2**20
_CONNECT_TIMEOUT_S = 5.0
_IDLE_TIMEOUT_S = 60.0  # between two parts of a stream that has begun
_KEPT_ALIVE_S = 3.0  # an idle connection: less than servers keep theirs, 5 s with uvicorn
_HANDED_ON = ("content-type", "retry-after", "retry-after-ms")
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model behind one address. `billed` says whether its tokens are paid for."""

    arm: Arm
    spec: str
    model: str
    url: str
    billed: bool
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a side said, whole. `status` is 0 where no answer came.

    `trouble` is None for an answer with text or a tool call, else what went wrong as a word and a reason
    (`timeout: …`, `connection: …`, `http_503: …`, `empty: …`, `broken: …`). `outcome` is the answer as it was read.
    """

    target: Target
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    outcome: Outcome = field(default_factory=Outcome)
    trouble: str | None = None
    latency_s: float = 0.0
    first_token_s: float | None = None

    @property
    def kind(self) -> str:
        """The word of the trouble; empty where there is none."""
        return (self.trouble or "").partition(":")[0]

    @property
    def down(self) -> bool:
        """Whether the side did not work on the call to its end."""
        return self.kind in ("timeout", "connection") or self.status >= 500

    @property
    def unanswered(self) -> bool:
        """Whether this says nothing of the side's answers: it was down, overloaded or did not take the call."""
        return self.down or self.kind == "left" or self.kind.startswith("http_")

    @property
    def model(self) -> str:
        """The version that answered, as the answer has it."""
        return self.outcome.served_by or self.target.model

    def unsure(self, threshold: float | None) -> str | None:
        """Why a cascade at this threshold gives the LLM's answer instead; None where it gives this one."""
        failure, logprob = self.outcome.failure, self.outcome.logprob
        if failure is not None or logprob is None:
            return f"unsure: {failure.reason if failure else 'the answer has no log-probabilities'}"
        if threshold is not None and logprob < threshold:
            return f"unsure: {logprob:.4f} is below {threshold:.4f}"
        return None


def target(spec: str, *, arm: Arm, endpoint: str, environment: Mapping[str, str]) -> Target:
    """Where and as what `spec` is asked; `endpoint` is the address of `served:` models.

    ConfigError for what is no model behind an address; ModelError that names the variable where a key is missing.
    """
    asked = parse(spec)
    provider = asked.provider
    if not isinstance(provider, ChatProvider) or asked.demonstrations:
        raise ConfigError(
            f"{spec} cannot stand in a route: a route hands the client's own messages to an address; "
            "name served:BASE:ADAPTER, azure:DEPLOYMENT or openai:MODEL@BASE_URL, without demonstrations"
        )
    provider.check(environment)
    address = provider.address(endpoint=endpoint, environment=environment)
    if address.deployment is None:
        url = f"{address.url}/chat/completions"
        headers = {"authorization": f"Bearer {address.secret}"} if address.secret else {}
    else:
        deployment, version = quote(address.deployment, safe=""), quote(address.api_version or "", safe="")
        url = f"{address.url}/openai/deployments/{deployment}/chat/completions?api-version={version}"
        headers = {"api-key": address.secret}
    facts = provider.facts(endpoint=endpoint, environment=environment)
    return Target(
        arm=arm, spec=spec, model=provider.model(environment), url=url, headers=headers, proxy=_proxy(url),
        billed=facts.billing == "tokens",
    )  # fmt: skip


def _proxy(url: str) -> str | None:
    """The environment's proxy for other machines, never for this one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return None if is_loopback(host) or proxy_bypass(host) else getproxies().get(parts.scheme)


class Upstream:
    """Asks targets over one pool. To be made and closed within a running event loop."""

    def __init__(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_ALIVE_S, ssl=ssl.create_default_context())
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=True, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, target: Target, body: Mapping[str, Any], *, timeout_s: float) -> Reply:
        """One answer as a whole, at most `timeout_s` from now. Raises nothing but cancellation."""
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s), self._post(target, body) as response:
                raw = await _bounded(response)
                reply = _read(target, response.status, _handed_on(response), raw)
        except _BROKEN as error:
            reply = _failed(target, error, timeout_s)
        return replace(reply, latency_s=time.perf_counter() - started_s)

    @asynccontextmanager
    async def stream(self, target: Target, body: Mapping[str, Any], *, timeout_s: float) -> AsyncIterator[Streamed]:
        """A streamed answer whose first text is there, or the reason why there is none, at most `timeout_s` from now."""
        started_s = time.perf_counter()
        streamed = Streamed(target, started_s)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._post(target, body)
                streamed.opened(response)
                await streamed.begin()
        except _BROKEN as error:
            streamed.fail(_failed(target, error, timeout_s))
        try:
            yield streamed
        finally:
            streamed.close()

    def _post(self, target: Target, body: Mapping[str, Any]) -> Any:
        return self._session.post(
            target.url, data=msgspec.json.encode({**body, "model": target.model}), proxy=target.proxy,
            headers={**target.headers, "content-type": "application/json"}, allow_redirects=False,
        )  # fmt: skip


class Streamed:
    """A stream on its way: `failed` tells whether anything came that a client could be shown, `parts` are its bytes.

    After the last part `reply` says what it came to, also where it broke in the middle.
    """

    def __init__(self, target: Target, started_s: float) -> None:
        self.target = target
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._response: aiohttp.ClientResponse | None = None
        self._started_s = started_s
        self._first: list[bytes] = []
        self._lines: list[str] = []
        self._rest = b""
        self._bytes = 0
        self._first_token_s: float | None = None
        self._model: str | None = None
        self._reply: Reply | None = None
        self._ended = False

    @property
    def failed(self) -> Reply | None:
        """The failure of a stream that never began; None for one whose text can be handed on."""
        return self._reply if self._reply is not None and self._reply.trouble else None

    @property
    def model(self) -> str:
        """The version that answers, as the parts so far have it."""
        return self._reply.model if self._reply is not None else self._model or self.target.model

    @property
    def is_events(self) -> bool:
        """False where the side answered whole though it was asked to stream: then there is one part, of JSON."""
        return str(self.headers.get("content-type", "")).startswith(_EVENTS)

    def opened(self, response: aiohttp.ClientResponse) -> None:
        """The headers are there."""
        self._response = response
        self.status, self.headers = response.status, _handed_on(response)

    def fail(self, reply: Reply) -> None:
        """Nothing will come."""
        self._reply = replace(reply, latency_s=time.perf_counter() - self._started_s)

    def close(self) -> None:
        """Stop it, wherever it is."""
        if self._response is not None:
            self._response.close()

    async def begin(self) -> None:
        """Wait for the first text; a stream that ends or fails before it is a failure."""
        assert self._response is not None
        if not self.is_events or self.status != 200:
            raw = await _bounded(self._response)
            self._first, self._ended = [raw], True
            self.fail(_read(self.target, self.status, self.headers, raw))
            return
        async for part in self._response.content.iter_any():
            self._first.append(part)
            if self._take(part):
                return
        self._ended = True
        self.fail(await self._came_to())

    async def parts(self) -> AsyncIterator[bytes]:
        """All bytes as they come. Where the stream breaks it ends, and `reply` says why."""
        for part in self._first:
            yield part
        if self._ended or self._response is None:
            return
        chunks = self._response.content.iter_any()
        try:
            while True:
                async with asyncio.timeout(_IDLE_TIMEOUT_S):
                    part = await anext(chunks)
                self._take(part)
                yield part
        except StopAsyncIteration:
            self._reply = await self._came_to()
        except _BROKEN as error:
            broken = _failed(self.target, error, _IDLE_TIMEOUT_S)
            self._reply = replace(await self._came_to(), trouble=f"{broken.trouble} (in the middle of the stream)")

    def reply(self) -> Reply:
        """What the stream came to."""
        if self._reply is None:
            left = Reply(
                target=self.target, status=self.status, headers=self.headers, trouble="left: the client was gone"
            )
            return replace(left, latency_s=time.perf_counter() - self._started_s, first_token_s=self._first_token_s)
        return self._reply

    def _take(self, part: bytes) -> bool:
        """Keep the lines of a part; True from the first text on, and where an error stands in its place."""
        self._bytes += len(part)
        if self._bytes > MAX_ANSWER_BYTES:
            raise _TooLarge
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            self._lines.append(text)
            if self._first_token_s is None:
                has_text, model = _seen(text)
                self._model = self._model or model
                self._first_token_s = time.perf_counter() - self._started_s if has_text else None
        return self._first_token_s is not None

    async def _came_to(self) -> Reply:
        outcome, trouble = Outcome(), None
        try:
            outcome, _ = await read_stream(_each([*self._lines, self._rest.decode("utf-8", "replace")]), started_s=0.0)
        except StreamError as error:
            trouble = f"http_{error.status or 500}: {one_line(str(error))}"
        calls = any('"tool_calls"' in line for line in self._lines)
        return Reply(
            target=self.target, status=self.status, headers=self.headers, outcome=outcome,
            trouble=trouble or _trouble(outcome, calls=calls), latency_s=time.perf_counter() - self._started_s,
            first_token_s=self._first_token_s,
        )  # fmt: skip


class _TooLarge(Exception):
    """An answer that nobody should keep in memory."""


_BROKEN = (TimeoutError, aiohttp.ClientError, OSError, _TooLarge, ValueError)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _TooLarge
    return b"".join(parts)


def _handed_on(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: response.headers[name] for name in _HANDED_ON if name in response.headers}


def _read(target: Target, status: int, headers: Mapping[str, str], raw: bytes) -> Reply:
    reply = Reply(target=target, status=status, headers=headers, body=raw)
    if status != 200:
        return replace(reply, trouble=f"http_{status}: {one_line(_hidden(target, raw.decode('utf-8', 'replace')))}")
    outcome = read_answer(raw.decode("utf-8", "replace"))
    return replace(reply, outcome=outcome, trouble=_trouble(outcome, calls=b'"tool_calls"' in raw))


def _trouble(outcome: Outcome, *, calls: bool) -> str | None:
    """Why an answer is none. One that stops at its token limit is one: how far it is right, its form says."""
    if outcome.failure is None:
        return "empty: the answer has no text" if not (outcome.text or "").strip() and not calls else None
    if outcome.failure.kind == "truncated" or (calls and outcome.failure.kind == "invalid"):
        return None
    return f"{'refused' if outcome.failure.kind == 'refused' else 'broken'}: {outcome.failure.reason}"


def _failed(target: Target, error: BaseException, timeout_s: float) -> Reply:
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectorError):
        return Reply(target=target, trouble=f"timeout: no answer within {timeout_s:g} s")
    if isinstance(error, _TooLarge):
        return Reply(target=target, trouble=f"broken: the answer is above {MAX_ANSWER_BYTES // 2**20} MiB")
    words = one_line(_hidden(target, str(error))) or type(error).__name__
    return Reply(target=target, trouble=f"connection: {host_of(target.url)}: {words}")


def _hidden(target: Target, text: str) -> str:
    """Some endpoints quote the key that they refuse."""
    for value in target.headers.values():
        text = text.replace(value.removeprefix("Bearer "), "***")
    return text


def _seen(line: str) -> tuple[bool, str | None]:
    """Whether a line of a stream holds something of the answer, and the model that it names."""
    if not line.startswith("data:"):
        return False, None
    try:
        chunk = msgspec.json.decode(line.removeprefix("data:"))
        model = one_line(chunk["model"]) if isinstance(chunk.get("model"), str) else None
        delta = chunk["choices"][0]["delta"]
        return bool(delta.get("content") or delta.get("tool_calls") or delta.get("refusal")), model
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError, RecursionError):
        return False, None


async def _each(lines: list[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line
