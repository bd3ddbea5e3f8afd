"""The files that a path or a URI stands for, each with a name to show and a way to open its bytes.

A folder stands for the files of a known kind in it, by name; hidden ones and folders below it are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from slm_ray.errors import DataError
from slm_ray.remote import open_store

_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a source: the name to show, how to open its bytes, and how many there are (0 when not known)."""

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]

    @property
    def kind(self) -> str:
        """The suffix that says how to read it, `.gz` left aside."""
        return Path(self.name.removesuffix(".gz")).suffix


def files(source: str) -> list[File]:
    """The files of a path or URI: itself, or all files of a known kind in that folder, by name. DataError for none."""
    refuse_nul(source)
    found = _remote_files(source) if "://" in source else _local_files(Path(source).expanduser())
    if not found:
        raise DataError(f"{source}: no file in it is of a known kind ({', '.join(_KINDS)}, or one of them with .gz)")
    return found


def refuse_nul(source: str) -> None:
    """DataError for a source whose name holds a NUL character, which no file system and no hub has."""
    if "\0" in source:
        raise DataError(f"cannot read {source!r}: the name holds a NUL character; give it without")


def _local_files(path: Path) -> list[File]:
    if not path.is_dir():
        return [_local(path)]
    return [_local(child) for child in sorted(path.iterdir()) if child.is_file() and _known(child.name)]


def _local(path: Path) -> File:
    return File(name=str(path), open=partial(_bytes, path), size_bytes=path.stat().st_size if path.is_file() else 0)


def _bytes(path: Path) -> IO[bytes]:
    return path.open("rb")


def _remote_files(source: str) -> list[File]:
    store = open_store(source, setting="source")
    if (whole := store.about()) is not None:
        return [File(name=store.uri, open=partial(store.open, ""), size_bytes=whole.size_bytes)]
    inside = store.listing(recursive=False)
    if not inside:
        raise DataError(f"cannot read {store.uri}: nothing is there; check the URI and its access")
    return [
        File(name=f"{store.uri}/{name}", open=partial(store.open, name), size_bytes=one.size_bytes)
        for name, one in inside.items()
        if _known(name)
    ]


def _known(name: str) -> bool:
    return not name.startswith(".") and name.removesuffix(".gz").endswith(_KINDS)
