"""Who trains next: any number of trainings over any number of slots, first in, first out.

A training that wants four slots is not overtaken by those behind it that want one: while it is first in line nobody else
is given a slot, so nobody starves, at the price of slots that stay free meanwhile. Ray's own waiting placement groups have
no order. A place is held until its training is published, so that the proof finds room too. A training that lost a node
gives its whole place back and asks again with its old turn, ahead of those that have not begun: nobody holds a part of a
place while he waits for the rest. A node that joins is used as soon as Ray knows it; where so many have left that the first
in line would wait for ever, that is said, and is an error after `PATIENCE_S`. The line is that of one driver and ends with
it; how several drivers share a cluster is Ray's to say.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group

from slm_ray import cluster
from slm_ray.errors import ResourceError

Bundles = Sequence[Mapping[str, float]]
PATIENCE_S = 1800.0  # for nodes in the place of those that have left
_LOOKS_EVERY_S = 5  # whether an earlier turn came back, and nodes have left; that there is room is heard at once
_ENDS_WITHIN_S = 10


class Reserves(Protocol):
    """How places are reserved; Ray's placement groups, or a test's."""

    def ask(self, bundles: Bundles) -> Any:
        """Begin to wait for a place of all bundles."""
        ...

    async def has(self, place: Any) -> bool:
        """Whether the place is held, all of it; may wait a moment for that."""
        ...

    def give_back(self, place: Any) -> None:
        """Hold it no more, or wait for it no more."""
        ...


class PlacementGroups:
    """Places in Ray: the workers of a group on as few nodes as hold them; they end with the driver."""

    def ask(self, bundles: Bundles) -> Any:
        """A placement group that Ray creates once there is room."""
        return placement_group([dict(bundle) for bundle in bundles], strategy="PACK")

    async def has(self, place: Any) -> bool:
        """Whether all of its bundles are on living nodes, as far as Ray knows."""
        try:
            return bool(await asyncio.to_thread(place.wait, _LOOKS_EVERY_S))
        except Exception:  # noqa: BLE001 - Ray raises a plain one for a group that somebody has removed
            return False

    def give_back(self, place: Any) -> None:
        """Remove it, with whatever still runs there."""
        remove_placement_group(place)


class Shortage:
    """Since when the cluster, idle, has been too small for a place that is waited for: nodes have left."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def look(self, bundles: Bundles) -> str:
        """What people should hear now, once for each shortage; ResourceError after `PATIENCE_S` of it."""
        short = cluster.shortage(bundles)
        if not short:
            self._since_s = None
            return ""
        if self._since_s is None:
            self._since_s = time.monotonic()
            return (
                f"the next training {short}: nodes have left; it waits {PATIENCE_S / 60:g} minutes for others to join"
            )
        if time.monotonic() - self._since_s > PATIENCE_S:
            raise ResourceError(
                f"training.workers {short}, and no node has joined for {PATIENCE_S / 60:g} minutes: add nodes or ask for less,"
                " then the same command goes on from the checkpoints"
            )
        return ""


class SlotQueue:
    """The line. One asyncio Ray actor; a turn is a number, the lowest is served first."""

    def __init__(self, reserves: Reserves | None = None) -> None:
        self._reserves = reserves or PlacementGroups()
        self._asking: dict[int, asyncio.Task[Any]] = {}
        self._waiting: set[int] = set()
        self._held: dict[int, Any] = {}
        self._over: set[int] = set()
        self._moved = asyncio.Condition()

    async def take(self, turn: int, bundles: Bundles, within_s: float | None = None) -> Any:
        """The place of this turn, once it is first in line and there is room; the same again while it is whole.

        None after `within_s`: the turn still waits, this call does not, since an actor answers only so many at a time. A
        turn that asks once more while it waits does not wait twice. ValueError for one that is over: what is left of a
        training that was killed would hold its place for ever.
        """
        if turn in self._over:
            raise ValueError(f"turn {turn} in the line of trainings is over")
        if turn not in self._asking:
            self._asking[turn] = asyncio.ensure_future(self._take(turn, bundles))
        asking = self._asking[turn]
        await asyncio.wait([asking], timeout=within_s)
        return asking.result() if asking.done() else None

    async def give_back(self, turn: int) -> None:
        """This turn is over, whether it holds a place, waits for one or never asked."""
        self._over.add(turn)
        if (asking := self._asking.get(turn)) is not None:
            asking.cancel()
            await asyncio.wait([asking])
        if turn in self._held:
            self._reserves.give_back(self._held.pop(turn))

    async def close(self) -> None:
        """All turns are over."""
        for turn in {*self._asking, *self._held}:
            await self.give_back(turn)

    async def _take(self, turn: int, bundles: Bundles) -> Any:
        try:
            if turn in self._held:
                if await self._reserves.has(self._held[turn]):
                    return self._held[turn]
                self._reserves.give_back(self._held.pop(turn))
            self._waiting.add(turn)
            await self._move()
            while not await self._reserved(turn, bundles):
                pass
            return self._held[turn]
        finally:
            self._waiting.discard(turn)
            del self._asking[turn]
            await self._move()

    async def _reserved(self, turn: int, bundles: Bundles) -> bool:
        """Wait to be first, then for room; False where an earlier turn came back meanwhile."""
        async with self._moved:
            await self._moved.wait_for(lambda: min(self._waiting) == turn)
        place = self._reserves.ask(bundles)
        try:
            while min(self._waiting) == turn:
                if await self._reserves.has(place):
                    self._held[turn] = place
                    return True
            return False
        finally:
            if self._held.get(turn) is not place:
                self._reserves.give_back(place)

    async def _move(self) -> None:
        async with self._moved:
            self._moved.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A training's turn in the line of its driver; `queue` is the handle of its `SlotQueue`."""

    queue: Any
    number: int
    bundles: tuple[Mapping[str, float], ...]

    def taken(self, within_s: float | None = None) -> Any:
        """The placement group of this turn. Blocks; None after `within_s`."""
        return ray.get(self.queue.take.remote(self.number, self.bundles, within_s))


def in_line(jobs: Sequence[Bundles], start: Callable[[Turn], Any]) -> list[Any]:
    """Start each job once there is a place for its bundles, first in, first out, and wait for all; what `start` returned.

    That is a reference: a place is held until it is ready, with a result or an error. ResourceError where the line is lost,
    and where nothing runs and the cluster has been too small for the next one for `PATIENCE_S`.
    """
    queue = cluster.beside_driver(SlotQueue).remote()
    waiting = deque(Turn(queue=queue, number=number, bundles=tuple(job)) for number, job in enumerate(jobs))
    started: list[Any] = []
    running: dict[Any, Turn] = {}
    places: list[Any] = []
    taking, shortage = None, Shortage()
    try:
        while waiting or running:
            if waiting and taking is None:
                taking = queue.take.remote(waiting[0].number, waiting[0].bundles)
            ended, _ = ray.wait([*running, *([] if taking is None else [taking])], timeout=_LOOKS_EVERY_S)
            if not ended and waiting and (said := _looked(shortage, waiting[0].bundles, running)):
                print(said, file=sys.stderr, flush=True)
            for reference in ended:
                if reference == taking:
                    places.append(ray.get(taking))
                    turn, taking = waiting.popleft(), None
                    started.append(start(turn))
                    running[started[-1]] = turn
                else:
                    queue.give_back.remote(running.pop(reference).number)
    except RayError as error:
        raise ResourceError(
            f"the line of trainings was lost ({str(error).splitlines()[0]}); the same command goes on from the checkpoints"
        ) from None
    finally:
        try:
            ray.get(queue.close.remote(), timeout=_ENDS_WITHIN_S)
        except RayError:  # a placement group lives as long as its driver, where the actor that asked for it is gone
            for place in places:
                remove_placement_group(place)
        ray.kill(queue)
    return started


def _looked(shortage: Shortage, bundles: Bundles, running: Mapping[Any, Turn]) -> str:
    """What `shortage` says; that it lasts is no error while a training runs, which may take hours and goes to its end."""
    try:
        return shortage.look(bundles)
    except ResourceError:
        if running:
            return ""
        raise
