"""Entries of a traffic log as Parquet parts and back, one part per day and segment of a journal.

`request` is a text of JSON, since requests differ in their fields; `answers` is a list of structs. A line of feedback is
a row too, with `kind` feedback, the id of its request, `score` and `answer`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import IO, Any

from slm_ray.traffic.record import SCHEMA_VERSION, Entry, TrafficRow, entry_of, plain

_BATCH_ROWS = 512
_VERSION_KEY = b"slm_ray.traffic"


def by_day(entries: Sequence[Entry]) -> dict[date, list[Entry]]:
    """The entries of each day in UTC, in their order."""
    days: dict[date, list[Entry]] = {}
    for entry in entries:
        days.setdefault(datetime.fromtimestamp(entry.at, UTC).date(), []).append(entry)
    return days


def part_bytes(entries: Sequence[Entry]) -> bytes:
    """The entries as one Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = io.BytesIO()
    table = pa.Table.from_pylist([_columns(entry) for entry in entries], schema=_schema())
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def fits(entry: Entry) -> bool:
    """Whether a part can hold the entry: no number in it has more than 64 bits."""
    try:
        part_bytes([entry])
    except (OverflowError, ValueError, TypeError):
        return False
    return True


def entries_in(source: IO[bytes], *, kind: str) -> Iterator[tuple[int, Entry | ValueError]]:
    """The entries of that kind in a part, with their numbers from 1; what is wrong with one in its place.

    ArrowException for what is no Parquet file.
    """
    from pyarrow import parquet

    file = parquet.ParquetFile(source)
    version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"").decode("ascii", "replace")
    if not version:
        yield 0, ValueError("it is a Parquet file, and none of a traffic log")
        return
    number = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        for row in batch.to_pylist():
            number += 1
            if row.get("kind") == kind:
                yield number, _entry(row, version)


def _columns(entry: Entry) -> dict[str, Any]:
    fields = plain(entry)
    if isinstance(entry, TrafficRow):
        fields["request"] = json.dumps(fields["request"], ensure_ascii=False)
    return fields


def _entry(row: dict[str, Any], version: str) -> Entry | ValueError:
    fields = {name: value for name, value in row.items() if value is not None}
    fields["schema_version"] = int(version) if version.isdecimal() else version
    try:
        if "request" in fields:
            fields["request"] = json.loads(fields["request"])
        return entry_of(fields)
    except (ValueError, TypeError, RecursionError) as error:
        return ValueError(str(error).splitlines()[0])


def _schema() -> Any:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    answer = {
        "arm": text, "model": text, "text": text, "status": whole, "latency_s": number, "reason": text,
        "first_token_s": number, "prompt_tokens": whole, "completion_tokens": whole, "valid": pa.bool_(), "logprob": number,
        "cost_usd": number, "score": number, "digest": text, "chars": whole, "redacted": pa.bool_(),
    }  # fmt: skip
    columns = {
        "kind": text, "id": text, "at": number, "route": text, "serial": whole, "state": text, "arm": text, "user": text,
        "served": text, "fallback": text, "audited": pa.bool_(), "request": text, "answers": pa.list_(pa.struct(list(answer.items()))),
        "score": number, "answer": text, "label": pa.bool_(), "redacted": pa.bool_(),
    }  # fmt: skip
    return pa.schema(list(columns.items()), metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()})
