"""The watch of one route as it lives in a front: every observation on disk before it counts, and the alarm that takes back.

    FOLDER/NAME/watch.jsonl    {"start": …} where a watch begins, then a line per audited request, {"alarm": …} where it rang

Lines that come together are synced together, before the watch has seen any of them, so whoever restarts reads the same
capital: a replica that is killed loses nothing that it had counted. A file that has grown long is replaced in one step by
the few lines that say the same. One process at a time writes the file; what a second one observes is refused, and not
counted. A watch goes on while the adapter, the LLM, the verdict and delta stay, whatever the state; an alarm overturns the
verdict, and the next one has a watch of its own. An alarm that a killed process could not act on is acted on by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.rollout.bets import MOST_WATCHES, Bets, read_bets
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.storage import GrowingFile, growing_jsonl, grown_rows
from slm_ray.verdict.watch import levels

WATCH = "watch.jsonl"
MOST_LINES = 20_000  # of the file, before it is shortened: read back in about a second
_BY = "watch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One audited request: the `score` by which the SLM agreed with the LLM, or its `label`.

    `label` is the SLM's score minus the LLM's, both by an answer that people expected.
    """

    state: RouteState
    id: str
    score: float | None = None
    label: float | None = None

    @property
    def counts(self) -> bool:
        """Whether there is anything to hold the SLM to: a verdict that allows more than shadow, and for a score its agreement."""
        granted = self.state.granted
        return granted.most != "shadow" and (self.label is not None or granted.agreement_lower is not None)


class RouteWatch:
    """Blocks on the disk: to be used by one thread at a time, and not by an event loop."""

    def __init__(self, store: RouteStore, name: str) -> None:
        self._store = store
        self._name = name
        self._path = store.folder / name / WATCH
        self._open = contextlib.ExitStack()
        self._file: GrowingFile | None = None
        self._lines = 0
        self._bets: Bets | None = None
        self._latest = 0  # the newest state that a request was asked under
        self._settled: int | None = None  # the route's state after the alarm was acted on

    @property
    def observations(self) -> int:
        """Requests that the present watch has counted."""
        return self._bets.observations if self._bets is not None else 0

    def observe(self, seen: Sequence[Seen]) -> RouteState | None:
        """Count audited requests; the route's new state where they rang the alarm.

        Those that hold the SLM to nothing, and late ones of another watch than the latest, are left out. ResourceError where the
        disk does not take them or another process watches; DataError, with file and line, for what no watch wrote: what was
        not written is not counted.
        """
        changed = None
        for key, group in itertools.groupby((one for one in seen if one.counts), key=lambda one: _key(one.state)):
            changed = self._together(key, list(group)) or changed
        return changed

    def close(self) -> None:
        """Let another process write."""
        self._open.close()
        self._file = None

    def _together(self, key: Mapping[str, Any], seen: Sequence[Seen]) -> RouteState | None:
        file, state = self._file or self._opened(), seen[-1].state
        bets = self._bets
        if bets is None or key != bets.key:
            if state.serial < self._latest:
                return None
            bets = self._begin(file, key, state.serial)
        self._latest = max(self._latest, state.serial)
        if bets.rang is not None:
            return self._take_back(bets, state) if self._settled is None or state.serial >= self._settled else None
        rows = [_row(one) for one in seen]
        file.append(*rows)
        for row in rows:
            bets.take(row)
        self._lines += len(rows)
        if bets.alarm is not None:
            return self._ring(file, bets, state)
        if self._lines > MOST_LINES:
            self._shorten(file)
        return None

    def _opened(self) -> GrowingFile:
        with contextlib.ExitStack() as opening:
            file = opening.enter_context(growing_jsonl(self._path, waits=False))
            starts = [place for place, (_, row) in enumerate(file.rows) if "start" in row]
            found, latest = read_bets(file.rows[starts[-1] if starts else 0 :], path=self._path)
            self._open = opening.pop_all()
        self._bets, self._latest = found[-1] if found else None, max(self._latest, latest)
        self._lines = len(file.rows)
        file.rows = []
        self._file = file
        return file

    def _shorten(self, file: GrowingFile) -> None:
        found, _ = read_bets(grown_rows(self._path), path=self._path)
        rows = [row for bets in found[-MOST_WATCHES:] for row in bets.lines()]
        file.replace(rows)
        self._lines = len(rows)

    def _begin(self, file: GrowingFile, key: Mapping[str, Any], serial: int) -> Bets:
        now = time.time()
        file.append({"start": key, "at": now, "serial": serial})
        self._bets = bets = Bets(key, at=now, serial=serial)
        self._settled = None
        self._lines += 1
        return bets

    def _ring(self, file: GrowingFile, bets: Bets, state: RouteState) -> RouteState:
        row = {"alarm": bets.observations, "by": bets.alarm, "at": time.time(), "serial": state.serial}
        file.append(row)
        bets.take(row)
        return self._take_back(bets, state)

    def _take_back(self, bets: Bets, state: RouteState) -> RouteState:
        """The previous adapter or record; the requests on which both sides disagreed are kept for people to look at."""
        shown = (
            f"the SLM is worse than the LLM by {bets.labels.rows} expected answers"
            if bets.rang == "labels"
            else "the SLM agrees with the LLM less than on the verdict's rows"
        )
        reason = f"the watch rang after {bets.observations} audited requests: {shown} by more than {state.delta:g}"
        before = self._store.route(self._name)
        changed = self._store.back(self._name, by=_BY, reason=reason, serial=state.serial)
        self._settled = changed.serial
        if changed.serial != before.serial:
            self._store.note_disagreements(self._name, list(bets.disagreed))
        return changed


def _row(seen: Seen) -> dict[str, Any]:
    what = {"score": seen.score} if seen.label is None else {"label": seen.label}
    return {"id": seen.id, "at": time.time(), "serial": seen.state.serial, "state": seen.state.state, **what}


def _key(state: RouteState) -> dict[str, Any]:
    """What a watch is about. The verdict's bound may be wrong too: its error comes out of the 5 %."""
    granted = state.granted
    level, label_level = levels(granted.agreement_level or 0.0)
    return {
        "adapter": state.adapter, "slm": state.route.slm, "llm": state.route.llm, "verdict": granted.digest,
        "delta": state.delta, "reference": granted.agreement_lower, "level": level, "label_level": label_level,
    }  # fmt: skip
