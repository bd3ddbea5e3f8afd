"""Logs as an evaluation's shards write them, made by tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slm_ray.runlog import RUN_FILE, LogWriter, Record, RunLog, begin_note, encoded

RUN = "abcd0123"


def append(run_dir: Path, records: Iterable[Record], *, file: str = f"shard-{RUN}-0.jsonl") -> None:
    """Records at the end of one file of a run directory's log."""
    writer = LogWriter(run_dir / "log" / file)
    writer.append(encoded(records))
    writer.close()


def log_of(run_dir: Path, records: Iterable[Record] = (), *, plan: str = "p", **facts: object) -> RunLog:
    """A log that says that a run has begun, with these records, read to its end."""
    if not (run_dir / "log" / RUN_FILE).exists():
        append(run_dir, [begin_note(RUN, plan, facts)], file=RUN_FILE)
    append(run_dir, records)
    log = RunLog(run_dir)
    log.read()
    return log
