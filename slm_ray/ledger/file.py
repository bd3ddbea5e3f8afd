"""Every question a run has asked and every answer it has paid for, on disk before it is counted: the truth of the run.

A row's life is planned, started (written before the row is asked), and then exactly one outcome: ok, refused,
truncated, invalid or error. A start without an answer is *ambiguous*: the call may have been billed, nobody heard. All of
it is append-only SQLite (WAL, synchronous=FULL): a record is there after a crash or a power cut, or was never there. A
finished answer is kept for ever and never asked again; an error stays as history and gives way to a later answer. One
writer at a time (the run directory's lock sees to that), any number of readers. Holds no secrets: prompts enter a key
only as a hash. Files of the first layout are refused: their keys did not hold the repeat.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slm_ray.errors import DataError
from slm_ray.ledger.database import Database
from slm_ray.ledger.journal import Answer, given_up, parts
from slm_ray.ledger.records import ENTRY, Entry, Planned, Run, entry_of, finished, text_of
from slm_ray.types import Completion

_ACTORS_END_S = 30.0
_NOTE = "INSERT INTO runs (plan, event, at_ns, facts) VALUES (?, ?, ?, ?)"
_READ_AT_ONCE = 500


class Ledger(Database):
    """The life of every row of one run directory."""

    def plan(self, plan: str, rows: Iterable[Planned]) -> None:
        """Note the questions of a plan; one that is known already is not written again."""
        if self.all("SELECT 1 FROM planned WHERE plan = ? LIMIT 1", plan):
            return
        with self.transaction():
            self.db.executemany(
                "INSERT INTO planned (plan, key, spec, example_id, repeat) VALUES (?, ?, ?, ?, ?)",
                ((plan, row.key, row.spec, row.example_id, row.repeat) for row in rows),
            )

    def begin(self, plan: str, facts: Mapping[str, Any]) -> None:
        """Note that a run of a plan begins."""
        last = [self.all(f"SELECT coalesce(max(seq), 0) FROM {table}")[0][0] for table in ("started", "answers")]
        self._note(plan, "begin", {"facts": facts, "last": last})

    def note_speeds(self, plan: str, speeds: Mapping[str, Any]) -> None:
        """Note how fast the run is allowed to ask at the moment, for those who watch it; `last_run` gives the last note."""
        self._note(plan, "speeds", speeds)

    def end(self, plan: str, how: str) -> None:
        """Note that the run is over, and how."""
        self._note(plan, "end", {"ended": how})

    def last_run(self) -> Run | None:
        """The run that began last."""
        rows = self.all("SELECT seq, plan, facts FROM runs WHERE event = 'begin' ORDER BY seq DESC LIMIT 1")
        if not rows:
            return None
        seq, plan, noted = rows[0]
        begin = json.loads(noted)
        last = "SELECT facts FROM runs WHERE event = ? AND seq > ? ORDER BY seq DESC LIMIT 1"
        ends, speeds = (self.all(last, event, seq) for event in ("end", "speeds"))
        return Run(
            plan=plan, facts=begin["facts"], last_start=begin["last"][0], last_answer=begin["last"][1],
            ended=json.loads(ends[0][0])["ended"] if ends else None,
            speeds=json.loads(speeds[0][0]) if speeds else {},
        )  # fmt: skip

    def planned(self, plan: str) -> list[Planned]:
        """The questions of a plan, in no particular order."""
        rows = self.all("SELECT key, spec, example_id, repeat FROM planned WHERE plan = ?", plan)
        return [Planned(key=row[0], spec=row[1], example_id=row[2], repeat=row[3]) for row in rows]

    def get(self, key: str) -> Completion | None:
        """The finished answer under `key`, else the last failed attempt, else None."""
        entry = self.entry(key)
        return entry.completion if entry else None

    def entry(self, key: str) -> Entry | None:
        """As `get`, with the row it belongs to and the time it arrived."""
        rows = self.all(f"SELECT {ENTRY} FROM answers WHERE key = ? ORDER BY finished DESC, seq DESC LIMIT 1", key)
        return entry_of(rows[0]) if rows else None

    def entries(self, keys: Iterable[str]) -> Iterator[Entry | None]:
        """As `entry`, for each of the keys in their order; a few hundred are read at a time, and held until they are taken."""
        left = iter(keys)
        while part := list(itertools.islice(left, _READ_AT_ONCE)):
            marks = ", ".join("?" * len(part))
            query = f"SELECT {ENTRY} FROM answers WHERE key IN ({marks}) ORDER BY finished, seq"
            found = {row[0]: row for row in self.all(query, *part)}  # the best of a key comes last
            yield from (entry_of(found[key]) if key in found else None for key in part)

    def since(self, seq: int, *, upto: int | None = None) -> tuple[int, list[Entry]]:
        """The answers noted after `seq` (and not after `upto`), oldest first, at most a thousand; and the last's number."""
        last = upto if upto is not None else 2**62
        query = f"SELECT {ENTRY}, seq FROM answers WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT 1000"
        rows = self.all(query, seq, last)
        return (rows[-1][-1] if rows else seq), [entry_of(row) for row in rows]

    def started_since(self, seq: int) -> tuple[int, list[str]]:
        """The keys started after `seq`, oldest first, and the last one's number."""
        rows = self.all("SELECT key, seq FROM started WHERE seq > ? ORDER BY seq", seq)
        return (rows[-1][1] if rows else seq), [row[0] for row in rows]

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Whatever is read in the block is of one moment."""
        with self.said():
            self.db.execute("BEGIN")
        try:
            yield
        finally:
            with self.said():
                self.db.execute("COMMIT")

    def history(self, plan: str) -> Iterator[Entry]:
        """Every answer to a question of the plan, failed ones that were asked again included; by key, the oldest first."""
        columns = ", ".join(f"a.{name.strip()}" for name in ENTRY.split(","))
        query = (
            f"SELECT {columns} FROM answers a JOIN planned p ON p.key = a.key WHERE p.plan = ? "
            "ORDER BY p.key, a.answered_ns, a.seq"
        )
        with self.said():
            yield from map(entry_of, self.db.execute(query, (plan,)))

    def unanswered(self, plan: str) -> dict[str, int]:
        """Starts without an answer, by key: in flight while a run is at it, ambiguous once it is over."""
        rows = self.all(
            "SELECT s.key, count(*) - (SELECT count(*) FROM answers a WHERE a.key = s.key) AS open "
            "FROM started s JOIN planned p ON p.key = s.key WHERE p.plan = ? GROUP BY s.key HAVING open > 0", plan
        )  # fmt: skip
        return dict(rows)

    def starts(self, key: str) -> int:
        """How often a row was started."""
        return int(self.all("SELECT count(*) FROM started WHERE key = ?", key)[0][0])

    def put(self, key: str, spec: str, example_id: str, completion: Completion) -> None:
        """Append one answer; on disk when this returns. A second finished answer under one key changes nothing."""
        self.put_all(
            [Entry(key=key, spec=spec, example_id=example_id, completion=completion, answered_ns=time.time_ns())]
        )

    def put_all(
        self, entries: Iterable[Entry], *, starts: Iterable[str] = (), journals: Mapping[str, int] | None = None
    ) -> None:
        """Append answers, and the keys about to be asked, in one transaction: all is on disk when this returns, or none.

        `journals` says, by file name, up to which byte of an actor's journal that brings the ledger. ResourceError when
        the disk is full.
        """
        answered = [
            (e.key, e.spec, e.example_id, e.repeat, int(finished(e.completion)), e.answered_ns, text_of(e.completion))
            for e in entries
        ]
        now_ns = time.time_ns()
        started = [(key, now_ns) for key in starts]
        if not answered and not started and not journals:
            return
        with self.transaction():
            self.db.executemany(
                "INSERT INTO answers (key, spec, example_id, repeat, finished, answered_ns, completion) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", answered
            )  # fmt: skip
            self.db.executemany("INSERT INTO started (key, started_ns) VALUES (?, ?)", started)
            for name, upto in (journals or {}).items():
                self.db.execute(_NOTE, (name, "journal", now_ns, json.dumps({"upto": upto})))

    def take_in(self, journal: Path) -> None:
        """Append what a journal, whose actor is gone, holds beyond what was taken in; the file can be removed then."""
        noted = self.all(
            "SELECT facts FROM runs WHERE event = 'journal' AND plan = ? ORDER BY seq DESC LIMIT 1", journal.name
        )
        plans = json.dumps([row[0] for row in self.all("SELECT DISTINCT plan FROM runs WHERE event = 'begin'")])
        for part in parts(journal, json.loads(noted[0][0])["upto"] if noted else 0):
            entries = [self._entry_of(answer, plans, journal) for answer in part.answers]
            self.put_all(entries, starts=part.begun, journals={journal.name: part.upto})

    def _entry_of(self, answer: Answer, plans: str, journal: Path) -> Entry:
        found = self.all(
            "SELECT spec, example_id, repeat FROM planned "
            "WHERE key = ? AND plan IN (SELECT value FROM json_each(?)) LIMIT 1", answer.key, plans
        )  # fmt: skip
        if not found:
            raise DataError(
                f"{journal} holds an answer to a question (key {answer.key}) that no run in {self._path} has planned; put "
                "the ledger that it belongs to back, or remove both to begin anew"
            )
        spec, example_id, repeat = found[0]
        return Entry(
            key=answer.key, spec=spec, example_id=example_id, repeat=repeat, completion=answer.completion,
            answered_ns=answer.answered_ns,
        )  # fmt: skip

    def count(self) -> int:
        """How many finished answers there are."""
        return int(self.all("SELECT count(*) FROM answers WHERE finished = 1")[0][0])

    def _note(self, plan: str, event: str, facts: Mapping[str, Any]) -> None:
        with self.transaction():
            self.db.execute(_NOTE, (plan, event, time.time_ns(), json.dumps(facts, ensure_ascii=False)))


def bring_in(folder: Path, ledger: Ledger) -> None:
    """Enter in the ledger what actors have written that nobody heard of, and clear their folder away.

    Waits for actors of a run that was killed, which Ray ends; ResourceError when one goes on.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.jsonl")):
        with given_up(path, wait_s=_ACTORS_END_S):
            ledger.take_in(path)
            with contextlib.suppress(OSError):  # it is all in the ledger, and is not taken in again
                path.unlink()
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not path.suffix:
                path.unlink()  # what a run knew its folder by
        folder.rmdir()
