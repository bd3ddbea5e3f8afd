"""Strict JSON and its items: the (path, value) pairs that precision and recall count.

Promises: no text raises, hangs or exhausts memory here, and a text gives the same document wherever it is parsed.
Strict means RFC 8259: `NaN` and `Infinity` are refused (the recorded rows hold none), as are control characters inside
strings and anything around the one value. Of a repeated key the last value counts; `1e400` is valid (infinity).
Beyond the grammar a text is treated as invalid when it is nested deeper than `MAX_DEPTH`, holds an integer of more than
`MAX_DIGITS` characters, or needs more than `MAX_PATH_CHARACTERS` for the paths of its leaves: no usable answer does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DEPTH = 200
MAX_DIGITS = 4300
MAX_PATH_CHARACTERS = 16_000_000
_LEAF_CHARACTERS = 16  # what a leaf costs besides its parent's path
_CANONICAL = json.JSONEncoder(sort_keys=True).encode  # made once: `json.dumps` makes one for every leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed JSON text: the value itself and its set of (path, JSON text of the leaf) items."""

    value: Any
    items: frozenset[tuple[str, str]]

    def __str__(self) -> str:
        """The value in one line, its keys sorted."""
        return json.dumps(self.value, ensure_ascii=False, sort_keys=True)


def parse(text: str | None) -> Document | None:
    """The document that `text` holds, or None when it is not strict JSON (or None)."""
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=_integer)
        return Document(value=value, items=frozenset(_items(value)))
    # ValueError is bad syntax or a limit of ours; RecursionError is nesting beyond what the parser itself can follow.
    except (ValueError, RecursionError):
        return None


def fields(document: Document | None) -> dict[str, Any] | None:
    """The value when it is a JSON object, else None (a list, a scalar, or no document at all)."""
    return document.value if document is not None and isinstance(document.value, dict) else None


def leaf_text(value: Any) -> str:
    """The canonical JSON text of a value: `1`, `1.0`, `"1"` and `true` are four different texts."""
    return _CANONICAL(value)


def overlap(predicted: Document | None, expected: Document | None) -> tuple[int, int, int]:
    """(TP, FP, FN): shared items, only predicted, only expected. No document has no items."""
    found = predicted.items if predicted is not None else frozenset()
    wanted = expected.items if expected is not None else frozenset()
    shared = len(found & wanted)
    return shared, len(found) - shared, len(wanted) - shared


def ratios(counts: tuple[int, int, int]) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1 of (TP, FP, FN) counts; None where nothing was predicted, expected, or both.

    F1 is 2PR/(P+R), the form whose last digit the recorded runs have; it is 0 as soon as anything was missed or made up
    and nothing was shared.
    """
    shared, extra, missed = counts
    precision = shared / (shared + extra) if shared + extra else None
    recall = shared / (shared + missed) if shared + missed else None
    if precision is None and recall is None:
        return None, None, None
    if not precision or not recall:
        return precision, recall, 0.0
    return precision, recall, 2 * precision * recall / (precision + recall)


def _items(root: Any) -> set[tuple[str, str]]:
    """Leaves as (path, text); `a.b[0]`, and the path of a scalar root is "".

    An empty object or list has no leaves and so gives no item: the recorded counts (rows with `"arguments": {}`) have
    it so. A set, because two spellings of one path (`{"a.b": 1}` and `{"a": {"b": 1}}`) are one item. The walk keeps
    its own stack, so depth is judged by MAX_DEPTH and not by who called.
    """
    found: set[tuple[str, str]] = set()
    stack: list[tuple[str, Any, int]] = [("", root, 0)]
    budget = MAX_PATH_CHARACTERS
    while stack:
        path, value, depth = stack.pop()
        if not isinstance(value, dict | list):
            found.add((path, leaf_text(value)))
            continue
        if depth >= MAX_DEPTH:
            raise ValueError("nested too deeply")
        # Paid before the child paths exist: a long key over many children would else fill the memory.
        budget -= (len(path) + _LEAF_CHARACTERS) * len(value)
        if budget < 0:
            raise ValueError("too many items")
        if isinstance(value, dict):
            stack.extend((f"{path}.{key}" if path else key, child, depth + 1) for key, child in value.items())
        else:
            stack.extend((f"{path}[{index}]", child, depth + 1) for index, child in enumerate(value))
    return found


def _integer(digits: str) -> int:
    # The interpreter's own limit can be switched off by its environment, and conversion is quadratic without it.
    if len(digits) > MAX_DIGITS:
        raise ValueError("an integer with too many digits")
    return int(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
