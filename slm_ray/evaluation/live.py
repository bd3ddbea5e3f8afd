"""What an evaluation looks like while it runs: one line per model, rewritten in place on a terminal.

Shows rows done, the deciding metric so far, its gap to the first model over the rows that both have answered, failures,
rate and time left. Off a terminal the same figures come as plain lines, one set per `PLAIN_EVERY_S`. It only shows:
nothing that a report holds is made here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import summarise
from slm_ray.types import RowScore

PLAIN_EVERY_S = 5.0
_COLUMNS = ("rows", "so far", "gap", "failed", "rate", "left")


@dataclass(slots=True, kw_only=True)
class Standing:
    """The running figures of one model; the only record here that changes."""

    total: int
    rows: dict[str, RowScore] = field(default_factory=dict)
    failed: int = 0
    fresh: int = 0


class Board:
    """Figures in, table or lines out. A context manager: the terminal is given back however the run ends."""

    def __init__(
        self, track: Track, specs: Sequence[str], total: int,
        *, console: Console | None = None, clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._track = track
        self._standings = {spec: Standing(total=total) for spec in specs}
        self._console = console or Console(stderr=True)
        self._clock_s = clock_s
        self._started_s = self._printed_s = clock_s()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show(last=True)
        if self._live:
            self._live.stop()

    def add(self, spec: str, score: RowScore, *, failed: bool, fresh: bool) -> None:
        """Count one answer; `fresh` when it was asked for in this run."""
        standing = self._standings[spec]
        standing.rows[score.example_id] = score
        standing.failed += failed
        standing.fresh += fresh

    def show(self, *, last: bool = False) -> None:
        """Rewrite the table; off a terminal, print when it is time or at the end."""
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif last or self._clock_s() - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = self._clock_s()
            for line in self.lines():
                self._console.print(Text(line), soft_wrap=True)  # `served:m:` is no emoji

    def lines(self) -> list[str]:
        """One plain line per model."""
        return [
            f"{spec}: " + ", ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS, self._cells(spec), strict=True))
            for spec in self._standings
        ]

    def _table(self) -> Table:
        table = Table("model", *_COLUMNS, title=f"{self._track.name}: {self._track.primary}")
        for spec in self._standings:
            table.add_row(Text(spec), *self._cells(spec))
        return table

    def _cells(self, spec: str) -> tuple[str, ...]:
        standing = self._standings[spec]
        rate = standing.fresh / max(self._clock_s() - self._started_s, 1e-9)
        left = standing.total - len(standing.rows)
        eta = "done" if not left else f"{left / rate:.0f} s" if rate else "?"
        value = self._metric(list(standing.rows.values()))
        return (
            f"{len(standing.rows)}/{standing.total}", "-" if value is None else f"{value:.3f}", self._gap(spec),
            str(standing.failed), f"{rate:.1f}/s" if standing.fresh else "-", eta,
        )  # fmt: skip

    def _gap(self, spec: str) -> str:
        first = next(iter(self._standings))
        ours, theirs = self._standings[spec].rows, self._standings[first].rows
        both = [example_id for example_id in ours if example_id in theirs]
        if spec == first or not both:
            return "-"
        mine, other = self._metric([ours[row] for row in both]), self._metric([theirs[row] for row in both])
        return "-" if mine is None or other is None else f"{mine - other:+.3f}"

    def _metric(self, rows: Sequence[RowScore]) -> float | None:
        return summarise(self._track, rows)[self._track.primary] if rows else None
