"""The front, met by strangers, in this process and without an engine.

Requests made from its own OpenAPI and from junk; engines that lie; clients that leave. No 5xx, one error shape, nothing of
the node in it. What asks the running endpoint the same stands in test_serving.py, where it is up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hostile_requests import CHAT, body_of, check, each_of, requests

pytestmark = pytest.mark.heavy


class Handle:
    """What stands for Ray's handle to the engine: it yields, or raises, what it is told to."""

    def __init__(self) -> None:
        self.says: Any = None
        self.asked: list[Any] = []
        self._router = None

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Any:
        async def pieces(kind: str, body: Any) -> Any:
            self.asked.append(body)
            answer = self.says(body) if callable(self.says) else self.says
            if isinstance(answer, BaseException):
                raise answer
            yield answer

        async def healthy() -> None:
            return None

        return SimpleNamespace(remote=healthy if name == "check_health" else pieces)


class Ingress:
    """The front in this process; `ask` without a network."""

    def __init__(self, folder: Path) -> None:
        from slm_ray.serving.figures import Recorder
        from slm_ray.serving.ingress import AdapterIngress
        from slm_ray.serving.settings import room

        self.handle = Handle()
        serving = {"llm_configs": [{"engine_kwargs": {"max_num_seqs": 8}}]}
        front = AdapterIngress(
            self.handle,
            base="tiny-base",
            context=2048,
            adapters_dir=str(folder),
            room=room(serving),
            engines=1,
            tools=False,
        )
        self.app = front.application(Recorder(lambda figure: MagicMeter()))
        self.runner = asyncio.Runner()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def ask(self, method: str, path: str, content: bytes) -> httpx.Response:
        async def ask() -> httpx.Response:
            headers = {"content-type": "application/json"}
            async with asyncio.timeout(10):
                return await self.client.request(method, path, content=content, headers=headers)

        return self.runner.run(ask())

    def close(self) -> None:
        self.runner.close()


class MagicMeter:
    """A metric that nobody reads."""

    def inc(self, *_: Any, **__: Any) -> None:
        """Count."""

    observe = set = inc


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = Ingress(tmp_path_factory.mktemp("adapters"))
    yield made
    made.close()


def plain(body: Any) -> tuple[int, bytes]:
    answer = {"model": body["model"], "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    return 200, json.dumps(answer).encode()


def test_requests_made_from_the_openapi_never_make_the_ingress_fail(ingress: Ingress) -> None:
    ingress.handle.says = plain

    def ask(made: tuple[str, str, Any]) -> None:
        method, path, value = made
        check(ingress.ask(method, path, body_of(value)), made)

    each_of(requests(ingress.app.openapi()), ask)
    assert len(ingress.handle.asked) > 20, "requests that get through are among them"


def test_whatever_comes_from_behind_nothing_of_the_inside_is_told(ingress: Ingress) -> None:
    from ray.exceptions import RayActorError, RayTaskError

    from slm_ray.serving.failures import failure

    secret = "/srv/secret/engine.py"
    trace = f'Traceback (most recent call last):\n  File "{secret}", line 3 (pid=31, ip=10.0.0.7)\nValueError: no'
    context = failure(400, f"{secret}: maximum context length is 2048")
    lies = [
        (RayTaskError("f", trace, ValueError(secret)).as_instanceof_cause(), 500),
        (RuntimeError(trace), 500),
        (RayActorError(), 503),
        ((500, failure(500, trace).body), 500),
        ((400, context.body), 400),
    ]
    for lie, status in lies:
        ingress.handle.says = lie
        reply = ingress.ask("POST", CHAT, body_of({"messages": [{"role": "user", "content": "hi"}]}))
        error = reply.json()["error"]
        assert (reply.status_code, set(error)) == (status, {"code", "message", "type", "param"})
        assert not [word for word in ("/srv", "Traceback", "10.0.0.7", "pid") if word in reply.text], reply.text
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_request_whose_engine_dies_before_it_answers_is_asked_of_another(ingress: Ingress, deaths: int) -> None:
    from ray.exceptions import ActorDiedError

    from slm_ray.serving.replica import EngineDead

    errors = [ActorDiedError(), EngineDead()][:deaths]
    ingress.handle.says = lambda body: errors.pop() if errors else plain(body)
    reply = ingress.ask("POST", CHAT, body_of({"messages": [{"role": "user", "content": "hi"}]}))
    assert reply.status_code == (503 if deaths == 2 else 200), reply.text
    assert (reply.headers.get("retry-after") is None) == (deaths == 1)
    assert not errors, "a request that kills engines is not asked of all of them"


@pytest.mark.parametrize("leaves_after", [1, 2, 3, 99])
def test_a_stream_begins_at_once_and_ends_in_the_engine_when_its_client_leaves(leaves_after: int) -> None:
    from ray.llm._internal.serve.utils.batcher import Batcher

    from slm_ray.serving.server import _first_at_once

    async def scenario() -> tuple[list[list[int]], bool]:
        ended = asyncio.Event()

        async def engine() -> Any:
            try:
                for piece in range(6):
                    yield piece
                if leaves_after < 99:
                    await asyncio.sleep(60)
            finally:
                ended.set()

        stream = _first_at_once(engine(), lambda pieces: Batcher(pieces, interval_ms=20).stream())
        seen = []
        async for batch in stream:
            seen.append(list(batch))
            if len(seen) == leaves_after:
                break
        await stream.aclose()
        await asyncio.wait_for(ended.wait(), 5)
        return seen, ended.is_set()

    seen, ended = asyncio.run(scenario())
    assert ended and seen == [[0], [1], [2, 3, 4, 5]][:leaves_after]
