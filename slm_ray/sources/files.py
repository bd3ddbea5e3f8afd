"""The files that a path or a URI stands for, each with a name to show and a way to open its bytes.

A folder stands for the files of a known kind in it, by name; hidden ones and folders below it are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from slm_ray.errors import ConfigError, DataError

_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_GCS_PATIENCE = "retry_limit_seconds"  # the client's own is 15 minutes, in which a wrong name or no access says nothing
_GCS_PATIENCE_S = 30


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
    from pyarrow import ArrowException, fs

    try:
        url = urlsplit(source)
        if url.password:
            raise ConfigError(
                f"the {url.scheme}:// source holds a secret, which would be written into the run's records; name it without"
                " user and password, and set them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            )
        system, path = fs.FileSystem.from_uri(_patient(source) if url.scheme in ("gs", "gcs") else source)
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            inside = system.get_file_info(fs.FileSelector(path))
            found = sorted((child for child in inside if child.is_file and _known(child.base_name)), key=_path)
        else:
            found = [info]
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"cannot read {source}: {str(error).splitlines()[0]}; check the URI and its access") from None
    # Without user and options: the name stands in reports, and its end says what kind of file it is.
    root = f"{url.scheme}://" + (url.netloc.rpartition("@")[2] if path.startswith("/") else "")
    return [
        File(name=root + each.path, open=partial(system.open_input_file, each.path), size_bytes=each.size or 0)
        for each in found
    ]


def _patient(source: str) -> str:
    if _GCS_PATIENCE in source:
        return source
    return f"{source}{'&' if '?' in source else '?'}{_GCS_PATIENCE}={_GCS_PATIENCE_S}"


def _path(info: Any) -> str:
    return str(info.path)


def _known(name: str) -> bool:
    return not name.startswith(".") and name.removesuffix(".gz").endswith(_KINDS)
