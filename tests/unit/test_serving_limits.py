"""What a request may ask of the engine: each bound from both sides, and hostile bodies in milliseconds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from slm_ray.serving import request_body
from slm_ray.serving.limits import RequestLimits, most_tokens, regex_problem, schema_problem

CHAT = "/v1/chat/completions"
TURN = [{"role": "user", "content": "hi"}]


async def echo(request: Request) -> JSONResponse:
    """What stands for the engine: it says what reached it."""
    return JSONResponse({"bytes": len(await request.body())})


@pytest.fixture(scope="module")
def client() -> TestClient:
    routes = [Route(path, echo, methods=["POST"]) for path in (CHAT, "/v1/completions", "/v1/embeddings")]
    routes.append(Route("/openai/deployments/x/chat/completions", echo, methods=["POST"]))
    app = Starlette(routes=routes)
    app.add_middleware(RequestLimits)
    return TestClient(app)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def answer_format(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 256, "temperature": 0.0, "seed": 42, "logprobs": True, "top_logprobs": 5, "stream": True},
        {"stream_options": {"include_usage": True}, "stop": ["\n"], "n": 2, "user": "u", "max_completion_tokens": None},
        {"logit_bias": {"5": -100}, "return_token_ids": True, "ignore_eos": True, "stop": ["x" * 200] * 16},
        {"return_tokens_as_token_ids": True, "cache_salt": "x", "logprobs": True, "top_logprobs": 20},  # the parity check
        {"messages": [*TURN, {"role": "assistant", "content": None}, {"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        answer_format(deep(10)),
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": r"\d{4}-\d{2}-\d{2}"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"tools": [], "tool_choice": "none"},
    ],
)  # fmt: skip
def test_what_clients_send_passes(client: TestClient, fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": TURN, **fields}
    reply = client.post(CHAT, content=json.dumps(body))
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"bytes": len(json.dumps(body))}, "the body is passed on as it came"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"messages": None}, "messages", "a list of one message"),
        ({"messages": []}, "messages", "a list of one message"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages", "role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]}, "messages", "no text"),
        ({"guided_json": {}}, "guided_json", "not known here"),
        ({"chat_template": "{{ 1 }}"}, "chat_template", "not known here"),
        ({"stop": "x" * 5_000_000}, "stop", "1 to 200 characters"),
        ({"stop": [""]}, "stop", "1 to 200 characters"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"logit_bias": {str(token): 1 for token in range(1000)}}, "logit_bias", "at most 300"),
        ({"logit_bias": {"5": 1e9}}, "logit_bias", "-100 to 100"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "token numbers"),
        ({"n": 1000}, "n", "from 1 to 16"),
        ({"n": True}, "n", "a whole number"),
        ({"max_tokens": 10**9}, "max_tokens", "from 1 to"),
        ({"n": 16, "max_tokens": 16_000}, "max_tokens", "n × max_tokens"),
        ({"n": 1, "max_tokens": 16_000, "logprobs": True, "top_logprobs": 20}, "logprobs", "log-probabilities"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"seed": 2**70}, "seed", "a whole number"),
        ({"tools": [{"type": "function"}]}, "tools", "response_format"),
        (answer_format(deep(400)), "response_format", "nested"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"structured_outputs": {"grammar": "root ::= root"}}, "structured_outputs", "a grammar is not served"),
        ({"structured_outputs": {"regex": "a{1000}"}}, "structured_outputs", "repetitions"),
    ],
)  # fmt: skip
def test_what_the_engine_should_not_see_is_a_400_that_names_the_field(
    client: TestClient, fields: dict[str, Any], field: str, words: str
) -> None:
    reply = client.post(CHAT, content=json.dumps({"model": "m", "messages": TURN, **fields}))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert words in error["message"] and len(error["message"]) < 300


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"n": None, "logprobs": None}, 16_384),
        ({"n": 16, "logprobs": None}, 1_024),
        ({"n": 1, "logprobs": True, "top_logprobs": 20}, 10_000),
        ({"n": 16, "logprobs": True, "top_logprobs": 20}, 625),
        ({"n": 2, "logprobs": 20}, 5_000),  # plain completions have one field
    ],
)
def test_who_names_no_length_gets_what_the_bounds_leave(
    client: TestClient, fields: dict[str, Any], tokens: int
) -> None:
    asked = {"top_logprobs": None} | fields
    assert most_tokens(**asked) == tokens
    path, text = (CHAT, {"messages": TURN}) if asked["top_logprobs"] else ("/v1/completions", {"prompt": "a"})
    sent = text | {name: value for name, value in fields.items() if value is not None}
    assert client.post(path, json=sent | {"max_tokens": tokens}).status_code == 200
    assert client.post(path, json=sent | {"max_tokens": tokens + 1}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": "\xff"}', b'{"messages": "\\ud800"}', b"[" * 100_000, b'{"a": 1e999}', b"a=b&c=d"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_a_400(client: TestClient, body: bytes) -> None:
    reply = client.post(CHAT, content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large_is_a_413_whether_or_not_it_says_so(client: TestClient) -> None:
    large = b" " * (request_body.MAX_BODY_BYTES + 1)
    assert client.post(CHAT, content=large).status_code == 413
    assert client.post("/v1/embeddings", content=large).status_code == 413
    chunks = (large[start : start + 2**20] for start in range(0, len(large), 2**20))
    assert client.post(CHAT, content=chunks).status_code == 413


def test_azures_route_and_plain_completions_have_bounds_too(client: TestClient) -> None:
    assert client.post("/openai/deployments/x/chat/completions", json={"messages": TURN, "n": 99}).status_code == 400
    assert client.post("/v1/completions", json={"prompt": "a", "logprobs": 5}).status_code == 200
    assert client.post("/v1/completions", json={"logprobs": 5}).json()["error"]["param"] == "prompt"


def test_a_client_that_leaves_before_its_request_is_whole_is_nobodys_error() -> None:
    async def left() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        raise AssertionError(f"nobody is there to read {message}")

    async def unreached(*parts: object) -> None:
        raise AssertionError("the engine was asked")

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    asyncio.run(RequestLimits(unreached)(scope, left, send))  # type: ignore[arg-type]


def test_large_bodies_that_are_slow_together_are_refused_before_they_fill_the_memory_and_small_ones_are_not() -> None:
    part, parts, clients = b" " * 2**20, 4, 24
    body = json.dumps({"messages": TURN}).encode()
    statuses, waiting = list[int](), 0
    whole = asyncio.Event()

    async def ask(app: Any, parts: int) -> None:
        messages = [{"type": "http.request", "body": part, "more_body": True}] * parts

        async def receive() -> Any:
            nonlocal waiting
            await asyncio.sleep(0)
            if messages:
                return messages.pop()
            waiting += 1
            await whole.wait()
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        await app({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send)

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def scenario() -> int:
        app = RequestLimits(engine)
        asked = [asyncio.create_task(ask(app, parts)) for _ in range(clients)]
        while waiting + len(statuses) < clients:
            await asyncio.sleep(0.001)
        held = waiting
        asked.append(asyncio.create_task(ask(app, 0)))
        whole.set()
        await asyncio.gather(*asked)
        await ask(app, parts)
        return held

    held = asyncio.run(asyncio.wait_for(scenario(), 30))
    limit = request_body.MAX_ARRIVING_BYTES // (parts * len(part))
    assert limit // 2 < held <= limit < clients
    assert sorted(statuses) == [200] * (held + 2) + [429] * (clients - held), (
        "the small one, and one when there is room again"
    )


def test_a_body_that_never_becomes_whole_is_refused_and_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "MAX_ARRIVAL_S", 0.05)
    statuses = list[int]()
    arriving = request_body.Arriving()
    parts = [b" " * 2**20] * 3

    async def receive() -> Any:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": True}
        return await asyncio.Event().wait()

    async def scenario() -> None:
        with pytest.raises(request_body.Refused) as refused:
            await arriving.whole({"headers": []}, receive)
        statuses.append(refused.value.response().status_code)

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert statuses == [408] and not arriving._bytes


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(3000)}}, "parts"),
        ({"enum": [f"value {i}" for i in range(3000)]}, "parts"),
        ({"type": "string", "minLength": 10**9}, "repetitions"),
        ({"type": "object", "properties": {f"k{i}": {"type": "string", "maxLength": 900} for i in range(9)}}, "repetitions"),
        ({"type": "string", "pattern": "a" * 1000}, "characters"),
        ({"type": "string", "pattern": "((a{30}){30}){30}"}, "repetitions"),
        ({"type": "object", "patternProperties": {"((a{30}){30}){30}": {}}}, "repetitions"),
        ({"patternProperties": {f"k{i}": True for i in range(3000)}}, "parts"),
        ({"title": "x" * 100_000}, "KiB"),
        ("{", "no JSON"),
        ([], "object"),
    ],
)  # fmt: skip
def test_schemas_that_would_keep_the_compiler_busy(schema: Any, words: str) -> None:
    assert words in (schema_problem(schema) or "")


def test_schemas_and_patterns_as_people_write_them() -> None:
    booking = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 200},
            "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
            "rooms": {"type": "array", "items": {"enum": ["single", "double"]}, "maxItems": 20},
        },
        "required": ["name", "date"],
    }
    assert (
        schema_problem(booking) is None and schema_problem(json.dumps(booking)) is None and schema_problem(True) is None
    )
    assert regex_problem(r"[A-Z]{2}\d{6,8}") is None


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/openai/deployments/x/chat/completions"])
def test_a_line_s_end_in_the_path_is_no_way_around(client: TestClient, path: str) -> None:
    """The router takes `…/completions%0A` for `…/completions`."""
    reply = client.post(f"{path}%0A", json={"messages": TURN, "guided_json": {}})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
