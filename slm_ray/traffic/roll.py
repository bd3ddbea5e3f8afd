"""From journals to Parquet parts, in a thread of its own: a store may take minutes to say no, and the journal goes on meanwhile.

Rolls full segments and those that dead writers left, and deletes the days that are over. What fails is said and tried again;
the rows stay in the journal until their part is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from slm_ray.traffic.journal import Segment, abandoned, entries_of
from slm_ray.traffic.parts import by_day, fits, part_bytes
from slm_ray.traffic.place import Place, RemotePlace, day_name
from slm_ray.traffic.record import Entry

_RETRY_S = 5.0


class Roller:
    """Takes segments over and ends when told to, with what it could not roll left in the journal."""

    def __init__(
        self, place: Place | RemotePlace, *, keep_days: int | None, every_s: float, say: Callable[[str], None]
    ) -> None:
        self._place, self._keep_days, self._every_s, self._say = place, keep_days, every_s, say
        self._changed = threading.Condition()
        self._segments: list[Segment] = []
        self._ending = False
        self._tidied: date | None = None
        self._thread = threading.Thread(target=self._run, name="traffic-roll", daemon=True)
        self._thread.start()

    def add(self, segment: Segment) -> None:
        """Roll this one, which is the roller's from now on."""
        with self._changed:
            self._segments.append(segment)
            self._changed.notify_all()

    def end(self, timeout_s: float) -> None:
        """Roll what there is once more and end; whatever takes longer is left to the next writer."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        rolled = self._round()
        while True:
            with self._changed:
                if rolled:
                    self._changed.wait_for(lambda: bool(self._segments) or self._ending, self._every_s)
                else:
                    self._changed.wait_for(lambda: self._ending, _RETRY_S)
                ending = self._ending
            rolled = self._round()
            if ending:
                for segment in self._segments:
                    segment.close()
                return

    def _round(self) -> bool:
        """Whether everything was rolled and deleted that is to be."""
        try:
            for segment in abandoned(self._place.journals):
                self.add(segment)
            while self._segments:
                self._roll(self._segments[0])
                with self._changed:
                    self._segments.pop(0)
            self._delete_old_days()
        # Of a store anything may come; the rows are safe in the journal, and the next round tries again.
        except Exception as error:  # noqa: BLE001
            self._say(f"{self._place} takes no parts ({error}); rows stay in the journal {self._place.journals}")
            return False
        return True

    def _roll(self, segment: Segment) -> None:
        found = [entry for _, entry in entries_of(segment.path)]
        entries: list[Entry] = [entry for entry in found if not isinstance(entry, ValueError)]
        if len(entries) < len(found):
            self._say(f"{segment.path}: {len(found) - len(entries)} damaged lines are left out")
        for day, rows in by_day(entries).items():
            if not self._is_over(day):
                self._place.put(f"{day_name(day)}/part-{segment.name}.parquet", self._part(rows, segment))
        segment.delete()

    def _part(self, rows: list[Entry], segment: Segment) -> bytes:
        """The part of the rows that fit; one that does not must not keep the others in the journal for ever."""
        try:
            return part_bytes(rows)
        except (OverflowError, ValueError, TypeError):
            fitting = [row for row in rows if fits(row)]
            self._say(f"{segment.path}: {len(rows) - len(fitting)} rows fit into no part and are left out")
            return part_bytes(fitting)

    def _delete_old_days(self) -> None:
        today = datetime.now(UTC).date()
        if self._keep_days is None or self._tidied == today:
            return
        for day in self._place.days():
            if self._is_over(day):
                self._place.delete_day(day)
        self._tidied = today

    def _is_over(self, day: date) -> bool:
        return self._keep_days is not None and day < datetime.now(UTC).date() - timedelta(days=self._keep_days)
