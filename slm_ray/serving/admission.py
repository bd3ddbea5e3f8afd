"""Which requests for an answer are let in, by whose key and beside how many others, and what each of them came to.

Three questions, asked before the engine is: may this key ask this model (403), is there room beside the answers that are being
written (429 at once: a queue that holds everybody makes everybody late, and none of them is told so), has the key tokens left
in this minute (429). Room is counted in answers and in tokens; a request counts as what it may take, prompt and answer, and
alone it always has room. Once an answer has ended it is settled by what it used, and told to `Figures`. What a stream used
the engine says in a last event, which a client that did not ask for it is not shown. Plain ASGI: `Admission` within
`RequestLimits`, around those `RefuseWhenFull`, then `RequireKey`, and outside `Counted`, which tells of what they refused; each
ingress counts for itself.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_ray.serving.auth import key_of
from slm_ray.serving.failures import failure_of, refusal
from slm_ray.serving.keys import ALL_MODELS, Key, TokenBudget
from slm_ray.serving.limits import READ, most_tokens

_BYTES_OF_A_TOKEN = 4  # a guess, settled by what the engine counted
_TEXT_TOKENS = 16  # of a plain completion that names no length, as in OpenAI's API
_DEPLOYMENT = re.compile(r"/deployments/(.+?)/(?:chat/)?completions$")
# Within a JSON text quotes are escaped, so that no answer can speak of its own usage.
_USED = {name: re.compile(rb'(?<!\\)"' + name + rb'":\s*(\d+)') for name in (b"prompt_tokens", b"completion_tokens")}
_MODEL = re.compile(rb'(?<!\\)"model":\s*"((?:[^"\\]|\\.)*)"')
_USAGE_ALONE = re.compile(rb'(?<!\\)"choices":\s*\[\].*(?<!\\)"usage":\s*\{')
_ANSWERS = re.compile(r"/(?:chat/)?completions")
_TOLD = "slm_ray.told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many answers, and how many tokens of them, one ingress lets be in flight; one of how many it is.

    `context` is what the engines' context holds, where that is known: no answer takes more.
    """

    answers: int
    tokens: int
    ingresses: int = 1
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request for an answer, ended. Times in seconds; `model` is the exact version that answered, "" of a refusal."""

    key: str
    asked: str
    model: str
    status: int
    is_stream: bool
    first_s: float | None
    total_s: float
    prompt_tokens: int
    completion_tokens: int


class Figures(Protocol):
    """Where what happens is told."""

    def in_flight(self, answers: int, tokens: int) -> None:
        """So many are being written now."""

    def answered(self, answered: Answered) -> None:
        """One has ended, well or not."""


class InFlight:
    """What is being written now, beside the room there is for it."""

    def __init__(self, room: Room, figures: Figures) -> None:
        self.room = room
        self.answers = self.tokens = 0
        self._figures = figures

    @property
    def is_full(self) -> bool:
        """Whether not one answer more is let in, however short."""
        return self.answers >= self.room.answers

    def count(self, answers: int, tokens: int) -> None:
        """So many more (or fewer, below 0) from now on."""
        self.answers += answers
        self.tokens += tokens
        self._figures.in_flight(self.answers, self.tokens)


class RefuseWhenFull:
    """ASGI middleware around `RequestLimits`: 429 where no answer is let in any more, before the request is read.

    Most refusals of a crowded endpoint are these, and cost it next to nothing: a body is neither waited for nor decoded.
    """

    def __init__(self, app: ASGIApp, *, in_flight: InFlight) -> None:
        self.app = app
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self.app
        if self._in_flight.is_full and scope["type"] == "http" and _asks_for_an_answer(scope):
            app = _full(self._in_flight)
        await app(scope, receive, send)


class Admission:
    """ASGI middleware: 403 or 429 for what is not let in, with Retry-After; of all else it watches the answer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        base: str,
        in_flight: InFlight,
        figures: Figures,
        asks_usage: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self._asks_usage = asks_usage  # of what is inside, which reads the request from its scope
        self._base = base
        self._in_flight = in_flight
        self._room = in_flight.room
        self._figures = figures
        self._clock = clock
        self._budgets: dict[str, TokenBudget] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        key = key_of(scope)
        if READ not in scope:  # no request for an answer
            if key is not None and key.models != ALL_MODELS and scope["method"] == "POST":
                await _forbidden(key, f"POST {scope['path']}")(scope, receive, send)
                return
            await self.app(scope, receive, send)
            return
        scope[_TOLD] = True
        request, size = scope[READ]
        options = request.get("stream_options") or {}
        hides_usage = self._asks_usage and bool(request.get("stream")) and not options.get("include_usage")
        if hides_usage:
            scope[READ] = {**request, "stream_options": {**options, "include_usage": True}}, size
        model = self._model(request, scope["path"])
        prompt = -(-size // _BYTES_OF_A_TOKEN)
        taken = prompt + _answer_tokens(request, self._room.context)
        answer = _Answer(send, prompt, self._clock, hides_usage=hides_usage)
        try:
            refused = self._refused(key, model, taken)
            if refused is not None:
                await refused(scope, receive, answer.send)
                return
            await self._let_in(scope, receive, answer, key, taken)
        finally:
            self._figures.answered(answer.ended(key=key.name if key else "", asked=model))

    def _model(self, request: Mapping[str, Any], path: str) -> str:
        """What is asked, by its name without the base's in front."""
        deployment = _DEPLOYMENT.search(path)
        named = deployment[1] if deployment else request.get("model") or self._base
        return str(named).removeprefix(f"{self._base}:")

    def _refused(self, key: Key | None, model: str, taken: int) -> JSONResponse | None:
        if key is not None and not key.may_ask(model):
            return _forbidden(key, f"the model {model[:100]!r}")
        written = self._in_flight
        if written.is_full:
            return _full(written)
        if written.answers and written.tokens + taken > self._room.tokens:
            return _busy(f"answers of {written.tokens:,} tokens are being written already; try again later", 1)
        budget = self._budget(key)
        wait_s = budget.take(taken) if budget else 0.0
        if budget is not None and wait_s == math.inf:
            return refusal(
                403, "token_budget", f"this may take {taken:,} tokens, and the key has {budget.per_minute:,.0f} a minute"
                " at this ingress: ask for fewer by max_tokens", "permission_error", param="max_tokens",
            )  # fmt: skip
        if wait_s:
            return _busy("the key's tokens of this minute are used up; try again later", math.ceil(wait_s))
        return None

    def _budget(self, key: Key | None) -> TokenBudget | None:
        if key is None or key.tokens_per_minute is None:
            return None
        share = key.tokens_per_minute / self._room.ingresses
        if key.name not in self._budgets or self._budgets[key.name].per_minute != share:
            self._budgets[key.name] = TokenBudget(share, self._clock)
        return self._budgets[key.name]

    async def _let_in(self, scope: Scope, receive: Receive, answer: _Answer, key: Key | None, taken: int) -> None:
        self._in_flight.count(1, taken)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:  # Ray's ingress raises what the engine refuses; a client that leaves is none
            answer.failed(failure_of(error).status_code)
            raise
        finally:
            self._in_flight.count(-1, -taken)
            budget = self._budget(key)
            if budget is not None:  # leaving early saves nobody anything
                budget.settle(taken, sum(answer.used()) if answer.begun else taken)


class Counted:
    """ASGI middleware: tells `Figures` of requests for an answer that were refused before `Admission` saw them."""

    def __init__(self, app: ASGIApp, *, figures: Figures, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._figures = figures
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _asks_for_an_answer(scope):
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, 0, self._clock)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            answer.failed(failure_of(error).status_code)
            raise
        finally:
            if _TOLD not in scope:
                key = key_of(scope)
                self._figures.answered(answer.ended(key=key.name if key else "", asked=""))


class _Answer:
    """What passes to the client, watched: status, times, and the usage that the engine states in it."""

    def __init__(
        self, send: Send, prompt_tokens: int, clock: Callable[[], float], *, hides_usage: bool = False
    ) -> None:
        self.begun = False
        self._hides_usage = hides_usage
        self._send = send
        self._prompt_tokens = prompt_tokens
        self._clock = clock
        self._began = clock()
        self._status = 499  # nothing was sent: the client left
        self._first: float | None = None
        self._model = ""
        self._usage = dict.fromkeys(_USED, 0)
        self._chunks = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._status = message["status"]
        elif message.get("body") and self._status == 200:
            self._look(message["body"])
            if self._hides_usage and _USAGE_ALONE.search(message["body"]):
                message = {**message, "body": _without_usage(message["body"])}
        await self._send(message)

    def failed(self, status: int) -> None:
        """It ends by an error, which costs nobody what was not answered; whoever is outside says `status` for it."""
        if not self.begun:
            self.begun, self._status = True, status

    def used(self) -> tuple[int, int]:
        """Tokens of prompt and answer; where a stream states no usage, the guess and its chunks stand for them."""
        if self._first is None:
            return 0, 0
        prompt, completion = (self._usage[name] for name in (b"prompt_tokens", b"completion_tokens"))
        return prompt or self._prompt_tokens, completion or self._chunks

    def ended(self, *, key: str, asked: str) -> Answered:
        prompt, completion = self.used()
        return Answered(
            key=key, asked=asked, model=self._model, status=self._status, is_stream=self._chunks > 0,
            total_s=self._clock() - self._began, first_s=None if self._first is None else self._first - self._began,
            prompt_tokens=prompt, completion_tokens=completion,
        )  # fmt: skip

    def _look(self, body: bytes) -> None:
        if self._first is None:
            self._first = self._clock()
            model = _MODEL.search(body)
            self._model = model[1].decode("utf-8", "replace") if model else ""
        if body.startswith(b"data:"):
            self._chunks += body.count(b"data: {")
        if b'"usage"' in body:
            for name, pattern in _USED.items():
                for found in pattern.finditer(body):
                    self._usage[name] = int(found[1])


def _without_usage(events: bytes) -> bytes:
    """Events of a stream, each whole, less the one that has no choices but the usage."""
    return b"".join(event for event in re.split(rb"(?<=\n\n)", events) if not _USAGE_ALONE.search(event))


def _answer_tokens(request: Mapping[str, Any], context: int | None) -> int:
    named = request.get("max_completion_tokens") or request.get("max_tokens")
    if "prompt" in request:
        named = named or _TEXT_TOKENS
    choices, logprobs, top = request.get("n"), request.get("logprobs"), request.get("top_logprobs")
    each = named or most_tokens(n=choices, logprobs=logprobs, top_logprobs=top)
    return (choices or 1) * min(each, context or each)


def _asks_for_an_answer(scope: Scope) -> bool:
    return scope["method"] == "POST" and _ANSWERS.search(scope["path"]) is not None


def _full(in_flight: InFlight) -> JSONResponse:
    return _busy(f"{in_flight.answers} answers are being written already; try again later", 1)


def _forbidden(key: Key, what: str) -> JSONResponse:
    return refusal(403, "model_not_allowed", f"the key {key.name!r} may not use {what}", "permission_error")


def _busy(message: str, retry_after_s: int) -> JSONResponse:
    return refusal(429, "rate_limit_exceeded", message, "rate_limit_error", retry_after_s=retry_after_s)
