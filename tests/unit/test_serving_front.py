"""How the front asks the engine, what it hears of a dead one, and a client that leaves: what is still done for it is ended."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import constants

from slm_ray.serving.replica import EngineDead, EngineReplica
from tests.front_client import application, ask, front_of


class Pieces:
    """What Serve hands out of an answer: some pieces, then nothing for as long as it is waited for."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = list(pieces)
        self.cancelled = False

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> str:
        if not self._pieces:
            await asyncio.sleep(60)
        return self._pieces.pop(0)

    def cancel(self) -> None:
        self.cancelled = True


def app_of(pieces: Pieces, folder: Path) -> Any:
    handle = SimpleNamespace(_router=None, answer=SimpleNamespace(remote=lambda kind, body: pieces))
    handle.options = lambda **options: handle
    return application(front_of(handle, folder))


@pytest.mark.parametrize(("allowed", "by_reference"), [(64 * 2**20, False), (4 * 2**20, True)])
def test_an_engine_is_asked_by_grpc_whoever_bound_its_handle_and_by_its_actor_where_a_long_answer_would_not_pass(
    allowed: int, by_reference: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(constants, "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", allowed)

    class Handle:
        """As Serve's: options are those of the handle they are asked of, and more."""

        def __init__(self, **options: Any) -> None:
            self._options, self._router = options, None
            self.answer = self.check_health = SimpleNamespace(remote=self._remote)

        def options(self, **options: Any) -> Handle:
            return Handle(**self._options | options)

        def _remote(self, *_: Any) -> Pieces:
            asked.append(self._options)
            return Pieces("data: {}\n\n")

    async def scenario() -> None:
        leaves = asyncio.Event()
        front = front_of(Handle(), tmp_path)
        await asyncio.wait_for(ask(application(front), sees=lambda body: leaves.set(), leaves=leaves), 10)

    asyncio.run(scenario())
    assert [(options["_by_reference"], options["stream"]) for options in asked] == [(by_reference, True)]


def test_what_a_front_hears_of_a_dead_engine_can_be_read_without_vllm() -> None:
    class Dead(Exception):
        """As vLLM's own: whoever reads it imports the engine."""

    async def check_health() -> None:
        raise Dead("EngineCore encountered an issue")

    replica: Any = SimpleNamespace(_server=SimpleNamespace(check_health=check_health))
    with pytest.raises(EngineDead) as said:
        asyncio.run(EngineReplica.check_health(replica))
    read = pickle.loads(pickle.dumps(said.value))
    assert (type(read), str(read)) == (EngineDead, "Dead")


@pytest.mark.parametrize("pieces", [Pieces("data: {}\n\n"), Pieces("data: {}\n\n", "data: {}\n\n")])
def test_the_engine_is_told_of_a_client_that_leaves_its_stream(pieces: Pieces, tmp_path: Path) -> None:
    async def scenario() -> None:
        leaves = asyncio.Event()
        await asyncio.wait_for(ask(app_of(pieces, tmp_path), sees=lambda body: leaves.set(), leaves=leaves), 10)

    asyncio.run(scenario())
    assert pieces.cancelled


def test_the_engine_is_told_of_an_answer_that_has_not_begun_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_ray.serving.ingress._BEGINS_WITHIN_S", 0.05)
    pieces, seen = Pieces(), list[bytes]()

    async def scenario() -> None:
        await asyncio.wait_for(ask(app_of(pieces, tmp_path), sees=seen.append, leaves=asyncio.Event()), 10)

    asyncio.run(scenario())
    assert pieces.cancelled and json.loads(seen[0])["error"]["code"] == "timeout"
