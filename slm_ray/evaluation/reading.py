"""An arm's answers as a mapping that reads the ledger as it goes: a report of any size holds a few hundred of them.

Whoever goes through the examples in their order causes one query for each few hundred; any other order works and is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from slm_ray.errors import DataError
from slm_ray.ledger import Entry, Ledger

Part = TypeVar("Part")
_AHEAD = 500


class ReadAhead(Mapping[str, Part], Generic[Part]):
    """`part` of the answer to each example; DataError where one is asked for that the ledger does not have."""

    def __init__(self, ledger: Ledger, spec: str, keys: Mapping[str, str], part: Callable[[Entry], Part]) -> None:
        self._ledger = ledger
        self._spec = spec
        self._keys = keys
        self._part = part
        self._order = tuple(keys)
        self._held: dict[str, Part] = {}
        self._next = 0

    def __getitem__(self, example_id: str) -> Part:
        if example_id not in self._held:
            self._read(example_id)
        return self._held[example_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def _read(self, example_id: str) -> None:
        if example_id not in self._keys:
            raise KeyError(example_id)
        follows = self._next < len(self._order) and self._order[self._next] == example_id
        start = self._next if follows else self._order.index(example_id)
        ids = self._order[start : start + _AHEAD]
        self._next = start + len(ids)
        self._held = {}
        for one, entry in zip(ids, self._ledger.entries(self._keys[one] for one in ids), strict=True):
            if entry is None:
                raise DataError(
                    f"{self._spec} has no answer to example {one!r} in the ledger; run the same command again"
                )
            self._held[one] = self._part(entry)
