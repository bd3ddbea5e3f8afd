"""A front without Serve, and a client that asks it for a stream and may leave: for tests of who answers behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from slm_ray.serving.figures import Recorder
from slm_ray.serving.ingress import AdapterIngress
from slm_ray.serving.settings import room

PATH = "/v1/chat/completions"


def front_of(handle: Any, folder: Path, **options: Any) -> AdapterIngress:
    """The front of one engine, whose adapters lie in `folder`."""
    return AdapterIngress(
        handle, base="base", context=None, adapters_dir=str(folder), room=room({"llm_configs": [{}]}), engines=1,
        tools=False, **options,
    )  # fmt: skip


def application(front: AdapterIngress) -> Any:
    """Its ASGI application, whose figures go nowhere."""
    meter = SimpleNamespace(inc=lambda *_, **__: None, set=lambda *_: None, observe=lambda *_, **__: None)
    return front.application(Recorder(lambda figure: meter))


async def ask(app: Any, *, sees: Callable[[bytes], None], leaves: asyncio.Event) -> None:
    """Ask for a stream; each part of the body goes to `sees`, and the client is gone once `leaves` is set."""
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            sees(message["body"])

    scope = {
        "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "client": ("127.0.0.1", 1),
        "scheme": "http", "server": ("localhost", 80), "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
