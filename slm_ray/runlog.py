"""The log of a run: every request that was started and every answer that was paid for. Nothing else is the truth of a run.

`run_dir/log/` holds append-only files of JSON lines, each with one writer: `run.jsonl` (when the asking began and ended)
and one `shard-RUN-N.jsonl` for each evaluation actor. A line is written before anything follows from it: the key of a
request before its call begins, its answer before another call takes its place; so a run killed anywhere loses no answer
and pays at most `concurrency` calls twice. A start without an answer is *in doubt*: the call may have been billed. A
finished answer is kept for ever and never asked for again; a failed call stays as history and gives way to a later answer.

Lines outlive every process at once and a power cut once they are synced, which happens in groups some hundredths of a
second apart. A last line that was cut short was never valid. Prompts and secrets are not in it: a prompt enters a key only
as a hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from slm_ray.errors import DataError, ResourceError
from slm_ray.storage import write_jsonl
from slm_ray.types import Completion, Prompt

FOLDER = "log"
RUN_FILE = "run.jsonl"
VERSION = 1
_WRITERS_END_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """What a plan asks which model, for which example, and the key that the answer is kept under; `repeat` counts from 0."""

    key: str
    spec: str
    example_id: str
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(PlannedRequest):
    """One call to make: the same with the prompt."""

    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(PlannedRequest):
    """A model's completion of one request; `answered_ns` is the wall time at which it arrived."""

    completion: Completion
    answered_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The asking that began last: its plan, what it says of itself, and how it ended (None while nobody has said so).

    `throttle` holds, by shard and spec, the last note of how fast the model may be asked and what it has cost.
    """

    id: str
    plan: str
    facts: Mapping[str, Any]
    ended: str | None = None
    throttle: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


Record = str | Response | dict[str, Any]  # a key that was started, an answer, a note


def request_key(data: str, example_id: str, identity: str, body: Mapping[str, Any], repeat: int = 0) -> str:
    """What makes two calls the same call: SHA-256 over the data, the row, the model, the body that is sent, the repeat."""
    parts = [data, example_id, identity, body, repeat]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def finished(completion: Completion) -> bool:
    """True when asking again cannot help: an answer, a refusal, a cut or unusable answer; False for a failed call."""
    return completion.failure is None or not completion.failure.in_transport


def outcome(completion: Completion) -> str:
    """How a row ended: `ok` or the kind of its failure."""
    return completion.failure.kind if completion.failure else "ok"


def encoded(records: Iterable[Record]) -> bytes:
    """Records as the lines of a log file."""
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


def records(lines: bytes, where: str) -> Iterator[Record]:
    """The records in the lines of a log file; DataError where one is damaged."""
    for line in lines.split(b"\n")[:-1]:
        yield _record(line, where)


def write_plan(folder: Path, plan: str, requests: Iterable[PlannedRequest]) -> None:
    """Note what a plan asks, for those who watch its runs; once."""
    path = folder / f"plan-{plan}.jsonl"
    if not path.exists():
        write_jsonl(path, map(asdict, requests))


class LogWriter:
    """Appends to one file, which is its own as long as it lives; after a crash it goes on behind the last whole line."""

    def __init__(self, path: Path) -> None:
        """Open or create, and own; ResourceError when the file cannot be written or another process writes it."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _own(self._file, path, fcntl.LOCK_EX)
            self._end = max((end for (_, end), _ in _records(path, 0)), default=0)  # behind the last whole line
            os.ftruncate(self._file, self._end)
        except OSError as error:
            raise self._unwritten(error) from None

    def append(self, lines: bytes) -> None:
        """Write all of it, or none and raise ResourceError: a full disk leaves no half a line."""
        try:
            at = 0
            while at < len(lines):
                at += os.pwrite(self._file, lines[at:] if at else lines, self._end + at)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise self._unwritten(error) from None
        self._end += len(lines)

    def sync(self) -> None:
        """Bring what was appended through a power cut; slow, and meant for another thread."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise self._unwritten(error) from None

    def close(self) -> None:
        """Give the file up."""
        os.close(self._file)

    def _unwritten(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self._path}: cannot be written on {socket.gethostname()} ({error.strerror}); nothing more is asked; free the "
            "disk or make the folder writable, then the same command continues"
        )


@dataclass(slots=True)
class _Life:
    """What is known of one key: calls started and answered, and where the answer that counts is."""

    started: int = 0
    answered: int = 0
    path: Path | None = None
    offset: int = 0
    answered_ns: int = 0
    finished: bool = False


class RunLog:
    """Reads the files of a log, as far as they are written; `refresh` reads on. Any number of readers beside the writers.

    Holds about 300 bytes for each key, and no answer: those are read again where they are wanted.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.folder = Path(run_dir) / FOLDER
        self.run: RunRecord | None = None
        self._bytes_read: dict[Path, int] = {}
        self._lives: dict[str, _Life] = {}
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> RunLog:
        self.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that answers were read from."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def begun(self) -> RunRecord:
        """The asking that began last; DataError where none has."""
        for _ in self._refreshed(self.folder / RUN_FILE):
            pass
        if self.run is None:
            raise DataError(f"{self.folder.parent}: no run has begun here; start slm-ray evaluate with this run_dir")
        return self.run

    def read(self) -> None:
        """Read on, to the end of what is written."""
        for _ in self.refresh():
            pass

    def refresh(self) -> Iterator[tuple[Record, bool]]:
        """The records that came since the last time, and whether they are of the run that began last.

        DataError with file and place where one is damaged.
        """
        for path in self._files():
            yield from self._refreshed(path)

    def _refreshed(self, path: Path) -> Iterator[tuple[Record, bool]]:
        for (start, end), record in _records(path, self._bytes_read.get(path, 0)) if path.is_file() else ():
            self._bytes_read[path] = end
            self._note(path, start, record)
            yield record, self.run is not None and path.name.startswith(f"shard-{self.run.id}-")

    def response(self, key: str) -> Response | None:
        """The finished answer under `key`, else the last failed one, else None."""
        life = self._lives.get(key)
        if life is None or life.path is None:
            return None
        if life.path not in self._open:
            self._open[life.path] = life.path.open("rb")
        self._open[life.path].seek(life.offset)
        record = _record(self._open[life.path].readline(), f"{life.path} (byte {life.offset})")
        return record if isinstance(record, Response) else None

    def is_finished(self, key: str) -> bool:
        """Whether there is an answer that asking again cannot help."""
        life = self._lives.get(key)
        return life is not None and life.finished

    def in_doubt(self, keys: Iterable[str]) -> dict[str, int]:
        """Of these, calls started and not answered: in flight while a run is at it, in doubt once it is over."""
        lives = ((key, self._lives[key]) for key in keys if key in self._lives)
        return {key: life.started - life.answered for key, life in lives if life.started > life.answered}

    def responses(self, keys: Set[str] | None = None) -> Iterator[Response]:
        """Every answer, or those under these keys; failed ones that were asked for again included."""
        for path in self._files():
            for _, record in _records(path, 0, upto=self._bytes_read.get(path, 0)):
                if isinstance(record, Response) and (keys is None or record.key in keys):
                    yield record

    def count(self) -> int:
        """How many finished answers there are."""
        return sum(life.finished for life in self._lives.values())

    def planned(self) -> list[PlannedRequest]:
        """What the plan of the last run asks."""
        path = self.folder / f"plan-{self.begun().plan}.jsonl"
        try:
            with path.open("rb") as lines:
                return [msgspec.json.decode(line, type=PlannedRequest) for line in lines]
        except (OSError, msgspec.MsgspecError) as error:
            raise DataError(f"cannot read {path}: {error}; run the evaluation's command again") from None

    def _files(self) -> list[Path]:
        run = self.folder / RUN_FILE
        return [run, *sorted(self.folder.glob("shard-*.jsonl"))] if run.is_file() else []

    def _note(self, path: Path, offset: int, record: Record) -> None:
        if isinstance(record, dict):
            self._note_run(record)
            return
        key = record if isinstance(record, str) else record.key
        life = self._lives.setdefault(key, _Life())
        if isinstance(record, str):
            life.started += 1
            return
        life.answered += 1
        ended = finished(record.completion)
        earlier = record.answered_ns < life.answered_ns
        if life.path is None or (ended and not life.finished) or (ended == life.finished and ended == earlier):
            life.path, life.offset, life.answered_ns, life.finished = path, offset, record.answered_ns, ended

    def _note_run(self, note: Mapping[str, Any]) -> None:
        match note["event"]:
            case "begin" if note["version"] != VERSION:
                raise DataError(
                    f"{self.folder}: a log of version {note['version']}, this program writes {VERSION}; choose another run_dir"
                )
            case "begin":
                self.run = RunRecord(id=note["run"], plan=note["plan"], facts=note["facts"])
            case "end" if self.run:
                self.run = replace(self.run, ended=note["how"])
            case "throttle" if self.run and self.run.id == note["run"]:
                self.run = replace(self.run, throttle={**self.run.throttle, note["shard"]: note["arms"]})


def begin_note(run: str, plan: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The note that the asking of a plan begins."""
    return {
        "event": "begin",
        "version": VERSION,
        "run": run,
        "plan": plan,
        "at_ns": time.time_ns(),
        "facts": dict(facts),
    }


def end_note(how: str) -> dict[str, Any]:
    """The note that it is over: `done` or `stopped`."""
    return {"event": "end", "how": how, "at_ns": time.time_ns()}


def throttle_note(run: str, shard: int, arms: Mapping[str, Any]) -> dict[str, Any]:
    """How fast a shard may ask each arm, by spec, at the moment, and what that has cost."""
    return {"event": "throttle", "run": run, "shard": shard, "arms": dict(arms)}


def await_writers(folder: Path, *, wait_s: float = _WRITERS_END_S) -> None:
    """Return when no actor of an earlier run writes any more, which Ray sees to; ResourceError when one goes on."""
    for path in sorted(folder.glob("shard-*.jsonl")):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            _own(file, path, fcntl.LOCK_SH, wait_s=wait_s)  # shared: a file opened to read takes no other lock on NFS
        finally:
            os.close(file)


def _own(file: int, path: Path, lock: int, *, wait_s: float = _WRITERS_END_S) -> None:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise ResourceError(
                    f"{path} is still being written by an evaluation actor that should be gone; end that process "
                    "(`ray::Shard`), then run the same command again"
                ) from None
        time.sleep(_POLL_S)


def _records(path: Path, start: int, *, upto: int | None = None) -> Iterator[tuple[tuple[int, int], Record]]:
    """The whole lines from byte `start` on (to `upto`), each with the bytes where it begins and ends."""
    try:
        source = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None
    with source:
        source.seek(start)
        for line in source:
            end = start + len(line)
            if upto is not None and end > upto:
                return
            where = f"{path} (byte {start})"
            if not line.endswith(b"\n"):
                if line[:1] not in b'"{':
                    raise _damaged(where, "neither a key nor an object")
                return
            yield (start, end), _record(line, where)
            start = end


def _record(line: bytes, where: str) -> Record:
    kind: Any = str if line.startswith(b'"') else dict[str, Any] if line.startswith(b'{"event"') else Response
    try:
        record: Record = msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _damaged(where, str(error)) from None
    return record


def _damaged(where: str, why: str) -> DataError:
    return DataError(f"{where}: cannot be used as a log ({why}); move the file away or choose another run_dir")


def _unreadable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot read {path}: {error.strerror}; it holds answers that are paid for: make it readable, then run the same "
        "command again"
    )
