"""The front of a roll-out: an OpenAI-compatible application whose models are routes. Plain ASGI; knows nothing of Ray.

    POST /v1/chat/completions    `model` names a route; its state decides who answers (`calls`)
    POST /v1/feedback            {"id": …, "score": 0..1} or {"id": …, "answer": "…"} about an answer; with "label": true the
                                 answer is what was expected, and both sides are scored by it where both were asked
    GET  /v1/models              the routes, with their state and what was counted since the front started
    GET  /health                 200 while the front answers; needs no key

Every answer says in headers who gave it: `x-slm-ray-arm`, `x-slm-ray-model`, `x-slm-ray-request-id`. A change of a route is
seen within a second. The disk is never asked while a client waits. A client that leaves ends its call upstream at once,
unless the call is audited: then it is answered to its end. No route has all the room, and no request's size is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_ray.costs.prices import PriceList
from slm_ray.errors import ConfigError, SlmRayError
from slm_ray.rollout.beside import Beside, Log
from slm_ray.rollout.calls import Answerer, Call
from slm_ray.rollout.judged import in_form
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.upstream import Target, Upstream, target
from slm_ray.serving.admission import Admission, Answered, InFlight, Room
from slm_ray.serving.auth import RequireKey, ThisMachineOnly, key_of
from slm_ray.serving.failures import OneErrorShape, refusal
from slm_ray.serving.keys import KeyRing
from slm_ray.serving.limits import READ, RequestLimits
from slm_ray.traffic.record import Arm, Feedback

MOST_IN_FLIGHT = 512
MOST_OF_A_ROUTE = 384
REREAD_S = 0.5
_healthy = JSONResponse({"status": "ok"})
_CALL = "slm_ray.call"  # where in its scope an admitted request has its call
_MOST_FEEDBACK = 100_000  # characters of an answer
_MOST_BYTES = 256 * 2**20  # of requests that are being answered
_CARD = (
    "state",
    "share",
    "audit_share",
    "delta",
    "timeout_s",
    "threshold",
    "adapter",
    "previous",
    "serial",
    "changed_at",
    "by",
    "reason",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """What a front is built from, none of it secret. `endpoint` is the address of `served:` models."""

    folder: str
    endpoint: str
    api_key_digest: str | None = None
    keys_file: str | None = None


class Front:
    """The routes of a folder and all that asks for them. `environment` holds the keys of the LLMs."""

    def __init__(
        self, settings: FrontSettings, *, environment: Mapping[str, str], log: Log, prices: PriceList,
        say: Any = print,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._environment, self._log, self._prices, self._say = environment, log, prices, say
        self._store = RouteStore(settings.folder)
        self._routes: dict[str, RouteState] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        room = Room(answers=MOST_IN_FLIGHT, tokens=sys.maxsize)
        self._load = _Load()
        self._admitted = Admission(self._answer, base="", in_flight=InFlight(room, _Silent()), figures=_Silent())
        self._upstream: Upstream
        self._answerer: Answerer
        self._beside: Beside

    def app(self) -> ASGIApp:
        """The application, with the key check outermost and `/health` outside of it."""
        settings = self._settings
        ring = KeyRing(own_digest=settings.api_key_digest, file=settings.keys_file)
        inner = Starlette(
            routes=[
                Route("/v1/chat/completions", _Asgi(self._chat), methods=["POST"]),
                Route("/v1/feedback", self._feedback, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
            ],
            middleware=[
                Middleware(OneErrorShape),
                Middleware(RequireKey, ring=ring) if settings.api_key_digest else Middleware(ThisMachineOnly),
                Middleware(RequestLimits, fields=False),
            ],
            exception_handlers={404: _no_such_path, 405: _no_such_path},
            lifespan=self._lifespan,
        )

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            is_health = scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) == "/health"
            await (_healthy if is_health and scope["method"] in ("GET", "HEAD") else inner)(scope, receive, send)

        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._routes = await asyncio.to_thread(self._store.routes)
        self._upstream = Upstream()
        self._answerer = Answerer(self._upstream, targets=self._sides, check=in_form)
        self._beside = Beside(
            self._answerer, store=self._store, log=self._log, prices=self._prices, changed=self._changed, say=self._say
        )
        rereading = asyncio.create_task(self._reread())
        try:
            yield
        finally:
            rereading.cancel()
            await self._beside.close()
            await self._upstream.close()
            await asyncio.to_thread(self._log.close)

    async def _reread(self) -> None:
        """Follow the changes of known routes; where a disk is away for a while, the last known state stays."""
        while True:
            await asyncio.sleep(REREAD_S)
            for name in list(self._routes):
                with contextlib.suppress(SlmRayError, OSError):
                    self._changed(await asyncio.to_thread(self._store.route, name))

    def _changed(self, state: RouteState) -> None:
        known = self._routes.get(state.route.name)
        if known is None or known.serial < state.serial:
            self._routes[state.route.name] = state

    async def _state(self, name: str) -> RouteState:
        """ConfigError for a route that there is none of."""
        if name not in self._routes:
            self._changed(await asyncio.to_thread(self._store.route, name))
        return self._routes[name]

    def _sides(self, state: RouteState) -> Mapping[Arm, Target]:
        """Both sides of a route; the SLM by its adapter's id, so that no alias moves under a verdict."""
        return {"llm": self._target(state.route.llm, "llm"), "slm": self._target(_pinned(state), "slm")}

    def _target(self, spec: str, arm: Arm) -> Target:
        key = (spec, arm)
        if key not in self._targets:
            self._targets[key] = target(spec, arm=arm, endpoint=self._settings.endpoint, environment=self._environment)
        return self._targets[key]

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raw = await Request(scope, receive).body()
            body = _request(raw)
            state = await self._state(body["model"])
            self._sides(state)
        except _Refused as error:
            await refusal(400, "invalid_value", str(error), param=error.field)(scope, receive, send)
            return
        except ConfigError as error:
            await refusal(404, "model_not_found", str(error), param="model")(scope, receive, send)
            return
        except SlmRayError as error:
            await refusal(503, "route_unavailable", str(error), "server_error")(scope, receive, send)
            return
        user = Request(scope).headers.get("x-user") or body.get("user")
        named = user if isinstance(user, str) and user else None
        scope[_CALL] = Call(id=uuid.uuid4().hex, at=time.time(), state=state, body=body, user=named, size=len(raw))
        scope[READ] = _counted(body), len(raw)
        await self._admitted(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope[_CALL]
        name = call.state.route.name
        if (full := self._load.full(name, call.size)) is not None:
            await refusal(429, "rate_limit_exceeded", full, "rate_limit_error", retry_after_s=1)(scope, receive, send)
            return
        self._load.add(name, 1, call.size)
        try:
            await self._answered(call, receive, send)
        finally:
            self._load.add(name, -1, -call.size)

    async def _answered(self, call: Call, receive: Receive, send: Send) -> None:
        """Answer; stop at once when the client leaves, but for an audited call."""
        client = _Client(receive, send)
        answering = asyncio.ensure_future(self._answerer.answer(call, client.send))
        leaving = asyncio.ensure_future(client.left())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            client.is_gone = True
            if answering.done() or not self._beside.take_left(call, answering):
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)
                self._beside.take(call)
        if answering.done() and not answering.cancelled():
            answering.result()

    async def _feedback(self, request: Request) -> Response:
        try:
            feedback = _given(await request.body())
        except _Refused as error:
            return refusal(400, "invalid_value", str(error), param=error.field)
        if not self._log.append(feedback):
            full = "the log of traffic has no room now; send it again later"
            return refusal(503, "log_full", full, "server_error", retry_after_s=1)
        said: dict[str, Any] = {"id": feedback.id, "object": "feedback"}
        if feedback.label:
            why_not = await self._beside.label(feedback)
            said |= {"counted": why_not is None} | ({"because": why_not} if why_not else {})
        return JSONResponse(said, status_code=202)

    async def _models(self, request: Request) -> Response:
        """To a key of the file only the routes that it may ask, without what stands behind them."""
        key, cards = key_of(request.scope), []
        for name, state in sorted(self._routes.items()):
            if key is not None and key.added:
                if key.may_ask(name):
                    cards.append(_card(name, {"state": state.state}))
                continue
            about = {field: getattr(state, field) for field in _CARD}
            about |= {"llm": state.route.llm, "slm": state.route.slm, "track": state.route.track}
            if name in self._beside.counts:
                about["counts"] = dict(self._beside.counts[name])
            if (lately := self._beside.fallbacks.get(name)) is not None and lately.serial == state.serial:
                about["fallbacks"] = dataclasses.asdict(lately)
            cards.append(_card(name, about))
        return JSONResponse({"object": "list", "data": cards})


def _card(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "slm-ray", "metadata": dict(about)}


def _pinned(state: RouteState) -> str:
    is_served = state.route.slm.startswith("served:") and state.adapter is not None
    return f"served:{state.route.base}:{state.adapter}" if is_served else state.route.slm


def _counted(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a request may take, as far as it says so in whole numbers; the rest is counted at its most."""
    names = ("n", "max_tokens", "max_completion_tokens", "top_logprobs")
    numbers = {name: value for name in names if type(value := body.get(name)) is int and 0 < value < 10**6}
    return {**numbers, "logprobs": body.get("logprobs") is True, "model": body["model"]}


class _Silent:
    """The endpoint counts what is asked of it; what the front was asked is in the log of traffic."""

    def in_flight(self, answers: int, tokens: int) -> None:
        """Not told."""

    def answered(self, answered: Answered) -> None:
        """Not told."""


class _Asgi:
    """An ASGI function as an endpoint of its own, which Starlette hands `receive` and `send` to."""

    def __init__(self, function: Any) -> None:
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._function(scope, receive, send)


class _Refused(Exception):
    """A request that means nothing here; `field` is the one at fault."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class _Client:
    """Whoever asked, who may leave: what is sent to one that is gone goes nowhere."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.is_gone = False

    async def send(self, message: Message) -> None:
        if not self.is_gone:
            await self._send(message)

    async def left(self) -> None:
        """Returns when it leaves."""
        message: Message = {"type": ""}
        while message["type"] != "http.disconnect":
            message = await self._receive()


class _Load:
    """What is being answered: by route, and in bytes of requests."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._bytes = 0

    def add(self, name: str, answers: int, size: int) -> None:
        self._answers[name] += answers
        self._bytes += size

    def full(self, name: str, size: int) -> str | None:
        """Why there is no room, if there is none: a route whose LLM hangs leaves some to the others."""
        if self._answers[name] >= MOST_OF_A_ROUTE:
            return f"{self._answers[name]} answers of {name} are being written already; try again later"
        if self._bytes and self._bytes + size > _MOST_BYTES:
            return f"requests of {self._bytes // 2**20} MiB are being answered already; try again later"
        return None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Refused(f"the body is no JSON in UTF-8 ({error})") from None
    if not isinstance(found, dict):
        raise _Refused("the body is JSON but no object")
    return found


def _request(raw: bytes) -> dict[str, Any]:
    """What a route needs to know of a request; the rest is for the models to judge."""
    body = _object(raw)
    if not isinstance(body.get("model"), str):
        raise _Refused("model: the name of a route is wanted; GET /v1/models lists them", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise _Refused("messages: a list of one message or more is wanted", "messages")
    return body


def _given(raw: bytes) -> Feedback:
    body = _object(raw)
    if unknown := sorted(set(body) - {"id", "score", "answer", "label"}):
        raise _Refused(f"the field {unknown[0][:60]!r} is not known here; leave it out", unknown[0][:60])
    request_id, score, answer = body.get("id"), body.get("score"), body.get("answer")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= 80:
        raise _Refused("id: the x-slm-ray-request-id of an answer is wanted", "id")
    if score is None and answer is None:
        raise _Refused("score: a number from 0 to 1 is wanted, or a better answer under `answer`", "score")
    if score is not None and (
        isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1
    ):
        raise _Refused("score: a number from 0 to 1 is wanted", "score")
    if answer is not None and (not isinstance(answer, str) or len(answer) > _MOST_FEEDBACK):
        raise _Refused(f"answer: a text of at most {_MOST_FEEDBACK:,} characters is wanted", "answer")
    label = body.get("label", False)
    if not isinstance(label, bool) or (label and answer is None):
        raise _Refused("label: true says that `answer` is what was expected, whatever the models said", "label")
    return Feedback(
        id=request_id, at=time.time(), score=None if score is None else float(score), answer=answer, label=label
    )


async def _no_such_path(request: Request, error: Any) -> Response:
    return refusal(error.status_code, "not_found", f"{request.method} {request.url.path} is nothing here")
