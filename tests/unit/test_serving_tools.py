"""Tools in a request: what passes, and that hostile ones are named in milliseconds, as the rest of a request is."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from slm_ray.serving.limits import RequestLimits
from slm_ray.serving.tools import tool_problem

CHAT = "/v1/chat/completions"
TURN = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Weather of a city", "strict": True,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "x", **function}}


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


def client(**options: Any) -> TestClient:
    app = Starlette(routes=[Route(path, echo, methods=["POST"]) for path in (CHAT, "/v1/completions")])
    app.add_middleware(RequestLimits, **options)
    return TestClient(app)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "auto"}, {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": [], "tool_choice": "none"}, {"tools": None, "tool_choice": None}, {"tools": [tool()]},
        {"messages": [*TURN, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "tool_call_id": "c1", "content": "rain"}], "tools": [WEATHER]},
    ],
    ids=str,
)  # fmt: skip
def test_tools_that_may_go_on(fields: dict[str, Any]) -> None:
    assert client(tools=tool_problem).post(CHAT, json={"messages": TURN, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools", {"tools": {}}), ("tools", {"tools": [1]}), ("tools", {"tools": [{"type": "retrieval"}]}),
        ("tools", {"tools": [tool(name="a b")]}), ("tools", {"tools": [tool(name="")]}), ("tools", {"tools": [tool(name=7)] * 2}),
        ("tools", {"tools": [tool(), tool()]}), ("tools", {"tools": [tool(description=["x"])]}),
        ("tools", {"tools": [tool(description="x" * 5_000)]}), ("tools", {"tools": [tool(parameters="{}")]}),
        ("tools", {"tools": [tool(strict="yes")]}), ("tools", {"tools": [tool(name=f"t{n}") for n in range(200)]}),
        ("tools", {"tools": [tool(parameters={"enum": [f"value {n}" for n in range(20_000)]})]}),
        ("tools", {"tools": [tool(name=f"t{n}", parameters={"enum": list(range(100))}) for n in range(50)]}),
        ("tools", {"tools": [tool(parameters={"pattern": "(a{1,50}){1,50}"})]}),
        ("tool_choice", {"tool_choice": "auto"}), ("tool_choice", {"tools": [WEATHER], "tool_choice": "always"}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": {"type": "function"}}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": ["auto"]}),
        ("messages", {"messages": [*TURN, {"role": "tool", "content": "rain"}]}),
        ("messages", {"messages": [*TURN, {"role": "user", "content": "x", "tool_calls": [CALL]}]}),
        ("messages", {"messages": [*TURN, {"role": "assistant", "content": "x", "tool_calls": "all"}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{**CALL, "id": 3}]}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [
            {**CALL, "function": {"name": "x", "arguments": "not JSON"}}]}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [
            {**CALL, "function": {"name": "x", "arguments": "[" * 100_000}}]}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x", "tool_calls": [
            {**CALL, "function": {"name": "x", "arguments": {"city": "Oslo"}}}]}]}),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_tools_that_may_not(param: str, fields: dict[str, Any]) -> None:
    reply = client(tools=tool_problem).post(CHAT, json={"messages": TURN, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_where_no_engine_finds_calls_tools_are_refused() -> None:
    for fields in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "auto"}):
        reply = client().post(CHAT, json={"messages": TURN, **fields})
        assert reply.status_code == 400 and "not served here" in reply.json()["error"]["message"]
    assert (
        client(tools=tool_problem).post("/v1/completions", json={"prompt": "x", "tools": [WEATHER]}).status_code == 400
    )


def test_hostile_tools_are_named_at_once() -> None:
    nested: dict[str, Any] = {}
    for _ in range(300):
        nested = {"properties": {"a": nested}}
    began = time.process_time()
    for parameters in (nested, {"anyOf": [{"type": "string"}] * 50_000}):
        assert tool_problem({"tools": [tool(parameters=parameters)]}) is not None
    assert time.process_time() - began < 1
