"""The pace of an endpoint, against simulated endpoints on a clock of their own; the gate on the real clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from slm_ray.providers.floor import Floor
from slm_ray.providers.pace import FIRST_IN_FLIGHT, Gate, Limit, News, Pace

Server = Callable[[float], bool]


def bucket(rate_per_s: float, burst: float) -> Server:
    """A token bucket: what most endpoints limit by."""
    tokens, last_s = burst, 0.0

    def takes(now_s: float) -> bool:
        nonlocal tokens, last_s
        tokens, last_s = min(burst, tokens + (now_s - last_s) * rate_per_s), now_s
        taken = tokens >= 1
        tokens -= taken
        return taken

    return takes


def dice(share: float, seed: int) -> Server:
    """Turns calls away at random, whatever the rate."""
    chance = random.Random(seed)
    return lambda _: chance.random() >= share


@dataclass(frozen=True)
class Outcome:
    took_s: float
    passed_at_s: list[float]
    limited_at_s: list[float]

    def rate(self, since_s: float) -> float:
        return sum(at >= since_s for at in self.passed_at_s) / (self.took_s - since_s)

    def share(self, since_s: float) -> float:
        limited = sum(at >= since_s for at in self.limited_at_s)
        return limited / (limited + sum(at >= since_s for at in self.passed_at_s))


def simulate(
    rows: int, server: Server, *, in_flight: int = 64, latency_s: float = 0.05, again_s: float = 1.0, seed: int = 1
) -> Outcome:
    now_s, order, jitter = 0.0, itertools.count(), random.Random(seed)
    pace = Pace(clock_s=lambda: now_s)
    events: list[tuple[float, int, str, int]] = []
    passed, limited = [], []
    waiting, out, at_gate, next_s, looks_s = rows, 0, 0, -math.inf, -math.inf

    def later(delay_s: float, what: str, number: int = 0) -> None:
        heapq.heappush(events, (now_s + delay_s, next(order), what, number))

    later(0, "gate")
    while len(passed) < rows:
        handed = max(0, min(waiting, min(in_flight, pace.in_flight) - out))
        waiting, out, at_gate = waiting - handed, out + handed, at_gate + handed
        while at_gate:
            spacing_s = 1 / pace.limit.rate_per_s
            next_s = min(next_s, now_s + spacing_s)
            if next_s > now_s + 1e-9:
                if looks_s <= now_s or looks_s > next_s + 1e-9:
                    looks_s = next_s
                    later(next_s - now_s, "gate")
                break
            next_s, at_gate = max(next_s + spacing_s, now_s), at_gate - 1
            later(latency_s * jitter.uniform(0.4, 0.6), "arrive", pace.limit.number)
        now_s, _, what, number = heapq.heappop(events)
        if what == "arrive":
            later(latency_s / 2, "passed" if server(now_s) else "limited", number)
        elif what == "passed":
            passed.append(now_s)
            out -= 1
            pace.hear(News(passed={number: 1}))
        elif what == "limited":
            limited.append(now_s)
            pace.hear(News(limited={number: 1}))
            later(again_s * jitter.uniform(1, 1.1), "again")
        elif what == "again":
            at_gate += 1
    return Outcome(now_s, passed, limited)


@pytest.mark.parametrize(
    ("burst", "latency_s"), [(2, 0.01), (10, 0.01), (40, 0.01), (2, 0.05), (10, 0.05), (40, 0.05), (10, 0.5), (40, 0.5)]
)
def test_a_hidden_cap_is_found_and_kept_to(burst: float, latency_s: float) -> None:
    found = simulate(1500, bucket(40, burst), latency_s=latency_s)
    assert 0.8 * 40 <= found.rate(since_s=12) <= 1.1 * 40
    assert found.share(since_s=12) <= 0.02
    assert found.share(since_s=0) <= 0.07


@pytest.mark.parametrize("seed", range(5))
def test_an_endpoint_that_does_not_count_our_calls_is_not_slowed_for_long(seed: int) -> None:
    """Each 429 costs its row a second; at 64 rows in flight that alone allows about 130 rows a second."""
    found = simulate(1000, dice(0.3, seed))
    assert found.took_s < 40


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.1, 0.15, 0.2, 0.3])
def test_many_turned_away_at_random_do_not_hold_up_a_run_for_minutes(share: float, seed: int) -> None:
    """What the waits of a second alone take is 7 to 14 s."""
    assert simulate(1000, dice(share, seed), latency_s=0.1).took_s < 60


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
@pytest.mark.parametrize(("in_flight", "latency_s"), [(64, 0.05), (64, 0.5), (16, 0.05)])
def test_a_few_percent_turned_away_at_random_slow_nothing_down_after_a_minute(
    share: float, in_flight: int, latency_s: float
) -> None:
    """A row takes its latency, and a second and that again for every time it is turned away."""
    unthrottled = in_flight / (latency_s + share / (1 - share) * (latency_s + 1.05))
    for seed in range(2):
        found = simulate(int(unthrottled * 75), dice(share, seed), in_flight=in_flight, latency_s=latency_s)
        assert found.took_s > 70
        assert found.rate(since_s=60) >= 0.9 * unthrottled


@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize(("burst", "latency_s"), [(10, 0.01), (40, 0.05), (40, 0.5), (100, 0.05)])
def test_a_hidden_cap_is_not_taken_for_chance(burst: float, latency_s: float, seed: int) -> None:
    found = simulate(2500, bucket(40, burst), latency_s=latency_s, seed=seed)
    assert 0.8 * 40 <= found.rate(since_s=15) <= 1.1 * 40
    assert found.share(since_s=15) <= 0.02


def test_a_cap_that_comes_down_or_takes_the_place_of_chance_is_found() -> None:
    high, low, random_ones = bucket(100, 10), bucket(40, 10), dice(0.02, 1)
    came_down = simulate(4000, lambda now_s: high(now_s) if now_s < 20 else low(now_s))
    assert 0.8 * 40 <= came_down.rate(since_s=23) <= 1.1 * 40
    assert came_down.share(since_s=23) <= 0.02
    late = bucket(40, 10)
    after_chance = simulate(16_000, lambda now_s: random_ones(now_s) if now_s < 12 else late(now_s))
    assert after_chance.share(since_s=14) <= 0.15
    assert 0.8 * 40 <= after_chance.rate(since_s=45) <= 1.1 * 40
    assert after_chance.share(since_s=45) <= 0.02


def test_a_floor_is_few_calls_far_below_and_what_is_more_than_it_is_not_explained() -> None:
    floor = Floor()
    floor.hear(97, 3, below=False)
    assert not floor.known()  # calls near the limit say nothing
    floor.hear(97, 3, below=True)
    assert floor.known()
    floor.new_limit()
    floor.hear(28, 2, below=False)
    assert floor.explains()
    floor.hear(10, 20, below=False)
    assert not floor.explains()
    floor.forget()
    assert not floor.known()
    many = Floor()
    many.hear(70, 30, below=True)
    assert not many.known()  # a limit that has come down
    assert not many.explains()


def test_nobody_gets_a_turn_behind_a_gate_that_is_shut_in_mid_wait() -> None:
    async def run() -> list[bool]:
        gate = Gate()
        gate.keep_to(Limit(rate_per_s=20, number=1))
        calls = [asyncio.create_task(gate.acquire()) for _ in range(8)]
        await asyncio.sleep(0.12)
        gate.close()
        had = [call.done() for call in calls]
        await asyncio.sleep(0.3)
        assert [call.done() for call in calls] == had
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return had

    had = asyncio.run(run())
    assert 1 <= sum(had) < 8


def test_an_endpoint_that_takes_everything_is_asked_by_all_after_two_rounds() -> None:
    found = simulate(2000, lambda _: True)
    assert found.took_s < 1.1 * 2000 * 0.05 / 64


def test_few_calls_go_out_before_the_first_answer() -> None:
    assert Pace().in_flight == FIRST_IN_FLIGHT == 3
    pace = Pace()
    pace.hear(News())
    assert pace.in_flight == 3
    pace.hear(News(passed={0: 1}))
    assert pace.in_flight == 34
    pace.hear(News(passed={0: 2}))
    assert pace.in_flight == 96
    pace.hear(News(passed={0: 2}, limited={0: 1}))
    assert pace.in_flight == 96


def test_calls_from_before_a_cut_say_nothing_about_it() -> None:
    now_s = 0.0
    pace = Pace(clock_s=lambda: now_s)
    now_s = 1.0
    pace.hear(News(passed={0: 90}))
    pace.hear(News(limited={0: 10}))
    assert pace.limit == Limit(rate_per_s=72.0, number=1)
    now_s = 3.0
    pace.hear(News(limited={0: 50}))
    assert pace.limit.number == 1
    pace.hear(News(passed={1: 40}, limited={1: 4}))
    assert pace.limit.number == 2


def test_what_is_no_429_never_cuts() -> None:
    pace = Pace()
    for _ in range(100):
        pace.hear(News())  # server errors and resets are no news for the pace
        pace.hear(News(passed={0: 1}))
    assert pace.limit == Limit()


def test_a_gate_keeps_to_its_limit_and_to_a_new_one_at_once() -> None:
    async def turns(gate: Gate, count: int) -> tuple[list[int], float]:
        started_s = time.monotonic()
        numbers = await asyncio.gather(*(gate.acquire() for _ in range(count)))
        return numbers, time.monotonic() - started_s

    async def run() -> None:
        gate = Gate()
        numbers, took_s = await turns(gate, 1000)
        assert (set(numbers), took_s < 0.5) == ({0}, True)
        gate.keep_to(Limit(rate_per_s=50, number=1))
        numbers, took_s = await turns(gate, 26)
        assert set(numbers) == {1}
        assert 0.45 <= took_s < 1.0
        gate.keep_to(Limit(rate_per_s=0.01, number=2))
        slow = asyncio.create_task(turns(gate, 3))
        await asyncio.sleep(0.1)
        assert not slow.done()
        gate.keep_to(Limit(rate_per_s=1000, number=3))
        numbers, took_s = await asyncio.wait_for(slow, 1.0)
        assert numbers[1:] == [3, 3]

    asyncio.run(run())


def test_a_gate_reports_what_it_counted_once() -> None:
    heard = []
    gate = Gate()
    gate.on_limited = lambda: heard.append(1)
    gate.accepted(0)
    gate.rejected(0, None)
    gate.rejected(1, None)
    assert gate.news() == News(passed={0: 1}, limited={0: 1, 1: 1})
    assert gate.news() == News()
    assert len(heard) == 2
