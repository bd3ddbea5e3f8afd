"""How fast one endpoint is asked: as fast as it lets us, learnt from its answers and shared by all who ask it.

Slow start, then AIMD. Calls in flight start at `FIRST_IN_FLIGHT` and grow with every answer, to 32 times as many in a round
of them. HTTP 429 brings in a rate: cut to 0.8 of what was getting through, with a cool-down, then raised step by step. Only
calls that started under a limit are evidence about it. Server errors and resets never cut. A row's own Retry-After is kept
to where it is retried. Some endpoints turn calls away at random, however slowly they come: plain AIMD would slow down for
ever, which a `CutExperiment` ends.

Simulated (the tests' cases): a hidden cap of 40 calls/s is kept to at 35 to 41/s with at most 2 % rejected; an endpoint
that rejects 1, 2 or 5 % at random is asked at 90 % or more of full speed after a minute, at 5 to 40 % by AIMD alone. An
endpoint with a cap and chance at once is asked below its cap.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

FIRST_IN_FLIGHT = 3  # a wrong key or name is found out at the cost of so many calls
CUT = 0.8
_GROWTH = 32  # of the calls in flight, with a round of answers
_EVIDENCE = 20  # calls before the first cut; for fewer their own waits are enough
_COOL_DOWN_S = 1.0
_GOODPUT_S = 1.0  # how far back goodput is counted
_STEPS = 40  # seconds that additive growth takes from nothing to the best goodput of late
_FORGOTTEN_S = 30.0  # after which half of that is left
_PROBE = 1.5  # growth per second while the rate is only a guess
_SLOWEST_PER_S = 0.5
_CLEAN = 10  # calls without a 429 after which a lowered rate grows again
_HELD_S = 3.0  # the longest that it waits for them
_JUDGED = 30  # calls that are enough to judge a rate by
_LATELY = 500  # calls over which the share of rejections is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Attempts per second that one asker may start; `number` tells the limits of one endpoint apart."""

    rate_per_s: float = math.inf
    number: int = 0

    def share(self, part: float) -> Limit:
        """The same limit for an asker that has this part of the calls."""
        return Limit(rate_per_s=self.rate_per_s * part, number=self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """How many attempts the endpoint accepted and rejected (429), by the number of the limit that they started under."""

    accepted: Mapping[int, int] = field(default_factory=dict)
    rejected: Mapping[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.accepted or self.rejected)

    def __add__(self, other: Feedback) -> Feedback:
        return Feedback(
            accepted=Counter(self.accepted) + Counter(other.accepted),
            rejected=Counter(self.rejected) + Counter(other.rejected),
        )


class Rejections:
    """Calls and rejections among them, counted over about the last `most` calls."""

    def __init__(self, most: float) -> None:
        self._most = most
        self.calls = self.rejected = 0.0

    def add(self, accepted: int, rejected: int) -> None:
        """Count these; half of what was counted is forgotten when it is full."""
        self.calls, self.rejected = self.calls + accepted + rejected, self.rejected + rejected
        if self.calls > self._most:
            self.calls, self.rejected = self.calls / 2, self.rejected / 2

    @property
    def share(self) -> float:
        """The share of rejections; 0 before the first call."""
        return self.rejected / self.calls if self.calls else 0.0


class CutExperiment:
    """Tells chance rejections from a cap: below a cap there are none, and chance ones do not become fewer with the rate.

    Three cuts in a row, and the calls then made clearly below what was getting through are rejected as before: the cuts
    were in vain, and this share is the endpoint's `background`, which is no reason to go slower as long as it explains
    what is rejected.
    """

    _CUTS = 3
    _CLEARLY_BELOW = 0.9  # of the goodput before the cut
    _AS_BEFORE = 0.4  # of the share of rejections before the cuts: so many, and they have not helped
    _FEWEST = 3  # rejections that show a background
    _LONGEST = 400  # calls of one experiment
    _DEVIATIONS = 3.0

    def __init__(self) -> None:
        self.background = Rejections(2000)
        self._below = Rejections(math.inf)
        self._goodput = self._share = 0.0
        self._cuts = 0  # of the experiment under way; 0 when there is none

    def cut(self, goodput: float, share: float) -> None:
        """The rate is cut to below `goodput`, `share` of the calls of late being rejected."""
        self._share = share if not self._cuts else self._share
        self._cuts += 1
        self._goodput, self._below = goodput, Rejections(math.inf)

    def receive(self, accepted: int, rejected: int, *, rate_per_s: float) -> bool:
        """Count what was asked at this rate; True when that shows that the cuts were in vain."""
        if not self._cuts:
            if self.background.rejected:
                self.background.add(accepted, rejected)
            return False
        if rate_per_s < self._CLEARLY_BELOW * self._goodput:
            self._below.add(accepted, rejected)
        return self._judge()

    def _judge(self) -> bool:
        below = self._below
        if below.calls < min(max(_JUDGED, 3 / self._share), self._LONGEST):
            return False
        in_vain = below.rejected >= self._FEWEST and below.share > self._AS_BEFORE * self._share
        undecided = self._cuts < self._CUTS if in_vain else below.rejected > 0 and below.calls < self._LONGEST
        if not undecided:
            self.background, self._cuts = Rejections(2000), 0
            if in_vain:
                self.background.add(round(below.calls - below.rejected), round(below.rejected))
        return in_vain and not undecided

    @property
    def needs_calls(self) -> bool:
        """True when there were cuts enough: further ones would only make the answer slower to come."""
        return self._cuts >= self._CUTS

    def explains(self, calls: float, rejected: float) -> bool:
        """Whether the background accounts for so many rejections."""
        known = self.background
        if not known.rejected:
            return False
        expected = (known.rejected + math.sqrt(known.rejected)) / known.calls * calls
        return rejected <= 1 + expected + self._DEVIATIONS * math.sqrt(expected)


class AimdLimiter:
    """What one endpoint allows: `in_flight` calls at most, none beyond `limit`. Decides; a `RateLimiter` keeps to it."""

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.in_flight = FIRST_IN_FLIGHT
        self.limit = Limit()
        self._clock_s = clock_s
        self._began_s = clock_s()
        self._cut_s = self._grown_s = -math.inf
        self._accepted: deque[tuple[float, int]] = deque()  # of the last second
        self._counts = Rejections(2 * _LATELY)  # under the present limit
        self._lately = Rejections(_LATELY)  # under any
        self._best = 0.0  # goodput of late, which growth goes by
        self._is_guess = False  # the rate comes from the first calls alone
        self._experiment = CutExperiment()

    def receive(self, feedback: Feedback) -> None:
        """Learn from what one asker was answered."""
        now_s, rate = self._clock_s(), self.limit.rate_per_s
        accepted, rejected = sum(feedback.accepted.values()), sum(feedback.rejected.values())
        if not rejected or not math.isinf(rate) or self._experiment.background.rejected:
            self.in_flight += (_GROWTH - 1) * accepted  # as long as there is no rate, a 429 holds it up
        self._lately.add(accepted, rejected)
        self._accepted.append((now_s, accepted))
        while self._accepted[0][0] < now_s - _GOODPUT_S:
            self._accepted.popleft()
        here = feedback.accepted.get(self.limit.number, 0), feedback.rejected.get(self.limit.number, 0)
        self._counts.add(*here)
        if self._experiment.receive(*here, rate_per_s=rate):
            self._put(math.inf, now_s)
        elif here[1] and now_s >= self._cut_s + _COOL_DOWN_S and self._must_cut():
            self._cut(now_s)
        self._grow(now_s)

    def _must_cut(self) -> bool:
        counts = self._counts
        too_few = math.isinf(self.limit.rate_per_s) and counts.calls < _EVIDENCE
        return not (too_few or self._experiment.needs_calls or self._experiment.explains(counts.calls, counts.rejected))

    def _cut(self, now_s: float) -> None:
        seen_s = min(_GOODPUT_S, max(now_s - self._began_s, _GOODPUT_S / 2))
        goodput = sum(count for _, count in self._accepted) / seen_s
        self._experiment.cut(goodput, self._lately.share)
        self._is_guess = math.isinf(self.limit.rate_per_s)
        self._best = max(goodput, self._best * 0.5 ** ((now_s - self._cut_s) / _FORGOTTEN_S))
        self._cut_s = now_s
        self._put(CUT * min(self.limit.rate_per_s, goodput), now_s)

    def _put(self, rate_per_s: float, now_s: float) -> None:
        self.limit = Limit(rate_per_s=max(_SLOWEST_PER_S, rate_per_s), number=self.limit.number + 1)
        self._counts = Rejections(2 * _LATELY)
        self._grown_s = now_s

    def _grow(self, now_s: float) -> None:
        """Additive; before the second cut, while the rate is only a guess, faster."""
        enough = self._counts.calls >= (_JUDGED if self._counts.rejected else _CLEAN) or now_s > self._cut_s + _HELD_S
        rate, passed_s = self.limit.rate_per_s, min(1.0, now_s - self._grown_s)
        self._grown_s = now_s
        if enough and not math.isinf(rate) and not self._experiment.needs_calls:
            rate = rate * _PROBE**passed_s if self._is_guess else rate + self._best / _STEPS * passed_s
            self.limit = Limit(rate_per_s=rate, number=self.limit.number)


class RateLimiter:
    """In front of every attempt at one endpoint: `ticket = await acquire()`, then `accepted(ticket)` or `rejected(ticket)`.

    By itself it keeps to what `aimd` learns from each answer; without one, to what it is told by `keep_to`, and `feedback`
    is what it has counted for those who decide. Models that are no endpoint need none.
    """

    def __init__(self, aimd: AimdLimiter | None = None) -> None:
        self.in_flight = 0
        self.on_change: Callable[[], None] = lambda: None
        self._aimd = aimd
        self._limit = Limit()
        self._next_s = -math.inf
        self._feedback = Feedback()
        self._changed = asyncio.Event()
        self._first_in_line = asyncio.Lock()
        self._closed = False
        if aimd is not None:
            self.keep_to(aimd.limit, aimd.in_flight)

    @property
    def limit(self) -> Limit:
        """The rate that is kept to at present."""
        return self._limit

    def keep_to(self, limit: Limit, in_flight: int) -> None:
        """From now on; whoever waits for a turn waits anew."""
        if limit != self._limit:
            self._limit = limit
            self._changed.set()
            self._changed = asyncio.Event()
        if in_flight > self.in_flight:
            self.in_flight = in_flight
            self.on_change()
        self.in_flight = in_flight

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
        self._receive(Feedback(accepted={ticket: 1}))

    def rejected(self, ticket: int, retry_after_s: float | None = None) -> None:
        """The endpoint turned an attempt away (HTTP 429)."""
        self._receive(Feedback(rejected={ticket: 1}))

    def feedback(self) -> Feedback:
        """What was counted since the last time."""
        taken, self._feedback = self._feedback, Feedback()
        return taken

    def _receive(self, feedback: Feedback) -> None:
        if self._aimd is None:
            self._feedback += feedback
            return
        self._aimd.receive(feedback)
        self.keep_to(self._aimd.limit, self._aimd.in_flight)


class ArmLimiter:
    """One arm's part of an endpoint's limiter, which counts the arm's own rejections."""

    def __init__(self, shared: RateLimiter) -> None:
        self.shared = shared
        self.rejections = 0

    async def acquire(self) -> int:
        """As the endpoint's."""
        return await self.shared.acquire()

    def accepted(self, ticket: int) -> None:
        """As the endpoint's."""
        self.shared.accepted(ticket)

    def rejected(self, ticket: int, retry_after_s: float | None = None) -> None:
        """As the endpoint's."""
        self.rejections += 1
        self.shared.rejected(ticket, retry_after_s)

    def close(self) -> None:
        """As the endpoint's."""
        self.shared.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleStatus:
    """How fast an arm may be asked now, by what its endpoint has said; `rejections` counts the arm's calls with 429.

    `rate_limit_per_s` is None where there is none; `usd` is what the arm has cost so far, None where it has no price.
    """

    in_flight_limit: int
    rate_limit_per_s: float | None
    rejections: int
    usd: float | None = None
