"""The watch of one route as it lives in a front: every observation on disk before it counts, and the alarm that takes back.

    FOLDER/NAME/watch.jsonl    {"start": …} where a watch begins, then a line per audited request, {"alarm": …} where it rang

A line is synced before the watch has seen it, so whoever restarts reads the same capital: a replica that is killed loses
nothing that it had counted. One process at a time writes the file; a second one waits at its first observation. A watch
goes on while the adapter, the LLM, the verdict and delta stay, whatever the state; an alarm overturns the verdict, and the
next one has a watch of its own. An alarm that a killed process could not act on is acted on by the next one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.storage import GrowingFile, growing_jsonl
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.watch import Watch

WATCH = "watch.jsonl"
MOST_DISAGREEMENTS = 1_000  # the latest of a watch
_BY = "watch"


class RouteWatch:
    """Blocks on the disk: to be used by one thread at a time, and not by an event loop."""

    def __init__(self, store: RouteStore, name: str) -> None:
        self._store = store
        self._name = name
        self._open = contextlib.ExitStack()
        self._file: GrowingFile | None = None
        self._watch: Watch | None = None
        self._key: Mapping[str, Any] | None = None
        self._since = 0
        self._rang_at: int | None = None
        self._disagreed: deque[dict[str, Any]] = deque(maxlen=MOST_DISAGREEMENTS)
        self.observations = 0

    def observe(self, state: RouteState, request_id: str, score: float) -> RouteState | None:
        """Count one audited request on which the SLM agreed by `score`; the route's new state where that rang the alarm.

        Nothing without a verdict that allows more than shadow, or where its agreement is not known: there is nothing to hold
        the SLM to. Nothing for a request from before the watch began. ResourceError, and nothing counted, where the disk does
        not take it.
        """
        if state.granted.agreement_lower is None or state.granted.most == "shadow":
            return None
        file = self._file or self._opened()
        if state.serial < self._since:
            return None
        self._begin(file, state)
        if self._rang_at is not None:
            return self._take_back(state)
        row = {"id": request_id, "at": time.time(), "serial": state.serial, "state": state.state, "score": score}
        file.append(row)
        self._count(row)
        return self._ring(file, state) if self._watch is not None and self._watch.alarm else None

    def close(self) -> None:
        """Let another process write."""
        self._open.close()
        self._file = None

    def _opened(self) -> GrowingFile:
        file = self._file = self._open.enter_context(growing_jsonl(self._store.folder / self._name / WATCH))
        for _, row in file.rows:
            if "start" in row:
                self._start(row["start"], row["serial"])
            elif "alarm" in row:
                self._rang_at = row["serial"]
            else:
                self._count(row)
        file.rows = []
        return file

    def _begin(self, file: GrowingFile, state: RouteState) -> None:
        key = _key(state)
        if key == self._key and (self._rang_at is None or state.serial == self._rang_at):
            return
        file.append({"start": key, "at": time.time(), "serial": state.serial})
        self._start(key, state.serial)

    def _start(self, key: Mapping[str, Any], serial: int) -> None:
        self._key, self._since, self._rang_at, self.observations = key, serial, None, 0
        self._disagreed.clear()
        self._watch = Watch(level=key["level"], delta=key["delta"], reference=key["reference"])

    def _count(self, row: Mapping[str, Any]) -> None:
        if self._watch is None:
            return
        self._watch.add(row["score"] - 1.0)
        self.observations += 1
        if row["score"] < 1:
            self._disagreed.append({name: row[name] for name in ("id", "at", "serial", "score")})

    def _ring(self, file: GrowingFile, state: RouteState) -> RouteState:
        file.append({"alarm": self.observations, "at": time.time(), "serial": state.serial})
        self._rang_at = state.serial
        return self._take_back(state)

    def _take_back(self, state: RouteState) -> RouteState:
        """The previous adapter or record; the requests on which both sides disagreed are kept for people to look at."""
        reason = (
            f"the watch rang after {self.observations} audited requests: the SLM agrees with the LLM less than on the"
            f" verdict's rows by more than {state.delta:g}"
        )
        changed = self._store.back(self._name, by=_BY, reason=reason, serial=state.serial)
        if changed.serial != state.serial:
            self._store.note_disagreements(self._name, list(self._disagreed))
        return changed


def _key(state: RouteState) -> dict[str, Any]:
    """What a watch is about. The verdict's bound may be wrong too: its error comes out of the 5 %."""
    granted = state.granted
    return {
        "adapter": state.adapter, "slm": state.route.slm, "llm": state.route.llm, "verdict": granted.digest,
        "delta": state.delta, "reference": granted.agreement_lower, "level": ONE_SIDED - (granted.agreement_level or 0.0),
    }  # fmt: skip
