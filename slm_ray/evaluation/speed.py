"""What the asking side tells of an arm's pace and cost: to the board, and through the ledger to whoever watches.

Records of their own, so that evaluation actors load no board.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an arm may be asked now, by what its endpoint has said; `turned_away` counts the arm's calls with 429.

    `usd` is what the arm has cost so far; None where it has no price.
    """

    in_flight_limit: int
    rate_limit_per_s: float
    turned_away: int
    usd: float | None = None

    def plain(self) -> dict[str, Any]:
        """As the ledger keeps it; no limit of the rate is None, which JSON has and infinity it has not."""
        rate = None if math.isinf(self.rate_limit_per_s) else self.rate_limit_per_s
        return {**asdict(self), "rate_limit_per_s": rate}


def speed_of(plain: Mapping[str, Any]) -> Speed:
    """What `plain` wrote."""
    rate = plain["rate_limit_per_s"]
    return Speed(**{**plain, "rate_limit_per_s": math.inf if rate is None else rate})
