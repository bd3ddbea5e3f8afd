"""Whether the LLM answers in the SLM's place, and since when: no watch can bet on that, since the SLM gave no answer.

    FOLDER/NAME/fallbacks.json    the latest calls that the SLM was to answer, as the front saw them; replaced in one step

It *lasts* when the LLM has had half of the latest calls for a minute, and is over when it has less than a quarter of them.
Says nothing of how good an answer is.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from slm_ray import storage
from slm_ray.reports.encoding import decode
from slm_ray.rollout.states import RouteState

FILE = "fallbacks.json"
MOST, LEAST = 100, 20  # calls that a share is taken of
_BEGINS, _ENDS, _LASTS_S = 0.5, 0.25, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallbacks:
    """Of the latest `calls` that the SLM was to answer in the state `serial`, how many the LLM was asked instead.

    `because` is the word of the latest reason (`down`, `timeout`, `http_503`, `invalid`), `since` when what lasts began
    (None: it does not last) and `at` when the latest call was over, both in Unix seconds.
    """

    serial: int
    calls: int
    fallbacks: int
    because: str | None
    since: float | None
    at: float

    @property
    def share(self) -> float:
        """The LLM's part."""
        return self.fallbacks / self.calls

    @property
    def in_words(self) -> str:
        """One line, for people."""
        why = f" (the last one: {self.because})" if self.because else ""
        said = f"the LLM answered in the SLM's place in {self.fallbacks} of the latest {self.calls} calls{why}"
        if self.since is None:
            return f"{said}, {_moment(self.at)}"
        return f"{said}, from {_moment(self.since)} to {_moment(self.at)}: look at the SLM, or move the route back"


class Lately:
    """The latest calls of one route; to be told of them by one thread."""

    def __init__(self) -> None:
        self._serial = 0
        self._latest: deque[bool] = deque(maxlen=MOST)
        self._because: str | None = None
        self._began: float | None = None
        self._lasts = False

    def note(self, because: str | None, *, serial: int, at: float) -> Fallbacks | None:
        """What is known with a call that is over, in which the SLM answered (None) or did not, for a reason.

        None for a call of a state before the present one.
        """
        if serial > self._serial:  # another SLM, or other calls that it is to answer
            self._forget(serial)
        if serial < self._serial:
            return None
        self._latest.append(because is not None)
        self._because = because or self._because
        fallbacks = sum(self._latest)
        self._turn(fallbacks / len(self._latest), at)
        return Fallbacks(
            serial=serial, calls=len(self._latest), fallbacks=fallbacks, because=self._because if fallbacks else None,
            since=self._began if self._lasts else None, at=at,
        )  # fmt: skip

    def _forget(self, serial: int) -> None:
        self._serial, self._because, self._began, self._lasts = serial, None, None, False
        self._latest.clear()

    def _turn(self, share: float, at: float) -> None:
        if len(self._latest) < LEAST or share < (_ENDS if self._lasts else _BEGINS):
            self._began, self._lasts = None, False
        elif self._began is None:
            self._began = at
        self._lasts = self._lasts or (self._began is not None and at - self._began >= _LASTS_S)


def write_fallbacks(folder: Path, name: str, found: Fallbacks) -> None:
    """Keep what the front saw. ResourceError."""
    storage.write_json(folder / name / FILE, dataclasses.asdict(found))


def read_fallbacks(folder: Path, state: RouteState) -> Fallbacks | None:
    """What a front saw last of a route in its present state; None where none saw a call in it. DataError."""
    path = folder / state.route.name / FILE
    if not path.exists():
        return None
    found = decode(storage.read_json(path), Fallbacks, where=str(path), fix="remove it; a front writes it anew")
    return found if found.serial == state.serial else None


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
