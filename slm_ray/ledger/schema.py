"""The tables of a ledger file: runs, planned, started and answers, each of which only ever grows."""

from __future__ import annotations

VERSION = 2
_TABLES = ("runs", "planned", "started", "answers")
_FROZEN = "".join(
    f"CREATE TRIGGER no_{act}_{table} BEFORE {act} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;\n"
    for table in _TABLES
    for act in ("update", "delete")
)
SCHEMA = f"""
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    plan TEXT NOT NULL,
    event TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    facts TEXT NOT NULL
);
CREATE TABLE planned (
    plan TEXT NOT NULL,
    key TEXT NOT NULL,
    spec TEXT NOT NULL,
    example_id TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    PRIMARY KEY (plan, key)
) WITHOUT ROWID;
CREATE TABLE started (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    started_ns INTEGER NOT NULL
);
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    spec TEXT NOT NULL,
    example_id TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    answered_ns INTEGER NOT NULL,
    completion TEXT NOT NULL
);
CREATE INDEX started_by_key ON started (key);
CREATE UNIQUE INDEX finished_once ON answers (key) WHERE finished = 1;
CREATE INDEX by_key ON answers (key);
{_FROZEN}
PRAGMA user_version = {VERSION};
"""
