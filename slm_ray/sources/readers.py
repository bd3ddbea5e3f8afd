"""One reader per kind of file: its bytes into raw rows, streamed but for JSON arrays, which are held whole.

Raises DataError for a file that cannot be read on; a single row that is wrong is passed on as what is wrong with it.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from slm_ray.corpus.jsonl import numbered, rows_in
from slm_ray.corpus.read import RawRow
from slm_ray.corpus.row_errors import BadRow
from slm_ray.errors import DataError
from slm_ray.sources.files import File

_PEEK_BYTES = 256
_BATCH_ROWS = 1024
_NOT_UTF8 = BadRow("not_utf8", "the line is not UTF-8 text", "save the file as UTF-8")
_BROKEN = "\udcff"  # no line of valid UTF-8 is this


def rows_of(file: File) -> Iterator[RawRow]:
    """The file's rows in order. JSON Lines or a JSON array unless its name says CSV, TSV or Parquet."""
    try:
        yield from _READERS.get(file.kind, _text_rows)(file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {file.name}: {reason}; give the path of an existing, whole file") from None


def filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without empty cells, at any depth: a table has a cell for every column and for every field of a struct,
    whatever the row says. A call's arguments would otherwise be given those of all other rows, as nulls."""
    return {name: _filled(value) for name, value in row.items() if value is not None}


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return filled(value)
    return [_filled(part) for part in value] if isinstance(value, list) else value


def _opened(file: File) -> io.BufferedReader:
    """The file's bytes, decompressed, with a `peek`."""
    handle: Any = file.open()
    if file.name.endswith(".gz"):
        handle = gzip.GzipFile(fileobj=handle)
    return handle if isinstance(handle, io.BufferedReader) else io.BufferedReader(handle)


def _text_rows(file: File) -> Iterator[RawRow]:
    with _opened(file) as handle:
        if handle.peek(_PEEK_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            for line, row in rows_in(_decoded(handle.read(), file.name), file.name):
                yield file.name, line, row
            return
        for number, text in numbered(_lines(handle)):
            yield file.name, number, _NOT_UTF8 if text == _BROKEN else text


def _lines(handle: IO[bytes]) -> Iterator[str]:
    for line in handle:
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            yield _BROKEN


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _table_rows(file: File) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than a long document
    with _opened(file) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter="\t" if file.kind == ".tsv" else ",", strict=True)
        header: list[str] = []
        while True:
            line = rows.line_num + 1
            try:
                fields = next(rows, None)
            except csv.Error as error:
                raise DataError(f"{file.name}:{line}: not CSV ({error}); quote fields that hold quotes") from None
            except UnicodeDecodeError:
                raise DataError(
                    f"{file.name}: after line {line} there are bytes that are not UTF-8; save it so"
                ) from None
            if fields is None:
                return
            if not header:
                header = _header(fields, file.name)
            elif fields:
                yield file.name, line, _record(header, fields)


def _header(fields: list[str], name: str) -> list[str]:
    if len(set(fields)) < len(fields) or not all(fields):
        raise DataError(f"{name}:1: the header is {', '.join(map(repr, fields))}; give every column its own name")
    return fields


def _record(header: list[str], fields: list[str]) -> dict[str, Any] | BadRow:
    if len(fields) == len(header):
        return dict(zip(header, fields, strict=True))
    return BadRow(
        "columns", f"it has {len(fields)} fields, the header has {len(header)}", "quote fields that hold commas or quotes"
    )  # fmt: skip


def _parquet_rows(file: File) -> Iterator[RawRow]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    number = 0
    try:
        with file.open() as handle:
            for batch in parquet.ParquetFile(handle).iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield file.name, number, filled(row)
    except ArrowException as error:
        raise DataError(f"{file.name}: not Parquet ({str(error).splitlines()[0]}); write the file again") from None


_READERS: dict[str, Callable[[File], Iterator[RawRow]]] = {
    ".csv": _table_rows, ".tsv": _table_rows, ".parquet": _parquet_rows,
}  # fmt: skip
