"""A verdict kept open: a bet, request by request, against "the SLM is still as good as the verdict said".

Live requests come in for ever, and the SLM may get worse at any of them: the traffic changes, a tool is added, an adapter is
damaged. So the bets of `sequential` are made with a capital that is put in little by little: before the t-th observation a
part w_t of the starting 1 is put on the table, where each of the six bets of `sequential.bet_fractions` works with its
share, and all the parts ever put in sum to 1. What is on the table is a mixture over every start time of a bet that began
there (a mixture of e-processes, so one itself: Shin, Ramdas & Rinaldo 2024, NEJSDS 2; Robbins' mixtures), and so:

- As long as the SLM is no worse, the capital *ever* reaches 1/`level` with probability `level` at most, in a stream
  without end and however often it is looked at (Ville 1939). The error is that of all time together, not one per day.
- What a long good time loses is only what was put in until then. The rest waits: w_t = W(t-1) - W(t) with
  W(t) = log 20 / log(20 + t), so that a change after a million requests finds a fifth of the capital unspent, and the delay
  until the alarm grows with the logarithm of the time before it.

One observation costs six multiplications, whatever came before: all bets on the next request are the same for every start
time, so that they add up in six numbers. Nothing but these, two sums of the recent past (its spread and mean) and a path of
at most 200 points is kept, and `saved` holds all of it.

A route has two watches: one of the agreement with the LLM, one of expected answers where people give some (`levels`). They
look at the same requests in different order, so that neither their product nor their mean is a bet of its own; the sum of
their levels is what holds, whatever they have to do with each other.

Assumes that, were all well, each observation's mean given the past were at least that of the hypothesis; requests of one
conversation may break that, since they are worse together. It does not say what changed, and it sees no shift that leaves
the SLM within delta of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np

from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.sequential import WEIGHTS, Capital, bet_fractions

LABEL_LEVEL = 0.01  # of the 5 % by which an alarm may be false: most routes have no expected answers
STARTS = 20.0  # of W: so many observations is about how long the first fifth of the capital takes to be put in
RECENT = 200  # observations that the bets go by, in the manner of an exponential window
_POINTS = 199  # of the path, besides the last
_LARGEST_LOG = 700.0  # e to this is still a float
_HAIR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPoint:
    """After `rows` observations: the capital, and the mean difference of about the last `RECENT` of them."""

    rows: int
    capital: float
    recent: float


def levels(bound: float) -> tuple[float, float]:
    """How the 5 % are shared where the agreement's bound is wrong with probability `bound`: the agreement's watch, the labels'."""
    return ONE_SIDED - bound - LABEL_LEVEL, LABEL_LEVEL


def waiting(rows: int) -> float:
    """The part of the capital that is not put in yet after so many observations."""
    return math.log(STARTS) / math.log(STARTS + rows)


def hypothesis(delta: float, reference: float | None) -> tuple[float, float, float]:
    """The least mean difference of a good SLM, and the lowest and highest that one request can show.

    `reference` is the agreement with the LLM that was shown: then a difference is agreement - 1, in [-1, 0]. None: both were
    scored by an expected answer or by people, so that it lies in [-1, 1] and equal models have 0.
    """
    return (-delta, -1.0, 1.0) if reference is None else (reference - 1 - delta, -1.0, 0.0)


class Watch:
    """The watch over one SLM: differences go in, SLM minus LLM of one request that both were asked, and `alarm` stays.

    With a `reference` (the lower bound of the agreement on the verdict's rows) the LLM's answer stands for the expected one
    and the null is "the agreement is at least `reference` - `delta`"; the error of that bound has to be taken out of
    `level`. Without, "the SLM is not worse by more than `delta`". An alarm is false with probability `level` at most.
    """

    def __init__(self, *, level: float = ONE_SIDED, delta: float, reference: float | None = None) -> None:
        if not 0 < level < 1 or not 0 <= delta < 1 or not (reference is None or 0 <= reference <= 1):
            raise ValueError(
                "a watch needs level in (0, 1), delta in [0, 1) and a reference in [0, 1] or none, not"
                f" {level!r}, {delta!r} and {reference!r}"
            )
        self._level, self._delta = level, delta
        self._null, self._low, self._high = hypothesis(delta, reference)
        self._capital = Capital(np.array([min(self._scaled(self._null), 1 - _HAIR)]), np.array([-1.0]), 1)
        self._capital.logs[:] = -np.inf  # nothing is on the table yet
        self._rows, self._past, self._squares, self._sum = 0, 0.0, 0.0, 0.0
        self._alarm_at: int | None = None
        self._path: list[WatchPoint] = []
        self._every = 1

    @property
    def alarm(self) -> bool:
        """Whether the SLM was shown to be worse, at this observation or any before it."""
        return self._alarm_at is not None

    @property
    def alarm_at(self) -> int | None:
        """The observation, from 1, at which that was shown first."""
        return self._alarm_at

    @property
    def rows(self) -> int:
        """Observations so far."""
        return self._rows

    @property
    def threshold(self) -> float:
        """The capital that is an alarm."""
        return 1 / self._level

    @property
    def blind(self) -> bool:
        """Whether no SLM at all could be shown to be worse: the reference is not above delta."""
        return self._null <= self._low

    @property
    def capital(self) -> float:
        """What was made of a starting capital of 1."""
        table = math.exp(min(float(self._capital.now[0]), _LARGEST_LOG)) if self._rows else 0.0
        return table + waiting(self._rows)

    @property
    def path(self) -> tuple[WatchPoint, ...]:
        """The capital over time, at most 200 points, the last of them now; the point of the alarm may lie between two."""
        now = self._point()
        return tuple(self._path) if not self._rows or self._path[-1:] == [now] else (*self._path, now)

    @property
    def saved(self) -> dict[str, Any]:
        """All that was seen, as what JSON holds; `restored` goes on from it to the last bit."""
        logs = [None if log == -math.inf else float(log) for log in self._capital.logs[0]]
        return {
            "rows": self._rows, "logs": logs, "now": float(self._capital.now[0]), "past": self._past,
            "squares": self._squares, "sum": self._sum, "alarm_at": self._alarm_at, "every": self._every,
            "path": [list(astuple(point)) for point in self._path],
        }  # fmt: skip

    @classmethod
    def restored(cls, saved: Mapping[str, Any], *, level: float, delta: float, reference: float | None = None) -> Self:
        """The watch that `saved` was read of; KeyError, TypeError or ValueError for what none has saved."""
        watch = cls(level=level, delta=delta, reference=reference)
        if len(saved["logs"]) != len(WEIGHTS):
            raise ValueError(f"a watch has {len(WEIGHTS)} bets, not {len(saved['logs'])}")
        watch._capital.logs[0] = [-np.inf if log is None else float(log) for log in saved["logs"]]
        watch._capital.now[:] = float(saved["now"])
        watch._rows, watch._every = int(saved["rows"]), int(saved["every"])
        watch._past, watch._squares, watch._sum = (float(saved[name]) for name in ("past", "squares", "sum"))
        watch._alarm_at = None if saved["alarm_at"] is None else int(saved["alarm_at"])
        watch._path = [
            WatchPoint(rows=int(rows), capital=float(capital), recent=float(recent))
            for rows, capital, recent in saved["path"]
        ]
        if watch._rows < 0 or watch._every < 1 or not math.isfinite(watch.capital + watch._squares + watch._sum):
            raise ValueError("a watch has counted requests and has a finite capital")
        return watch

    def add(self, difference: float) -> None:
        """Look at one more request; ValueError, and nothing changed, for a difference that is none."""
        if not self._low - _HAIR <= difference <= self._high + _HAIR:
            raise ValueError(f"a difference is a number in [{self._low:g}, {self._high:g}], not {difference!r}")
        scaled = self._scaled(min(max(difference, self._low), self._high))
        fractions = self._fractions()
        put_in = waiting(self._rows) - waiting(self._rows + 1)
        self._capital.logs = np.logaddexp(self._capital.logs, math.log(put_in) + np.log(WEIGHTS))
        self._capital.settle(np.array([scaled]), np.ones(1), fractions)
        self._capital.look()
        self._rows += 1
        fading = 1.0 if self._past < RECENT else 1 - 1 / RECENT
        self._past = min(self._past + 1, float(RECENT))
        self._squares = self._squares * fading + scaled**2
        self._sum = self._sum * fading + difference
        if self._alarm_at is None and self.capital >= self.threshold:
            self._alarm_at = self._rows
        if self._rows % self._every == 0:
            self._path.append(self._point())
            if len(self._path) > _POINTS:
                self._path, self._every = self._path[1::2], self._every * 2

    def _fractions(self) -> np.ndarray:
        spread = (1.0 + self._squares) / (2.0 + self._past)
        return bet_fractions(np.array([spread]), np.ones(1), np.array([self._past]), self._delta)

    def _scaled(self, difference: float) -> float:
        """From what a difference can be to [-1, 1], which the bets are made for."""
        return (2 * difference - self._low - self._high) / (self._high - self._low)

    def _point(self) -> WatchPoint:
        recent = self._sum / self._past if self._past else 0.0
        return WatchPoint(rows=self._rows, capital=self.capital, recent=recent)
