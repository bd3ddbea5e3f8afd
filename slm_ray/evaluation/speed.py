"""What the asking side tells the board of an arm's pace; a record of its own, so that evaluation actors load no board."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an arm may be asked now, by what its endpoint has said; `turned_away` counts the arm's calls with 429."""

    in_flight_limit: int
    rate_limit_per_s: float
    turned_away: int
