"""The traffic log's writer: requests go in at once, are redacted and journalled by a thread, and rolled to Parquet by another.

`append` never waits for a disk and never raises: where the disk is full or the store does not answer, rows wait in memory up
to a bound; beyond it they are dropped, counted and said. A row that was taken is redacted, then written to a journal on the
local disk and synced within a second; journals become Parquet parts every `roll_rows` rows or `roll_s` seconds. A process
that is killed loses what it took in its last second; what it had written is rolled by the next writer. Any number of
writers (replicas) share a folder. Not promised: an order among rows of several writers.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from slm_ray.config import Traffic
from slm_ray.traffic.journal import Segment, host, new_segment
from slm_ray.traffic.place import mark, open_place
from slm_ray.traffic.record import Entry, TrafficRow, encoded
from slm_ray.traffic.redaction import Redaction
from slm_ray.traffic.roll import Roller

_GROUP_S = 0.2
_RETRY_S = 1.0
_SAY_EVERY_S = 30.0
_CLOSE_S = 10.0
_LINES_AT_ONCE = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficCounts:
    """What became of the entries so far.

    `taken` and `dropped` (no room in memory) at `append`; `written` are in the journal; `unwritable` could not be encoded;
    `withheld` counts texts, not rows. `waiting` are in memory.
    """

    taken: int = 0
    dropped: int = 0
    written: int = 0
    unwritable: int = 0
    withheld: int = 0
    waiting: int = 0


class TrafficLog:
    """One writer of a traffic log; see the module. Close it, or use it as a context."""

    def __init__(
        self, folder: str, *, redaction: Redaction | None = None, keep_days: int | None = None,
        roll_rows: int = 5_000, roll_s: float = 300.0, most_waiting: int = 10_000, most_waiting_chars: int = 64 << 20,
    ) -> None:  # fmt: skip
        """Make the folder where it is not there. ResourceError, ConfigError or DataError for one that cannot be used at all."""
        self._place = open_place(folder)
        self._redaction = redaction or Redaction()
        self._salt = self._place.salt()
        mark(self._place)
        self._roll_rows, self._roll_s = roll_rows, roll_s
        self._most, self._most_chars = most_waiting, most_waiting_chars
        self._writer = f"{host()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Entry, int]] = deque()
        self._chars = 0
        self._closing = False
        self._counts = TrafficCounts()
        self._lines: deque[bytes] = deque()  # redacted and not written yet
        self._segment: Segment | None = None
        self._segment_began = 0.0
        self._segments = 0
        self._said_at = -_SAY_EVERY_S
        self._roller = Roller(self._place, keep_days=keep_days, every_s=roll_s, say=self._say)
        self._thread = threading.Thread(target=self._run, name="traffic-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @classmethod
    def of(cls, settings: Traffic) -> TrafficLog:
        """The log that the settings describe."""
        redaction = Redaction(settings.redact, settings.patterns)
        return cls(settings.folder, redaction=redaction, keep_days=settings.keep_days)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, entry: Entry) -> bool:
        """Take a row or a feedback; False where it was dropped. Returns at once and never raises."""
        chars = _chars(entry)
        with self._changed:
            room = len(self._waiting) < self._most and (not self._waiting or self._chars + chars <= self._most_chars)
            if self._closing or not room:
                self._counts = replace(self._counts, dropped=self._counts.dropped + 1)
                return False
            self._waiting.append((entry, chars))
            self._chars += chars
            self._counts = replace(self._counts, taken=self._counts.taken + 1)
            if len(self._waiting) in (1, self._most // 2):  # what the thread waits for; others would wake it in vain
                self._changed.notify_all()
        return True

    @property
    def counts(self) -> TrafficCounts:
        """What became of the entries so far."""
        with self._changed:
            waiting = self._counts.taken - self._counts.written - self._counts.unwritable
            return replace(self._counts, waiting=waiting, withheld=self._redaction.withheld)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything taken so far is in the journal; False where that took too long."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            wanted = self._counts.taken
            return self._changed.wait_for(
                lambda: self._counts.written + self._counts.unwritable >= wanted, deadline - time.monotonic()
            )

    def close(self) -> None:
        """Write and roll what there is; twenty seconds at most. What cannot be written is dropped, counted and said."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        self._roller.end(_CLOSE_S)
        atexit.unregister(self.close)

    def _run(self) -> None:
        dropped = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closing, self._wait_s())
                closing = self._closing
                if self._waiting and not closing:  # a group of rows is synced together
                    self._changed.wait_for(lambda: self._closing or len(self._waiting) >= self._most // 2, _GROUP_S)
            wrote = self._write()
            if self._counts.dropped > dropped:
                dropped = self._counts.dropped
                self._say("more rows come in than can be kept")
            if closing:
                self._end(wrote)
                return
            if not wrote:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _RETRY_S)
            if self._segment is not None and time.monotonic() - self._segment_began >= self._roll_s:
                self._hand_over()

    def _wait_s(self) -> float:
        if self._segment is None:
            return self._roll_s
        return max(0.0, self._segment_began + self._roll_s - time.monotonic())

    def _write(self) -> bool:
        """Redact, encode and append what waits, in groups; False where the journal cannot be written."""
        while True:
            if not self._lines:
                self._lines.extend(self._encoded())
            if not self._lines:
                return True
            try:
                if self._segment is None:
                    self._segments += 1
                    self._segment = new_segment(self._place.journals, self._writer, self._segments)
                    self._segment_began = time.monotonic()
                self._segment.append(self._lines)
            except OSError as error:
                self._say(
                    f"the journal in {self._place.journals} cannot be written ({error.strerror}); rows wait in memory"
                )
                return False
            self._count(written=len(self._lines))
            self._lines.clear()
            if self._segment.rows >= self._roll_rows:
                self._hand_over()

    def _encoded(self) -> Iterator[bytes]:
        with self._changed:
            group = [self._waiting.popleft() for _ in range(min(_LINES_AT_ONCE, len(self._waiting)))]
        for entry, chars in group:
            try:
                line = encoded(self._redaction.entry(entry, self._salt))
            # A client's request may hold anything, and one that cannot be written must not end the log.
            except Exception as error:  # noqa: BLE001
                self._count(unwritable=1)
                self._say(f"a row cannot be written ({type(error).__name__}); it is left out")
            else:
                yield line
            with self._changed:
                self._chars -= chars

    def _hand_over(self) -> None:
        """The segment to the roller; the next row begins another."""
        if self._segment is not None:
            self._roller.add(self._segment)
            self._segment = None

    def _end(self, wrote: bool) -> None:
        self._hand_over()
        with self._changed:
            lost = 0 if wrote else len(self._waiting) + len(self._lines)
            self._counts = replace(self._counts, dropped=self._counts.dropped + lost)
            self._changed.notify_all()
        counts = self.counts
        if counts.dropped or counts.unwritable or counts.withheld:
            logger.warning("traffic log %s: %s", self._place, counts)

    def _count(self, *, written: int = 0, unwritable: int = 0) -> None:
        with self._changed:
            counts = self._counts
            self._counts = replace(counts, written=counts.written + written, unwritable=counts.unwritable + unwritable)
            self._changed.notify_all()

    def _say(self, what: str) -> None:
        """A warning with the counts, at most every half minute."""
        if time.monotonic() - self._said_at >= _SAY_EVERY_S:
            self._said_at = time.monotonic()
            logger.warning("traffic log: %s; %d rows dropped so far", what, self._counts.dropped)


def _chars(entry: Entry) -> int:
    """About how much memory an entry holds: the characters of its texts."""
    if not isinstance(entry, TrafficRow):
        return len(entry.answer or "")
    with contextlib.suppress(RecursionError):
        return _text_chars(entry.request) + sum(len(answer.text or "") for answer in entry.answers)
    return 1 << 20


def _text_chars(value: object) -> int:
    if isinstance(value, str):
        return len(value) + 50
    if isinstance(value, dict):
        return sum(map(_text_chars, value.values())) + 50
    return sum(map(_text_chars, value)) if isinstance(value, list | tuple) else 10
