"""Text files in and out of a run directory: read with a clear error, written whole or not at all, locked by one owner.

A reader never sees half a file: every write goes to a temporary file in the same folder, is synced, and then takes the
name in one step. What grows is a run's log, and `growing_jsonl`: appended line by line, by one process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import hashlib
import itertools
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from slm_ray.errors import DataError, ReadOnlyError, ResourceError

LOCK_NAME = ".lock"
_CHUNK_BYTES = 1 << 20
_BLOCK_ROWS = 5_000
_MEND = "mend the line or remove it"

T = TypeVar("T")


def read_text(path: str | Path) -> str:
    """The file as UTF-8 text, a leading byte-order mark dropped. DataError when missing, empty or not UTF-8."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the path of an existing file") from None
    if not raw.strip():
        raise DataError(f"{path} is empty; write it again, or give another file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of `read_text`, as `split_lines` cuts them."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """`text` split at LF and CRLF only: JSON strings may hold other Unicode line separators."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json(path: str | Path) -> Any:
    """The JSON value of a whole file; DataError with file:line when it is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{where}: not JSON ({error}); write the file again") from None


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """One JSON object per line, blank lines skipped; DataError with file:line for any other line."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`, each row with its line number from 1, for errors that name it."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        yield number, row_of(line, where=f"{path}:{number}", fix="write one JSON object per line")


def row_of(line: str | bytes, *, where: str, fix: str) -> dict[str, Any]:
    """The JSON object in a line; DataError that names the place and the fix for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); {fix}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__} instead of an object; {fix}")
    return row


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` in one step; its folder is made. On any failure the old file stays as it was."""
    _write(path, [text])


def write_bytes(path: str | Path, data: bytes) -> None:
    """The file in one step: what was there stays until it is whole."""
    _write(path, [data])


def _write(path: str | Path, parts: Iterable[str | bytes]) -> None:
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as sink:
            sink.writelines(part if isinstance(part, bytes) else part.encode("utf-8") for part in parts)
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON in the given key order: the same value gives the same bytes. ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One compact JSON object per line; `rows` are taken one by one. ValueError for NaN or infinity."""
    _write(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_parquet(path: str | Path, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows as a Parquet file, in one step; `columns` are Arrow type names. Holds one block of rows in memory at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    target, left = Path(path), iter(rows)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as sink, parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
            while block := list(itertools.islice(left, _BLOCK_ROWS)):
                arrays = [
                    pa.array(values, field.type) for values, field in zip(zip(*block, strict=True), schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    except OSError as error:
        raise _cannot_write(path, error) from None


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes in hex; DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the path of an existing file") from None
    return digest.hexdigest()


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Own `folder` (made when absent) until the block ends or the process dies.

    A second owner gets a ResourceError at once, naming the folder and the process that holds it. Advisory, between
    processes of one host or of hosts whose shared file system honours `flock`.
    """
    home = Path(folder)
    if home.parts and home.parts[0] in ("s3:", "gs:", "gcs:"):
        raise ResourceError(
            f"{folder} is object storage, and this needs a folder; slm_ray.remote.at_hand makes one of it"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ResourceError(f"cannot use {folder}: {error.strerror}; pick a folder you may write to") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            raise ResourceError(
                f"{folder} is in use by process {holder}; wait for it, stop it, or choose another folder"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        # The file stays: removing it would let two owners hold locks on two files of the same name.
        os.close(handle)


class GrowingFile:
    """The whole lines of a JSONL file with their numbers, and ways to add some; made by `growing_jsonl`."""

    def __init__(self, path: Path, handle: int) -> None:
        with open(handle, "rb", closefd=False) as source:
            raw = source.read()
        self._path, self._handle = path, handle
        self._end = raw.rfind(b"\n") + 1  # behind the last whole line: what follows was cut short
        self.rows = _whole_rows(raw, path)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add lines and sync them together; ResourceError, and the file as it was, where they cannot be written."""
        lines = _lines(rows)
        try:
            os.ftruncate(self._handle, self._end)
            _write_all(self._handle, lines, self._end)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise _cannot_write(self._path, error) from None
        self._end += len(lines)

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Other lines in place of all, in one step, and owned as before; ResourceError, and the file as it was."""
        lines, temporary = _lines(rows), self._path.with_name(f".{self._path.name}.tmp")
        handle = -1
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever opens the new file finds it owned
            _write_all(handle, lines, 0)
            os.replace(temporary, self._path)
        except OSError as error:
            if handle >= 0:
                os.close(handle)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise _cannot_write(self._path, error) from None
        self.close()
        self._handle, self._end = handle, len(lines)
        _sync_folder(self._path.parent)

    def close(self) -> None:
        """Let others write."""
        os.close(self._handle)


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def _write_all(handle: int, data: bytes, at: int) -> None:
    if os.pwrite(handle, data, at) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(handle)


def grown_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The whole lines of a file that `growing_jsonl` grows, with their numbers, while others may append; none without it.

    DataError with file:line for a line that is no object, and for a path that is no file.
    """
    try:
        return _whole_rows(Path(path).read_bytes(), Path(path))
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; have its owner let you read it") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; a file of lines belongs there") from None


def _whole_rows(raw: bytes, path: Path) -> list[tuple[int, dict[str, Any]]]:
    lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")
    return [
        (number, row_of(line, where=f"{path}:{number}", fix=_MEND))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


class Reread(Generic[T]):
    """What `read` makes of a file, read again only when the file has changed; for those who ask at every request."""

    def __init__(self, path: str | Path, read: Callable[[Path], T]) -> None:
        self._path, self._read = Path(path), read
        self._known: tuple[object, T] | None = None

    def now(self) -> T:
        """As of now; raises what `read` raises, at every call until the file is mended."""
        try:
            status = os.stat(self._path)
            seen: object = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            seen = None
        if self._known is None or self._known[0] != seen:
            self._known = (seen, self._read(self._path))
        return self._known[1]


def writer() -> str:
    """Who writes here: USER@HOST, for histories."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def growing_jsonl(path: str | Path, *, waits: bool = True) -> Iterator[GrowingFile]:
    """Own a JSONL file that grows (made when absent) until the block ends; a second owner waits, or is refused.

    A last line without its end is no line. ResourceError where the file cannot be written, or is another's and `waits` is
    false; DataError for a folder in its place and, with file:line, for a line that is no object.
    """
    target = Path(path)
    handle = _owned(target, waits)
    try:
        file = GrowingFile(target, handle)
    except BaseException:
        os.close(handle)
        raise
    try:
        yield file
    finally:
        file.close()


def _owned(target: Path, waits: bool) -> int:
    """The file that has the name once it is ours: its last owner may have replaced it meanwhile."""
    while True:
        try:
            handle = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except IsADirectoryError:
            raise DataError(f"{target} is a folder, and a file of lines belongs there; move it away") from None
        except OSError as error:
            raise _cannot_write(target, error) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(target)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            raise ResourceError(f"another process writes {target}; stop one of the two") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the name of `target` once the block has ended well; else the old file stays."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which other users of a shared run folder could not read
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _cannot_write(path: str | Path, error: OSError) -> ResourceError:
    kind = ReadOnlyError if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ResourceError
    return kind(
        f"cannot write {path} on {socket.gethostname()}: {error.strerror or error}; nothing was changed; free the disk or pick a folder you may "
        "write to"
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
