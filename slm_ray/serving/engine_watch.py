"""Whether the engine behind the ingress answers, asked once a second: `/health` and every request go by it.

An engine that died takes its replica half a minute to come back. Without this, requests end in 500s meanwhile and
`/health` says ok. With it they are 503 with Retry-After: at once where the engine says that it is dead, after five
checks without an answer where nobody is there to say so (a machine under load answers late, and is not down). Of several
engines one that is dead is not the end: a check asks any of them, and only five bad ones in a row count. Requests that
fail together share one check, and bad checks within one period are one: five are never a moment's. Plain asyncio; what is
asked is handed in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

PERIOD_S = 1.0
ANSWER_WITHIN_S = 2.0  # a replica that is busy tokenising answers later than an idle one
RETRY_AFTER_S = 5
_BAD_CHECKS = 5


class EngineWatch:
    """Asks `check` (which raises where the engine is dead) as long as the event loop runs; `down` is what came of it last."""

    def __init__(self, check: Callable[[], Awaitable[object]], *, engines: int = 1, period_s: float = PERIOD_S) -> None:
        self._check = check
        self._engines = engines
        self._period_s = period_s
        self._bad = 0
        self._counted_at = -math.inf
        self._asking: asyncio.Task[bool] | None = None
        self._begun = False
        self._task: asyncio.Task[None] | None = None
        self.down = False

    def start(self) -> None:
        """Begin asking, in the running event loop; once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._ask())

    async def ask_now(self) -> bool:
        """Whether it is down, asked at once: for a request that has just failed."""
        earlier = self._asking
        if earlier is not None and self._begun and not earlier.done() and await asyncio.shield(earlier):
            return True
        if self._asking is None or self._begun:  # what was asked before may have been answered while the engine lived
            self._begun, self._asking = False, asyncio.create_task(self._is_down())
        self.down = await asyncio.shield(self._asking)  # whoever is cancelled leaves the check to the others
        return self.down

    async def _ask(self) -> None:
        while True:
            await self.ask_now()
            await asyncio.sleep(self._period_s)

    async def _is_down(self) -> bool:
        self._begun = True
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._check()
        except TimeoutError:
            return self._bad_check()
        except Exception:  # noqa: BLE001 - whatever it is, it is no healthy engine
            return self._bad_check() or self._engines == 1
        self._bad = 0
        return False

    def _bad_check(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._counted_at > self._period_s / 2:
            self._bad, self._counted_at = self._bad + 1, now
        return self.down or self._bad >= _BAD_CHECKS
