"""What limits the rate: AIMD against simulated endpoints on a clock of their own, the limiter itself on the real clock."""

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

from slm_ray.evaluation.limiter import (
    FIRST_IN_FLIGHT,
    AimdLimiter,
    ArmLimiter,
    CutExperiment,
    Feedback,
    Limit,
    RateLimiter,
)
from slm_ray.evaluation.shards import LimiterHub

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
    limiter = AimdLimiter(clock_s=lambda: now_s)
    events: list[tuple[float, int, str, int]] = []
    passed: list[float] = []
    limited: list[float] = []
    waiting, out, queued, next_s, looks_s = rows, 0, 0, -math.inf, -math.inf

    def later(delay_s: float, what: str, number: int = 0) -> None:
        heapq.heappush(events, (now_s + delay_s, next(order), what, number))

    later(0, "start")
    while len(passed) < rows:
        handed = max(0, min(waiting, min(in_flight, limiter.in_flight) - out))
        waiting, out, queued = waiting - handed, out + handed, queued + handed
        while queued:
            spacing_s = 1 / limiter.limit.rate_per_s
            next_s = min(next_s, now_s + spacing_s)
            if next_s > now_s + 1e-9:
                if looks_s <= now_s or looks_s > next_s + 1e-9:
                    looks_s = next_s
                    later(next_s - now_s, "start")
                break
            next_s, queued = max(next_s + spacing_s, now_s), queued - 1
            later(latency_s * jitter.uniform(0.4, 0.6), "arrive", limiter.limit.number)
        now_s, _, what, number = heapq.heappop(events)
        if what == "arrive":
            later(latency_s / 2, "accepted" if server(now_s) else "rejected", number)
        elif what == "accepted":
            passed.append(now_s)
            out -= 1
            limiter.receive(Feedback(accepted={number: 1}))
        elif what == "rejected":
            limited.append(now_s)
            limiter.receive(Feedback(rejected={number: 1}))
            later(again_s * jitter.uniform(1, 1.1), "again")
        elif what == "again":
            queued += 1
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


def experiment(*parts: tuple[int, int, float]) -> tuple[CutExperiment, bool]:
    """Three cuts at a goodput of 100/s and 5 % rejected; then parts of (accepted, rejected, rate); the last verdict."""
    cuts, in_vain = CutExperiment(), False
    for _ in range(3):
        cuts.cut(100.0, 0.05)
    for accepted, rejected, rate_per_s in parts:
        in_vain = cuts.receive(accepted, rejected, rate_per_s=rate_per_s)
    return cuts, in_vain


def test_cuts_are_in_vain_when_as_many_are_rejected_clearly_below_what_got_through() -> None:
    cuts, in_vain = experiment((95, 5, 50.0))
    assert in_vain
    assert (cuts.needs_calls, cuts.background.share) == (False, 0.05)
    assert cuts.explains(40, 5)
    assert not cuts.explains(40, 12), "a cap rejects more than chance did"


def test_cuts_have_helped_when_none_is_rejected_there_and_calls_near_the_cap_say_nothing() -> None:
    cuts, in_vain = experiment((900, 100, 95.0))
    assert (in_vain, cuts.needs_calls) == (False, True)
    cuts, in_vain = experiment((900, 100, 95.0), (100, 0, 80.0))
    assert (in_vain, cuts.needs_calls) == (False, False)
    assert not cuts.explains(100, 1)


def test_an_experiment_waits_for_calls_enough() -> None:
    for few in ((9, 1, 50.0), (98, 2, 50.0)):
        cuts, in_vain = experiment(few)
        assert (in_vain, cuts.needs_calls) == (False, True)


def test_plain_aimd_slows_down_for_ever_where_an_experiment_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, unthrottled = 9_000, 64 / (0.05 + 0.02 / 0.98 * 1.1)
    with_experiments = simulate(rows, dice(0.02, 1))
    monkeypatch.setattr(CutExperiment, "cut", lambda *_: None)
    plain = simulate(rows, dice(0.02, 1))
    assert with_experiments.took_s < 1.8 * rows / unthrottled
    assert plain.took_s > 3 * with_experiments.took_s


def test_nobody_gets_a_turn_behind_a_limiter_that_is_closed_in_mid_wait() -> None:
    async def run() -> list[bool]:
        limiter = RateLimiter()
        limiter.keep_to(Limit(rate_per_s=20, number=1), 8)
        calls = [asyncio.create_task(limiter.acquire()) for _ in range(8)]
        await asyncio.sleep(0.12)
        limiter.close()
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
    assert AimdLimiter().in_flight == FIRST_IN_FLIGHT == 3
    limiter = AimdLimiter()
    limiter.receive(Feedback())
    assert limiter.in_flight == 3
    limiter.receive(Feedback(accepted={0: 1}))
    assert limiter.in_flight == 34
    limiter.receive(Feedback(accepted={0: 2}))
    assert limiter.in_flight == 96
    limiter.receive(Feedback(accepted={0: 2}, rejected={0: 1}))
    assert limiter.in_flight == 96


def test_calls_from_before_a_cut_say_nothing_about_it() -> None:
    now_s = 0.0
    limiter = AimdLimiter(clock_s=lambda: now_s)
    now_s = 1.0
    limiter.receive(Feedback(accepted={0: 90}))
    limiter.receive(Feedback(rejected={0: 10}))
    assert limiter.limit == Limit(rate_per_s=72.0, number=1)
    now_s = 3.0
    limiter.receive(Feedback(rejected={0: 50}))
    assert limiter.limit.number == 1
    limiter.receive(Feedback(accepted={1: 40}, rejected={1: 4}))
    assert limiter.limit.number == 2


def test_what_is_no_429_never_cuts() -> None:
    limiter = AimdLimiter()
    for _ in range(100):
        limiter.receive(Feedback())  # server errors and resets are no feedback
        limiter.receive(Feedback(accepted={0: 1}))
    assert limiter.limit == Limit()


def test_a_limiter_keeps_to_its_limit_and_to_a_new_one_at_once() -> None:
    async def turns(limiter: RateLimiter, count: int) -> tuple[list[int], float]:
        started_s = time.monotonic()
        numbers = await asyncio.gather(*(limiter.acquire() for _ in range(count)))
        return numbers, time.monotonic() - started_s

    async def run() -> None:
        limiter = RateLimiter()
        numbers, _ = await turns(limiter, 1000)
        assert set(numbers) == {0}
        limiter.keep_to(Limit(rate_per_s=50, number=1), 64)
        numbers, took_s = await turns(limiter, 26)
        assert set(numbers) == {1}
        assert took_s >= 0.45
        limiter.keep_to(Limit(rate_per_s=0.01, number=2), 64)
        slow = asyncio.create_task(turns(limiter, 3))
        await asyncio.sleep(0.1)
        assert not slow.done()
        limiter.keep_to(Limit(rate_per_s=1000, number=3), 64)
        numbers, _ = await asyncio.wait_for(slow, 5.0)
        assert numbers[1:] == [3, 3]

    asyncio.run(run())


def test_a_limiter_without_aimd_counts_for_those_who_decide_and_gives_its_counts_once() -> None:
    limiter = RateLimiter()
    mine, other = ArmLimiter(limiter), ArmLimiter(limiter)
    mine.accepted(0)
    mine.rejected(0)
    other.rejected(1)
    assert limiter.feedback() == Feedback(accepted={0: 1}, rejected={0: 1, 1: 1})
    assert not limiter.feedback()
    assert (mine.rejections, other.rejections) == (1, 1)
    assert limiter.in_flight == 0


def test_a_limiter_with_aimd_learns_by_itself_and_says_when_more_may_be_in_flight() -> None:
    limiter = RateLimiter(AimdLimiter())
    grown: list[int] = []
    limiter.on_change = lambda: grown.append(limiter.in_flight)
    assert limiter.in_flight == FIRST_IN_FLIGHT
    limiter.accepted(0)
    assert grown == [FIRST_IN_FLIGHT + 31]


def test_shards_share_what_an_endpoint_allows() -> None:
    hub = LimiterHub({"a": (6, 5, 5)})
    assert sum(hub.exchange(shard, {})["a"][1] for shard in range(3)) == FIRST_IN_FLIGHT
    hub.exchange(0, {"a": Feedback(accepted={0: 1})})
    assert [hub.exchange(shard, {})["a"][1] for shard in range(3)] == [12, 11, 11]
    hub.leave(2)
    assert [hub.exchange(shard, {})["a"][1] for shard in range(3)] == [18, 16, 0]
    for _ in range(40):
        hub.exchange(1, {"a": Feedback(rejected={0: 1})})
    limits = [hub.exchange(shard, {})["a"][0] for shard in range(2)]
    assert {limit.number for limit in limits} == {1}
    assert limits[0].rate_per_s / limits[1].rate_per_s == pytest.approx(6 / 5)
