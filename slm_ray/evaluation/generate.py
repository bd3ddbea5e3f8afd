"""One model, many prompts, a bounded number of calls in flight: a plain coroutine that knows nothing of Ray or disks.

Answers come out in small batches as they arrive, in no particular order. Whoever stops taking them stops the asking: a
caller asks its next example only when its last answer has been taken. When a call raises (a key or a name that fails every call), what had already
arrived comes out first, then the error.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.types import Completion, Example, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's completion for one example; `answered_ns` is the wall time at which it arrived."""

    example_id: str
    completion: Completion
    answered_ns: int


async def generate(model: Model, examples: Sequence[Example], *, concurrency: int) -> AsyncIterator[list[Answer]]:
    """Ask `model` every example, at most `concurrency` at a time; yield what has arrived since the last batch."""
    if not examples:
        return
    arrived: asyncio.Queue[Answer] = asyncio.Queue(maxsize=1)
    waiting = iter(examples)
    callers = [asyncio.create_task(_call(model, waiting, arrived)) for _ in range(min(concurrency, len(examples)))]
    everyone: asyncio.Future[Any] = asyncio.gather(*callers)
    taking: asyncio.Future[Any] | None = None
    try:
        while True:
            taking = asyncio.ensure_future(arrived.get())
            await asyncio.wait([taking, everyone], return_when=asyncio.FIRST_COMPLETED)
            if everyone.done():
                deque(waiting, maxlen=0)  # one call raised, or all is asked: nobody starts another
            if not taking.done() and arrived.empty():
                break
            batch: list[Answer] = [await taking]
            while len(batch) < concurrency and not arrived.empty():
                batch.append(arrived.get_nowait())
                await asyncio.sleep(0)  # lets the next waiting caller hand over
            yield batch
        await everyone
    finally:
        for task in (*callers, everyone, *([taking] if taking else [])):
            task.cancel()
        await asyncio.gather(*callers, everyone, return_exceptions=True)


async def _call(model: Model, waiting: Iterator[Example], arrived: asyncio.Queue[Answer]) -> None:
    for example in waiting:
        completion = await model.complete(example.id, example.prompt)
        answer = Answer(example_id=example.id, completion=completion, answered_ns=time.time_ns())
        await arrived.put(answer)
