"""One client's call: who answers it in the route's state, what a failure of the SLM leads to, and how the answer is sent.

In record and shadow the LLM answers, with its own status where it fails. In canary (for its share of the users), live and
cascade the SLM is asked first, and the LLM wherever the SLM gives nothing that may be handed on: no connection, any status
but 200, no answer within the route's `timeout_s`, no text, an answer that the track cannot read. A stream is taken back
likewise until its first text; what a client has been shown stands, so a stream that breaks later ends in an error event. A
cascade has to read the whole answer first: its streaming clients get it in one part. An SLM that was not there several
times in a row is asked a small question that no client waits for; where that comes to nothing too it is left alone, but for
such a question a second. So nobody's long request alone keeps others from the SLM.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Send

from slm_ray.rollout.states import RouteState
from slm_ray.rollout.upstream import Reply, Streamed, Target, Upstream
from slm_ray.serving.failures import refusal
from slm_ray.traffic.record import Arm

LLM_TIMEOUT_S = 600.0  # as OpenAI's client has it
AUDIT_TIMEOUT_S = 120.0  # nobody waits for an audit, and one that hangs takes another's place
FAILURES_IN_A_ROW = 5
ASK_EVERY_S = 1.0
_QUESTION = {"messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 1}
_LONG = 20_000  # bytes of an answer
DOWN = "down: the SLM did not answer several times in a row"

Check = Callable[[RouteState, Reply], bool | None]  # whether an answer has the right form; None: the track has none


@dataclass(slots=True, kw_only=True)
class Call:
    """A request on its way: what was asked under which state, and what became of it so far.

    `id` decides about a canary where no user is named, `replies` are those of the arms that were asked, `forms` whether an
    answer that was judged is in the track's form, `served` is the arm whose answer the client gets, `fallback` why that is not the chosen one. `size` is that of the request, in bytes.
    `no_room`: too many others were under way for it to be asked of both sides.
    """

    id: str
    at: float
    state: RouteState
    body: Mapping[str, Any]
    user: str | None = None
    size: int = 0
    replies: dict[Arm, Reply] = field(default_factory=dict)
    forms: dict[Arm, bool | None] = field(default_factory=dict)
    served: Arm | None = None
    fallback: str | None = None
    no_room: bool = False

    @property
    def streams(self) -> bool:
        """Whether the client wants the answer in parts."""
        return self.body.get("stream") is True

    @property
    def arm(self) -> Arm:
        """Who answers in this state; in a canary the same for the same user, and for ever more users as its share grows."""
        state = self.state
        if state.state == "canary":
            who = self.id if self.user is None else f"user\0{self.user}"
            return "slm" if _fraction(f"canary\0{state.route.name}\0{who}") < state.share else "llm"
        return "slm" if state.serving else "llm"

    @property
    def audited(self) -> bool:
        """Whether the other side is asked too: always in shadow, else by the id alone, whatever was asked or answered."""
        state = self.state
        return state.state == "shadow" or (state.serving and _fraction(f"audit\0{self.id}") < state.audit_share)


def _fraction(text: str) -> float:
    """A number in [0, 1), the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:7], "big") / 2**56


class Circuit:
    """Open: nobody waits for the SLM. It opens by a question of our own that fails after `FAILURES_IN_A_ROW`, and closes by any answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._asking = False
        self._asked_at = -math.inf
        self.is_open = False

    def note(self, reply: Reply) -> None:
        """What became of a client's call."""
        self._failures = self._failures + 1 if reply.down else 0
        self.is_open = self.is_open and reply.down

    def answered(self, reply: Reply) -> None:
        """What became of the question."""
        self._asking, self._asked_at = False, self._clock()
        self.is_open = reply.down
        if not reply.down:
            self._failures = 0

    def take_question(self) -> bool:
        """Whether the question is due; the one who is told so asks it."""
        due = self.is_open or self._failures >= FAILURES_IN_A_ROW
        if not due or self._asking or self._clock() - self._asked_at < ASK_EVERY_S:
            return False
        self._asking = True
        return True


class Answerer:
    """Answers calls; `targets` finds both sides of a state, `check` judges an answer's form."""

    def __init__(
        self, upstream: Upstream, *, targets: Callable[[RouteState], Mapping[Arm, Target]], check: Check
    ) -> None:
        self._upstream = upstream
        self._targets = targets
        self._check = check
        self._circuits: dict[tuple[str, str], Circuit] = {}
        self._questions: set[asyncio.Task[None]] = set()

    def may_ask(self, state: RouteState) -> bool:
        """Whether the state's SLM is not left alone; where it is, somebody asks whether it is back."""
        circuit = self._circuit(state)
        self._question(state, circuit)
        return not circuit.is_open

    async def answer(self, call: Call, send: Send) -> None:
        """Send the answer, whoever gives it; `call` tells afterwards what happened."""
        if call.arm == "llm" or not await self._by_slm(call, send):
            await self._by_llm(call, send)

    async def ask_beside(self, call: Call, arm: Arm) -> Reply:
        """The answer of an arm that no client waits for, whole."""
        state = call.state
        if arm == "llm":
            return await self._upstream.ask(self._targets(state)["llm"], _whole(call.body), timeout_s=AUDIT_TIMEOUT_S)
        body = _with_logprobs(call.body) if state.granted.threshold is not None else _whole(call.body)
        reply = await self._upstream.ask(self._targets(state)["slm"], body, timeout_s=state.timeout_s)
        self._note(state, reply)
        return reply

    async def _by_slm(self, call: Call, send: Send) -> bool:
        """Whether the SLM has answered; else `call.fallback` says why not."""
        if not self.may_ask(call.state):
            call.fallback = DOWN
            return False
        target, timeout_s = self._targets(call.state)["slm"], call.state.timeout_s
        if call.streams and call.state.state != "cascade":
            async with self._upstream.stream(target, call.body, timeout_s=timeout_s) as streamed:
                if streamed.failed is None:
                    await self._hand_on(call, streamed, send)
                call.replies["slm"] = reply = streamed.failed or streamed.reply()
        else:
            cascade = call.state.state == "cascade"
            body = _with_logprobs(call.body) if cascade else call.body
            call.replies["slm"] = reply = await self._upstream.ask(target, body, timeout_s=timeout_s)
            call.fallback = reply.trouble or await self._unfit(call, reply)
            if call.fallback is None:
                call.served = "slm"
                await _send_whole(call, reply, send)
        self._note(call.state, reply)
        if call.served is None:
            call.fallback = call.fallback or reply.trouble
        return call.served is not None

    async def _unfit(self, call: Call, reply: Reply) -> str | None:
        """Why an answer with text is not handed on. Judging a long one would hold up everybody else's."""
        state, is_long = call.state, len(reply.body) > _LONG
        call.forms["slm"] = fits = (
            await asyncio.to_thread(self._check, state, reply) if is_long else self._check(state, reply)
        )
        if fits is False:
            return "invalid: the answer is not in the form that the track asks for"
        return reply.unsure(state.threshold) if state.state == "cascade" else None

    async def _by_llm(self, call: Call, send: Send) -> None:
        target = self._targets(call.state)["llm"]
        if not call.streams:
            call.replies["llm"] = reply = await self._upstream.ask(target, call.body, timeout_s=LLM_TIMEOUT_S)
            await self._send_llm(call, reply, send)
            return
        async with self._upstream.stream(target, call.body, timeout_s=LLM_TIMEOUT_S) as streamed:
            if streamed.status == 200 and streamed.is_events:
                await self._hand_on(call, streamed, send)
                call.replies["llm"] = streamed.reply()
                return
            call.replies["llm"] = reply = streamed.reply()
        await self._send_llm(call, reply, send)

    async def _send_llm(self, call: Call, reply: Reply, send: Send) -> None:
        """The LLM's own words, whatever its status; 502 or 504 where it gave none."""
        if reply.status:
            call.served = "llm" if reply.status == 200 else None
            await _send_whole(call, reply, send)
            return
        status, code = (504, "llm_timeout") if reply.kind == "timeout" else (502, "llm_unreachable")
        response = refusal(status, code, f"the LLM gave no answer ({reply.trouble})", "server_error")
        headers = {"content-type": "application/json", **_about(call, reply.target, reply.target.model)}
        await _send(send, status, headers, bytes(response.body))

    async def _hand_on(self, call: Call, streamed: Streamed, send: Send) -> None:
        """The parts as they come, and an error event where they break off."""
        call.served = streamed.target.arm
        call.replies[streamed.target.arm] = streamed.reply()  # for a client that leaves in the middle
        if not streamed.is_events:
            await _send_whole(call, streamed.reply(), send)
            return
        headers = {**streamed.headers, "cache-control": "no-cache", **_about(call, streamed.target, streamed.model)}
        await _start(send, 200, headers)
        async for part in streamed.parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        reply = streamed.reply()
        end = b""
        if reply.kind in ("connection", "timeout", "broken"):
            error = {"code": "stream_broken", "message": "the answer broke off", "type": "server_error", "param": None}
            end = b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _circuit(self, state: RouteState) -> Circuit:
        slm = self._targets(state)["slm"]
        return self._circuits.setdefault((slm.url, slm.model), Circuit())

    def _note(self, state: RouteState, reply: Reply) -> None:
        circuit = self._circuit(state)
        circuit.note(reply)
        self._question(state, circuit)

    def _question(self, state: RouteState, circuit: Circuit) -> None:
        """Ask whether the SLM is there, where that is due."""
        if not circuit.take_question():
            return

        async def ask() -> None:
            target = self._targets(state)["slm"]
            circuit.answered(await self._upstream.ask(target, _QUESTION, timeout_s=state.timeout_s / 2))

        task = asyncio.create_task(ask())
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)


def _about(call: Call, target: Target, model: str) -> dict[str, str]:
    """The headers that say who answered."""
    shown = model.encode("ascii", "replace").decode()
    return {"x-slm-ray-request-id": call.id, "x-slm-ray-arm": target.arm, "x-slm-ray-model": shown}


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    await _start(send, status, {**headers, "content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_whole(call: Call, reply: Reply, send: Send) -> None:
    """A whole answer or error; to a client that streams, an answer in one part."""
    headers, body = dict(reply.headers), reply.body
    if reply.status == 200 and reply.kind != "broken":
        asked_for = call.body.get("logprobs") is True
        if call.streams:
            body = _as_events(body, logprobs=asked_for, usage=_wants_usage(call.body))
            headers["content-type"] = "text/event-stream"
        elif call.state.state == "cascade" and reply.target.arm == "slm" and not asked_for:
            body = _without_logprobs(body)
    headers.setdefault("content-type", "application/json")
    await _send(send, reply.status, {**headers, **_about(call, reply.target, reply.model)}, body)


def _whole(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}


def _with_logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    return {**_whole(body), "logprobs": True}


def _wants_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, Mapping) and options.get("include_usage") is True


def _without_logprobs(body: bytes) -> bytes:
    answer = msgspec.json.decode(body)
    choices = [{**choice, "logprobs": None} for choice in answer["choices"] if isinstance(choice, dict)]
    return msgspec.json.encode({**answer, "choices": choices})


def _as_events(body: bytes, *, logprobs: bool, usage: bool) -> bytes:
    """A whole answer as a stream of one part a choice."""
    answer = msgspec.json.decode(body)
    shared = {name: answer[name] for name in ("id", "created", "model", "system_fingerprint") if name in answer}
    shared["object"] = "chat.completion.chunk"
    choices = [
        {
            "index": choice.get("index", place), "delta": _indexed(choice.get("message")),
            "logprobs": choice.get("logprobs") if logprobs else None, "finish_reason": choice.get("finish_reason"),
        }
        for place, choice in enumerate(answer["choices"])
        if isinstance(choice, dict)
    ]  # fmt: skip
    events = [{**shared, "choices": [choice]} for choice in choices]
    if usage and answer.get("usage"):
        events.append({**shared, "choices": [], "usage": answer["usage"]})
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _indexed(message: Any) -> dict[str, Any]:
    """A message as a delta, whose tool calls are numbered."""
    if not isinstance(message, dict):
        return {}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [{"index": at, **one} for at, one in enumerate(calls) if isinstance(one, dict)]}
