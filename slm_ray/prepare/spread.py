"""Slow steps over many rows, in other processes where that pays: what is asked, here or there, is the same.

A step is a plain function of a list that yields something for the list. Parts are cut and their results come in the order
of the items, so nobody sees where they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEMS = 500


class FanOut(Protocol):
    """What runs `work` for each item elsewhere (`slm_ray.fanout.in_order`): all that it yields, item after item."""

    def __call__(self, work: Callable[[Any], Iterator[Any]], items: list[Any], *, title: str) -> Iterator[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Whether and when there are other processes: from as much work as `least_bytes` of a file to read, never for None."""

    fan_out: FanOut | None = None
    least_bytes: int | None = None

    def over(
        self, work: Callable[[Sequence[Item]], Iterator[Result]], items: Sequence[Item], *, like_bytes: int, title: str
    ) -> Iterator[Result]:
        """What `work` yields for the items, which take as long as reading so many bytes."""
        if self.fan_out is None or self.least_bytes is None or like_bytes < self.least_bytes:
            return work(items)
        parts = [items[start : start + _ITEMS] for start in range(0, len(items), _ITEMS)]
        listed = self.fan_out(partial(_listed, work), parts, title=title)
        return (result for part in listed for result in part)


def _listed(work: Callable[[Sequence[Item]], Iterator[Result]], items: Sequence[Item]) -> Iterator[list[Result]]:
    """One list for a part, since each thing that another process yields is an object of its own there."""
    yield list(work(items))
