"""The routes of a roll-out on disk: what every route is now, and every change that led there.

    FOLDER/NAME/changes.jsonl          one line per change, the whole state in it; only ever appended to
    FOLDER/NAME/disagreements.jsonl    the requests on which the two sides disagreed when the watch rang

The last whole line says what a route is. A line is there whole or not at all, whenever its writer dies, and of two writers
one waits for the other. Readers see a change at their next question: a question costs one `stat`. Where a history becomes
unreadable under a running reader, the reader goes on with the last state that it read; a new reader, and every writer, is
told file and line. Works with or without a front that runs. Local or shared folders, whose `flock` is honoured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.errors import ConfigError, DataError, ResourceError, choices
from slm_ray.reports.encoding import decode, encode
from slm_ray.rollout.states import (
    Grant,
    Route,
    RouteState,
    adjusted,
    appointed,
    created,
    is_name,
    moved,
    taken_back,
)  # fmt: skip
from slm_ray.storage import Reread, growing_jsonl, grown_rows, writer
from slm_ray.types import State

CHANGES = "changes.jsonl"
DISAGREEMENTS = "disagreements.jsonl"
_MEND = "mend the line or remove it"

History = tuple[RouteState, ...]


class RouteStore:
    """The routes of a folder. Whoever changes one is `by`, the user and host where it is None."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[str, Reread[History]] = {}
        self._last: dict[str, History] = {}

    def routes(self) -> dict[str, RouteState]:
        """Every route that can be read, by name; for what is wrong with the others see `damaged`."""
        return self._all()[0]

    def damaged(self) -> list[str]:
        """What is wrong with the histories that cannot be read now, one line each."""
        return self._all()[1]

    def route(self, name: str) -> RouteState:
        """What a route is now; ConfigError with the known names for one that is not there."""
        return self.history(name)[-1]

    def history(self, name: str) -> History:
        """Every state of a route, the first one first. DataError with file:line where it was never readable."""
        if not self._exists(name):
            raise self._unknown(name)
        try:
            history = self._as_of_now(name)
        except DataError:
            if name not in self._last:
                raise
            return self._last[name]
        if not history:
            raise self._unknown(name)
        return history

    def create(
        self, route: Route, *, adapter: str | None, grant: Grant, reason: str, by: str | None = None,
        audit_share: float = 0.1, delta: float | None = None, timeout_s: float = 10.0,
    ) -> RouteState:  # fmt: skip
        """A new route, at record; ConfigError where there is one of that name."""

        def make(history: History) -> RouteState:
            if history:
                raise ConfigError(
                    f"there is a route {route.name!r} in {self.folder} already, at {history[-1].state}; move it, give it"
                    " another adapter, or choose another name"
                )
            return created(route, adapter=adapter, grant=grant, at=_now(), by=by or writer(), reason=reason,
                           audit_share=audit_share, delta=delta, timeout_s=timeout_s)  # fmt: skip

        make(_history(self.folder / route.name / CHANGES))  # nothing is begun for what would be refused
        try:
            (self.folder / route.name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"cannot make {self.folder / route.name}: {error.strerror}; see who may write there"
            ) from None
        return self.change(route.name, make)

    def move(
        self, name: str, to: State, *, reason: str, by: str | None = None, share: float | None = None
    ) -> RouteState:
        """Another state; see `states.moved`."""
        return self._changed(
            name, lambda now: moved(now[-1], to=to, share=share, at=_now(), by=by or writer(), reason=reason)
        )

    def appoint(
        self, route: Route, *, adapter: str | None, grant: Grant, reason: str, by: str | None = None
    ) -> RouteState:
        """Another adapter, LLM or verdict for the route of that name; see `states.appointed`."""
        return self._changed(
            route.name,
            lambda now: appointed(
                now, route=route, adapter=adapter, grant=grant, at=_now(), by=by or writer(), reason=reason
            ),
        )

    def adjust(
        self, name: str, *, reason: str, by: str | None = None,
        audit_share: float | None = None, delta: float | None = None, timeout_s: float | None = None,
    ) -> RouteState:  # fmt: skip
        """Other settings; see `states.adjusted`."""
        return self._changed(
            name,
            lambda now: adjusted(
                now[-1],
                audit_share=audit_share,
                delta=delta,
                timeout_s=timeout_s,
                at=_now(),
                by=by or writer(),
                reason=reason,
            ),
        )

    def back(self, name: str, *, reason: str, by: str | None = None, serial: int | None = None) -> RouteState:
        """To the previous adapter, else to record; see `states.taken_back`.

        With `serial` it is an alarm about the state with that number, which overturns its verdict; one that comes when the
        route has another SLM or verdict by then changes nothing. What the route is then.
        """

        def back(history: History) -> RouteState:
            now = history[-1]
            seen = next((state for state in history if state.serial == serial), None)
            if serial is not None and (seen is None or _other_slm(now, seen)):
                return now
            return taken_back(history, at=_now(), by=by or writer(), reason=reason, alarm=serial is not None)

        return self._changed(name, back)

    def change(self, name: str, transition: Callable[[History], RouteState]) -> RouteState:
        """Append what `transition` makes of the history, which nobody else changes meanwhile; nothing for the last state.

        Whatever `transition` raises leaves the history as it was.
        """
        path = self.folder / name / CHANGES
        with growing_jsonl(path) as file:
            history = _states(file.rows, path)
            state = transition(history)
            if not history or state != history[-1]:
                file.append(encode(state))
        return state

    def note_disagreements(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the requests (with their id under `id`) on which both sides disagreed when an alarm rang."""
        self.route(name)
        with growing_jsonl(self.folder / name / DISAGREEMENTS) as file:
            for row in rows:
                file.append(row)

    def disagreements(self, name: str) -> list[dict[str, Any]]:
        """What was kept by `note_disagreements`, the oldest first."""
        self.route(name)
        return [row for _, row in grown_rows(self.folder / name / DISAGREEMENTS)]

    def _changed(self, name: str, transition: Callable[[History], RouteState]) -> RouteState:
        if not self._exists(name):
            raise self._unknown(name)

        def known(history: History) -> RouteState:
            if not history:
                raise self._unknown(name)
            return transition(history)

        return self.change(name, known)

    def _as_of_now(self, name: str) -> History:
        history = self._read.setdefault(name, Reread(self.folder / name / CHANGES, _history)).now()
        if history:
            self._last[name] = history
        return history

    def _exists(self, name: str) -> bool:
        return is_name(name) and (self.folder / name / CHANGES).is_file()

    def _all(self) -> tuple[dict[str, RouteState], list[str]]:
        found, damaged = {}, []
        for name in self._names():
            try:
                history = self._as_of_now(name)
            except DataError as error:
                damaged.append(str(error))
                history = self._last.get(name, ())
            if history:
                found[name] = history[-1]
        return found, damaged

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.folder) if self._exists(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"cannot read {self.folder}: {error.strerror}; give the folder of the routes") from None

    def _unknown(self, name: str) -> ConfigError:
        names = list(self.routes())
        known = choices(name, names) if names else "there is none; slm-ray routes create makes one"
        return ConfigError(f"no route {name!r} in {self.folder}: {known}")


def _other_slm(now: RouteState, seen: RouteState) -> bool:
    return now.adapter != seen.adapter or now.route.slm != seen.route.slm or now.granted.digest != seen.granted.digest


def _history(path: Path) -> History:
    return _states(grown_rows(path), path)


def _states(rows: Sequence[tuple[int, Mapping[str, Any]]], path: Path) -> History:
    states = []
    for number, row in rows:
        where = f"{path}:{number}"
        try:
            state = decode(row, RouteState, where=where, fix=_MEND)
        except ConfigError as error:
            raise DataError(f"{where}: {error}; {_MEND}") from None
        if state.route.name != path.parent.name:
            raise DataError(f"{where}: a state of the route {state.route.name!r}; {_MEND}")
        states.append(state)
    return tuple(states)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
