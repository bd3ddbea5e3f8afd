"""Where a traffic log lies: a folder of Parquet parts by day, on a disk or in an object store (`s3://`, `gs://`).

`date=YYYY-MM-DD/part-WRITER-SEGMENT.parquet`, days in UTC; a part is there whole or not at all, and one that is written
again under its name holds the same. `traffic.json` marks the folder and `salt` (mode 600 on a disk) makes its hashes. In an object store
whoever may read the rows may read the salt, unless the bucket's own rules forbid it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from slm_ray import storage
from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.remote import ObjectStore, cache_folder, open_store
from slm_ray.traffic.record import SCHEMA_VERSION

MARK = "traffic.json"
SALT = "salt"
JOURNAL = "journal"
_DAY = "date="
_PART = ".parquet"
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def is_traffic(folder: str) -> bool:
    """Whether a traffic log lies there; False for what is no place of one.

    Whoever is told False takes what lies there for plain rows, so a place that cannot be asked is an error: StoreAway,
    DataError.
    """
    if "\0" in folder:
        return False
    try:
        place = open_place(folder)
    except ConfigError:
        return False
    return place.exists(MARK)


def open_place(folder: str) -> Place | RemotePlace:
    """The place that a path or a URI names. Nothing is made. ConfigError for a URI that is none or has a secret."""
    if "://" not in folder:
        return Place(Path(os.path.expanduser(folder)))
    if folder.startswith("file:"):
        return Place(Path(urlsplit(folder).path))
    return RemotePlace(open_store(folder, setting="the folder of the traffic log"))


@dataclass(frozen=True, slots=True)
class Place:
    """A folder on a disk."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def journals(self) -> Path:
        """Where the journals of its writers lie."""
        return self.folder / JOURNAL

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name; DataError where the disk does not say."""
        path = self.folder / name
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except ValueError:  # no name that a file could have
            return False
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return False
            raise DataError(
                f"{path} cannot be looked at: {error.strerror}; see who may read there, and whether the disk is well"
            ) from None

    def put(self, name: str, data: bytes) -> None:
        """The file in one step, synced. ResourceError where it cannot be written."""
        storage.write_bytes(self.folder / name, data)

    def open(self, name: str) -> IO[bytes]:
        """Its bytes; OSError."""
        return (self.folder / name).open("rb")

    def days(self) -> list[date]:
        """The days that have a folder, in order."""
        try:
            return sorted(filter(None, (_day_of(child.name) for child in self.folder.iterdir())))
        except FileNotFoundError:
            return []

    def parts(self) -> Iterator[str]:
        """The names of all parts by day; a day that is deleted meanwhile is left out."""
        for day in self.days():
            with contextlib.suppress(FileNotFoundError):
                names = sorted(child.name for child in (self.folder / day_name(day)).iterdir())
                yield from (f"{day_name(day)}/{name}" for name in names if _is_part(name))

    def delete_day(self, day: date) -> None:
        """Remove the day whole: under its name it is gone at once."""
        folder = self.folder / day_name(day)
        leaving = self.folder / f".leaving-{day}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):  # another writer was quicker
            folder.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)

    def salt(self) -> bytes:
        """The salt of the folder's hashes, made when absent: one for all writers, readable by the owner alone."""
        path = self.folder / SALT
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                temporary = self.folder / f".{SALT}.{secrets.token_hex(8)}"
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(handle, secrets.token_hex(32).encode())
                    os.fsync(handle)
                    # Unlike a rename, a link never takes the place of another writer's salt.
                    with contextlib.suppress(FileExistsError):
                        os.link(temporary, path)
                finally:
                    os.close(handle)
                    temporary.unlink()
            return _checked_salt(path.read_bytes(), path)
        except OSError as error:
            raise ResourceError(
                f"cannot use {self.folder} for the traffic log: {error.strerror}; pick a folder you may write to"
            ) from None


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A prefix of an object store: an object is there once it is whole, so none is written under another name first.

    Raises StoreAway for a store that does not answer.
    """

    store: ObjectStore

    def __str__(self) -> str:
        return self.store.uri

    @property
    def journals(self) -> Path:
        """Where the journals of this host's writers lie: on its disk, since objects do not grow."""
        return cache_folder() / "traffic" / self.store.uri.replace("://", "-").replace("/", "-").strip("-")

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self.store.about(name) is not None

    def put(self, name: str, data: bytes) -> None:
        """The object in one step."""
        self.store.write(name, data)

    def open(self, name: str) -> IO[bytes]:
        """Its bytes; OSError."""
        return self.store.open(name)

    def days(self) -> list[date]:
        """The days that have an object, in order."""
        return sorted(filter(None, map(_day_of, self.store.folders())))

    def parts(self) -> Iterator[str]:
        """The names of all parts by day."""
        for day in self.days():
            yield from (
                name for name in self.store.listing(day_name(day), recursive=False) if _is_part(Path(name).name)
            )

    def delete_day(self, day: date) -> None:
        """Remove the day's objects."""
        self.store.delete_folder(day_name(day))

    def salt(self) -> bytes:
        """As of a folder; of two writers that make one at once the later wins, and the first uses its own until it starts anew."""
        if not self.exists(SALT):
            self.put(SALT, secrets.token_hex(32).encode())
        return _checked_salt(self.store.read(SALT), self.store.uri)


def mark(place: Place | RemotePlace) -> None:
    """Say that a traffic log lies here."""
    if not place.exists(MARK):
        place.put(MARK, b'{"schema_version": %d}\n' % SCHEMA_VERSION)


def day_name(day: date) -> str:
    """The name of a day's folder."""
    return f"{_DAY}{day.isoformat()}"


def _day_of(name: str) -> date | None:
    try:
        return date.fromisoformat(name.removeprefix(_DAY)) if name.startswith(_DAY) else None
    except ValueError:
        return None


def _is_part(name: str) -> bool:
    return name.endswith(_PART) and not name.startswith(".")


def _checked_salt(raw: bytes, where: object) -> bytes:
    if len(raw.strip()) < 32:
        raise DataError(f"{where}: the salt is damaged; put the file back, or remove it: users then get other hashes")
    return raw.strip()
