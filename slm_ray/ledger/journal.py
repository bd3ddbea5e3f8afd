"""What one evaluation actor has begun and heard, written before it goes on: the way into the ledger for whoever cannot wait.

Lines of JSON, written before anything follows from them: a call begins only when its start is written, and its place in
flight is free only when its answer is. The driver hears of both some hundredths of a second later and enters them in the
ledger, which notes up to which byte it has taken a journal in (`Ledger.put_all`). What nobody has heard of when everything
is killed is taken in by the next run: nothing that was paid for is lost, and nothing is counted twice. Not synced: a journal
outlives every process; a power cut it outlives by what the ledger has. The file is locked as long as its actor lives, and is
removed once all of it is in the ledger.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from slm_ray.errors import DataError, ResourceError
from slm_ray.ledger.records import completion_in
from slm_ray.types import Completion

_AT_ONCE = 500
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's completion of one question; `answered_ns` is the wall time at which it arrived."""

    key: str
    example_id: str
    completion: Completion
    answered_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some lines of a journal: keys of calls begun and answers heard, in their order; `upto` is the byte they end at."""

    begun: Sequence[str]
    answers: Sequence[Answer]
    upto: int


class Journal:
    """The file of one actor, made and locked by it."""

    def __init__(self, path: str | Path) -> None:
        """A new file; ResourceError when it cannot be made."""
        self._path = str(path)
        self._upto = 0
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._unwritten(error) from None

    def write(self, begun: Iterable[str], answers: Iterable[Answer]) -> int:
        """Append answers and calls about to begin; returns the byte where they end. ResourceError: none of them is there."""
        lines = [json.dumps(asdict(answer), ensure_ascii=False, allow_nan=False) for answer in answers]
        lines += [json.dumps(key) for key in begun]
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            with memoryview(data) as left:
                at = 0
                while at < len(data):
                    at += os.write(self._file, left[at:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._upto)
            raise self._unwritten(error) from None
        self._upto += len(data)
        return self._upto

    def close(self) -> None:
        """Give the file up, to be taken in."""
        os.close(self._file)

    def _unwritten(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self._path}: cannot be written ({error.strerror}); nothing more is asked; free the disk or make the folder "
            "writable, then the same command continues"
        )


def parts(path: Path, upto: int) -> Iterator[Part]:
    """What the journal holds beyond a byte, a few hundred lines at a time; a last line that was cut short was never valid."""
    try:
        source = path.open("rb")
    except OSError as error:
        raise _unusable(path, error) from None
    with source:
        source.seek(upto)
        while (part := _part(path, source, upto)).upto > upto:
            upto = part.upto
            yield part


def _part(path: Path, source: IO[bytes], upto: int) -> Part:
    begun: list[str] = []
    answers: list[Answer] = []
    for line in source:
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            begun.append(record) if isinstance(record, str) else answers.append(_answer(record))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} (byte {upto}): damaged ({error}); what comes before is in the ledger; move the file away to go on"
            ) from None
        upto += len(line)
        if len(begun) + len(answers) >= _AT_ONCE:
            break
    return Part(begun=begun, answers=answers, upto=upto)


def _answer(record: dict[str, Any]) -> Answer:
    return Answer(**{**record, "completion": completion_in(record["completion"])})


def _unusable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot read {path}: {error.strerror}; it holds answers that are paid for: make it readable, then run the same "
        "command again"
    )


@contextlib.contextmanager
def given_up(path: Path, *, wait_s: float) -> Iterator[None]:
    """Own a journal whose actor is gone; waits for the end of one that is not, and ResourceError when it does not come."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from None
    until_s = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(
                    handle, fcntl.LOCK_SH | fcntl.LOCK_NB
                )  # shared: a file opened to read takes no other on NFS
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise ResourceError(
                        f"{path} is still being written by an evaluation actor that should be gone; end that process "
                        "(`ray::Asker`), then run the same command again"
                    ) from None
            except OSError as error:
                raise _unusable(path, error) from None
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)
