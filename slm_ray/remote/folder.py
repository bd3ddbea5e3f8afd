"""A working copy of a folder in object storage: jobs read and write plain files, and what they write is shipped as they go.

`working_copy` owns the place (`lease`), fetches what the store has, and ships every changed file each `SHIPPED_EVERY_S` and
at the end. So the same command goes on from another host, and a lost host loses at most what it had not shipped. Files are
told apart as the house writes them: what is replaced in one step is shipped whole; what grows by whole lines (`.jsonl`,
`.txt`) is shipped, once it is long, as parts `NAME.parts/OFFSET` that hold the new lines, and is one object again at the
end. Readers of the store need nothing but the objects.

While the store is away the job goes on from the copy, which catches up; at the end the copy waits for it a while, and
otherwise says where the files lie: the same command on that host ships them. Copies lie below `~/.cache/slm_ray` (or
XDG_CACHE_HOME) and may be removed when no job uses them and everything is shipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.errors import DataError, ResourceError
from slm_ray.remote.lease import FOLDER, Lease
from slm_ray.remote.shipping import PARTS, Shipper, grows, local_files, say, whole_and_parts
from slm_ray.remote.store import NotThere, ObjectStore, StoreAway, cache_folder, joined, open_store, shown

_FILES, _ADDRESS = "files", "address.json"
_WRITER = ".writer"  # the working copy that owned the place last
_TURN_S = 300.0
_RECORDS = (".json", ".jsonl", ".yaml", ".yml")


def address(path: str | Path) -> str:
    """Where a path of a copy lies in its store, by URI; any other path as it is."""
    note = _note_of(Path(path))
    return joined(note.uri, note.name) if note else str(path)


def shown_address(path: str | Path) -> str:
    """As `address`, for people: without the options of a URI."""
    note = _note_of(Path(path))
    return shown(joined(note.uri, note.name)) if note else str(path)


@contextlib.contextmanager
def working_copy(uri: str, *, setting: str) -> Iterator[Path]:
    """A folder of this host that is what the URI holds, and becomes what it holds, while the block runs.

    ConfigError for a URI that is none and for a bucket that is not there, ResourceError where another run owns the place,
    StoreAway; each before the block. After it ResourceError where something could not be shipped or another run took the
    place over: the files lie in the copy then.
    """
    store = open_store(uri, setting=setting)
    store.require_bucket(setting)
    home = _home("folders", uri)
    with storage.lock(home):
        copy, files = _copy_id(home), _noted(home, uri, is_owned=True)
        lease = Lease(store, copy=copy)
        shipper = Shipper(store, files, home / "shipped.json", lease)
        lease.acquire(say)
        with lease.held(shipper.lose):
            writer = _last_writer(store)
            _fetch(store, files, shipper, writer=writer, copy=copy)
            if writer != copy:
                store.write(_WRITER, copy.encode())
            say(f"{store}: working copy in {files}")
            with shipper:
                yield files


@contextlib.contextmanager
def one_file(path: str | Path) -> Iterator[Path]:
    """A file to which one process at a time adds lines: of a copy that is only read it is fetched before and shipped after.

    Any other path as it is: whoever writes there has a lock of his own. StoreAway; ResourceError where others keep the file
    for minutes.
    """
    place = Path(path)
    note = _note_of(place)
    if note is None or note.is_owned:
        yield place
        return
    folder, _, name = note.name.rpartition("/")
    store = open_store(joined(note.uri, folder), setting=name)
    # Not the copy's own file, which others fetch anew meanwhile, and which must never hold a line that the store has not.
    scratch = place.with_name(f".{uuid.uuid4().hex}") / place.name
    with _in_turn(store, f"{FOLDER}-{name}"):
        try:
            with contextlib.suppress(NotThere):
                store.fetch(name, scratch)
            before = scratch.stat().st_size if scratch.exists() else 0
            try:
                yield scratch
            finally:
                if scratch.exists() and scratch.stat().st_size != before:
                    store.send(scratch, name)
                    os.replace(scratch, place)
        finally:
            shutil.rmtree(scratch.parent, ignore_errors=True)


@contextlib.contextmanager
def _in_turn(store: ObjectStore, folder: str) -> Iterator[None]:
    until_s = time.monotonic() + _TURN_S
    while True:
        lease = Lease(store, copy=uuid.uuid4().hex, folder=folder)
        try:
            lease.acquire(lambda line: None)
            break
        except StoreAway:
            raise
        except ResourceError:
            if time.monotonic() > until_s:
                raise
        time.sleep(random.uniform(0.1, 1.0))  # not in step with whoever asks too
    with lease.held(lambda error: None):
        yield


def fetched(uri: str, *, setting: str, leave_out: tuple[str, ...] = (), may_be_empty: bool = False) -> Path:
    """A copy on this host of what the URI holds now: a folder, or a file with the records beside it, to be read.

    Those are what else a job may read there: the track of a file of rows, its other splits, the rows of a report. Files whose
    names end in one of `leave_out` stay where they are. NotThere for a URI that holds nothing unless it `may_be_empty`,
    StoreAway.
    """
    uri, name = folder_and_file(uri, setting=setting)
    store = open_store(uri, setting=setting)
    home = _home("read", uri)
    files = _noted(home, uri, is_owned=False)
    with _alone(home):
        there, parts = whole_and_parts(store.listing(recursive=not name))
        if not there and not parts and not may_be_empty:
            raise NotThere(f"{setting} {store}: nothing is there; give a folder or a file that is")
        now = {
            one: [found.size_bytes, found.written_ns]
            for one, found in there.items()
            if not one.endswith(leave_out) and (not name or one == name or one.endswith(_RECORDS))
        }
        for left in local_files(files).keys() - now.keys() - parts.keys():
            if left not in there and (not name or "/" not in left):
                (files / left).unlink(missing_ok=True)
        known = _read_note(home / "fetched.json")
        store.fetch_all([one for one in now if known.get(one) != now[one] or not (files / one).is_file()], files)
        for one, found in parts.items():
            _assemble(store, one, found, files)
        others = {one: seen for one, seen in known.items() if one in there}  # files that were fetched for themselves
        storage.write_json(home / "fetched.json", others | now)
    return files / name if name else files


def folder_and_file(uri: str, *, setting: str) -> tuple[str, str]:
    """The URI of a folder, and what a file in it is called, where the URI names that. Raises as `fetched`."""
    store = open_store(uri, setting=setting)
    store.require_bucket(setting)
    if store.about() is None:
        return uri, ""
    place, mark, options = uri.partition("?")
    folder, _, name = place.rpartition("/")
    return f"{folder}{mark}{options}", name


def here(uri: str, *, near: str | Path) -> Path:
    """A path for what a URI names: in the copy that `near` is in, where it belongs there; else it is fetched. Raises as that."""
    place = Path(near)
    for folder in (place, *place.parents):
        if (note := _note_of(folder)) is not None and not note.name and (name := name_below(note.uri, uri)) is not None:
            return folder / name
    return fetched(uri, setting=shown(uri))


def name_below(folder: str, uri: str) -> str | None:
    """What a URI is called in the folder of another one; None where it is not in it."""
    (whole, _, options), (inside, _, others) = folder.partition("?"), uri.partition("?")
    start = f"{whole.rstrip('/')}/"
    return inside.removeprefix(start) if options == others and inside.startswith(start) else None


@contextlib.contextmanager
def unchanged(folder: str | Path) -> Iterator[None]:
    """No other process of this host fetches into the copy that holds this folder while the block runs."""
    note = _note_of(Path(folder))
    with contextlib.nullcontext() if note is None or note.is_owned else _alone(_home("read", note.uri)):
        yield


def send_folder(folder: str | Path, *, last: str) -> None:
    """A finished folder of a copy goes to its store now, the file `last` after all others, which says that it is whole.

    Nothing for a folder that is no copy's. StoreAway.
    """
    place = Path(folder)
    if (note := _note_of(place)) is None:
        return
    store = open_store(note.uri, setting="folder")
    for name in sorted(local_files(place), key=lambda name: name == last):
        store.send(place / name, f"{note.name}/{name}")


@contextlib.contextmanager
def sent(folder: str | Path, *, last: str) -> Iterator[None]:
    """As `send_folder`, for as long as the block runs."""
    send_folder(folder, last=last)
    try:
        yield
    finally:
        with contextlib.suppress(StoreAway):
            delete_sent(folder, first=last)


def delete_sent(folder: str | Path, *, first: str) -> None:
    """Remove a folder of a copy from its store, the file that says that it is whole before all others. StoreAway."""
    if (note := _note_of(Path(folder))) is not None:
        store = open_store(note.uri, setting="folder")
        store.delete(f"{note.name}/{first}")
        store.delete_folder(note.name)


def fetch_rest(folder: str | Path) -> None:
    """What was left out when the copy was fetched that this folder is in; nothing for a folder that is no copy's. StoreAway."""
    place = Path(folder)
    if (note := _note_of(place)) is not None and not note.is_owned:
        store = open_store(joined(note.uri, note.name), setting="folder")
        whole, _ = whole_and_parts(store.listing())
        store.fetch_all([name for name in whole if not (place / name).is_file()], place)


def _fetch(store: ObjectStore, files: Path, shipper: Shipper, *, writer: str, copy: str) -> None:
    """Bring the copy up to the store. Where this copy wrote last it has all that the store has and perhaps more.

    Else another host went on: its files count, but for lines that grew here and were never shipped, which are kept.
    """
    there, parts = whole_and_parts(store.listing())
    here = local_files(files)
    if here and not (there or parts or writer):  # the place was emptied: what is begun there now is another run
        shutil.rmtree(files.with_name(f"{_FILES}.before"), ignore_errors=True)
        files.rename(files.with_name(f"{_FILES}.before"))
        files.mkdir()
        here = {}
    if writer == copy:
        store.fetch_all([name for name in there if name not in here], files)
        for name in parts.keys() - here.keys():
            _assemble(store, name, parts[name], files)
        shipper.begin(there, parts)
        return
    theirs = files.with_name(f"{_FILES}.fetched")
    shutil.rmtree(theirs, ignore_errors=True)
    store.fetch_all(there, theirs)
    for name, found in parts.items():
        _assemble(store, name, found, theirs)
    kept = set()
    for name in here:
        if not grows(name):
            (files / name).unlink(missing_ok=True)
        elif not (theirs / name).is_file() or _goes_on(files / name, theirs / name):
            (theirs / name).unlink(missing_ok=True)
            kept.add(name)
    for name in local_files(theirs):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(theirs / name, files / name)
    shutil.rmtree(theirs, ignore_errors=True)
    shipper.begin(there, parts, fetched=(there.keys() | parts.keys()) - kept)


def _goes_on(here: Path, theirs: Path) -> bool:
    """Whether the file here is theirs and more."""
    with here.open("rb") as longer, theirs.open("rb") as shorter:
        while block := shorter.read(1 << 20):
            if longer.read(len(block)) != block:
                return False
        return bool(longer.read(1))


def _assemble(store: ObjectStore, name: str, parts: dict[int, int], files: Path) -> None:
    """A file that grew: what there is of it as one object, and the parts behind that; ResourceError where one is missing."""
    target = files / name
    scratch = target.with_name(f".{target.name}.parts")
    scratch.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(NotThere):
        store.fetch(name, scratch / "whole")
    store.fetch_all([f"{name}{PARTS}{offset:020d}" for offset in parts], scratch)
    whole = scratch / "whole"
    whole.touch()
    with whole.open("r+b") as sink:
        for offset in sorted(parts):
            have = sink.seek(0, os.SEEK_END)
            lines = (scratch / f"{name}{PARTS}{offset:020d}").read_bytes()
            if offset > have:
                raise ResourceError(
                    f"{store}/{name}.parts: the bytes from {have} to {offset} are not there; put the part back from a copy, or"
                    f" remove those behind it, whose answers are then asked again"
                )
            sink.seek(offset)  # over the half of a line that the object ended with, and that a killed writer took back
            sink.write(lines)
    os.replace(whole, target)
    shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What a copy is of; `name` is a path's place in it."""

    uri: str
    is_owned: bool
    name: str


def _note_of(path: Path) -> _Note | None:
    for folder in (path, *path.parents):
        if folder.name == _FILES and (plain := _read_note(folder.parent / _ADDRESS)).keys() == {"uri", "is_owned"}:
            name = "" if path == folder else path.relative_to(folder).as_posix()
            return _Note(uri=plain["uri"], is_owned=plain["is_owned"], name=name)
    return None


def _noted(home: Path, uri: str, *, is_owned: bool) -> Path:
    """The folder of a copy's files, made, with a note of what it is a copy of beside it."""
    try:
        (home / _FILES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make a copy of {shown(uri)} in {home}: {error.strerror}; set XDG_CACHE_HOME to a folder that you may"
            " write to"
        ) from None
    storage.write_json(home / _ADDRESS, {"uri": uri.rstrip("/"), "is_owned": is_owned})
    return home / _FILES


def _copy_id(home: Path) -> str:
    """What tells this working copy from those of other hosts; a disk that was cloned with it is another host's."""
    note, host = home / "copy.json", socket.gethostname()
    known = _read_note(note)
    if not isinstance(known.get("id"), str) or known.get("host") != host:
        known = {"id": uuid.uuid4().hex, "host": host}
        storage.write_json(note, known)
    return str(known["id"])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """No other process fetches into this copy meanwhile."""
    handle = os.open(home / storage.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_note(path: Path) -> dict[str, Any]:
    try:
        plain = storage.read_json(path)
    except DataError:
        return {}
    return plain if isinstance(plain, dict) else {}


def _last_writer(store: ObjectStore) -> str:
    try:
        return store.read(_WRITER).decode("ascii", "replace").strip()
    except NotThere:
        return ""


def _home(kind: str, uri: str) -> Path:
    """The folder of a copy: named for people, and by a hash for us."""
    plain = uri.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", shown(plain).partition("://")[2])[-60:].strip("-.")
    return cache_folder() / kind / f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:10]}"
