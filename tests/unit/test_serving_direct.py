"""An engine that answers clients itself: which adapter is meant, who leaves, what Serve starts for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve import context

from slm_ray.config import Serving
from slm_ray.errors import ConfigError
from slm_ray.ray_environment import HAPROXY
from slm_ray.serving.app import build
from slm_ray.serving.direct import OwnHandle
from slm_ray.serving.keys import key_digest
from slm_ray.serving.replica import EngineDead
from slm_ray.serving.settings import DIRECT, app_settings, bundles, room
from tests.front_client import PATH, application, ask, front_of

ROOT = Path(__file__).parents[2]
CPU = str(ROOT / "serve_configs/cpu_tiny.yaml")
WAY = {DIRECT: "1", HAPROXY: "1"}


class Engine:
    """Stands for the replica: says what it was asked as, and whether its answer was closed."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.closed = self.dead = False

    async def answer(self, kind: str, body: Any) -> AsyncGenerator[Any, None]:
        if self.dead:
            raise EngineDead("it died")
        self.asked.append(serve.get_multiplexed_model_id())
        self.bodies.append(body)
        return self._pieces(body)

    async def _pieces(self, body: Any) -> AsyncGenerator[Any, None]:
        try:
            if not body.get("stream"):
                yield 200, json.dumps({"model": body["model"]}).encode()
                return
            yield 'data: {"n": 1}\n\n'
            await asyncio.sleep(60)
        finally:
            self.closed = True

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDead("it died")


def direct(engine: Engine, folder: Path) -> Any:
    return application(front_of(OwnHandle(engine), folder))


def test_the_engine_is_asked_as_the_adapter_that_was_resolved_whatever_a_header_had_put_there(tmp_path: Path) -> None:
    (tmp_path / "a-0123456789ab").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        (tmp_path / "a-0123456789ab" / name).write_text("{}")
    engine = Engine()

    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(direct(engine, tmp_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            context._set_request_context(multiplexed_model_id="base:../../elsewhere")
            said = {"messages": [{"role": "user", "content": "hi"}]}
            return [await client.post(PATH, json=said | {"model": one})
                    for one in ("base", "base:a-0123456789ab", "base")]  # fmt: skip

    replies = asyncio.run(scenario())
    assert [reply.status_code for reply in replies] == [200, 200, 200], [reply.text for reply in replies]
    assert engine.asked == ["", replies[1].json()["model"], ""] and engine.asked[1].startswith("base:a-0123456789ab")


def test_a_client_that_leaves_its_stream_closes_the_answer(tmp_path: Path) -> None:
    engine = Engine()

    async def scenario() -> None:
        leaves = asyncio.Event()
        app = direct(engine, tmp_path)
        await asyncio.wait_for(ask(app, sees=lambda body: leaves.set(), leaves=leaves), 10)
        await asyncio.sleep(0.05)
        assert engine.closed, "and not by the end of the loop, which closes whatever is open"

    asyncio.run(scenario())


def test_an_answer_is_given_up_between_two_of_its_pieces() -> None:
    engine = Engine()

    async def scenario() -> None:
        pieces = OwnHandle(engine).options(stream=True).answer.remote("chat", {"stream": True})
        assert (await anext(pieces)).startswith("data:")
        pieces.cancel()
        await asyncio.sleep(0.05)
        assert engine.closed

    asyncio.run(scenario())


def test_keys_bounds_and_schemas_by_name_hold_in_the_engine_s_process(tmp_path: Path) -> None:
    engine = Engine()
    keyed = front_of(OwnHandle(engine), tmp_path, api_key_digest=key_digest("right"))
    keyed.reconfigure({"stand_in": None, "schemas": {"calls": {"type": "object"}}})
    said = {"messages": [{"role": "user", "content": "hi"}]}
    named = {"response_format": {"type": "json_schema", "json_schema": {"name": "calls"}}}
    unknown = {"response_format": {"type": "json_schema", "json_schema": {"name": "others"}}}

    async def scenario() -> list[int]:
        transport = httpx.ASGITransport(application(keyed))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked: list[tuple[str, dict[str, Any]]] = [
                ("wrong", {}),
                ("right", {"guided_json": {}}),
                ("right", unknown),
                ("right", named),
            ]
            return [
                (await client.post(PATH, json=said | more, headers={"api-key": key})).status_code for key, more in asked
            ]

    assert asyncio.run(scenario()) == [401, 400, 400, 200]
    (body,) = engine.bodies
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_dead_engine_is_503_with_retry_after(tmp_path: Path) -> None:
    engine = Engine()
    engine.dead = True

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(direct(engine, tmp_path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            said = {"messages": [{"role": "user", "content": "hi"}], "model": "base"}
            return await client.post(PATH, json=said)

    reply = asyncio.run(scenario())
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
    assert reply.headers["retry-after"] == "5"


def test_serve_starts_one_deployment_and_starts_it_anew_for_another_key() -> None:
    def deployment(**environment: str) -> Any:
        settings = app_settings(Serving(config=CPU), stand_in=None, environment=environment)
        return build(settings)._bound_deployment

    direct, keyed, plain = deployment(**WAY), deployment(**WAY, SLM_RAY_API_KEY="k"), deployment()
    assert direct.name.startswith("AdapterServer:") and not hasattr(direct.init_args[0], "_bound_deployment")
    assert direct._deployment_config.max_ongoing_requests == plain._deployment_config.max_ongoing_requests, "a front's"
    assert direct._version != keyed._version, "the key is checked in the engine's process"
    stand_in = {"deployment": "s", "demonstrations": 1, "pools": {}}
    other = build(app_settings(Serving(config=CPU), stand_in=stand_in, environment=WAY))._bound_deployment
    assert other._version == direct._version, "no restart for a stand-in"
    settings = app_settings(Serving(config=CPU), stand_in=None, environment=WAY)
    assert len(bundles(settings.serving, is_direct=True)) == len(bundles(settings.serving)) - 1


def test_room_and_budgets_are_shared_among_the_engines() -> None:
    model = {"engine_kwargs": {"max_num_seqs": 20}, "deployment_config": {"num_replicas": 3}}
    found = room({"llm_configs": [model], "ingress_deployment_config": {"num_replicas": 1}}, is_direct=True)
    assert (found.answers, found.ingresses) == (21, 3)


def test_it_is_refused_without_haproxy() -> None:
    with pytest.raises(ConfigError, match=f"set {HAPROXY}=1 too"):
        app_settings(Serving(config=CPU), stand_in=None, environment={DIRECT: "1"})
