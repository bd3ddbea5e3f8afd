"""What an evaluation looks like while it runs: one line per model, rewritten in place on a terminal, fed by the log alone.

Shows rows done, the primary metric so far, its paired difference to the first model over the rows that both have answered,
failures, calls tried again and rejected (429), calls in flight and rate (with what the endpoint allows, where that is
known), cost and time left. The difference has bounds only under the sequential rule, whose bounds hold however often one
looks, over the rows that it has looked at; an interval for one look would make people stop when it suits. Off a terminal, or with TERM=dumb, the same figures come as lines,
one set per `PLAIN_EVERY_S`. Counting an answer costs the same however many there are. The run itself and `watch`, in
another shell, see the same: whoever reads the log asks nothing, locks nothing and writes nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slm_ray.corpus.tracks import Track
from slm_ray.evaluation.stopping import SequentialSettings, Stopping
from slm_ray.reports.encoding import decode
from slm_ray.runlog import PlannedRequest, Response, RunLog, finished
from slm_ray.scoring import score
from slm_ray.tasks import open_dataset
from slm_ray.types import Completion, SequentialResult
from slm_ray.verdict.sequential import rows_at_this_pace

PLAIN_EVERY_S = 5.0
SHOWN_EVERY_S = 0.5
_COLUMNS = ("rows", "so far", "difference", "failed", "retried", "429", "in flight", "rate", "cost", "left")


@dataclass(slots=True, kw_only=True, eq=False)
class RunningStats:
    """One model so far: requests done of `total`, the primary metric of each row that has one, and by how much it is
    above the first model's, in all, over the `paired` rows that both have."""

    total: int
    done: int = 0
    failed: int = 0
    retried: int = 0
    fresh: int = 0
    in_flight: int = 0
    usd: float | None = None
    limit: int | None = None
    limit_per_s: float | None = None
    rejections: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    sum: float = 0.0
    paired: int = 0
    above: float = 0.0

    def count(self, completion: Completion, *, fresh: bool) -> None:
        """One more request is done; `fresh` when it was asked in this run."""
        self.done += 1
        self.failed += completion.failure is not None
        self.retried += completion.attempts - 1
        self.fresh += fresh

    def cells(self, difference: str, elapsed_s: float, *, is_over: bool = False) -> tuple[str, ...]:
        """The figures as text, in the order of `_COLUMNS`; `is_over` where what is left will not be asked."""
        rate = self.fresh / max(elapsed_s, 1e-9)
        left = self.total - self.done
        shown = f"{rate:.1f}/s" if self.fresh else "-"
        return (
            f"{self.done}/{self.total}", f"{self.sum / len(self.values):.3f}" if self.values else "-", difference,
            str(self.failed), str(self.retried), "-" if self.rejections is None else str(self.rejections),
            f"{self.in_flight}" if self.limit is None else f"{self.in_flight}/{self.limit}",
            shown if self.limit_per_s is None else f"{shown} (limit {self.limit_per_s:.1f}/s)",
            "-" if self.usd is None else f"{self.usd:.4f} USD",
            "done" if is_over or not left else f"{left / rate:.0f} s" if rate else "?",
        )  # fmt: skip


def looked(seen: SequentialResult) -> str:
    """What the sequential rule has seen, as it is shown: the confidence sequence, and the decision once there is one, or
    about when it is due."""
    if not seen.rows:
        return "-"
    bounds = seen.interval
    shown = f"{bounds.estimate:+.3f} [{bounds.lower:+.3f}, {bounds.upper:+.3f}] over {seen.rows} rows"
    if seen.action is not None:
        return f"decided at row {seen.decided_at}: {seen.action} ({shown})"
    due = rows_at_this_pace(seen)
    return shown if due is None else f"{shown}, decided at about row {due:,} at this pace"


class ProgressDisplay:
    """Figures in, table or lines out. A context manager: the terminal is given back however the run ends."""

    def __init__(
        self, track: Track, specs: Sequence[str], total: int, *, concurrency: int = 0,
        console: Console | None = None, clock_s: Callable[[], float] = time.monotonic, stopping: Stopping | None = None,
    ) -> None:  # fmt: skip
        """`total` is how many requests each model gets, repeats included; `concurrency` its calls in flight at most.
        `stopping` is the sequential rule, which whoever adds answers feeds."""
        self.track = track
        self.stopping = stopping
        self.concurrency = concurrency
        self.stats = {spec: RunningStats(total=total) for spec in specs}
        self._first = self.stats[specs[0]]
        self._console = console or Console(stderr=True)
        self._clock_s = clock_s
        self._started_s = self._printed_s = clock_s()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_interactive else None

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show(last=True)
        if self._live:
            self._live.stop()

    def add(self, spec: str, completion: Completion, *, example_id: str, primary: float | None, fresh: bool) -> None:
        """Count one answer; `primary` is the row's primary metric, None where it has none or for a repeat."""
        stats = self.stats[spec]
        stats.count(completion, fresh=fresh)
        if primary is not None:
            stats.values[example_id] = primary
            stats.sum += primary
            for other in self.stats.values() if stats is self._first else (stats,):
                if other is not self._first and example_id in other.values and example_id in self._first.values:
                    other.paired += 1
                    other.above += other.values[example_id] - self._first.values[example_id]

    def show(self, *, last: bool = False) -> None:
        """Rewrite the table or print the lines, when it is time or at the end."""
        now_s = self._clock_s()
        if not last and now_s - self._printed_s < (SHOWN_EVERY_S if self._live else PLAIN_EVERY_S):
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
            for spec in self.stats
        ]

    def _table(self) -> Table:
        table = Table("model", *_COLUMNS, title=f"{self.track.name}: {self.track.primary}")
        for spec in self.stats:
            table.add_row(Text(spec), *map(Text, self._cells(spec)))
        return table

    def _cells(self, spec: str) -> tuple[str, ...]:
        results = self.stopping.results if self.stopping else {}
        stats, difference = self.stats[spec], "-"
        if spec in results:
            difference = looked(results[spec])
        elif stats.paired:
            difference = f"{stats.above / stats.paired:+.3f} (no bound until the end)"
        is_over = self.stopping is not None and self.stopping.ahead is not None and not self.stopping.is_needed(spec)
        return stats.cells(difference, self._clock_s() - self._started_s, is_over=is_over)


class LogFeed:
    """Puts on a display what a log says of one plan; every record is read once."""

    def __init__(
        self, log: RunLog, display: ProgressDisplay, planned: Iterable[PlannedRequest], targets: Mapping[str, str]
    ) -> None:
        """`targets` are the expected answers by example id. What has been read of the log by now is from earlier runs."""
        self._log = log
        self._display = display
        self._targets = targets
        self._planned = {request.key: request for request in planned}
        self._in_flight: dict[str, str] = {}
        for request in self._planned.values():
            if log.is_finished(request.key) and (response := log.response(request.key)):
                self._add(response, fresh=False)

    def read(self, *, fresh: bool = True) -> None:
        """Show what came since the last time; `fresh` when that is new and not only new to this reader."""
        for record, of_this_run in self._log.refresh():
            if isinstance(record, str) and of_this_run and record in self._planned:
                self._in_flight[record] = self._planned[record].spec
            elif isinstance(record, Response) and record.key in self._planned:
                if of_this_run:
                    self._in_flight.pop(record.key, None)
                if of_this_run or finished(record.completion):  # a failed call of an earlier run is asked again
                    self._add(record, fresh=fresh and of_this_run)
        calls = Counter(self._in_flight.values())
        for spec, stats in self._display.stats.items():
            stats.in_flight = calls[spec]
            self._throttle(spec, stats)
        self._display.show()

    def _add(self, response: Response, *, fresh: bool) -> None:
        primary, track = None, self._display.track
        if response.repeat == 0:
            row = score(track, response.example_id, response.completion.text, self._targets[response.example_id])
            primary = row.value(track.primary)
            if self._display.stopping is not None:
                self._display.stopping.add(response.spec, response.example_id, response.completion, row)
        self._display.add(
            response.spec, response.completion, example_id=response.example_id, primary=primary, fresh=fresh
        )

    def _throttle(self, spec: str, stats: RunningStats) -> None:
        """What the shards last noted of pace and cost."""
        noted: list[Mapping[str, Any]] = [
            arms[spec] for arms in (self._log.run.throttle.values() if self._log.run else ()) if spec in arms
        ]
        if not noted:
            return
        rates = [one["rate_limit_per_s"] for one in noted]
        stats.limit = min(sum(one["in_flight_limit"] for one in noted), self._display.concurrency)
        stats.limit_per_s = None if None in rates else sum(rates)
        stats.rejections = sum(one["rejections"] for one in noted)
        costs = [one["usd"] for one in noted if one["usd"] is not None]
        stats.usd = sum(costs) if costs else None


def watch(run_dir: str | Path, *, console: Console | None = None) -> str:
    """Show the run in `run_dir` until it ends; says how it ended: `done`, `stopped` or `gone`.

    A run that is over is shown once. DataError when none has begun there.
    """
    with contextlib.closing(RunLog(run_dir)) as log:
        facts = log.begun().facts
        planned = log.planned()
        dataset = open_dataset(facts["examples"], facts["track"])
        further = [open_dataset(path, facts["track"]) for path in facts["extend"]]
        rows = {row.id: row for one in (dataset, *further) for row in one.examples}
        stopping = None
        if facts["sequential"] is not None:
            order = dict.fromkeys(request.example_id for request in planned)
            settings = decode(
                facts["sequential"], SequentialSettings, where=str(log.folder), fix="run the evaluation's command again"
            )
            ahead = facts["concurrency"] if facts["stops"] else None
            stopping = Stopping(dataset.track, [rows[example_id] for example_id in order], settings, ahead)
        with ProgressDisplay(
            dataset.track, facts["models"], facts["rows"] * facts["repeats"], concurrency=facts["concurrency"],
            console=console, stopping=stopping,
        ) as display:  # fmt: skip
            feed = LogFeed(log, display, planned, {key: row.target for key, row in rows.items()})
            caught_up = False
            while True:
                alive = _alive(facts)  # before reading: what is written last is read after it
                feed.read(fresh=caught_up)
                caught_up = True
                if log.begun().ended is not None or not alive:
                    return log.begun().ended or "gone"
                time.sleep(SHOWN_EVERY_S)


def _alive(facts: Mapping[str, Any]) -> bool:
    """Whether the process that runs the evaluation is there; of another host's nothing can be said."""
    if facts["host"] != socket.gethostname():
        return True
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
