"""A model behind a chat-completions endpoint, of whichever provider: one chat call per prompt with the shared retry loop.

The client's own retries are off, so every attempt is counted. A failed call comes back as a `Failure`; a key, name or
address that fails every call raises a ModelError in the provider's words. Keys stay inside the client: not in a repr, a
reason or an error. Every attempt passes the model's rate limiter.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai

from slm_ray.config import Generation
from slm_ray.errors import ModelError, choices
from slm_ray.providers.answer import FILTERED, Outcome, error_outcome, one_line, read_answer
from slm_ray.providers.http_client import CONNECTION_ERRORS, broken, open_client
from slm_ray.providers.limiter import RateLimiter, Unlimited
from slm_ray.providers.provider import ChatAddress, ChatProvider
from slm_ray.providers.request import request_body
from slm_ray.providers.retry import RATE_LIMITED, RetryableError, passes, retry, retry_after_s
from slm_ray.providers.streamed import StreamError, read_stream
from slm_ray.types import Completion, Failure, Prompt

_FIRST_ATTEMPTS = 4
_USED_UP = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


class ChatModel:
    """One named model on one endpoint; any number of `complete` calls may be in flight."""

    def __init__(
        self, *, provider: ChatProvider, model: str, address: ChatAddress, generation: Generation,
        limiter: RateLimiter | None = None,
    ) -> None:  # fmt: skip
        self.spec = provider.spec
        self.address = address
        self._provider = provider
        self._model = model
        self._client, self._http = open_client(address, timeout_s=generation.timeout_s)
        self._first_request: httpx2.Request | None = (
            None  # as the package makes it; all others differ in their body alone
        )
        self._generation = generation
        self._limiter = limiter or Unlimited()
        self._answered_before = False  # the endpoint, whatever it said: it is there
        self._limit_field = "max_tokens"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r} at {self.address.url})"

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """Answer one prompt; ModelError when the endpoint would refuse or miss every call."""
        latency_s = 0.0

        async def attempt() -> Outcome:
            nonlocal latency_s
            ticket = await self._limiter.acquire()
            started_s = time.perf_counter()
            try:
                outcome = await self._attempt(prompt, started_s)
            except RetryableError as failure:
                if failure.status == RATE_LIMITED:
                    self._limiter.rejected(ticket, failure.retry_after_s)
                raise
            finally:
                latency_s = time.perf_counter() - started_s
            self._limiter.accepted(ticket)
            return outcome

        settings = self._generation
        tried = await retry(attempt, max_attempts=self._allowed, retry_deadline_s=settings.retry_deadline_s)
        result = self._given_up(tried.result) if isinstance(tried.result, RetryableError) else tried.result
        return result.completion(latency_s=latency_s, attempts=tried.attempts, possibly_billed=tried.possibly_billed)

    def _allowed(self) -> int:
        """An endpoint that never answered anything is given up sooner."""
        return (
            self._generation.max_attempts
            if self._answered_before
            else min(_FIRST_ATTEMPTS, self._generation.max_attempts)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _given_up(self, last: RetryableError) -> Outcome:
        """Rows fail one by one, but an endpoint that was never there would fail them all, slowly."""
        if last.unconnected and not self._answered_before:
            raise self._provider.unreachable(self.address.url, last.reason)
        return Outcome(failure=Failure(kind="error", reason=last.reason, status=last.status))

    async def _attempt(self, prompt: Prompt, started_s: float) -> Outcome:
        body = request_body(prompt, self._generation)
        limit_field = self._limit_field
        body[limit_field] = body.pop("max_tokens")
        try:
            async with asyncio.timeout(self._generation.timeout_s):
                return await (self._streamed if "stream" in body else self._whole)(body, started_s)
        except CONNECTION_ERRORS as error:
            raise self._broken(error) from None
        except StreamError as error:
            return await self._refused_call(error.status or 500, error.code, one_line(self._hide(str(error))))
        except openai.APIStatusError as error:
            error_body = _ErrorBody.read(error.response)
            message = one_line(self._hide(error_body.message))
            if error_body.code in ("unsupported_parameter", "unsupported_value"):
                self._answered_before = True
                return self._unsupported(error_body.param, message, limit_field)
            wait_s = retry_after_s(error.response.headers)
            return await self._refused_call(error.status_code, error_body.code, message, wait_s)

    async def _whole(self, body: dict[str, Any], started_s: float) -> Outcome:
        reply = await self._post({"model": self._model, **body})
        self._answered_before = True
        return _ended(reply.headers, read_answer(self._hide(reply.text)))

    async def _post(self, body: dict[str, Any]) -> httpx2.Response:
        """The reply as it comes: what fits no schema is data here, which the package's typed methods would walk through.

        The package makes every request anew from its settings, which takes as long as sending it. So it makes the first.
        """
        if self._first_request is None:
            reply = await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            self._first_request = None if reply.history else reply.request
            return reply
        first = self._first_request
        headers = first.headers.copy()
        del headers["Content-Length"]
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        request = httpx2.Request(
            first.method, first.url, headers=headers, content=content, extensions=dict(first.extensions)
        )
        reply = await self._http.send(request)
        if not reply.is_success:
            raise openai.APIStatusError("", response=reply, body=None)
        return reply

    async def _streamed(self, body: dict[str, Any], started_s: float) -> Outcome:
        async with self._client.chat.completions.with_streaming_response.create(model=self._model, **body) as reply:
            self._answered_before = True
            lines = (self._hide(line) async for line in _lines(reply.iter_bytes()))
            outcome, first_token_s = await read_stream(lines, started_s=started_s)
            _ended(reply.headers, outcome)
        return replace(outcome, first_token_s=first_token_s)

    def _broken(self, error: Exception) -> RetryableError:
        kind, words = broken(error)
        if kind == "late":
            return RetryableError(f"no answer within {self._generation.timeout_s:g} s", possibly_billed=True)
        unconnected = kind == "unconnected"
        reason = f"connection failed: {one_line(self._hide(words))}"
        return RetryableError(reason, possibly_billed=not unconnected, unconnected=unconnected)

    async def _refused_call(self, status: int, code: str | None, message: str, wait_s: float | None = None) -> Outcome:
        self._answered_before = True
        used_up = status == 402 or code in _USED_UP
        if used_up or status in (401, 403, 404):
            self._limiter.close()  # at once: finding the words for the error may take a while
        if used_up:
            raise self._provider.quota_used_up(self.address.url, status, message) from None
        if passes(status) and code not in FILTERED:
            raise RetryableError(f"HTTP {status}: {message}", status=status, retry_after_s=wait_s) from None
        if status in (401, 403):
            raise self._provider.key_refused(self.address.url, status, message) from None
        if status == 404:
            raise await self._not_found(code, message) from None
        return error_outcome(status, code, message)

    def _unsupported(self, parameter: str | None, message: str, limit_field: str) -> Outcome:
        """Reasoning models name the token limit differently; anything else they do not take is the user's to change."""
        if parameter == limit_field == "max_tokens":
            self._limit_field = "max_completion_tokens"
            raise RetryableError(message, status=400)
        raise ModelError(
            f"{self.spec} does not take the parameter {parameter!r} as it is sent ({message}); "
            f"change generation.{parameter} or choose another model"
        ) from None

    async def _not_found(self, code: str | None, message: str) -> ModelError:
        served = await self._served_names() if self.address.deployment is None else []
        known = choices(self._model, served) if served else "list them with GET /v1/models"
        return self._provider.not_found(self.address.url, self._model, code, message, known)

    async def _served_names(self) -> list[str]:
        try:
            async with asyncio.timeout(10.0):
                return [model.id async for model in self._client.models.list()]
        except (*CONNECTION_ERRORS, openai.OpenAIError, ValueError, TypeError, AttributeError):
            return []  # only the wording of another error depends on it

    def _hide(self, text: str) -> str:
        """Some endpoints quote the key that they refuse."""
        return text.replace(secret, "***") if (secret := self.address.secret) else text


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines of any length; a U+2028 within one, at which the package's own reader of lines would split, ends none."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def _ended(headers: Mapping[str, str], outcome: Outcome) -> Outcome:
    """A body without a length that broke off looks like one that ended: it is asked for again."""
    invalid = outcome.failure is not None and outcome.failure.kind == "invalid"
    if invalid and "content-length" not in headers and "transfer-encoding" not in headers:
        raise RetryableError(
            "connection failed: it ended in the middle of an answer of no stated length", possibly_billed=True
        )
    return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _ErrorBody:
    """What the body of an error says, in the form that OpenAI and Azure write it or in another one."""

    message: str
    code: str | None = None
    param: str | None = None

    @classmethod
    def read(cls, reply: httpx2.Response) -> _ErrorBody:
        """The body's error, where it is JSON and has one, else all of the body."""
        text = reply.text.strip()
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = text
        if isinstance(fields, dict):
            fields = fields.get("error", fields)
        if not isinstance(fields, dict):
            return cls(message=str(fields or reply.reason_phrase))
        code = "insufficient_quota" if fields.get("type") == "insufficient_quota" else fields.get("code")
        message = fields.get("message") or fields.get("detail") or json.dumps(fields)
        return cls(message=str(message), code=_text_or_none(code), param=_text_or_none(fields.get("param")))


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
