"""Another shell's view of a running evaluation: the same board, fed by the ledger alone.

Reads only (SQLite's WAL lets a reader in beside the writer), scores what it reads, and ends when the run does: when the
ledger says so, or when the process that wrote it is gone. What an endpoint allows, its 429s and the cost are those that the
run last noted, at most a second ago; a run from before there were such notes shows none. It asks nothing, locks nothing and
writes nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_ray.corpus.read import examples
from slm_ray.errors import DataError
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.run import LEDGER
from slm_ray.evaluation.speed import speed_of
from slm_ray.ledger import Entry, Ledger, Run, finished
from slm_ray.scoring import score
from slm_ray.storage import read_lines
from slm_ray.tasks import open_track

_LOOK_EVERY_S = 0.5


def follow(run_dir: str | Path, *, plain: bool = False, console: Console | None = None) -> str:
    """Show the run in `run_dir` until it ends; says how it ended: `done`, `stopped` or `gone`.

    A run that is over is shown once. DataError when none has begun there.
    """
    with Ledger(Path(run_dir) / LEDGER, read_only=True) as ledger:
        run = ledger.last_run()
        if run is None:
            raise DataError(f"{run_dir}: no run has begun here; start jobs/evaluate.py with this run_dir")
        watch = Watch(ledger, run)
        total = run.facts["rows"] * run.facts["repeats"]
        concurrency = run.facts.get("concurrency", 0)
        with Board(
            watch.track, run.facts["models"], total, concurrency=concurrency, plain=plain, console=console
        ) as board:
            while True:
                alive = _alive(run.facts)  # before reading: what is written last is read after it
                run = ledger.last_run() or run
                watch.read(board)
                show_speeds(run, board)
                board.show()
                if run.ended is not None or not alive:
                    return run.ended or "gone"
                time.sleep(_LOOK_EVERY_S)


class Watch:
    """What has been read of a ledger so far; every record is read once."""

    def __init__(self, ledger: Ledger, run: Run) -> None:
        self._ledger = ledger
        self._run = run
        where = run.facts["examples"]
        self.track = open_track(run.facts["track"], beside=where)
        self._references = {row.id: row.target for row in examples(read_lines(where), name=where, track=self.track)}
        self._planned = {row.key: row for row in ledger.planned(run.plan)}
        self._done: set[str] = set()
        self._in_flight: dict[str, str] = {}
        self._answer, self._start = 0, run.last_start
        self._first = True

    def read(self, board: Board) -> None:
        """Put on the board what came since the last time."""
        with self._ledger.snapshot():
            self._start, keys = self._ledger.started_since(self._start)
            self._in_flight |= {key: self._planned[key].spec for key in keys if key in self._planned}
            self._read(board, self._run.last_answer)
            self._read(board, None)
        self._first = False
        calls = Counter(self._in_flight.values())
        for spec in self._run.facts["models"]:
            board.in_flight(spec, calls[spec])

    def _read(self, board: Board, upto: int | None) -> None:
        entries = None
        while entries != []:
            self._answer, entries = self._ledger.since(self._answer, upto=upto)
            for entry in entries:
                self._add(board, entry, earlier=upto is not None)

    def _add(self, board: Board, entry: Entry, *, earlier: bool) -> None:
        row = self._planned.get(entry.key)
        if not earlier:
            self._in_flight.pop(entry.key, None)
        asked_again = earlier and not finished(entry.completion)  # a failed call of an earlier run is none of this one
        if row is None or entry.key in self._done or asked_again:
            return
        self._done.add(entry.key)
        scored = None
        if row.repeat == 0:
            scored = score(self.track, row.example_id, entry.completion.text, self._references[row.example_id])
        board.add(row.spec, scored, entry.completion, fresh=not self._first)


def show_speeds(run: Run, board: Board) -> None:
    """Put on the board what the run last noted of pace and cost."""
    for spec, plain in run.speeds.items():
        speed = speed_of(plain)
        board.speed(spec, speed.in_flight_limit, speed.rate_limit_per_s, speed.turned_away)
        if speed.usd is not None:
            board.spent(spec, speed.usd)


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
