"""Every answer a run has paid for, on disk before it is counted: the truth that reports and traces are made from.

An append-only SQLite table (WAL, synchronous=FULL): a row is there after a crash or a power cut, or was never there. A
finished answer is kept for ever and never asked again; an attempt that ended in an error stays as history and gives way
to a later answer. One writer at a time (the run directory's lock sees to that). Holds no secrets: prompts enter a key
only as a hash.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm_ray.errors import DataError
from slm_ray.types import Completion, Failure, Usage

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    spec TEXT NOT NULL,
    example_id TEXT NOT NULL,
    finished INTEGER NOT NULL,
    answered_ns INTEGER NOT NULL,
    completion TEXT NOT NULL
);
CREATE UNIQUE INDEX finished_once ON answers (key) WHERE finished = 1;
CREATE INDEX by_key ON answers (key);
CREATE TRIGGER no_update BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer to keep, under its key; `answered_ns` is the wall time at which it arrived."""

    key: str
    spec: str
    example_id: str
    completion: Completion
    answered_ns: int


def key(data_digest: str, example_id: str, identity: str, request: Mapping[str, Any]) -> str:
    """What makes two calls the same call: SHA-256 over the data, the row, the model and the body that is sent."""
    parts = [data_digest, example_id, identity, request]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def finished(completion: Completion) -> bool:
    """True when asking again cannot help: an answer, a refusal, a cut or unusable answer; False for a failed call."""
    return completion.failure is None or completion.failure.kind != "error"


class Ledger:
    """The answers of one run directory. Use as a context manager or `close()` it."""

    def __init__(self, path: str | Path) -> None:
        """Open or create; DataError when the file is not a ledger or is damaged."""
        self._path = str(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=1.0)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"layout {version}, this program writes {_VERSION}")
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> Completion | None:
        """The finished answer under `key`, else the last failed attempt, else None."""
        entry = self.entry(key)
        return entry.completion if entry else None

    def entry(self, key: str) -> Entry | None:
        """As `get`, with the row it belongs to and the time it arrived."""
        row = self._read(
            "SELECT key, spec, example_id, completion, answered_ns FROM answers WHERE key = ? "
            "ORDER BY finished DESC, seq DESC LIMIT 1", (key,)
        )  # fmt: skip
        if row is None:
            return None
        completion = _completion(json.loads(row[3]))
        return Entry(key=row[0], spec=row[1], example_id=row[2], completion=completion, answered_ns=row[4])

    def since(self, seq: int) -> tuple[int, list[Entry]]:
        """The answers noted after `seq`, oldest first, at most a thousand, and the last one's number."""
        try:
            rows = self._db.execute(
                "SELECT key, spec, example_id, completion, answered_ns, seq FROM answers WHERE seq > ? ORDER BY seq "
                "LIMIT 1000", (seq,)
            ).fetchall()  # fmt: skip
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        entries = [
            Entry(
                key=row[0], spec=row[1], example_id=row[2], completion=_completion(json.loads(row[3])),
                answered_ns=row[4],
            )
            for row in rows
        ]  # fmt: skip
        return (rows[-1][-1] if rows else seq), entries

    def put(self, key: str, spec: str, example_id: str, completion: Completion) -> None:
        """Append one answer; on disk when this returns. A second finished answer under one key changes nothing."""
        self.put_all(
            [Entry(key=key, spec=spec, example_id=example_id, completion=completion, answered_ns=time.time_ns())]
        )

    def put_all(self, entries: Iterable[Entry]) -> None:
        """Append several answers in one transaction: all of them are on disk when this returns, or none."""
        rows = [
            (e.key, e.spec, e.example_id, int(finished(e.completion)), e.answered_ns, _text(e.completion))
            for e in entries
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO answers (key, spec, example_id, finished, answered_ns, completion) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            )  # fmt: skip
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._unusable(error) from None

    def count(self) -> int:
        """How many finished answers there are."""
        row = self._read("SELECT count(*) FROM answers WHERE finished = 1", ())
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        self._db.close()

    def _read(self, query: str, values: tuple[str, ...]) -> Any:
        try:
            return self._db.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> DataError:
        return DataError(f"{self._path}: cannot be used as a ledger ({error}); move it away or choose another run_dir")


def _text(completion: Completion) -> str:
    return json.dumps(asdict(completion), ensure_ascii=False, allow_nan=False)


def _completion(fields: dict[str, Any]) -> Completion:
    failure, usage = fields.pop("failure"), fields.pop("usage")
    return Completion(
        **fields, failure=Failure(**failure) if failure else None, usage=Usage(**usage) if usage else None
    )
