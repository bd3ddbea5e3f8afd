"""What an evaluation looks like while it runs: one line per model, rewritten in place on a terminal.

Shows rows done, the deciding metric so far, its gap to the first model over the rows that both have answered (with its
two one-sided 95 % bounds), failures, calls tried again and turned away (429), calls in flight and rate (with what the endpoint allows, where that is
known), cost and time left. Off a terminal, or
when told to be plain, the same figures come as lines, one set per `PLAIN_EVERY_S`. Counting an answer costs the same
however many there are. It only shows: nothing that a report holds is made here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slm_ray.corpus.tracks import Track
from slm_ray.evaluation.standing import Gap, Standing
from slm_ray.types import Completion, RowScore

PLAIN_EVERY_S = 5.0
SHOWN_EVERY_S = 0.5
_COLUMNS = ("rows", "so far", "gap", "failed", "retried", "429", "in flight", "rate", "cost", "left")


class Board:
    """Figures in, table or lines out. A context manager: the terminal is given back however the run ends."""

    def __init__(
        self, track: Track, specs: Sequence[str], total: int, *, concurrency: int = 0, plain: bool = False,
        console: Console | None = None, clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`total` is how many questions each model is asked, repeats included; `concurrency` its calls in flight at most."""
        self._track = track
        self._concurrency = concurrency
        self._standings = {spec: Standing(total=total) for spec in specs}
        first = self._standings[specs[0]]
        self._gaps = {spec: Gap(standing, first) for spec, standing in self._standings.items() if standing is not first}
        self._console = console or Console(stderr=True)
        self._clock_s = clock_s
        self._started_s = self._printed_s = clock_s()
        self._live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal and not plain else None
        )

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

    def add(self, spec: str, score: RowScore | None, completion: Completion, *, fresh: bool) -> None:
        """Count one answer; `fresh` when it was asked for in this run, `score` None for a repeat, which counts as a row only."""
        standing = self._standings[spec]
        standing.count(completion, fresh=fresh)
        if score is not None and standing.note(score.example_id, score.value(self._track.primary)):
            for gap in self._gaps.values():
                gap.note(standing, score.example_id)

    def in_flight(self, spec: str, calls: int) -> None:
        """How many rows this model has been asked and has not answered."""
        self._standings[spec].in_flight = calls

    def speed(self, spec: str, in_flight: int, rate_per_s: float, turned_away: int) -> None:
        """What the endpoint lets this model do now: calls in flight and started per second; and its 429s so far."""
        standing = self._standings[spec]
        standing.limit = min(in_flight, self._concurrency)
        standing.limit_per_s, standing.turned_away = rate_per_s, turned_away

    def spent(self, spec: str, usd: float) -> None:
        """What this model has cost so far."""
        self._standings[spec].usd = usd

    def show(self, *, last: bool = False) -> None:
        """Rewrite the table or print the lines, when it is time or at the end."""
        every_s = SHOWN_EVERY_S if self._live else PLAIN_EVERY_S
        now_s = self._clock_s()
        if not last and now_s - self._printed_s < every_s:
            return
        self._printed_s = now_s
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
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
            table.add_row(Text(spec), *map(Text, self._cells(spec)))
        return table

    def _cells(self, spec: str) -> tuple[str, ...]:
        standing = self._standings[spec]
        rate = standing.fresh / max(self._clock_s() - self._started_s, 1e-9)
        left = standing.total - standing.done
        eta = "done" if not left else f"{left / rate:.0f} s" if rate else "?"
        mean = standing.mean
        return (
            f"{standing.done}/{standing.total}", "-" if mean is None else f"{mean:.3f}",
            self._gaps[spec].text() if spec in self._gaps else "-", str(standing.failed), str(standing.retried),
            standing.turned_away_text(), standing.in_flight_text(), standing.rate_text(rate),
            "-" if standing.usd is None else f"{standing.usd:.4f} USD", eta,
        )  # fmt: skip
