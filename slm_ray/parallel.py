"""Long work on many items: the one way to hand it on, and to do it here.

The work is a plain function of the floors below, called the same way here and in other processes, and its results come
in the order of the items: so what comes out is the same to the byte whoever works, errors included. `slm_ray.executor`
has the executor whose processes are Ray's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_ITEMS = 500


class Executor(Protocol):
    """Who works on many items."""

    def pays_off(self, like_bytes: int) -> bool:
        """Whether to hand on work that takes as long as reading so many bytes of rows."""
        ...

    def map(
        self, function: Callable[[Item], Iterable[Result]], items: Sequence[Item], *, title: str
    ) -> Iterator[Result]:
        """Everything that `function` yields for each item, item after item; `title` is for a person who waits."""
        ...


class LocalExecutor:
    """Works here, item by item, as its results are taken."""

    def pays_off(self, like_bytes: int) -> bool:
        """Never."""
        return False

    def map(
        self, function: Callable[[Item], Iterable[Result]], items: Sequence[Item], *, title: str
    ) -> Iterator[Result]:
        """Everything that `function` yields for each item."""
        for item in items:
            yield from function(item)


def map_batches(
    executor: Executor, function: Callable[[Sequence[Item]], Iterable[Result]], items: Sequence[Item], *,
    like_bytes: int, title: str,
) -> Iterator[Result]:  # fmt: skip
    """What `function` yields for the items, which takes as long as reading `like_bytes`; in batches where that pays."""
    if not executor.pays_off(like_bytes):
        yield from function(items)
        return
    batches = [items[start : start + BATCH_ITEMS] for start in range(0, len(items), BATCH_ITEMS)]
    for results in executor.map(partial(_listed, function), batches, title=title):
        yield from results


def _listed(function: Callable[[Sequence[Item]], Iterable[Result]], items: Sequence[Item]) -> Iterator[list[Result]]:
    """One list for a batch, since each thing that another process yields is an object of its own there."""
    yield list(function(items))
