"""The engine's deployment: a shell that whoever builds or asks it can import without vLLM.

Serve reads a deployment's class wherever an application is built. vLLM and torch take ten seconds and half a GB to
import, so only the replica's own process does that, in `server`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from logging.handlers import MemoryHandler
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from slm_ray.serving.server import AdapterServer

Kind = Literal["chat", "completions"]
# What an answer comes in: one whole (HTTP status, body in JSON), or texts of a stream of events.
Piece = tuple[int, bytes] | str


@contextlib.contextmanager
def log_kept() -> Iterator[None]:
    """Serve's log as it was: vLLM configures logging when it is imported, which closes whatever handlers there are.

    Serve asks them for the file's name when a controller that was started again looks at its replicas, and stops a replica
    that cannot say.
    """
    handlers = [one for one in logging.getLogger("ray.serve").handlers if isinstance(one, MemoryHandler)]
    files = [one.target for one in handlers]
    try:
        yield
    finally:
        for handler, file in zip(handlers, files, strict=True):
            handler.setTarget(file)


class EngineDead(Exception):
    """The engine of a replica has died; another replica may answer."""


class EngineReplica:
    """One engine of a model as `llm_configs` of a serve file describes it."""

    async def __init__(self, llm_config: Mapping[str, Any]) -> None:  # type: ignore[misc]
        with log_kept():
            from slm_ray.serving.server import start

            self._server: AdapterServer = await start(llm_config)

    async def answer(self, kind: Kind, request: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer to a request body; HTTPException, 400 to 503, where there is none."""
        return await self._server.answer(kind, request)

    async def check_health(self) -> None:
        """EngineDead where the engine is dead; Serve starts another replica then.

        What vLLM raises would have a front that asks import vLLM, for ten seconds in which it answers nobody.
        """
        try:
            await self._server.check_health()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no healthy engine
            raise EngineDead(type(error).__name__) from None

    async def __del__(self) -> None:  # type: ignore[misc]
        if hasattr(self, "_server"):
            await self._server.__del__()
