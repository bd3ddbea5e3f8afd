"""What the page of a route shows, gathered from its folder and from a log of traffic: read only, with or without a front.

The watch is replayed from the observations that the front wrote down, so that the page shows what the front saw.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from slm_ray.page.rollout import Change, Disagreement, RoutePage, Served, Watched
from slm_ray.rollout.bets import Bets, read_bets
from slm_ray.rollout.fallbacks import read_fallbacks
from slm_ray.rollout.states import RouteState, state_text, watched_text
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.watched import WATCH
from slm_ray.storage import grown_rows
from slm_ray.traffic import read_traffic
from slm_ray.traffic.record import TrafficRow
from slm_ray.verdict.watch import Watch

_STRETCHES = 48  # of time, one bar each
_MOST_WATCHES, _MOST_DISAGREEMENTS = 4, 100


def route_picture(folder: str | Path, name: str, *, traffic: str | None = None) -> RoutePage:
    """The records of the page; `traffic` is the log's folder. DataError, with file and line, for what is damaged."""
    store = RouteStore(folder)
    history = store.history(name)
    now = history[-1]
    lately = read_fallbacks(store.folder, now) if now.serving else None
    rows = (row for row in read_traffic(traffic) if row.route == name) if traffic else None
    kept = store.disagreements(name)[-_MOST_DISAGREEMENTS:]
    return RoutePage(
        name=name, made=time.time(), llm=now.route.llm, slm=now.route.slm, track=now.route.track,
        allowed=now.granted.allowed, because=now.granted.because, verdict=now.granted.comparison,
        watched_by=watched_text(now.granted, now.delta), stand_ins=now.stand_ins,
        changes=tuple(map(_change, history)), served=None if rows is None else stretches(rows),
        watches=tuple(_watches(store.folder / name / WATCH))[-_MOST_WATCHES:],
        disagreements=tuple(
            Disagreement(id=str(row.get("id")), at=row.get("at"), score=row.get("score")) for row in kept
        ),
        fallbacks=lately.in_words if lately else None, fallbacks_last=lately is not None and lately.since is not None,
    )  # fmt: skip


def stretches(rows: Iterable[TrafficRow]) -> tuple[Served, ...]:
    """Who answered, in up to 48 stretches of time of one length."""
    answered = sorted((row.at, _who(row)) for row in rows)  # a log's texts may be larger than memory
    if not answered:
        return ()
    first, length = answered[0][0], max((answered[-1][0] - answered[0][0]) / _STRETCHES, 1e-3)
    counts: dict[int, list[int]] = {}
    for moment, who in answered:
        at = min(int((moment - first) / length), _STRETCHES - 1)
        counts.setdefault(at, [0, 0, 0, 0])[who] += 1
    return tuple(
        Served(start=first + at * length, end=first + (at + 1) * length, llm=llm, slm=slm, fallback=fallback, neither=neither)
        for at, (llm, slm, fallback, neither) in sorted(counts.items())
    )  # fmt: skip


def _who(row: TrafficRow) -> int:
    """0 the LLM as was meant, 1 the SLM, 2 the LLM in its place, 3 nobody."""
    if row.served is None:
        return 3
    return 1 if row.served == "slm" else 2 if row.arm == "slm" else 0


def _change(state: RouteState) -> Change:
    return Change(
        serial=state.serial, at=datetime.fromisoformat(state.changed_at).timestamp(), action=state.action,
        state=state_text(state), slm=state.adapter or state.route.slm, by=state.by, reason=state.reason, serving=state.serving,
    )  # fmt: skip


def _watches(path: Path) -> Iterator[Watched]:
    """Every watch that the front began, replayed; those that have seen something, or the agreement alone."""
    for bets in read_bets(grown_rows(path), path=path)[0]:
        if bets.agreement is not None:
            yield _watched(bets, bets.agreement, _agreement(bets.key["reference"] - bets.key["delta"]))
        if bets.labels.rows or bets.agreement is None:
            null = f"by expected answers the SLM is not worse than the LLM by more than {bets.key['delta']:g}"
            yield _watched(bets, bets.labels, null)


def _agreement(floor: float) -> str:
    if floor <= 0:
        return (
            "the SLM agrees with the LLM as often as the verdict showed, which is too seldom for an alarm to come of it"
        )
    return f"the SLM agrees with the LLM on at least {floor:.1%} of the requests"


def _watched(bets: Bets, watch: Watch, null: str) -> Watched:
    return Watched(
        slm=str(bets.key.get("adapter") or bets.key.get("slm")), null=null, threshold=watch.threshold, rows=watch.rows,
        path=watch.path, alarm_at=watch.alarm_at,
    )  # fmt: skip
