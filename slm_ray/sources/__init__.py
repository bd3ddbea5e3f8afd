"""Where rows come from: files, folders, URIs, data sets. Each gives raw rows with the place they stand at.

JSON Lines, a JSON array, CSV, TSV and Parquet, each gzipped or not; a folder of these; a URI that pyarrow reads (`s3://`,
`gs://`, `file://`); a data set of the Hugging Face hub (`hf:NAME[@CONFIG][:SPLIT]`, `train` when no split is named) or one
saved to a folder. What a row means is not known here. A bucket that does not answer is given up after half a minute or so
(`?retry_limit_seconds=` in a `gs://` URI).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from slm_ray.corpus.read import RawRow
from slm_ray.errors import DataError
from slm_ray.sources.data_sets import data_set_rows, is_data_set
from slm_ray.sources.files import File, files
from slm_ray.sources.readers import rows_of

__all__ = ["File", "files", "fingerprint", "is_data_set", "raw_rows", "rows_of"]

_CHUNK_BYTES = 1 << 20


def raw_rows(source: str) -> Iterator[RawRow]:
    """The rows of `source` in order: file, line (or row number) from 1, and a JSON text, an object or what is wrong.

    DataError for a source that cannot be read at all.
    """
    if is_data_set(source):
        yield from data_set_rows(source)
        return
    for file in files(source):
        yield from rows_of(file)


def fingerprint(source: str) -> str:
    """SHA-256 in hex of what the source holds: file names and bytes, or a data set's rows."""
    digest = hashlib.sha256()
    if is_data_set(source):
        for _, number, row in data_set_rows(source):
            digest.update(f"{number}\0{row!r}\n".encode("utf-8", "replace"))
        return digest.hexdigest()
    for file in files(source):
        digest.update(f"{Path(file.name).name}\0".encode())
        try:
            with file.open() as handle:
                while chunk := handle.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(f"cannot read {file.name}: {error.strerror}; give the path of an existing file") from None
    return digest.hexdigest()
