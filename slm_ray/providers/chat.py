"""Models behind an OpenAI-compatible endpoint: `served:NAME` on our own, `openai:MODEL@BASE_URL` on any other.

`ChatModel` is one chat call per prompt with the shared retry loop; the client's own retries are off, so every attempt is
counted. A failed call comes back as a `Failure`; a key, name or address that fails every call raises a ModelError. Keys
stay inside the client: not in a repr, a reason or an error. Every attempt passes the model's `Gate`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx2
import openai
from openai._models import FinalRequestOptions

from slm_ray.config import Generation
from slm_ray.errors import ModelError, choices
from slm_ray.providers.answer import FILTERED, Outcome, error_outcome, one_line, read_answer
from slm_ray.providers.http_client import CONNECTION_ERRORS, Client, broken, http_client
from slm_ray.providers.pace import Gate
from slm_ray.providers.request import request_body
from slm_ray.providers.retry import LIMITED, TryAgain, asked_wait_s, passes, persist
from slm_ray.providers.streamed import StreamError, read_stream
from slm_ray.types import Completion, Failure, Prompt

_FIRST_ATTEMPTS = 4
_USED_UP = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_NO_KEY = "none"  # the client insists on a key; our endpoint without one ignores it


class ChatModel:
    """One named model on one endpoint; any number of `complete` calls may be in flight."""

    key_variable = "SLM_RAY_API_KEY"

    def __init__(
        self, *, spec: str, name: str, client: openai.AsyncOpenAI, generation: Generation, secret: str, url: str,
        gate: Gate | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.name = name
        self.url = url
        self._client = client
        self._generation = generation
        self._secret = secret
        self._gate = gate or Gate()
        self._heard = False
        self._limit_field = "max_tokens"
        self._post = FinalRequestOptions.construct(method="post", url="/chat/completions")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r} at {self.url})"

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """Answer one prompt; ModelError when the endpoint would refuse or miss every call."""
        latency_s = 0.0

        async def attempt() -> Outcome:
            nonlocal latency_s
            turn = await self._gate.turn()
            started_s = time.perf_counter()
            try:
                outcome = await self._attempt(prompt, started_s)
            except TryAgain as failure:
                if failure.status == LIMITED:
                    self._gate.limited(turn)
                raise
            finally:
                latency_s = time.perf_counter() - started_s
            self._gate.passed(turn)
            return outcome

        settings = self._generation
        tried = await persist(attempt, max_attempts=self._allowed, retry_deadline_s=settings.retry_deadline_s)
        result = self._given_up(tried.result) if isinstance(tried.result, TryAgain) else tried.result
        return result.completion(latency_s=latency_s, attempts=tried.attempts, possibly_billed=tried.possibly_billed)

    def _allowed(self) -> int:
        """An endpoint that never answered anything is given up sooner."""
        return self._generation.max_attempts if self._heard else min(_FIRST_ATTEMPTS, self._generation.max_attempts)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def denied(self, status: int, message: str) -> ModelError:
        """The error for a refused key."""
        return ModelError(
            f"{self.spec}: {self.url} refuses the key (HTTP {status}: {message}); "
            "set SLM_RAY_API_KEY to the key that the endpoint was started with"
        )

    def used_up(self, status: int, message: str) -> ModelError:
        """The error for an account without quota or credit: waiting does not bring it back."""
        return ModelError(
            f"{self.spec}: {self.url} says that the quota is used up (HTTP {status}: {message}); raise it, or set "
            f"{self.key_variable} to the key of another account"
        )

    async def missing(self, code: str | None, message: str) -> ModelError:
        """The error for a model that the endpoint does not have."""
        served = await self._served_names()
        known = choices(self.name, served) if served else "list them with GET /v1/models"
        return ModelError(f"{self.url} serves no model {self.name!r} (HTTP 404: {message}); {known}")

    def no_connection_fix(self) -> str:
        """What to do when no connection can be made."""
        return "start the endpoint or correct its address"

    def _given_up(self, last: TryAgain) -> Outcome:
        """Rows fail one by one, but an endpoint that was never there would fail them all, slowly."""
        if last.unconnected and not self._heard:
            raise ModelError(
                f"nothing answers at {self.url} for {self.spec} ({last.reason}); {self.no_connection_fix()}"
            )
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
            if error.code in ("unsupported_parameter", "unsupported_value"):
                self._heard = True
                return self._unsupported(error.param, one_line(self._hide(_message(error))), limit_field)
            code = "insufficient_quota" if error.type == "insufficient_quota" else error.code
            wait_s = asked_wait_s(error.response.headers)
            return await self._refused_call(error.status_code, code, one_line(self._hide(_message(error))), wait_s)

    async def _whole(self, body: dict[str, Any], started_s: float) -> Outcome:
        # The client's typed method checks every field of the body anew, which costs more than all of its other work.
        call = self._post.model_copy(update={"json_data": {"model": self.name, **body}})
        reply = await self._client.request(httpx2.Response, call)
        self._heard = True
        return _ended(reply.headers, read_answer(self._hide(reply.text)))

    async def _streamed(self, body: dict[str, Any], started_s: float) -> Outcome:
        async with self._client.chat.completions.with_streaming_response.create(model=self.name, **body) as reply:
            self._heard = True
            lines = (self._hide(line) async for line in reply.iter_lines())
            outcome, first_token_s = await read_stream(lines, started_s=started_s)
            _ended(reply.headers, outcome)
        return replace(outcome, first_token_s=first_token_s)

    def _broken(self, error: Exception) -> TryAgain:
        kind, words = broken(error)
        if kind == "late":
            return TryAgain(f"no answer within {self._generation.timeout_s:g} s", possibly_billed=True)
        unconnected = kind == "unconnected"
        reason = f"connection failed: {one_line(self._hide(words))}"
        return TryAgain(reason, possibly_billed=not unconnected, unconnected=unconnected)

    async def _refused_call(self, status: int, code: str | None, message: str, wait_s: float | None = None) -> Outcome:
        self._heard = True
        used_up = status == 402 or code in _USED_UP
        if used_up or status in (401, 403, 404):
            self._gate.shut()  # at once: finding the words for the error may take a while
        if used_up:
            raise self.used_up(status, message) from None
        if passes(status) and code not in FILTERED:
            raise TryAgain(f"HTTP {status}: {message}", status=status, wait_s=wait_s) from None
        if status in (401, 403):
            raise self.denied(status, message) from None
        if status == 404:
            raise await self.missing(code, message) from None
        return error_outcome(status, code, message)

    def _unsupported(self, parameter: str | None, message: str, limit_field: str) -> Outcome:
        """Reasoning models name the token limit differently; anything else they do not take is the user's to change."""
        if parameter == limit_field == "max_tokens":
            self._limit_field = "max_completion_tokens"
            raise TryAgain(message, status=400)
        raise ModelError(
            f"{self.spec} does not take the parameter {parameter!r} as it is sent ({message}); "
            f"change generation.{parameter} or choose another model"
        ) from None

    async def _served_names(self) -> list[str]:
        try:
            async with asyncio.timeout(10.0):
                return [model.id async for model in self._client.models.list()]
        except (openai.OpenAIError, TimeoutError, TypeError, AttributeError, ValueError):
            return []  # only the wording of another error depends on it

    def _hide(self, text: str) -> str:
        """Some endpoints quote the key that they refuse."""
        return text.replace(self._secret, "***") if self._secret else text


class ElsewhereModel(ChatModel):
    """A model of another OpenAI-compatible provider."""

    key_variable = "OPENAI_API_KEY"

    def denied(self, status: int, message: str) -> ModelError:
        return ModelError(f"{self.spec}: {self.url} refuses the key (HTTP {status}: {message}); correct OPENAI_API_KEY")


def served(
    spec: str, name: str, endpoint: str, generation: Generation, environment: Mapping[str, str], gate: Gate
) -> ChatModel:
    """Our own endpoint; SLM_RAY_API_KEY is sent when it is set."""
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    secret = environment.get("SLM_RAY_API_KEY", "")
    client = _client(url, secret or _NO_KEY, generation)
    return ChatModel(spec=spec, name=name, client=client, generation=generation, secret=secret, url=url, gate=gate)


def elsewhere(
    spec: str, name: str, url: str, generation: Generation, environment: Mapping[str, str], gate: Gate
) -> ChatModel:
    """Any OpenAI-compatible endpoint, with OPENAI_API_KEY."""
    secret = environment["OPENAI_API_KEY"]
    client = _client(url, secret, generation)
    return ElsewhereModel(spec=spec, name=name, client=client, generation=generation, secret=secret, url=url, gate=gate)


def _client(url: str, key: str, generation: Generation) -> openai.AsyncOpenAI:
    return Client(base_url=url, api_key=key, max_retries=0, http_client=http_client(url, generation.timeout_s))


def _ended(headers: Mapping[str, str], outcome: Outcome) -> Outcome:
    """A body without a length that broke off looks like one that ended: it is asked for again."""
    invalid = outcome.failure is not None and outcome.failure.kind == "invalid"
    if invalid and "content-length" not in headers and "transfer-encoding" not in headers:
        raise TryAgain(
            "connection failed: it ended in the middle of an answer of no stated length", possibly_billed=True
        )
    return outcome


def _message(error: openai.APIStatusError) -> str:
    body: Any = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or json.dumps(body))
    return str(body or error.response.reason_phrase)
