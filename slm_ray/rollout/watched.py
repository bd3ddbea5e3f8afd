"""The watch of one route as it lives in a front: every observation on disk before it counts, and the alarm that takes back.

    FOLDER/NAME/watch.jsonl    {"start": …} where a watch begins, then a line per audited request, {"alarm": …} where it rang

A line is synced before the watch has seen it, so whoever restarts reads the same capital: a replica that is killed loses
nothing that it had counted. One process at a time writes the file; what a second one observes is refused, and not counted.
A watch goes on while the adapter, the LLM, the verdict and delta stay, whatever the state; an alarm overturns the verdict,
and the next one has a watch of its own. An alarm that a killed process could not act on is acted on by the next one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from slm_ray.errors import DataError
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
        self._latest = 0  # the newest state that a request was asked under
        self._rang = False
        self._settled: int | None = None  # the route's state after the alarm was acted on
        self._disagreed: deque[dict[str, Any]] = deque(maxlen=MOST_DISAGREEMENTS)
        self.observations = 0

    def observe(self, state: RouteState, request_id: str, score: float) -> RouteState | None:
        """Count one audited request on which the SLM agreed by `score`; the route's new state where that rang the alarm.

        Nothing without a verdict that allows more than shadow, or where its agreement is not known: there is nothing to hold
        the SLM to. Nothing for a late request of another watch than the latest. ResourceError, and nothing counted, where the
        disk does not take it or another process watches; DataError, with file and line, for what no watch wrote.
        """
        if state.granted.agreement_lower is None or state.granted.most == "shadow":
            return None
        file = self._file or self._opened()
        key = _key(state)
        if key != self._key:
            if state.serial < self._latest:
                return None
            self._begin(file, key, state.serial)
        self._latest = max(self._latest, state.serial)
        if self._rang:
            return self._take_back(state) if self._settled is None or state.serial >= self._settled else None
        row = {"id": request_id, "at": time.time(), "serial": state.serial, "state": state.state, "score": score}
        file.append(row)
        self._count(row)
        return self._ring(file, state) if self._watch is not None and self._watch.alarm else None

    def close(self) -> None:
        """Let another process write."""
        self._open.close()
        self._file = None

    def _opened(self) -> GrowingFile:
        path = self._store.folder / self._name / WATCH
        with contextlib.ExitStack() as opening:
            file = opening.enter_context(growing_jsonl(path, waits=False))
            starts = [place for place, (_, row) in enumerate(file.rows) if "start" in row]
            for number, row in file.rows[starts[-1] if starts else 0 :]:
                try:
                    self._replay(row)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}:{number}: no line of a watch ({error!r}); mend the line or remove it"
                    ) from None
            self._open = opening.pop_all()
        file.rows = []
        self._file = file
        return file

    def _replay(self, row: Mapping[str, Any]) -> None:
        if "start" in row:
            self._start(row["start"])
        elif "alarm" in row:
            self._rang = True
        else:
            self._count(row)
        self._latest = max(self._latest, row["serial"])

    def _begin(self, file: GrowingFile, key: Mapping[str, Any], serial: int) -> None:
        file.append({"start": key, "at": time.time(), "serial": serial})
        self._start(key)

    def _start(self, key: Mapping[str, Any]) -> None:
        self._watch = Watch(level=key["level"], delta=key["delta"], reference=key["reference"])
        self._key, self._rang, self._settled, self.observations = key, False, None, 0
        self._disagreed.clear()

    def _count(self, row: Mapping[str, Any]) -> None:
        if self._watch is None:
            return
        self._watch.add(row["score"] - 1.0)
        self.observations += 1
        if row["score"] < 1:
            self._disagreed.append({name: row[name] for name in ("id", "at", "serial", "score")})

    def _ring(self, file: GrowingFile, state: RouteState) -> RouteState:
        file.append({"alarm": self.observations, "at": time.time(), "serial": state.serial})
        self._rang = True
        return self._take_back(state)

    def _take_back(self, state: RouteState) -> RouteState:
        """The previous adapter or record; the requests on which both sides disagreed are kept for people to look at."""
        reason = (
            f"the watch rang after {self.observations} audited requests: the SLM agrees with the LLM less than on the"
            f" verdict's rows by more than {state.delta:g}"
        )
        changed = self._store.back(self._name, by=_BY, reason=reason, serial=state.serial)
        self._settled = changed.serial
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
