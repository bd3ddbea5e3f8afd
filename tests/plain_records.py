"""Records as plain JSON that a test may change, and back, by the reader that reads files."""

import json
from typing import Any

from slm_ray.reports.encoding import decode, encode


def plain(record: Any) -> Any:
    """What stands in the file."""
    return json.loads(json.dumps(encode(record)))


def record(kind: type[Any], value: Any) -> Any:
    """What is read from it."""
    return decode(value, kind, where="test", fix="mend the test")


def changed(rows: list[Any], change: Any) -> list[Any]:
    """The rows after `change(plain row, position)`, which changes it in place."""
    found = []
    for position, row in enumerate(rows):
        value = plain(row)
        change(value, position)
        found.append(record(type(row), value))
    return found
