"""The line of trainings: first in, first out over any slots, whatever each asks for, and nobody holds a part of a place."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from slm_ray.errors import ResourceError
from slm_ray.training import slots as line
from slm_ray.training.slots import Bundles, SlotQueue, in_line


@dataclass(slots=True, eq=False)
class Place:
    wants: int
    held: bool = False
    broken: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Cluster:
    """Slots that go to any of those who wait, in an order of the test's choice, as Ray's do."""

    free: int
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    waiting: list[Place] = field(default_factory=list)
    most_waiting: int = 0

    def ask(self, bundles: Bundles) -> Place:
        place = Place(wants=len(bundles))
        self.waiting.append(place)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self.serve()
        return place

    async def has(self, place: Place) -> bool:
        if not place.broken:
            for _ in range(3):
                if place.held:
                    return True
                await asyncio.sleep(0)
        return False

    def give_back(self, place: Place) -> None:
        if place.held:
            place.held = False
            self.free += place.wants - place.broken
        else:
            self.waiting.remove(place)
        self.serve()

    def serve(self) -> None:
        self.draw.shuffle(self.waiting)
        for place in list(self.waiting):
            if place.wants <= self.free:
                self.free -= place.wants
                place.held = True
                self.waiting.remove(place)

    def lose_a_slot_of(self, place: Place) -> None:
        place.broken = True

    def join(self, slots: int) -> None:
        self.free += slots
        self.serve()


def slots(number: int) -> list[dict[str, float]]:
    return [{"slot": 1.0}] * number


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


@given(
    total=st.integers(1, 8),
    wants=st.lists(st.integers(1, 8), min_size=1, max_size=40),
    seed=st.integers(0, 2**16),
)
def test_whatever_they_want_they_begin_in_their_order_and_all_of_them_begin(
    total: int, wants: list[int], seed: int
) -> None:
    sizes = [min(want, total) for want in wants]

    async def all_of_them() -> None:
        draw = random.Random(seed)
        cluster = Cluster(free=total, draw=draw)
        queue = SlotQueue(cluster)
        began: list[int] = []
        busy = 0

        async def train(turn: int) -> None:
            nonlocal busy
            await queue.take(turn, slots(sizes[turn]))
            began.append(turn)
            busy += sizes[turn]
            assert busy <= total
            for _ in range(draw.randrange(20)):
                await asyncio.sleep(0)
            busy -= sizes[turn]
            await queue.give_back(turn)

        await asyncio.gather(*map(train, range(len(sizes))))
        assert began == list(range(len(sizes)))
        assert cluster.free == total and not cluster.waiting
        assert cluster.most_waiting == 1, "two of a line waited at the same time, for which there is no order"

    run(all_of_them())


def test_one_that_wants_four_is_not_overtaken_by_those_that_want_one() -> None:
    async def many_behind_one() -> None:
        cluster = Cluster(free=4)
        queue = SlotQueue(cluster)
        await queue.take(0, slots(1))
        large = asyncio.ensure_future(queue.take(1, slots(4)))
        small = [asyncio.ensure_future(queue.take(turn, slots(1))) for turn in range(2, 12)]
        await settled()
        assert not large.done() and not any(one.done() for one in small)
        assert cluster.free == 3
        await queue.give_back(0)
        await settled()
        assert large.done() and not any(one.done() for one in small)
        await queue.give_back(1)
        await settled()
        assert [one.done() for one in small] == [True] * 4 + [False] * 6
        await queue.close()
        assert cluster.free == 4 and not cluster.waiting

    run(many_behind_one())


def test_slots_that_join_are_used_at_once() -> None:
    async def two_and_two() -> None:
        cluster = Cluster(free=2)
        queue = SlotQueue(cluster)
        takes = [asyncio.ensure_future(queue.take(turn, slots(1))) for turn in range(4)]
        await settled()
        assert [one.done() for one in takes] == [True, True, False, False]
        cluster.join(2)
        await settled()
        assert all(one.done() for one in takes)

    run(two_and_two())


def test_one_that_lost_a_node_gives_all_back_and_goes_ahead_of_those_that_have_not_begun() -> None:
    async def two_of_three() -> None:
        cluster = Cluster(free=8)
        queue = SlotQueue(cluster)
        first, second = [await queue.take(turn, slots(4)) for turn in (0, 1)]
        third = asyncio.ensure_future(queue.take(2, slots(1)))
        await settled()
        cluster.lose_a_slot_of(first)
        cluster.lose_a_slot_of(second)
        again = [asyncio.ensure_future(queue.take(turn, slots(4))) for turn in (0, 1)]
        await settled()
        # Six slots are left: each keeping its three and waiting for a fourth would be for ever.
        assert again[0].done() and not again[1].done() and not third.done()
        assert await again[0] is not first
        await queue.give_back(0)
        await settled()
        assert again[1].done() and third.done()

    run(two_of_three())


def test_an_earlier_turn_that_comes_back_goes_ahead_of_the_one_that_waits_for_room() -> None:
    async def overtaken() -> None:
        cluster = Cluster(free=2)
        queue = SlotQueue(cluster)
        held = await queue.take(0, slots(2))
        later = asyncio.ensure_future(queue.take(1, slots(1)))
        await settled()
        cluster.lose_a_slot_of(held)
        cluster.free += 1  # and its node comes back
        again = asyncio.ensure_future(queue.take(0, slots(2)))
        await settled()
        assert again.done() and not later.done()

    run(overtaken())


def test_a_place_that_is_whole_is_kept_and_who_asks_twice_waits_once() -> None:
    async def twice() -> None:
        cluster = Cluster(free=1)
        queue = SlotQueue(cluster)
        place = await queue.take(0, slots(1))
        assert await queue.take(0, slots(1)) is place
        both = [asyncio.ensure_future(queue.take(1, slots(1))) for _ in range(2)]
        await settled()
        assert len(cluster.waiting) == 1
        await queue.give_back(0)
        assert (await both[0]) is (await both[1])

    run(twice())


@pytest.mark.parametrize("waits", [True, False])
def test_a_turn_that_is_over_stands_in_nobodys_way(waits: bool) -> None:
    async def over() -> None:
        cluster = Cluster(free=1)
        queue = SlotQueue(cluster)
        await queue.take(0, slots(1))
        gone = asyncio.ensure_future(queue.take(1, slots(1))) if waits else None
        last = asyncio.ensure_future(queue.take(2, slots(1)))
        await settled()
        await queue.give_back(1)
        await queue.give_back(0)
        await settled()
        assert last.done() and (gone is None or gone.cancelled())
        assert cluster.free == 0 and not cluster.waiting

    run(over())


def test_a_call_that_waited_long_enough_ends_and_its_turn_waits_on() -> None:
    async def asked_again_and_again() -> None:
        cluster = Cluster(free=0)
        queue = SlotQueue(cluster)
        for _ in range(3):  # a call that stayed would be one of the thousand that an actor answers at a time
            assert await queue.take(0, slots(1), 0.001) is None
        assert cluster.most_waiting == 1
        cluster.join(1)
        assert (await queue.take(0, slots(1), 5)).held

    run(asked_again_and_again())


def test_what_is_left_of_a_killed_training_gets_no_place_when_its_turn_is_over() -> None:
    async def over() -> None:
        cluster = Cluster(free=1)
        queue = SlotQueue(cluster)
        await queue.take(0, slots(1))
        await queue.give_back(0)
        with pytest.raises(ValueError, match=r"turn 0 .* is over"):
            await queue.take(0, slots(1))
        assert cluster.free == 1
        assert (await queue.take(1, slots(1))).held

    run(over())


def test_places_are_given_back_by_the_driver_where_the_line_died(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    places = iter(["a place"])

    class DeadAfterOne:
        """A line that dies when it has given one place."""

        def remote(self, *_: Any) -> Any:
            return next(places, RayActorError())

    def get(reference: Any, timeout: float | None = None) -> Any:
        if isinstance(reference, Exception):
            raise reference
        return reference

    queue = SimpleNamespace(take=DeadAfterOne(), close=DeadAfterOne(), give_back=DeadAfterOne())
    context = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda kind: SimpleNamespace(remote=lambda: queue))
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references[-1:], references[:-1]))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(line, "remove_placement_group", removed.append)
    with pytest.raises(ResourceError, match="the line of trainings was lost"):
        in_line([slots(1), slots(1)], lambda turn: f"training {turn.number}")
    assert removed == ["a place"]


class Waits:
    """A line whose first place never comes, and a clock that each look moves on; `short` is what the cluster lacks then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, short: list[str], *, until: int = 10**9) -> None:
        self.looks = 0
        never = SimpleNamespace(remote=lambda *_: "a place that never comes")
        queue = SimpleNamespace(take=never, close=never, give_back=never)
        monkeypatch.setattr("slm_ray.cluster.beside_driver", lambda kind: SimpleNamespace(remote=lambda: queue))
        monkeypatch.setattr("slm_ray.cluster.shortage", lambda bundles: short[min(self.looks, len(short)) - 1])
        monkeypatch.setattr(line, "time", SimpleNamespace(monotonic=lambda: self.looks * 600.0))
        monkeypatch.setattr(ray, "get", lambda *_, **__: None)
        monkeypatch.setattr(ray, "kill", lambda _: None)
        monkeypatch.setattr(ray, "wait", self.wait)
        self.until = until

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        self.looks += 1
        if self.looks > self.until:
            raise KeyboardInterrupt
        return [], references


def test_a_cluster_that_has_become_too_small_is_said_once_and_ends_the_line_after_half_an_hour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = Waits(monkeypatch, ["", "asks for 4 slot, the cluster has 2"])
    with pytest.raises(
        ResourceError, match="asks for 4 slot, the cluster has 2, and no node has joined for 30 minutes"
    ):
        in_line([slots(4)], lambda turn: None)
    assert waits.looks == 6, "said at the second look, 600 s a look"
    said = capsys.readouterr().err
    assert said.count("nodes have left; it waits 30 minutes for others to join") == 1


def test_a_cluster_that_grows_again_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    short = "asks for 4 slot, the cluster has 2"
    waits = Waits(monkeypatch, [short, short, short, "", short, short, ""], until=40)
    with pytest.raises(KeyboardInterrupt):  # the test's own end
        in_line([slots(4)], lambda turn: None)
    assert waits.looks == 41


def test_a_line_that_cannot_go_on_does_not_end_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    shortage, running = line.Shortage(), {"a training": object()}
    monkeypatch.setattr("slm_ray.cluster.shortage", lambda bundles: "asks for 4 slot, the cluster has 2")
    now = iter([0.0, 0.0, 9999.0, 9999.0])
    monkeypatch.setattr(line, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert shortage.look(slots(4))
    assert line._looked(shortage, slots(4), running) == ""  # type: ignore[arg-type]
    assert line._looked(shortage, slots(4), running) == ""  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="add nodes or ask for less"):
        line._looked(shortage, slots(4), {})
