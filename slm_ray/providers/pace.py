"""How fast one endpoint is asked: as fast as it lets us, learnt from its answers and shared by everybody who asks it.

A `Pace` decides, in one place for all askers; a `Gate` stands in front of every attempt of one asker, keeps to the `Limit`
it was last given and counts what the endpoint said (`News`). Calls in flight start few and grow with every answer, to 32
times as many in a round of them. HTTP 429 brings in a rate: cut to 0.8 of what was getting through, with a cool-down, then
raised step by step (AIMD). Only calls that started under a limit are evidence about it. A cut after which as many calls are turned away as
before is taken back, and no further one is made for a while: such an endpoint does not count our calls. A few percent that
are turned away at rates far below what was getting through (`Floor`) are chance, and the rate is freed. Server errors and
resets never cut.

Simulated (the tests' cases): a hidden cap of 40 calls/s is kept to at 35 to 41/s, 0.3 to 0.9 % turned away; an endpoint that
turns away 1, 2 or 5 % at random is asked at 96 % or more of full speed after a minute. The price: where chance gives way to a
cap in mid-run, about 10 % are turned away for half a minute before the cap is believed. An endpoint with a cap and chance at
once is asked at half the cap and above, and turns away more than chance alone would; so may one that lets bursts of several
seconds' worth of its cap through.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from slm_ray.providers.floor import JUDGED, Floor, Trial

FIRST_IN_FLIGHT = 3  # a wrong key or name is found out at the cost of so many calls
CUT = 0.8
_GROWTH = 32  # of the calls in flight, with a round of answers
_EVIDENCE = 20  # calls under one limit before the first cut; for fewer their own waits are enough
_COOL_DOWN_S = 1.0
_STEPS = 40  # seconds that additive growth takes from nothing to the best goodput of late
_FORGOTTEN_S = 30.0  # after which half of that is left
_PROBE = 1.5  # growth per second while the rate is only a guess
_SLOWEST_PER_S = 0.5
_SEEN_S = 1.0  # how far back goodput is counted
_CLEAN = 10  # calls without a 429 after which a lowered rate grows again
_HELD_S = 3.0  # the longest that it waits for them
_HELPED = 0.3  # of the share of 429 before the cuts: so few, and they have helped
_KEPT_S = 5.0  # how far back a goodput is counted that no burst makes
_FAR = 0.7  # of that: calls at such a rate no limit should turn away
_FREE_AGAIN_S = 60.0  # between two times that the rate is freed for a floor; doubles every time
_HUSH_S = 20.0  # without cuts, after some that were taken back; doubles every time


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Attempts per second that one asker may start; `number` tells the limits of one `Pace` apart."""

    rate_per_s: float = math.inf
    number: int = 0

    def share(self, part: float) -> Limit:
        """The same limit for an asker that has this part of the calls."""
        return Limit(rate_per_s=self.rate_per_s * part, number=self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """How many attempts the endpoint took and turned away (429), by the number of the limit that they started under."""

    passed: Mapping[int, int] = field(default_factory=dict)
    limited: Mapping[int, int] = field(default_factory=dict)


class Gate:
    """In front of every attempt of one asker: `ticket = await acquire()`, then `accepted(ticket)` or `rejected(ticket, …)`."""

    def __init__(self) -> None:
        self._limit = Limit()
        self._next_s = -math.inf
        self._passed: Counter[int] = Counter()
        self._limited: Counter[int] = Counter()
        self._changed = asyncio.Event()
        self._first_in_line = asyncio.Lock()
        self._closed = False
        self.on_limited: Callable[[], None] | None = None

    def keep_to(self, limit: Limit) -> None:
        """From now on; whoever waits for a turn waits anew."""
        if limit != self._limit:
            self._limit = limit
            self._changed.set()
            self._changed = asyncio.Event()

    def close(self) -> None:
        """No attempt starts any more: the endpoint has refused one in a way that it would refuse them all.

        Whoever waits for a turn waits until it is cancelled, which the error of that one attempt brings about.
        """
        self._closed = True

    async def acquire(self) -> int:
        """Wait until an attempt may start; the number of the limit it starts under."""
        async with self._first_in_line:
            while (wait_s := self._wait_s()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)
            if self._closed:
                await asyncio.Event().wait()
            return self._limit.number

    def _wait_s(self) -> float:
        """0 when a turn is taken."""
        now_s, spacing_s = time.monotonic(), 1 / self._limit.rate_per_s
        self._next_s = min(self._next_s, now_s + spacing_s)  # what a slower limit had put off
        if self._next_s > now_s:
            return self._next_s - now_s
        self._next_s = max(self._next_s + spacing_s, now_s)
        return 0.0

    def accepted(self, ticket: int) -> None:
        """The endpoint took an attempt, whatever it answered."""
        self._passed[ticket] += 1

    def rejected(self, ticket: int, retry_after_s: float | None = None) -> None:
        """The endpoint turned an attempt away."""
        self._limited[ticket] += 1
        if self.on_limited:
            self.on_limited()

    def news(self) -> News:
        """What was counted since the last time."""
        news = News(passed=dict(self._passed), limited=dict(self._limited))
        self._passed.clear()
        self._limited.clear()
        return news


class Pace:
    """The pace of one endpoint: `in_flight` calls at most, none beyond `limit`."""

    def __init__(self, *, in_flight: int = FIRST_IN_FLIGHT, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self.in_flight = in_flight
        self.limit = Limit()
        self._passes: deque[tuple[float, int]] = deque()
        self._began_s = clock_s()
        self._counts = [0, 0]  # passed and limited under the present limit
        self._cut_s = self._grown_s = self._hush_until_s = -math.inf
        self._hush_s = _HUSH_S
        self._trial: Trial | None = None
        self._best = 0.0  # goodput of late, which growth goes by
        self._guess = False  # the rate comes from the first calls alone
        self._floor = Floor()
        self._kept, self._kept_from_s = 0.0, -math.inf  # the best goodput of late that was kept up
        self._freed_s, self._free_after_s = -math.inf, _FREE_AGAIN_S / 2

    def hear(self, news: News) -> None:
        """Learn from what one asker was told."""
        now_s = self._clock_s()
        passed = sum(news.passed.values())
        self._grow_in_flight(passed, limited=bool(news.limited))
        if passed:
            self._passes.append((now_s, passed))
        while self._passes and self._passes[0][0] < now_s - _KEPT_S:
            self._passes.popleft()
        counts = news.passed.get(self.limit.number, 0), news.limited.get(self.limit.number, 0)
        self._counts = [self._counts[0] + counts[0], self._counts[1] + counts[1]]
        self._floor.hear(*counts, below=self._is_below())
        if self._trial is not None:
            self._trial.hear(*counts, rate_per_s=self.limit.rate_per_s)
            if sum(self._counts) >= JUDGED and self._share() < _HELPED * self._trial.share_before:
                self._trial = None
        if counts[1] and sum(self._counts) >= self._enough():
            self._turned_away(now_s)
        self._grow(now_s)

    def _share(self) -> float:
        return self._counts[1] / sum(self._counts)

    def _enough(self) -> int:
        return _EVIDENCE if math.isinf(self.limit.rate_per_s) else 1

    def _grow_in_flight(self, passed: int, *, limited: bool) -> None:
        """With every answer; as long as there is no rate, a 429 holds it up."""
        held_up = (
            limited
            and math.isinf(self.limit.rate_per_s)
            and self._trial is None
            and self._hush_s == _HUSH_S
            and not self._floor.known()
        )
        if not held_up:
            self.in_flight += (_GROWTH - 1) * passed

    def _is_below(self) -> bool:
        return not self._guess and self.limit.rate_per_s < _FAR * self._kept

    def _is_chance(self, now_s: float) -> bool:
        """Whether calls are turned away that no lower rate would save; frees the rate when that is known."""
        known, below = self._floor.known(), self._is_below()
        if not self._floor.explains():
            if below or math.isinf(self.limit.rate_per_s):
                self._floor.forget()
            self._kept, self._kept_from_s = 0.0, now_s  # if there is a limit, it has come down
            return False
        if known and not math.isinf(self.limit.rate_per_s) and now_s >= self._freed_s + self._free_after_s:
            self._freed_s, self._free_after_s, self._trial = now_s, 2 * self._free_after_s, None
            self._put(math.inf, now_s)
        return known or below

    def _turned_away(self, now_s: float) -> None:
        if self._is_chance(now_s) or now_s < max(self._cut_s + _COOL_DOWN_S, self._hush_until_s):
            return
        if self._trial is not None and self._trial.undecided():
            return
        if self._trial is not None and self._trial.in_vain():
            self._put(self._trial.rate_before, now_s)
            self._hush_until_s = now_s + self._hush_s
            self._hush_s *= 2
            self._trial = None
            return
        seen_s = min(_SEEN_S, max(now_s - self._began_s, _SEEN_S / 2))
        goodput = sum(count for at_s, count in self._passes if at_s >= now_s - _SEEN_S) / seen_s
        kept = sum(count for at_s, count in self._passes if at_s >= self._kept_from_s) / _KEPT_S
        if self._trial is None:
            self._trial = Trial(rate_before=self.limit.rate_per_s, share_before=self._share(), goodput=goodput)
        self._trial.cuts += 1
        self._guess = math.isinf(self.limit.rate_per_s)
        left = 0.5 ** ((now_s - self._cut_s) / _FORGOTTEN_S)
        self._best, self._kept = max(goodput, self._best * left), max(kept, self._kept * left)
        self._cut_s = now_s
        self._put(CUT * min(self.limit.rate_per_s, goodput), now_s)

    def _put(self, rate_per_s: float, now_s: float) -> None:
        self.limit = Limit(rate_per_s=max(_SLOWEST_PER_S, rate_per_s), number=self.limit.number + 1)
        self._counts = [0, 0]
        self._floor.new_limit()
        self._grown_s = now_s

    def _grow(self, now_s: float) -> None:
        """Additive; before the second cut, while the rate is only a guess, faster."""
        heard_enough = sum(self._counts) >= (JUDGED if self._counts[1] else _CLEAN) or now_s > self._cut_s + _HELD_S
        rate, passed_s = self.limit.rate_per_s, min(1.0, now_s - self._grown_s)
        self._grown_s = now_s
        if heard_enough and not math.isinf(rate):
            rate = rate * _PROBE**passed_s if self._guess else rate + self._best / _STEPS * passed_s
            self.limit = Limit(rate_per_s=rate, number=self.limit.number)
