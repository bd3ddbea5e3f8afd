"""A chat endpoint that answers every call after the same time, and says how long it was kept busy.

Cheap on purpose: it shares the machine with what it measures. `GET /span` gives the calls answered since `GET /reset`,
the seconds between the first request and the last reply, the mean seconds that a reply took, and the most calls in
flight. It waits with `select`, which wakes to the microsecond where the usual `epoll` rounds up to whole milliseconds,
and so takes no more than about a thousand connections. On loopback, unless an address is given; it reads nothing of a
request but its length.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
import time
from collections.abc import Callable

_REPLY = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 0, "model": "bench",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()  # fmt: skip


class Tally:
    """Calls since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all calls."""
        self.calls = self.in_flight = self.most_in_flight = 0
        self.first_s = self.last_s = self.taken_s = 0.0

    def begin(self) -> float:
        """A request has arrived; when."""
        now_s = time.perf_counter()
        self.first_s = self.first_s or now_s
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return now_s

    def end(self, begun_s: float) -> None:
        """The reply to the request of then has been written."""
        self.calls += 1
        self.in_flight -= 1
        self.last_s = time.perf_counter()
        self.taken_s += self.last_s - begun_s

    def body(self) -> bytes:
        """The figures as JSON."""
        return json.dumps(
            {
                "calls": self.calls, "span_s": self.last_s - self.first_s, "most_in_flight": self.most_in_flight,
                "reply_s": self.taken_s / max(1, self.calls),
            }
        ).encode()  # fmt: skip


class Connection(asyncio.Protocol):
    """One kept-alive connection; requests on it follow one another."""

    def __init__(self, tally: Tally, latency_s: float) -> None:
        self._tally = tally
        self._latency_s = latency_s
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the line."""
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._seen += data
        while (end := self._seen.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + _length(self._seen[:end])
            if len(self._seen) < size:
                return
            line, self._seen = self._seen[: self._seen.find(b"\r\n")], self._seen[size:]
            self._take(line)

    def _take(self, line: bytes) -> None:
        if line.startswith(b"POST"):
            asyncio.get_running_loop().call_later(self._latency_s, self._reply, self._tally.begin())
        elif b"/reset" in line:
            self._tally.reset()
            self._write(b"{}")
        elif b"/span" in line:
            self._write(self._tally.body())
        else:
            self._write(b'{"object": "list", "data": [{"id": "bench", "object": "model"}]}')

    def _reply(self, begun_s: float) -> None:
        self._write(_REPLY)
        self._tally.end(begun_s)

    def _write(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


async def serve(latency_s: float, host: str, say: Callable[[int], None]) -> None:
    """Listen on a free port of an address for ever; `say` hears which."""
    tally = Tally()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(tally, latency_s), host, 0)
    say(server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
        runner.run(serve(float(sys.argv[1]), host, lambda port: print(port, flush=True)))
