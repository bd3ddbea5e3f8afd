"""The journal of one writer: segments of JSON lines that are durable in groups and become Parquet parts one by one.

A segment has one owner, who holds its lock for as long as he lives; what a killed process left is owned by nobody, and the
next writer takes it over. The parts of a segment are named after it, so that rolling one twice (a kill between the parts
and the end of the segment) writes the same files again. A last line without its end is no line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from slm_ray.traffic.record import Entry, decoded

_SUFFIX = ".jsonl"
_FOREIGN_IDLE_S = 3600.0


class Segment:
    """One file of lines, owned until `close` or `delete`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle
        self.size_bytes = os.fstat(handle).st_size
        self.rows = 0

    @property
    def name(self) -> str:
        """What its parts are named after."""
        return self.path.name.removesuffix(_SUFFIX)

    def append(self, lines: Iterable[bytes]) -> None:
        """All lines and synced, or OSError and none."""
        assert self._handle is not None
        group = list(lines)
        data, end = b"".join(group), self.size_bytes
        try:
            while data:
                written = os.pwrite(self._handle, data, end)
                if not written:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                data, end = data[written:], end + written
            os.fdatasync(self._handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.size_bytes)
            raise
        self.size_bytes, self.rows = end, self.rows + len(group)

    def delete(self) -> None:
        """Remove it; its rows stand in parts."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give it up as it is."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def new_segment(folder: Path, writer: str, number: int) -> Segment:
    """A segment of that writer, empty and owned; OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{writer}-{number:06d}{_SUFFIX}"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return Segment(path, handle)
        # Another writer took it for abandoned before it had its lock, and removed it: rows in it would be in no file.
        os.close(handle)


def abandoned(folder: Path) -> Iterator[Segment]:
    """The segments whose writers have died, owned now.

    Those of another host are taken only after an hour without a change: not every shared file system passes locks on.
    """
    for path in segment_paths(folder):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            foreign = not path.name.startswith(f"{host()}-")
            if foreign and time.time() - path.stat().st_mtime < _FOREIGN_IDLE_S:
                continue
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(handle).st_nlink:  # rolled and deleted by another while we opened it
                    raise FileNotFoundError
            except BaseException:
                os.close(handle)
                raise
            yield Segment(path, handle)


def segment_paths(folder: Path) -> list[Path]:
    """All segments in a folder of journals, by name."""
    try:
        return sorted(child for child in folder.iterdir() if child.name.endswith(_SUFFIX))
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries_of(path: Path) -> Iterator[tuple[int, Entry | ValueError]]:
    """The entries of a segment with their line numbers from 1; what is wrong with a line in its place. OSError."""
    raw = path.read_bytes()
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].split(b"\n"), start=1):
        if line:
            try:
                yield number, decoded(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(str(error).splitlines()[0])


def host() -> str:
    """This host's name, fit for a file name."""
    return "".join(char if char.isalnum() else "-" for char in socket.gethostname())[:40] or "host"
