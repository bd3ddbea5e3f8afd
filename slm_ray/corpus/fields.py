"""Single fields of rows: JSON texts, values and their types, each refused with a kind, a reason and a fix.

Strict: NaN, infinity and half surrogate pairs are no JSON, whatever Python's own parser thinks. Nothing is converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from slm_ray.corpus.row_errors import BadRow

_NAMES = {"dict": "an object", "list": "a list", "str": "a text", "bool": "true or false", "NoneType": "null"}


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that `text` is; BadRow otherwise."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise _explained(text) from None
    if not isinstance(value, dict):
        # An integer too long for Python's own parser is no JSON to it; a row says the same wherever it is read.
        raise _explained(text) if isinstance(value, int) else no_object(value)
    return value


def checked_object(value: object) -> dict[str, Any]:
    """`value` if it is an object whose texts can all be written as UTF-8 and that holds no NaN; BadRow otherwise."""
    if not isinstance(value, dict):
        raise no_object(value)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _surrogate() from None
    except ValueError:
        raise BadRow("nan", "it holds NaN or infinity", "write a number, or leave the field out") from None
    except TypeError as error:
        raise BadRow("wrong_type", f"it holds what JSON has no word for ({error})", "convert it to a text") from None
    return value


def no_object(value: object) -> BadRow:
    """The refusal of a row that is no object."""
    return BadRow(
        "not_object", f"a row is a JSON object, not {kind_of(value)}", "write {…} with a prompt and a completion"
    )


def text_of(row: Mapping[str, Any], key: str) -> str:
    """The non-empty text under `key`; BadRow otherwise."""
    if key not in row:
        raise BadRow(
            "missing_key", f"there is no {key!r} (keys: {', '.join(map(repr, row)) or 'none'})", f"add {key!r}"
        )
    return filled(row[key], key)


def filled(value: object, where: str) -> str:
    """`value` if it is a text with more than white space; BadRow that names `where` otherwise."""
    if isinstance(value, str):
        if value and not value.isspace():
            return value
        raise BadRow("empty_text", f"{where!r} is empty", "write its text or delete the row")
    if value is None:
        raise BadRow("null", f"{where!r} is null", "write its text or delete the row")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("nan", f"{where!r} is {value}", "write its text or delete the row")
    raise BadRow("wrong_type", f"{where!r} is {kind_of(value)}", "write a text")


def inner_json(text: str) -> Any:
    """The value of a JSON text inside a row, as strict as the row itself; ValueError otherwise."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`, which may be written as a text of JSON; BadRow otherwise."""
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = inner_json(value)
        except ValueError:
            raise BadRow("not_json", f"{key!r} is a text that is not JSON", "write a JSON list") from None
    if not isinstance(value, list):
        raise BadRow("wrong_type", f"{key!r} is not a list", "write a JSON list, or a text that holds one")
    return value


def kind_of(value: object) -> str:
    """What JSON calls a value of this type, with its article."""
    return _NAMES.get(type(value).__name__, "a number")


def _surrogate() -> BadRow:
    return BadRow("surrogate", "it holds half of a surrogate pair (\\ud800 to \\udfff alone)", "remove or complete it")


def _explained(text: str) -> BadRow:
    """Why the strict parser refused `text`, in the words of Python's own, which says where."""
    try:
        value = json.loads(text, parse_constant=_constant)
        checked_object(value)
    except BadRow as bad:
        return bad
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if not isinstance(error, RecursionError) else "nested too deeply"
        return BadRow("not_json", f"this is not JSON ({reason})", "write one JSON object per line")
    return BadRow("not_json", "this is not JSON that every parser reads", "write one JSON object per line")


def _constant(name: str) -> float:
    raise BadRow("nan", f"it holds {name}, which is not JSON", "write a number, or leave the field out")
