"""What a folder has sent to which Langfuse: one line before and one after each request, so that nothing is sent twice.

Langfuse's trace store does not drop a span that it has already: sending one again makes a second one. So a span that was
acknowledged is never sent again, and one whose answer was lost is looked up first. A lost or half-written line costs a
look-up, never a duplicate. No key is written here: a Langfuse is named by a hash.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

FILE_NAME = "langfuse.jsonl"
Event = Literal["sent", "acknowledged", "refused"]


class DeliveryLog:
    """The requests of one folder to one Langfuse. Ids are span ids, or hashes of what else was sent."""

    def __init__(self, folder: str | Path, destination: str) -> None:
        self._path = Path(folder) / FILE_NAME
        self._destination = destination
        self.acknowledged: set[str] = set()
        self.in_doubt: dict[str, float] = {}
        for line in self._path.read_bytes().splitlines() if self._path.exists() else []:
            self._take(line)

    def note(self, event: Event, ids: Iterable[str]) -> None:
        """Write one line; after it, a process that dies leaves the truth behind."""
        line = {"to": self._destination, "at_s": round(time.time(), 3), "event": event, "ids": sorted(ids)}
        text = json.dumps(line).encode() + b"\n"
        with self._path.open("ab") as file:
            # A line that a kill has cut must not swallow this one.
            file.write(text if file.tell() == 0 or self._ends_whole() else b"\n" + text)
        self._apply(event, line["ids"], float(str(line["at_s"])))  # type: ignore[arg-type]

    def in_doubt_until_s(self, ids: Iterable[str], settle_s: float) -> float:
        """Until when (Unix seconds) a request that lost its answer may still come to light; 0 when none did."""
        return max((self.in_doubt[one] + settle_s for one in ids if one in self.in_doubt), default=0.0)

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            if found["to"] == self._destination:
                self._apply(found["event"], found["ids"], float(found["at_s"]))
        except (ValueError, KeyError, TypeError):
            return  # cut by a kill or a full disk

    def _apply(self, event: str, ids: Iterable[str], at_s: float) -> None:
        for one in ids:
            match event:
                case "sent":
                    self.in_doubt[one] = at_s
                case "acknowledged":
                    self.acknowledged.add(one)
                    self.in_doubt.pop(one, None)
                case "refused":
                    self.in_doubt.pop(one, None)
