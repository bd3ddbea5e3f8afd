"""The SQLite file under a ledger: opened, read and written with errors that say what to do."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from slm_ray.errors import DataError, ResourceError, SlmRayError
from slm_ray.ledger.schema import SCHEMA, VERSION

_FULL = ("full", "disk I/O", "unable to open")


class Database:
    """One open file. Use as a context manager or `close()` it."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Open or create; DataError when the file is not a ledger, is damaged or, with `read_only`, is not there."""
        self._path = str(path)
        if read_only and not Path(path).is_file():
            raise DataError(f"{path}: there is no ledger; give the folder of an evaluation that has begun")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        where = f"{Path(path).absolute().as_uri()}?mode=ro" if read_only else self._path
        try:
            self.db = sqlite3.connect(where, isolation_level=None, timeout=1.0, uri=read_only)
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        try:
            self._prepare(read_only)
        except sqlite3.Error as error:
            self.db.close()
            raise self._unusable(error) from None

    def _prepare(self, read_only: bool) -> None:
        if not read_only:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not read_only:
            self.db.executescript(f"BEGIN;{SCHEMA}COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"layout {version}, this program writes {VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        self.db.close()

    def all(self, query: str, *values: str | int) -> list[Any]:
        """The rows of a query."""
        with self.said():
            return self.db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in the block is on disk at its end, or none of it."""
        with self.said():
            try:
                self.db.execute("BEGIN IMMEDIATE")
                yield
                self.db.execute("COMMIT")
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    @contextlib.contextmanager
    def said(self) -> Iterator[None]:
        """SQLite's errors come out as ours: ResourceError for a full disk, DataError for anything else."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> SlmRayError:
        if any(word in str(error) for word in _FULL):
            return ResourceError(
                f"{self._path}: cannot be written ({error}); nothing more is asked; free the disk or make the file "
                "writable, then the same command continues"
            )
        return DataError(f"{self._path}: cannot be used as a ledger ({error}); move it away or choose another run_dir")
