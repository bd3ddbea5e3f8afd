"""The endpoint met by strangers: requests made from its own OpenAPI and from junk, clients that leave, engines that lie.

No 5xx, no hang, one error shape, nothing of the node in it. Most of it asks the ingress as Ray builds it, in this process and
without an engine; the rest asks the running endpoint.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving_fixtures import KEY, Served, chat_body

pytestmark = pytest.mark.heavy
JUNK = st.sampled_from(
    [None, True, -1, 0, 2**70, 1e308, "", "\ud800", "x" * 10_000, "../../etc/passwd", "a\0b", [], {}, [[]], {"a": None}, [None] * 50]
)  # fmt: skip
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["tiny-base", "tiny-base:nobody", "nobody@champion", "user", "text", "é" * 5]
)
CHAT = "/v1/chat/completions"


def values(schema: Any, known: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a JSON schema of the OpenAPI describes, as far as it says; junk where it says nothing."""
    if not isinstance(schema, dict) or depth > 4:
        return JUNK
    if "$ref" in schema:
        return values(known[schema["$ref"].rpartition("/")[2]], known, depth + 1)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    if parts := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return st.one_of([values(part, known, depth + 1) for part in parts])
    match schema.get("type"):
        case "object":
            fields = {name: values(part, known, depth + 1) for name, part in schema.get("properties", {}).items()}
            needed = {name: fields.pop(name) for name in schema.get("required", []) if name in fields}
            some = st.dictionaries(st.sampled_from(sorted(fields)), st.none(), max_size=4) if fields else st.just({})
            return some.flatmap(lambda names: st.fixed_dictionaries(needed | {name: fields[name] for name in names}))
        case "array":
            return st.lists(values(schema.get("items"), known, depth + 1), max_size=3)
        case "string":
            return TEXTS
        case "integer":
            return st.integers(-2, 40) | st.sampled_from([10**6, -(2**40)])
        case "number":
            return st.floats(-3, 3) | st.sampled_from([1e300])
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JUNK


def requests(openapi: Mapping[str, Any]) -> st.SearchStrategy[tuple[str, str, Any]]:
    """(method, path, body) of every operation: as described, with one field made junk, or junk altogether."""
    known = openapi.get("components", {}).get("schemas", {})
    operations = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            described = values(content.get("application/json", {}).get("schema"), known)
            spoilt = st.tuples(described, st.sampled_from(["messages", "model", "n", "stop", "stream"]), JUNK).map(
                _spoilt
            )
            names = st.text(max_size=10) | st.sampled_from(["tiny-base", "..", "a/b", "%2e%2e"])
            place = names.map(functools.partial(_filled, path))
            operations.append(st.tuples(st.just(method.upper()), place, described | spoilt | JUNK))
    return st.one_of(operations)


def _spoilt(parts: tuple[Any, str, Any]) -> Any:
    body, field, junk = parts
    return body | {field: junk} if isinstance(body, dict) else body


def _filled(path: str, name: str) -> str:
    before, brace, rest = path.partition("{")
    filled = before + quote(name, safe="/%") + rest.partition("}")[2] if brace else path
    return f"{filled}?api-version=1" if "deployments" in path else filled


def body_of(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def check(reply: httpx.Response, asked: object) -> None:
    """No fault of the endpoint, and one shape of what it refuses."""
    assert reply.status_code < 500, (asked, reply.status_code, reply.text[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert set(error) == {"code", "message", "type", "param"} and len(error["message"]) <= 600, (
            asked,
            reply.text[:500],
        )
        told = json.dumps(error)
        assert not [
            word for word in ("Traceback", "RayTask", "site-packages", "Request ID", "pydantic.dev") if word in told
        ], told


class Handle:
    """What stands for Ray's handle to the engine: it yields, or raises, what it is told to."""

    def __init__(self) -> None:
        self.answer: Any = None

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Any:
        async def pieces(body: Any, _: Any) -> Any:
            answer = self.answer(body) if callable(self.answer) else self.answer
            if isinstance(answer, BaseException):
                raise answer
            yield answer

        async def healthy() -> None:
            return None

        return SimpleNamespace(remote=healthy if name == "check_health" else pieces)


class Ingress:
    """The ingress with Ray's own routing, in this process; `post` and `ask` without a network."""

    def __init__(self, folder: Path) -> None:
        from ray.llm._internal.serve.core.configs.openai_api_models import ModelCard
        from ray.llm._internal.serve.core.ingress.ingress import make_fastapi_ingress
        from ray.serve import context

        from slm_ray.serving.ingress import AdapterIngress
        from slm_ray.serving.settings import room

        self.handle, self._context = Handle(), context
        card = ModelCard(id="tiny-base", object="model", owned_by="x", permission=[], metadata={})
        serving = {"llm_configs": [{"engine_kwargs": {"max_num_seqs": 8}}]}
        kind = make_fastapi_ingress(AdapterIngress)
        self._made: Any = kind.__new__(kind)

        async def begin() -> Any:
            await kind.__init__(
                self._made, llm_deployments={"tiny-base": self.handle}, model_cards={"tiny-base": card},
                adapters_dir=str(folder), room=room(serving), engines=1, tools=False,
            )  # fmt: skip
            return await self._made.__serve_build_asgi_app__()

        self.runner = asyncio.Runner()
        self.app = self.runner.run(begin())
        context._INTERNAL_REPLICA_CONTEXT = SimpleNamespace(servable_object=self._made)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def ask(self, method: str, path: str, content: bytes) -> httpx.Response:
        async def ask() -> httpx.Response:
            headers = {"content-type": "application/json"}
            async with asyncio.timeout(10):
                return await self.client.request(method, path, content=content, headers=headers)

        return self.runner.run(ask())

    def close(self) -> None:
        self._context._INTERNAL_REPLICA_CONTEXT = None
        self.runner.close()


@pytest.fixture(scope="module")
def ingress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    made = Ingress(tmp_path_factory.mktemp("adapters"))
    yield made
    made.close()


def plain(body: Any) -> Any:
    from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionResponse

    return ChatCompletionResponse(model=str(body.model), choices=[], usage={"prompt_tokens": 1, "total_tokens": 2})


def test_requests_made_from_the_openapi_never_make_the_ingress_fail(ingress: Ingress) -> None:
    ingress.handle.answer = plain

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(requests(ingress.app.openapi()))
    def ask(made: tuple[str, str, Any]) -> None:
        method, path, value = made
        check(ingress.ask(method, path, body_of(value)), made)

    ask()


def test_whatever_comes_from_behind_nothing_of_the_inside_is_told(ingress: Ingress) -> None:
    from ray.exceptions import RayActorError, RayTaskError
    from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse

    secret = "/srv/secret/engine.py"
    trace = f'Traceback (most recent call last):\n  File "{secret}", line 3 (pid=31, ip=10.0.0.7)\nValueError: no'
    lies = [
        (RayTaskError("f", trace, ValueError(secret)).as_instanceof_cause(), 500),
        (RayActorError(), 500),
        (RuntimeError(trace), 500),
        (ErrorResponse(error=ErrorInfo(message=trace, code=500, type="InternalServerError")), 500),
        (
            ErrorResponse(
                error=ErrorInfo(message=f"{secret}: maximum context length is 2048", code=400, type="BadRequest")
            ),
            400,
        ),
    ]
    for lie, status in lies:
        ingress.handle.answer = lie
        reply = ingress.ask("POST", CHAT, body_of({"messages": [{"role": "user", "content": "hi"}]}))
        error = reply.json()["error"]
        assert (reply.status_code, set(error)) == (status, {"code", "message", "type", "param"})
        assert not [word for word in ("/srv", "Traceback", "10.0.0.7", "pid") if word in reply.text], reply.text
    assert error["code"] == "context_length_exceeded"


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


def test_requests_made_from_the_openapi_leave_the_running_endpoint_well(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers={"api-key": KEY}, timeout=30, trust_env=False) as client:
        openapi = client.get("/openapi.json").json()
        ends = time.monotonic() + 12

        @settings(max_examples=120, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(requests(openapi))
        def ask(made: tuple[str, str, Any]) -> None:
            method, path, value = made
            if time.monotonic() > ends:
                return
            if isinstance(value, dict) and "completions" in path:
                value = value | {"max_tokens": 4, "n": 1}
            check(
                client.request(method, path, content=body_of(value), headers={"content-type": "application/json"}), made
            )

        ask()
    assert served.ask(served.name).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_give_their_places_back_within_seconds(served: Served, stream: bool) -> None:
    """All places are taken by answers of half a minute; then everybody leaves at once."""

    async def scenario() -> tuple[int, float]:
        headers, limits = {"api-key": KEY}, httpx.Limits(max_connections=300)
        statuses: list[int] = []
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60, trust_env=False) as client:

            async def ask() -> None:
                body = chat_body(served.name, "go on", max_tokens=1500, stream=stream)
                async with client.stream("POST", f"{served.url}{CHAT}", json=body) as reply:
                    statuses.append(reply.status_code)
                    async for _ in reply.aiter_lines():
                        pass

            calls = [asyncio.create_task(ask()) for _ in range(140)]
            while 429 not in statuses:  # every place is taken
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        left = time.monotonic()
        async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as client:
            while (
                await client.post(f"{served.url}{CHAT}", json=chat_body(served.name, "hi", max_tokens=1))
            ).status_code == 429:
                await asyncio.sleep(0.1)
        return statuses.count(429), time.monotonic() - left

    refused, waited_s = asyncio.run(scenario())
    print(f"stream={stream}: {refused} refused, answered {waited_s:.2f} s after all had left")
    assert refused >= 1
    assert waited_s < 5
