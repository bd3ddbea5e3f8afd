"""One model, many prompts, a bounded number of calls in flight: a plain coroutine that knows nothing of Ray or disks.

Answers come out in small batches as they arrive, in no particular order. When a call raises (a key or a name that fails
every call), what had already arrived comes out first, then the error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from slm_ray.types import Completion, Example, Model

FLUSH_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's completion for one example; `answered_ns` is the wall time at which it arrived."""

    example_id: str
    completion: Completion
    answered_ns: int


async def generate(
    model: Model, examples: Sequence[Example], *, concurrency: int, flush_s: float = FLUSH_S
) -> AsyncIterator[list[Answer]]:
    """Ask `model` every example, at most `concurrency` at a time; yield what arrived at least every `flush_s`."""
    arrived: list[Answer] = []
    waiting = iter(examples)
    callers = [asyncio.ensure_future(_call(model, waiting, arrived)) for _ in range(min(concurrency, len(examples)))]
    everyone = asyncio.gather(*callers)
    try:
        while not everyone.done() or arrived:
            if not everyone.done():
                await asyncio.wait([everyone], timeout=flush_s)
            if arrived:
                batch = list(arrived)
                arrived.clear()
                yield batch
        await everyone
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def _call(model: Model, waiting: Iterator[Example], arrived: list[Answer]) -> None:
    for example in waiting:
        completion = await model.complete(example.id, example.prompt)
        arrived.append(Answer(example_id=example.id, completion=completion, answered_ns=time.time_ns()))
