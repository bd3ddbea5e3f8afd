"""One model and its calls in flight: a plain object that knows nothing of Ray or disks (`ahead` adds those that do).

What is asked is generic: a `Question` has a key of its own, so that a repeat or another wording of the same example is
only another question. Every question is asked as soon as it is handed over; how many are in flight is the business of
whoever hands them over, and a question is never started by itself. Answers come out in small batches as they arrive, in
no particular order. When a call raises (a key or a name that fails every call), what had already arrived comes out first,
then the error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from slm_ray.ledger import Answer, Part
from slm_ray.types import Completion, Model, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call to make: what to ask, for which example, under which key the answer is wanted."""

    key: str
    example_id: str
    prompt: Prompt


class Asking:
    """The calls in flight of one model. Lives on one event loop."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._calls: set[asyncio.Task[Completion]] = set()
        self._arrived: list[Answer] = []
        self._failed: BaseException | None = None
        self._news = asyncio.Event()

    def ask(self, questions: Iterable[Question]) -> None:
        """Start these calls now; nothing is started after a call has raised."""
        self._begin(questions)

    def _begin(self, questions: Iterable[Question]) -> None:
        if self._failed is not None:
            return
        for question in questions:
            call = asyncio.create_task(self._model.complete(question.example_id, question.prompt))
            self._calls.add(call)
            call.add_done_callback(partial(self._done, question))

    async def heard(self) -> Part:
        """What has arrived since the last time, waiting for the first or for `wake`; raises what a call raised once all is out."""
        await self._news.wait()
        part = self._taken()
        if not part.answers and self._failed is not None:
            raise self._failed
        if self._failed is None:
            self._news.clear()
        return part

    def _taken(self) -> Part:
        answers, self._arrived = self._arrived, []
        return Part(begun=(), answers=answers, upto=0)

    def wake(self) -> None:
        """There is other news: let `heard` return, with nothing if need be."""
        self._news.set()

    async def close(self) -> None:
        """Give up what is in flight and close the model."""
        calls = tuple(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._model.close()

    def _done(self, question: Question, call: asyncio.Task[Completion]) -> None:
        self._calls.discard(call)
        if call.cancelled():
            return
        error = call.exception()
        if error is not None:
            self._fail(error)
            return
        self._arrive(
            Answer(
                key=question.key, example_id=question.example_id, completion=call.result(), answered_ns=time.time_ns()
            )
        )

    def _arrive(self, answer: Answer) -> None:
        self._arrived.append(answer)
        self._news.set()

    def _fail(self, error: BaseException) -> None:
        self._failed = self._failed or error
        for other in self._calls:
            other.cancel()
        self._news.set()
