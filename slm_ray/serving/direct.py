"""The short way: the engine's own replica answers clients, with all of the front's routes and checks in its process.

Between HAProxy and vLLM nothing is left then but the front's code: no process of its own, no message from it to the engine and
back. Chosen by Ray's own variable for that, `RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1`, beside the one for HAProxy. What it
costs is in docs/how-to/serving.md: a request stays with the engine that got it, and what starts a front anew starts the
engine anew. Imports no vLLM where it is only built from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray.serve import context

from slm_ray.serving.ingress import AdapterIngress
from slm_ray.serving.replica import EngineReplica, Kind, Piece


class OwnHandle:
    """To the front what Serve's handle of an engine is, for the engine in the same process."""

    _router = None  # it is there as long as this process is

    def __init__(self, engine: Any, adapter: str = "") -> None:
        self._engine = engine
        self._adapter = adapter
        self.answer = SimpleNamespace(remote=lambda kind, body: _Pieces(_answer(engine, adapter, kind, body)))
        self.check_health = SimpleNamespace(remote=engine.check_health)

    def options(self, *, multiplexed_model_id: str = "", **_: Any) -> OwnHandle:
        """The same engine, asked as this adapter."""
        return OwnHandle(self._engine, multiplexed_model_id)


class DirectReplica(AdapterIngress, EngineReplica):
    """One engine and the front of it."""

    async def __init__(self, llm_config: Mapping[str, Any], **front: Any) -> None:  # type: ignore[misc]
        await EngineReplica.__init__(self, llm_config)  # type: ignore[misc]
        AdapterIngress.__init__(self, OwnHandle(self), **front)


class _Pieces:
    """An answer in pieces that can be given up, as Serve's can."""

    def __init__(self, pieces: AsyncGenerator[Piece, None]) -> None:
        self._pieces = pieces
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    def cancel(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._pieces.aclose())


async def _answer(engine: Any, adapter: str, kind: Kind, body: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
    # By this the engine knows which adapter is meant. What stands there already a client may have sent as a header.
    asked = replace(context._get_serve_request_context(), multiplexed_model_id=adapter)
    context._serve_request_context.set(asked)
    async with contextlib.aclosing(await engine.answer(kind, body)) as pieces:
        async for piece in pieces:
            yield piece
