"""Rows into train, validation and test, so that no prompt stands on two sides.

The order is a hash of the seed and the row's content: it does not depend on the order of the file, and adding rows
moves few others. Rows that share a prompt or a `group` (xLAM pairs: the query) stay together, so both tracks of one
xLAM source split alike. Nothing is balanced by tool or domain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from slm_ray.corpus.render import normalised
from slm_ray.errors import DataError, choices
from slm_ray.types import Example

Row = TypeVar("Row", Example, dict[str, Any])

_SIDES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def split(rows: Sequence[Row], *, validation: int, test: int, train: int | None, seed: int) -> dict[str, list[Row]]:
    """Draw exactly `test`, then `validation`, then `train` rows (all that are left when None), in hash order.

    A row is an Example, or a dict in a shape that `read.examples` accepts, with a `group` if it has one. Raises
    DataError when there are too few rows.
    """
    groups = sorted(_groups(rows), key=lambda group: _hash(seed, group))
    sides: dict[str, list[Row]] = {}
    for side, wanted in (("test", test), ("validation", validation), ("train", train)):
        sides[side], groups = _take(groups, wanted)
        _check(side, len(sides[side]), wanted, len(rows))
    return {side: sides[side] for side in ("train", "validation", "test")}


def keep(rows: Sequence[dict[str, Any]], *, name: str) -> dict[str, list[dict[str, Any]]]:
    """The rows by their own `split` (train, validation or val, test), in file order.

    Raises DataError for a row without one, an empty side, or a prompt that stands on two sides.
    """
    sides: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for position, row in enumerate(rows, start=1):
        given = row.get("split")
        if given not in _SIDES:
            raise DataError(f"{name}: row {position} has the split {given!r}; {choices(str(given), _SIDES)}")
        sides[_SIDES[given]].append(row)
    for side, found in sides.items():
        _check(side, len(found), None, len(rows))
    for group in _groups(rows):
        given = {_SIDES[row["split"]] for row in group}
        if len(given) > 1:
            where = " and ".join(sorted(given))
            raise DataError(f"{name}: one prompt is in {where} ({_keys(group[0])[-1][:60]!r}…); keep it in one split")
    return sides


def _take(groups: list[list[Row]], wanted: int | None) -> tuple[list[Row], list[list[Row]]]:
    """Whole groups in order until `wanted` rows are full, and the groups left over; a group too large waits.

    When only groups too large are left, the first is cut and the rest of it is dropped: no other side may have it.
    """
    taken: list[Row] = []
    left: list[list[Row]] = []
    for group in groups:
        if wanted is None or len(taken) + len(group) <= wanted:
            taken.extend(group)
        else:
            left.append(group)
    if wanted is not None and len(taken) < wanted and left:
        taken.extend(left.pop(0)[: wanted - len(taken)])
    return taken, left


def _check(side: str, found: int, wanted: int | None, total: int) -> None:
    if found < (wanted or 1):
        asked = f"{wanted} {side} rows" if wanted else f"{side} rows"
        raise DataError(
            f"asked for {asked}, but only {found} of {total} rows are left for them; "
            "lower `test`, `validation` or `train`, or add rows"
        )


def _groups(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows that share a key, directly or through other rows (union-find over keys)."""
    parent = list(range(len(rows)))
    first: dict[str, int] = {}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, row in enumerate(rows):
        for key in _keys(row):
            parent[root(index)] = root(first.setdefault(key, index))
    groups: dict[int, list[Row]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(root(index), []).append(row)
    return groups.values()


def _keys(row: Example | Mapping[str, Any]) -> tuple[str, ...]:
    """What ties a row to others: its group if it has one, then its normalised prompt."""
    prompt = "prompt:" + normalised("\n".join(_asked(row)))
    group = None if isinstance(row, Example) else row.get("group")
    return (f"group:{group}", prompt) if group else (prompt,)


def _asked(row: Example | Mapping[str, Any]) -> list[str]:
    """The texts a model is shown, without system turns; the rows have been read and are known to be good."""
    if isinstance(row, Example):
        return [turn.content for turn in row.prompt.messages if turn.role != "system"]
    if isinstance(row.get("prompt"), str):
        return [row["prompt"]]
    turns = row["prompt"] if "prompt" in row else (row.get("messages") or row["conversations"])[:-1]
    said = ((turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in turns)
    return [str(content) for role, content in said if role != "system"]


def _hash(seed: int, group: Sequence[Example | dict[str, Any]]) -> str:
    key = min(_keys(row)[0] for row in group)
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
