"""The engine: every call of a run that is in flight, for all its models, on one event loop. It knows nothing of Ray.

Take a request, keep to its endpoint's limits, note it as started, call the model, note the answer: one coroutine does all
of it but the calls themselves. What arrives in one turn of the loop and what starts in its place are appended to the log
together, before any call of them begins: never more calls than slots are paid for and not in the log, whichever process
is killed. Nothing starts once a call has raised, once the log cannot be written, or once nobody owns the run any more.
With a `Stopping` no arm is asked far ahead of the others, and none once it is decided.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.limiter import ArmLimiter
from slm_ray.evaluation.stopping import Stopping
from slm_ray.runlog import Request, Response, encoded
from slm_ray.types import Completion, Model

_AT_ONCE = 2  # calls begun in one turn of the loop: calls that begin together come back together, round after round
_DRAIN_S = 0.2  # so long calls in flight may still end when one of them has ended the run


class Log(Protocol):
    """Where lines go; they outlive this process when `append` returns."""

    async def append(self, lines: bytes) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class ArmQueue:
    """One arm of an engine: its model and limiter, the requests that wait, and how many calls may be in flight (`slots`)."""

    spec: str
    model: Model
    limiter: ArmLimiter
    waiting: deque[Request]
    slots: int
    in_flight: int = field(default=0, init=False)


class Engine:
    """The calls of one evaluation actor. Lives on one event loop; `run` is called once."""

    def __init__(
        self, arms: Sequence[ArmQueue], log: Log, budget: Budget, *, owned: Callable[[], bool] = lambda: True,
        stopping: Stopping | None = None, ahead_s: float = 0.0,
    ) -> None:  # fmt: skip
        """`owned` says whether somebody still wants the answers; it is asked before every start. `stopping` says which
        arms are still needed and which of their rows may be asked; it is fed every answer. `ahead_s` is by how much this
        node's clock is ahead of the driver's, by which answers are dated."""
        self._arms = list(arms)
        self._log = log
        self._budget = budget
        self._owned = owned
        self._stopping = stopping
        self._ahead_ns = round(ahead_s * 1e9)
        self._calls: dict[asyncio.Task[Completion], tuple[ArmQueue, Request]] = {}
        self._due: deque[tuple[ArmQueue, Request]] = deque()  # in the log as started, and about to be
        self._arrived: list[tuple[ArmQueue, Request, Completion, int]] = []
        self._error: BaseException | None = None
        self._stopped = False  # the budget, or nobody's interest, lets nothing start
        self._wake = asyncio.Event()
        for arm in self._arms:
            arm.limiter.shared.on_change = self._wake.set

    async def run(self) -> int:
        """Ask until nothing more may be asked; how many requests are left (0, or what a budget does not allow).

        Raises what a call raised, once what had arrived by then is in the log; ResourceError when the log cannot be written.
        """
        try:
            while True:
                await self._turn()
                if self._error is not None:
                    raise self._error
                left = sum(len(arm.waiting) for arm in self._arms)
                if not (self._calls or self._due or self._arrived) and (not left or self._stopped):
                    return left
                await self._wake.wait()
                self._wake.clear()
        except BaseException:
            await self._drain()
            raise
        finally:
            await self._close()

    async def _turn(self) -> None:
        arrived, self._arrived = self._arrived, []
        for arm, request, completion, _ in arrived:
            arm.in_flight -= 1
            self._budget.charge(request.spec, request.key, request.prompt, completion)
            if self._stopping is not None:
                self._stopping.add(request.spec, request.example_id, completion)
        starting = self._next()
        if arrived or starting:
            responses = [_response(request, completion, at_ns) for _, request, completion, at_ns in arrived]
            await self._log.append(encoded([*responses, *(request.key for _, request in starting)]))
        is_beginning = bool(self._due)
        self._due.extend(starting)
        if not is_beginning:
            self._begin()

    def _begin(self) -> None:
        for _ in range(min(_AT_ONCE, len(self._due))):
            arm, request = self._due.popleft()
            call = asyncio.create_task(arm.model.complete(request.example_id, request.prompt))
            self._calls[call] = arm, request
            call.add_done_callback(self._ended)
        if self._due:
            asyncio.get_running_loop().call_soon(self._begin)

    def _next(self) -> list[tuple[ArmQueue, Request]]:
        """The requests that may start now, arm by arm in turn, their worst cost reserved."""
        starting: list[tuple[ArmQueue, Request]] = []
        self._stopped = self._error is not None or not self._owned()
        if self._stopped:
            return starting
        if self._stopping is not None:
            for arm in self._arms:
                if not self._stopping.is_needed(arm.spec):
                    arm.waiting.clear()
        ready = deque(arm for arm in self._arms if arm.waiting)
        while ready:
            arm = ready.popleft()
            if not self._has_room(arm):
                continue
            if not self._budget.reserve(arm.waiting[0]):
                self._stopped = True
                continue
            arm.in_flight += 1
            starting.append((arm, arm.waiting.popleft()))
            self._arms.remove(arm)
            self._arms.append(arm)  # the next free place is another arm's
            if arm.waiting:
                ready.append(arm)
        return starting

    def _has_room(self, arm: ArmQueue) -> bool:
        if self._stopping is not None and not self._stopping.may_ask(arm.waiting[0].example_id):
            return False
        limiter = arm.limiter.shared
        return arm.in_flight < arm.slots and limiter.in_flight > sum(
            other.in_flight for other in self._arms if other.limiter.shared is limiter
        )

    def _ended(self, call: asyncio.Task[Completion]) -> None:
        arm, request = self._calls.pop(call)
        self._wake.set()
        if call.cancelled():
            return
        error = call.exception()
        if error is None:
            self._arrived.append((arm, request, call.result(), time.time_ns() - self._ahead_ns))
        elif self._error is None:
            self._error = error

    async def _drain(self) -> None:
        """What is paid for and arrives in a moment is kept."""
        self._due.clear()
        for arm in self._arms:
            arm.limiter.close()
        if self._calls:
            await asyncio.wait(tuple(self._calls), timeout=_DRAIN_S)
        responses = [_response(request, completion, at_ns) for _, request, completion, at_ns in self._arrived]
        self._arrived = []
        if responses:
            await self._log.append(encoded(responses))

    async def _close(self) -> None:
        calls = tuple(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for arm in self._arms:
            await arm.model.close()


def _response(request: Request, completion: Completion, answered_ns: int) -> Response:
    return Response(
        key=request.key, spec=request.spec, example_id=request.example_id, completion=completion,
        answered_ns=answered_ns, repeat=request.repeat,
    )  # fmt: skip
