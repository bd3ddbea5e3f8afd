"""Calls turned away at random, told from those that a limit of rate turns away: they do not become fewer with the rate.

Two looks at it. A `Trial` watches cuts of the rate: as many turned away as before, and the cuts were in vain, which shows
where many are turned away. A `Floor` is for few.

Calls made clearly below what has got through for seconds on end have nothing to fear from a limit. If a small but steady
share of them is turned away all the same, that share is a floor: it is no reason to go slower, and only more
than it is. A large share down there is a limit that has come down, and no floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_KNOWN = 3  # calls turned away below before there is a floor
_LEAST, _MOST = 0.005, 0.1  # shares that make one
_SUPPOSED = 0.05  # what a floor may be before it is known
_WINDOWS = ((100, 4.0), (1000, 3.0))  # the last calls under a limit, and how many deviations of them are chance
_REMEMBERED = 1000
JUDGED = 30  # calls under a rate that are enough to judge it by
_BELOW = 0.9  # of what was getting through
_CUTS = 3  # in a row, before they may be found in vain
_IN_VAIN = 0.4  # of the share of 429 before the cuts: so many, and they have not helped


class Floor:
    """Counts the calls under the present limit (`recent`) and those that were made below."""

    def __init__(self) -> None:
        self._recent = [(0.0, 0.0) for _ in _WINDOWS]
        self._below = (0.0, 0.0)

    def hear(self, passed: int, limited: int, *, below: bool) -> None:
        """Count calls of the present limit."""
        self._recent = [
            _added(seen, passed, limited, most) for seen, (most, _) in zip(self._recent, _WINDOWS, strict=True)
        ]
        if below:
            self._below = _added(self._below, passed, limited, _REMEMBERED)

    def new_limit(self) -> None:
        """What was recent was under another limit."""
        self._recent = [(0.0, 0.0) for _ in _WINDOWS]

    def forget(self) -> None:
        """What was turned away below was so by a limit after all."""
        self._below = (0.0, 0.0)

    def known(self) -> bool:
        """True when some are turned away however slowly they come."""
        calls, limited = self._below
        return limited >= _KNOWN and _LEAST * calls <= limited <= _MOST * calls

    def explains(self) -> bool:
        """True when the floor accounts for what is turned away at present; before it is known, what it may be at most."""
        share = _SUPPOSED
        if self.known():
            calls, limited = self._below
            share = min(_MOST, (limited + 2 * math.sqrt(limited)) / calls)
        return all(
            limited <= 1 + share * calls + deviations * math.sqrt(share * calls)
            for (calls, limited), (_, deviations) in zip(self._recent, _WINDOWS, strict=True)
        )


@dataclass(slots=True, kw_only=True)
class Trial:
    """One or more cuts that have not shown yet whether they help; counts calls at a rate clearly below the one before."""

    rate_before: float
    share_before: float
    goodput: float
    cuts: int = 0
    passed: int = 0
    limited: int = 0

    def hear(self, passed: int, limited: int, *, rate_per_s: float) -> None:
        """Count what was asked at this rate."""
        if rate_per_s < _BELOW * self.goodput:
            self.passed += passed
            self.limited += limited

    def undecided(self) -> bool:
        """True when there were cuts enough and calls too few: further cuts would only make the answer slower to come."""
        return self.cuts >= _CUTS and self.passed + self.limited < JUDGED

    def in_vain(self) -> bool:
        """True when about as many calls are turned away as before."""
        calls = self.passed + self.limited
        enough = self.cuts >= _CUTS and calls >= JUDGED and self.limited >= JUDGED / 10
        return enough and self.limited / calls > _IN_VAIN * self.share_before


def _added(seen: tuple[float, float], passed: int, limited: int, most: int) -> tuple[float, float]:
    """Half of what was seen is forgotten when it is full."""
    calls, turned_away = seen[0] + passed + limited, seen[1] + limited
    return (calls / 2, turned_away / 2) if calls >= most else (calls, turned_away)
