"""A fast chat endpoint in a process of its own that counts what it bills and misbehaves by name.

`with Endpoint("busy", ...) as endpoint:`; `endpoint.url` is its address, `endpoint.counts()` what it has seen. A call is
billed when the endpoint has worked on it, heard or not: an answer, a refusal or a broken body, but no 429, no 5xx and no
refused key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BROKEN = (
    b"", b"<html>no</html>", b"[1, 2]", b"[" * 50_000, b'{"choices": []}', b'{"choices": [{"message": "text"}]}', b"\xff\xfe\x00",
    b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [{"message": {"content": "\\ud800"}}]}', b'{"choices": [{"mess',
)  # fmt: skip


LONG_AFTER_S = 0.3  # whoever knew by then that all is refused and asked on
SETTLED = 200


@dataclass
class Call:
    """One request: its question's number, and how often that question was seen before."""

    number: int
    before: int


@dataclass
class State:
    """What the endpoint has seen."""

    asked: Counter[int] = field(default_factory=Counter)
    billed: Counter[int] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    limited_until_s: dict[int, float] = field(default_factory=dict)
    early: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    settled_s: float = 0.0  # when the first `SETTLED` calls were billed
    last_s: float = 0.0
    late: Counter[str] = field(default_factory=Counter)
    dead_s: float = (
        0.0  # when a call was refused for good; later ones are counted in late["arrived"] and ["long after"]
    )


Reply = tuple[int, bytes, dict[str, str]] | None
Script = Callable[[State, Call], Reply]


def right(number: int, finish: str = "stop") -> bytes:
    text = json.dumps({"arguments": {"n": number}, "query": f"q{number}", "tool_name": "t"})
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}).encode()


def refusal(status: int, code: str, **headers: str) -> Reply:
    return status, json.dumps({"error": {"code": code, "message": "no"}}).encode(), headers


def fine(state: State, call: Call) -> Reply:
    return 200, right(call.number), {}


def busy(share: float, wait_s: float) -> Script:
    """Turns this share of the calls away and asks for a wait."""
    chance = random.Random(42)

    def script(state: State, call: Call) -> Reply:
        now_s = time.monotonic()
        state.early += now_s < state.limited_until_s.get(call.number, 0.0)
        if chance.random() < share:
            state.limited_until_s[call.number] = now_s + wait_s
            return refusal(429, "rate_limit_exceeded", **{"Retry-After": f"{wait_s:g}"})
        return fine(state, call)

    return script


def shaky(state: State, call: Call) -> Reply:
    """One call in five fails, one in twenty is reset; never the same question for ever."""
    if call.before == 0 and call.number % 5 == 1:
        return refusal(503, "overloaded")
    return None if call.before == 0 and call.number % 20 == 7 else fine(state, call)


def capped(rate_per_s: float, burst: float) -> Script:
    """A token bucket."""
    tokens, last_s = burst, time.monotonic()

    def script(state: State, call: Call) -> Reply:
        nonlocal tokens, last_s
        now_s = time.monotonic()
        tokens, last_s = min(burst, tokens + (now_s - last_s) * rate_per_s), now_s
        if tokens < 1:
            state.late["limited"] += state.settled_s > 0
            return refusal(429, "rate_limit_exceeded")
        tokens -= 1
        return fine(state, call)

    return script


def filtered(state: State, call: Call) -> Reply:
    """The content filter stops every tenth prompt and every tenth answer."""
    if call.number % 10 == 3:
        return refusal(400, "content_filter")
    return 200, right(call.number, "content_filter" if call.number % 10 == 6 else "stop"), {}


def broken(state: State, call: Call) -> Reply:
    """Every second body is broken, each in another way."""
    return fine(state, call) if call.number % 2 else (200, BROKEN[call.number // 2 % len(BROKEN)], {})


def dying(status: float, good: float, share: float) -> Script:
    """A key that works for a number of calls, this share of them turned away for a second, and then for none."""
    before = busy(share, 1.0)

    def script(state: State, call: Call) -> Reply:
        if sum(state.billed.values()) >= good:
            state.dead_s = state.dead_s or time.monotonic()
            return refusal(int(status), "")
        return before(state, call)

    return script


SCRIPTS: dict[str, Callable[[list[float]], Script]] = {
    "fine": lambda _: fine,
    "busy": lambda given: busy(*given),
    "shaky": lambda _: shaky,
    "capped": lambda given: capped(*given),
    "filtered": lambda _: filtered,
    "broken": lambda _: broken,
    "dying": lambda given: dying(*given),
    "refusing": lambda given: lambda state, call: refusal(int(given[0]), "insufficient_quota" if given[0] == 429 else ""),
}  # fmt: skip


class Server(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, just enough of it."""

    def __init__(self, state: State, script: Script, latency_s: float, slow_first_s: float) -> None:
        self.state, self.script, self.latency_s, self.slow_first_s = state, script, latency_s, slow_first_s
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = next((int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")), 0)
            if len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            if head.startswith(b"GET"):
                shown = {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self.state).items()}
                self.send((200, json.dumps(shown).encode(), {}))
            else:
                self.post(json.loads(body))

    def post(self, body: dict[str, Any]) -> None:
        state = self.state
        call = Call(int(body["messages"][-1]["content"].split()[-1]), 0)
        call.before = state.asked[call.number]
        state.asked[call.number] += 1
        state.in_flight += 1
        state.late["arrived"] += state.dead_s > 0
        state.late["long after"] += 0 < state.dead_s < time.monotonic() - LONG_AFTER_S
        state.most_in_flight = max(state.most_in_flight, state.in_flight)
        wait_s = self.latency_s if call.before or call.number % 50 else max(self.latency_s, self.slow_first_s)
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, self.answer, call)
        else:
            self.answer(call)

    def answer(self, call: Call) -> None:
        reply = self.script(self.state, call)
        self.state.in_flight -= 1
        self.state.last_s = time.time()
        self.state.statuses[reply[0] if reply else 0] += 1
        if reply is None:
            self.transport.abort()
            return
        if reply[0] == 200:
            self.state.billed[call.number] += 1
        if not self.state.settled_s and len(self.state.billed) == SETTLED:
            self.state.settled_s = time.time()
        self.send(reply)

    def send(self, reply: tuple[int, bytes, dict[str, str]]) -> None:
        status, body, headers = reply
        lines = [f"HTTP/1.1 {status} x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)


async def serve(name: str, given: list[float], latency_s: float, slow_first_s: float) -> None:
    state, script = State(), SCRIPTS[name](given)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Server(state, script, latency_s, slow_first_s), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Endpoint:
    """The endpoint as a context manager; ends with its process."""

    def __init__(self, name: str, *given: float, latency_s: float = 0.0, slow_first_s: float = 0.0) -> None:
        flags = [f"--latency_s={latency_s}", f"--slow_first_s={slow_first_s}"]
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, *map(str, given), *flags], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("given", nargs="*", type=float)
    parser.add_argument("--latency_s", type=float, default=0.0)
    parser.add_argument("--slow_first_s", type=float, default=0.0)
    options = parser.parse_args()
    asyncio.run(serve(options.name, options.given, options.latency_s, options.slow_first_s))
