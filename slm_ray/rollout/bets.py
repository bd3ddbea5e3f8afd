"""What a route's watch has written down, read back: its two bets, and how the lines of a long file become few.

A line is one of five: `start` (what the watch is about), an audited request with its `score` (how far the SLM agreed with
the LLM), one with its `label` (the SLM's score minus the LLM's, by an expected answer), `alarm`, and `so_far`, which stands
for all requests between its `start` and itself. A request that comes after the alarm counts for nothing. Pure: reads and
writes no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from slm_ray.errors import DataError
from slm_ray.verdict.watch import Watch

MOST_DISAGREEMENTS = 1_000  # the latest of a watch
MOST_WATCHES = 8  # that a shortened file keeps

Row = Mapping[str, Any]


class Bets:
    """One watch of a route: the bet on the agreement with the LLM and the bet on expected answers.

    `key` says what it is about. `agreement` is None where no verdict's rows say how often both agree. `rang` is which of the
    two an alarm was written down of.
    """

    def __init__(self, key: Row, *, at: float, serial: int) -> None:
        self.key, self.at, self.serial = key, at, serial
        self.agreement = None if key["reference"] is None else Watch(**_agreement(key))
        self.labels = Watch(level=key["label_level"], delta=key["delta"])
        self.rang: Literal["agreement", "labels"] | None = None
        self._alarmed_at: float | None = None
        self.disagreed: deque[dict[str, Any]] = deque(maxlen=MOST_DISAGREEMENTS)

    @property
    def alarm(self) -> Literal["agreement", "labels"] | None:
        """Which of the two has shown the SLM to be worse."""
        if self.agreement is not None and self.agreement.alarm:
            return "agreement"
        return "labels" if self.labels.alarm else None

    @property
    def observations(self) -> int:
        """Requests that were counted, by either."""
        return self.labels.rows + (0 if self.agreement is None else self.agreement.rows)

    def take(self, row: Row) -> None:
        """A line that is no `start`; KeyError, TypeError or ValueError, and nothing counted, for what no watch wrote."""
        if "so_far" in row:
            saved = row["so_far"]
            if self.agreement is not None:
                self.agreement = Watch.restored(saved["agreement"], **_agreement(self.key))
            self.labels = Watch.restored(saved["labels"], level=self.key["label_level"], delta=self.key["delta"])
            self.disagreed.extend(dict(one) for one in saved["disagreed"])
        elif "alarm" in row:
            self.rang, self._alarmed_at = row["by"], row["at"]
        elif "label" in row:
            if self.alarm is None:
                self.labels.add(row["label"])
                self._note(row, "label", worst=row["label"] < 0)
        elif self.agreement is not None and self.alarm is None:
            self.agreement.add(row["score"] - 1.0)
            self._note(row, "score", worst=row["score"] < 1)

    def lines(self) -> list[dict[str, Any]]:
        """The few lines that say the same."""
        saved = {
            "agreement": None if self.agreement is None else self.agreement.saved, "labels": self.labels.saved,
            "disagreed": list(self.disagreed),
        }  # fmt: skip
        found: list[dict[str, Any]] = [
            {"start": self.key, "at": self.at, "serial": self.serial},
            {"so_far": saved, "at": self.at, "serial": self.serial},
        ]
        if self.rang is not None:
            found.append({"alarm": self.observations, "by": self.rang, "at": self._alarmed_at, "serial": self.serial})
        return found

    def _note(self, row: Row, what: str, *, worst: bool) -> None:
        if worst:
            self.disagreed.append({name: row[name] for name in ("id", "at", "serial", what)})


def _agreement(key: Row) -> dict[str, Any]:
    return {"level": key["level"], "delta": key["delta"], "reference": key["reference"]}


def read_bets(rows: Iterable[tuple[int, Row]], *, path: object) -> tuple[list[Bets], int]:
    """Every watch in the lines, the oldest first, and the newest state that a request was asked under.

    DataError with file and line for what no watch wrote.
    """
    found: list[Bets] = []
    latest = 0
    for number, row in rows:
        try:
            latest = max(latest, row["serial"])
            if "start" in row:
                found.append(Bets(row["start"], at=row["at"], serial=row["serial"]))
            elif found:
                found[-1].take(row)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}:{number}: no line of a watch ({error!r}); mend the line or remove it") from None
    return found, latest
