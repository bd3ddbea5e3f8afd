"""Records as JSON and back: one function writes, one reads.

What is read back equals what was written. A file of another version, a key that is missing and a value of another type
are a DataError that names the file, the key and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from slm_ray.errors import DataError
from slm_ray.records import SCHEMA_VERSION

T = TypeVar("T")


def encode(record: Any) -> Any:
    """The record as what JSON holds: objects, lists, texts and numbers, fields in their order."""
    return msgspec.to_builtins(record)


def decode(plain: Any, kind: type[T], *, where: str, fix: str) -> T:
    """The record of type `kind` that `plain` is the JSON of; `where` and `fix` are what the DataError says."""
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {_in_words(str(error))}; {fix}") from None


def check_version(plain: Any, *, where: str, fix: str) -> None:
    """DataError unless `plain` is an object of this version."""
    version = plain.get("schema_version") if isinstance(plain, Mapping) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{where}: schema_version is {version!r} and not {SCHEMA_VERSION}; {fix}")


def _in_words(message: str) -> str:
    """msgspec writes the key as a path from `$`: `Expected `int`, got `str` - at `$.examples.n``."""
    what, _, path = message.rpartition(" - at ")
    return f"{path.strip('`').removeprefix('$.')}: {what}" if what else message
