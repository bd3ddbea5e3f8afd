"""Asking without Ray: arms that are no endpoint (answers on file, baselines) are answered by an engine beside the driver.

Starting Ray takes seconds, and longer than all of their answers. The log, the promises and the engine are those of a shard;
the engine runs on a thread of its own, so that it works where an event loop runs already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config import EvaluateConfig
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.engine import ArmQueue, Engine
from slm_ray.evaluation.limiter import ArmLimiter, Limit, RateLimiter
from slm_ray.evaluation.plan import Arm
from slm_ray.evaluation.stopping import Stopping
from slm_ray.runlog import FOLDER, LogWriter, Request

KINDS = ("recorded", "baseline")
_TICK_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """How a shard ended: the requests that the budget left, and the budget as it stands."""

    left: int
    budget: Budget


class LocalLog:
    """A shard's log file on a disk that it sees; synced in groups, in a thread, one sync at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = LogWriter(path)
        self._syncing: asyncio.Future[None] | None = None
        self._dirty = False

    async def append(self, lines: bytes) -> None:
        """As `LogWriter.append`."""
        self._writer.append(lines)
        self._dirty = True
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.ensure_future(self._sync())

    async def close(self) -> None:
        """Sync and give up the file."""
        if self._syncing is not None:
            await self._syncing
        self._writer.close()

    async def _sync(self) -> None:
        while self._dirty:
            self._dirty = False
            await asyncio.to_thread(self._writer.sync)


def is_local(requests: Sequence[Request], arms: Sequence[Arm]) -> bool:
    """Whether all that is to be asked are arms that need no endpoint and no cluster."""
    asked = {request.spec for request in requests}
    return all(arm.facts.kind in KINDS for arm in arms if arm.spec in asked)


def ask_here(
    requests: Sequence[Request], arms: Sequence[Arm], config: EvaluateConfig, budget: Budget, *, run: str,
    tick: Callable[[], None], stopping: Stopping | None,
) -> ShardResult:  # fmt: skip
    """As `shards.ask_all`, in this process. Raises what a model raised, or ResourceError when the log cannot be written."""
    ended = threading.Event()
    path = Path(config.run_dir).absolute() / FOLDER / f"shard-{run}-0.jsonl"
    stopping = copy.deepcopy(stopping)  # the driver feeds its own from the log

    async def asking() -> int:
        log = LocalLog(path)
        queues = [
            queue_of(arm, deque(one for one in requests if one.spec == arm.spec), config, slots=config.generation.concurrency)
            for arm in arms
        ]  # fmt: skip
        try:
            return await Engine(queues, log, budget, owned=lambda: not ended.is_set(), stopping=stopping).run()
        finally:
            await log.close()

    with ThreadPoolExecutor(1) as thread:
        engine = thread.submit(lambda: asyncio.run(asking()))
        try:
            while not wait([engine], timeout=_TICK_S).done:
                tick()
            return ShardResult(left=engine.result(), budget=budget)
        finally:
            ended.set()


def queue_of(
    arm: Arm, waiting: deque[Request], config: EvaluateConfig, *, slots: int, limiter: RateLimiter | None = None
) -> ArmQueue:  # fmt: skip
    """An arm's open model with what it is to be asked; without a `limiter`, of no endpoint, only `slots` limit it."""
    if limiter is None:
        limiter = RateLimiter()
        limiter.keep_to(Limit(), slots)
    mine = ArmLimiter(limiter)
    model = arm.provider.open(
        endpoint=config.endpoint, generation=config.generation, environment=arm.environment, limiter=mine
    )
    return ArmQueue(spec=arm.spec, model=model, limiter=mine, waiting=waiting, slots=slots)
