"""One route as one offline page: who answered over time, the watch against its alarm, every change, what the sides disagreed on.

Pure: records in, text out, the same bytes for the same records. The page loads nothing and runs no script, and every shape
has its figures in words or in a table. What nobody recorded is said to be unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.page import formatting
from slm_ray.page.charts import ticks
from slm_ray.page.template import encodable, environment
from slm_ray.verdict.watch import RECENT, WatchPoint

_MOST_CHANGES = 200
_LEAST_CAPITAL = 0.01  # the axis goes no further down


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a route, in the words of its history; `at` is in Unix seconds."""

    serial: int
    at: float
    action: str
    state: str
    slm: str
    by: str
    reason: str
    serving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Requests that came in between `start` and `end` (Unix seconds), by whose answer the client got.

    `fallback` counts those that the LLM answered in the SLM's place, which are not in `llm`; `neither` got no answer.
    """

    start: float
    end: float
    llm: int
    slm: int
    fallback: int
    neither: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.llm + self.slm + self.fallback + self.neither


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One watch: whom it watched, the `null` that it bets against in words, its path, and where it rang, if it did."""

    slm: str
    null: str
    threshold: float
    rows: int
    path: tuple[WatchPoint, ...]
    alarm_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """An audited request on which both sides disagreed, kept when the watch rang: `score` is the agreement, in [0, 1]."""

    id: str
    at: float | None
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePage:
    """All that the page shows of one route. The latest change, watch and disagreement stand last.

    `served` is in order of time and None where no log of traffic was given. `fallbacks` says how often the LLM answered in
    the SLM's place lately, as the front saw it, and `fallbacks_last` that it goes on. `stand_ins` answered in the name of a
    model.
    """

    name: str
    made: float
    llm: str
    slm: str
    track: str
    allowed: tuple[str, ...]
    because: str
    verdict: str | None
    watched_by: str
    stand_ins: tuple[str, ...]
    changes: tuple[Change, ...]
    served: tuple[Served, ...] | None
    watches: tuple[Watched, ...]
    disagreements: tuple[Disagreement, ...]
    fallbacks: str | None = None
    fallbacks_last: bool = False


def route_page(data: RoutePage) -> str:
    """The page."""
    templates = environment(
        csp_hash=formatting.csp_hash, count=formatting.count, percent=formatting.percent, moment=formatting.unix_moment,
        sentence=formatting.sentence, points=formatting.points, half_width=formatting.half_width,
    )  # fmt: skip
    html = templates.get_template("rollout.html.j2").render(
        data=data,
        now=data.changes[-1],
        changes=data.changes[: -_MOST_CHANGES - 1 : -1],
        shares=shares(data.served, data.changes) if data.served else None,
        lately=in_its_place(data.served or (), data.changes[-1]),
        recent=RECENT,
        watches=[(watched, evidence(watched)) for watched in reversed(data.watches)],
    )
    return encodable(html)


def shares(served: Sequence[Served], changes: Sequence[Change]) -> dict[str, Any]:
    """Bars of who answered, one per stretch of time, in percent of the plot; a line where the state changed."""
    first, last = served[0].start, served[-1].end

    def x(at: float) -> float:
        return round(100 * (at - first) / max(last - first, 1e-9), 2)

    bars = []
    for one in served:
        below = 0.0
        for kind, count in (("slm", one.slm), ("fallback", one.fallback), ("llm", one.llm)):
            height = 100 * count / one.total if one.total else 0.0
            if height:
                bars.append(
                    {
                        "css": kind, "x": x(one.start), "width": max(round(x(one.end) - x(one.start), 2), 0.1),
                        "y": round(100 - below - height, 2), "height": round(height, 2),
                    }
                )  # fmt: skip
            below += height
    total = sum(one.total for one in served) or 1
    return {
        "bars": bars,
        "changes": [{"x": x(change.at), "serial": change.serial} for change in changes if first <= change.at <= last],
        "x_ticks": [{"x": x(at), "label": formatting.unix_moment(at)} for at in (first, last)],
        "y_ticks": [{"y": 100.0 - 25 * part, "label": f"{25 * part} %"} for part in range(5)],
        "requests": sum(one.total for one in served),
        "parts": {
            kind: sum(getattr(one, kind) for one in served) / total for kind in ("slm", "llm", "fallback", "neither")
        },
    }  # fmt: skip


def in_its_place(served: Sequence[Served], now: Change) -> float | None:
    """The LLM's part, since the last change, of what the SLM was to answer; None before that, and in a cascade.

    A stretch of time that the change lies in counts for what came before it. In a cascade the LLM answers by design.
    """
    since = [one for one in served if one.start >= now.at]
    meant = sum(one.slm + one.fallback for one in since)
    if not now.serving or now.state.startswith("cascade") or not meant:
        return None
    return sum(one.fallback for one in since) / meant


def evidence(watched: Watched) -> dict[str, Any] | None:
    """The capital over audited requests on a logarithmic axis, with the alarm; None before the first request."""
    if not watched.path:
        return None
    highest = max(10 * watched.threshold / 2, *(2 * point.capital for point in watched.path))
    lowest = min(0.5, *(point.capital / 2 for point in watched.path))
    highest, lowest = min(highest, 1e9), max(lowest, _LEAST_CAPITAL)

    def x(rows: float) -> float:
        return round(100 * rows / watched.rows, 2)

    def y(capital: float) -> float:
        part = math.log(min(max(capital, lowest), highest) / lowest) / math.log(highest / lowest)
        return round(100 - 100 * part, 2)

    points = [(0.0, y(1.0)), *((x(point.rows), y(point.capital)) for point in watched.path)]
    powers = [10.0**power for power in range(math.ceil(math.log10(lowest)), math.floor(math.log10(highest)) + 1)]
    return {
        "line": "M" + "L".join(f"{across} {down}" for across, down in points),
        "threshold": y(watched.threshold),
        "rang": None if watched.alarm_at is None else {"x": x(watched.alarm_at), "at": watched.alarm_at},
        "x_ticks": [{"x": x(value), "label": f"{value:,.0f}"} for value in ticks(0.0, watched.rows) if value == int(value)],
        "y_ticks": [{"y": y(value), "label": f"{value:,.10g}"} for value in powers[:: 1 + len(powers) // 6]],
        "now": watched.path[-1].capital, "recent": watched.path[-1].recent,
    }  # fmt: skip
