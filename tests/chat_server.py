"""A real HTTP server that speaks the chat-completions routes and misbehaves on demand.

Each request is answered by `script(request) -> Reply`; requests and the calls in flight are recorded. It listens on
127.0.0.1 on a free port, or where it is told to, in a thread.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: Any
    nth: int
    peer: str

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])


_STREAM = {"Content-Type": "text/event-stream", "Connection": "close"}
_CHUNKED = {"Transfer-Encoding": "chunked"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    reset: bool = False
    parts: Sequence[
        bytes
    ] = ()  # streamed one after the other, `after_s` before each; with `reset`, cut off after the last
    chunked: bool = True  # else the end of the stream is the end of the connection


def answer(text: str | None, *, finish: str = "stop", model: str = "served-model", **message: Any) -> Reply:
    """A well-formed completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Reply(body={"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage})


def chunk(text: str | None, *, finish: str | None = None, logprob: float | None = None, **more: Any) -> bytes:
    """One part of a streamed completion, as a server-sent event."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "delta": {} if text is None else {"content": text}}
    if logprob is not None:
        choice["logprobs"] = {"content": [{"token": text, "logprob": logprob}]}
    return event({"object": "chat.completion.chunk", "model": "served-model", "choices": [choice], **more})


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def error(
    status: int, code: str | None = None, message: str = "no", *, param: str | None = None, **headers: str
) -> Reply:
    """An error body as OpenAI and Azure write it."""
    return Reply(status=status, headers=headers, body={"error": {"code": code, "message": message, "param": param}})


class ChatServer:
    """`with ChatServer(script) as server:`; `server.url` is its address."""

    def __init__(
        self,
        script: Callable[[Request], Reply],
        models: tuple[str, ...] = ("tiny-base",),
        *,
        models_after_s: float = 0.0,
        listener: socket.socket | None = None,
    ) -> None:
        self.script = script
        self.models = models
        self.requests: list[Request] = []
        self.spans: list[tuple[float, float]] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def do_GET(self) -> None:
                time.sleep(models_after_s)
                outer._send(
                    self, Reply(body={"object": "list", "data": [{"id": m, "object": "model"} for m in outer.models]})
                )

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if listener is not None:
            self._server.socket.close()
            self._server.socket = listener
        host, port = self._server.socket.getsockname()[:2]
        self.url = f"http://{host}:{port}"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def texts(self) -> list[str]:
        return [request.text for request in self.requests]

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        parsed = json.loads(body) if handler.headers.get("Content-Type", "").startswith("application/json") else body
        started = time.monotonic()
        with self._lock:
            request = Request(
                path=handler.path,
                headers={name.lower(): value for name, value in handler.headers.items()},
                body=parsed,
                nth=len(self.requests),
                peer=handler.client_address[0],
            )
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            reply = self.script(request)
            time.sleep(0 if reply.parts else reply.after_s)
        finally:
            with self._lock:
                self._in_flight -= 1
                self.spans.append((started, time.monotonic()))
        self._send(handler, reply)

    def _stream(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.send_response(reply.status)
        for name, value in {**_STREAM, **(_CHUNKED if reply.chunked else {}), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.close_connection = True
        for part in reply.parts:
            handler.wfile.flush()
            time.sleep(reply.after_s)
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if reply.chunked and part else part)
        if reply.chunked and not reply.reset:
            handler.wfile.write(b"0\r\n\r\n")
        handler.wfile.flush()

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.parts:
            self._stream(handler, reply)
        if reply.reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            os.close(handler.connection.detach())
            return
        if reply.parts:
            return
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        try:
            handler.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed, which some tests do
