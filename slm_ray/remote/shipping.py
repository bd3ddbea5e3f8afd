"""What a working copy sends to its store: every changed file, again and again while a job writes, and all of it at the end.

A file that is replaced in one step is sent whole. One that grows by whole lines (`.jsonl`, `.txt`) is sent whole while it is
short; later its new lines alone, as `NAME.parts/OFFSET`, and whole again at the end. At every moment the object and the
parts behind it are the file as it was, up to the end of a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from slm_ray import storage
from slm_ray.errors import DataError, ResourceError
from slm_ray.remote.lease import Lease, Lost
from slm_ray.remote.store import Object, ObjectStore

SHIPPED_EVERY_S = 10.0
PARTS = ".parts/"
_GROWING = (".jsonl", ".txt")
_WHOLE_BYTES, _PART_BYTES, _TAIL_BYTES = 256 << 10, 64 << 20, 64 << 10
_SETTLES_S = 2.0  # a file that is not replaced in one step is sent when it has been left alone for so long
_END_WAITS_S, _STOPPED_WAITS_S, _AGAIN_S = 300.0, 20.0, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A file as it was when it was sent.

    `length` is how much of it the store has, to the end of a line if it grows, and `tail` a hash of the bytes before that:
    a file that took its place may have its inode.
    """

    inode: int
    changed_ns: int
    size: int
    length: int = 0
    tail: str = ""


def grows(name: str) -> bool:
    """Whether a file of that name is added to line by line."""
    return name.endswith(_GROWING)


def local_files(folder: Path) -> dict[str, os.stat_result]:
    """The files below a folder by their names in it; hidden ones and those in hidden folders are nobody's."""
    found: dict[str, os.stat_result] = {}
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(where) / name
            if not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                    found[path.relative_to(folder).as_posix()] = path.stat()
    return found


def whole_and_parts(listing: Mapping[str, Object]) -> tuple[dict[str, Object], dict[str, dict[int, int]]]:
    """What a store lists: the files that are one object, and of those that are not the sizes of their parts by offset.

    A file may be in both: its object comes first. What is hidden is left out, and what would lie outside the folder.
    """
    whole: dict[str, Object] = {}
    parts: dict[str, dict[int, int]] = {}
    for name, one in listing.items():
        file, is_part, offset = name.partition(PARTS)
        if any(not step or step.startswith(".") for step in name.split("/")):
            continue
        if is_part and offset.isdecimal():
            parts.setdefault(file, {})[int(offset)] = one.size_bytes
        else:
            whole[name] = one
    return {name: one for name, one in whole.items() if name not in parts}, parts


def say(line: str) -> None:
    """A line for the person who waits; a step's log shows warnings."""
    print(line, file=sys.stderr, flush=True)


class Shipper:
    """A context manager: ships what changes below `files` while the block runs, and everything at its end."""

    def __init__(self, store: ObjectStore, files: Path, state: Path, lease: Lease) -> None:
        self._store, self._files, self._state, self._lease = store, files, state, lease
        self._shipped: dict[str, Shipped] = {}
        self._parts: dict[str, set[int]] = {}
        self._ended = threading.Event()
        self._lost: Lost | None = None
        self._hurries = False
        self._away_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="shipping", daemon=True)

    def begin(
        self, there: Iterable[str], parts: Mapping[str, Iterable[int]], *, fetched: Iterable[str] | None = None
    ) -> None:
        """What the store has. `fetched` are files that are here as they are there; None: this copy knows what it sent."""
        self._parts = {name: set(offsets) for name, offsets in parts.items()}
        if fetched is None:
            known = {*there, *self._parts}
            self._shipped = {name: one for name, one in _read_state(self._state).items() if name in known}
            return
        here = local_files(self._files)
        for name in here.keys() & set(fetched):
            length = _whole_lines(self._files / name, 0, here[name].st_size) if grows(name) else 0
            tail = _tail(self._files / name, length) if grows(name) else ""
            self._shipped[name] = dataclasses.replace(_as_of(here[name]), length=length, tail=tail)
        self._keep()

    def __enter__(self) -> Shipper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        problem = self._finish(_END_WAITS_S if error is None else _STOPPED_WAITS_S)
        if problem is None:
            return
        if error is None or (self._lost is not None and isinstance(error, KeyboardInterrupt)):
            raise ResourceError(problem) from None
        say(f"warning: {problem}")

    def ship(self, *, everything: bool = False) -> int:
        """Send what has changed, oldest first; how many files. With `everything` each is one object afterwards and what was
        removed here is removed there. StoreAway, Lost."""
        sent = 0
        here = local_files(self._files)
        try:
            for name, status in sorted(here.items(), key=lambda one: one[1].st_mtime_ns):
                if self._lost is not None:
                    raise self._lost
                if self._hurries:
                    return sent
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile: the next round sees
                    sent += self._ship(name, status, is_last=everything)
            if everything:
                for name in self._shipped.keys() - here.keys():
                    self._delete_parts(name)
                    self._store.delete(name)
                    del self._shipped[name]
        finally:
            if sent or everything:
                self._keep()
        return sent

    def _ship(self, name: str, status: os.stat_result, *, is_last: bool) -> bool:
        path, known, now = self._files / name, self._shipped.get(name), _as_of(status)
        is_known = known is not None and dataclasses.replace(known, length=0, tail="") == now
        if is_known and not (is_last and self._parts.get(name)):
            return False
        self._lease.assure()
        if not grows(name):
            if not is_last and time.time_ns() - status.st_mtime_ns < _SETTLES_S * 1e9:
                return False
            self._store.send(path, name)
            self._shipped[name] = now
            return True
        is_longer = known is not None and known.inode == now.inode and _tail(path, known.length) == known.tail
        if known is not None and is_longer and now.size > _WHOLE_BYTES and not is_last:
            length = self._ship_lines(name, known.length, now.size)
        else:
            if not is_longer:  # other lines: no part of the earlier ones may follow them
                self._delete_parts(name)
            length = _whole_lines(path, 0, now.size)
            self._store.send(path, name)
            self._delete_parts(name)
        self._shipped[name] = dataclasses.replace(now, length=length, tail=_tail(path, length))
        return True

    def _ship_lines(self, name: str, start: int, end: int) -> int:
        """Send the whole lines from `start` on as parts; where they end."""
        with (self._files / name).open("rb") as source:
            while (upto := _whole_lines(self._files / name, start, min(end, start + _PART_BYTES))) > start:
                source.seek(start)
                self._store.write(f"{name}{PARTS}{start:020d}", source.read(upto - start))
                self._parts.setdefault(name, set()).add(start)
                start = upto
        return start

    def _delete_parts(self, name: str) -> None:
        """The last first: what is left at any moment is the beginning of the file."""
        for offset in sorted(self._parts.get(name, ()), reverse=True):
            self._store.delete(f"{name}{PARTS}{offset:020d}")
            self._parts[name].discard(offset)
        self._parts.pop(name, None)

    def _run(self) -> None:
        while not self._ended.wait(SHIPPED_EVERY_S):
            try:
                sent = self.ship()
            except Lost as error:
                self.lose(error)
                return
            except (ResourceError, OSError) as error:  # the second of this host's disk: the next round may go better
                if self._away_since_s is None:
                    self._away_since_s = time.monotonic()
                    say(
                        f"warning: {error}; the run goes on from its copy in {self._files}, which is shipped once that is mended"
                    )
                continue
            if self._away_since_s is not None:
                say(
                    f"warning: {self._store} takes files again after {time.monotonic() - self._away_since_s:.0f} s: {sent} caught up"
                )
                self._away_since_s = None

    def lose(self, error: Lost) -> None:
        """Another run owns the place: nothing more is sent, and this run ends as by Ctrl-C, before it pays for more.

        From any thread.
        """
        if self._lost is not None or self._ended.is_set():  # the end says so by itself
            return
        self._lost = error
        say(f"warning: {error}; this run ends")
        if callable(signal.getsignal(signal.SIGINT)):
            # A signal, and not `_thread.interrupt_main`, which wakes nobody who sleeps or waits for a lock.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _finish(self, patience_s: float) -> str | None:
        """Ship everything, for so long; what is wrong where that cannot be done."""
        left = f"nothing is lost: it lies in {self._files} on {socket.gethostname()}"
        until_s, is_said = time.monotonic() + patience_s, False
        while True:
            try:
                self._lease.renew()
                self._ship_everything()
                return None
            except Lost as error:
                self._lost = self._lost or error
                return f"{error}. What this one had not shipped is not in the store; {left}"
            except (ResourceError, OSError) as error:
                if time.monotonic() > until_s:
                    return f"{error}. The store lacks the last of what this run wrote; {left}, and the same command there ships it"
                if not is_said:
                    say(f"warning: {error}; waiting up to {patience_s:.0f} s for it to take the last files")
                    is_said = True
            except BaseException:
                say(f"warning: not everything is shipped to {self._store}; {left}, and the same command there ships it")
                raise
            time.sleep(_AGAIN_S)

    def _ship_everything(self) -> None:
        """In a thread, which a signal leaves alone: half of an upload must not pass for a whole one."""
        with ThreadPoolExecutor(1) as thread:
            try:
                thread.submit(self.ship, everything=True).result()
            except KeyboardInterrupt:
                self._hurries = True  # what is being sent is sent to its end, and nothing after it
                raise

    def _keep(self) -> None:
        storage.write_json(self._state, {name: dataclasses.asdict(one) for name, one in self._shipped.items()})


def _as_of(status: os.stat_result) -> Shipped:
    return Shipped(inode=status.st_ino, changed_ns=status.st_mtime_ns, size=status.st_size)


def _tail(path: Path, length: int) -> str:
    """A hash of the last bytes before `length`; of a shorter file another one."""
    with path.open("rb") as source:
        source.seek(max(0, length - _TAIL_BYTES))
        last = source.read(min(length, _TAIL_BYTES))
    return hashlib.sha256(last).hexdigest()[:16]


def _whole_lines(path: Path, start: int, end: int) -> int:
    """Where the last whole line ends between two bytes of a file; `start` where none does."""
    with path.open("rb") as source:
        at = end
        while at > start:
            begin = max(start, at - (1 << 16))
            source.seek(begin)
            if (found := source.read(at - begin).rfind(b"\n")) >= 0:
                return begin + found + 1
            at = begin
    return start


def _read_state(path: Path) -> dict[str, Shipped]:
    """What was noted; nothing where that is missing or damaged: everything is then sent again."""
    try:
        plain: dict[str, Any] = storage.read_json(path)
        return {name: Shipped(**one) for name, one in plain.items()}
    except (DataError, TypeError, AttributeError):
        return {}
