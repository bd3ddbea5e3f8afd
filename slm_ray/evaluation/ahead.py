"""Calls in flight whose places are filled again at once, by rows at hand: what an answer waits for is this machine alone.

An answer and the start of the call that takes its place are written to the actor's `Journal` before that call begins; so no
more than `places` calls are ever paid for and not written down, whichever process is killed. The driver hears of both a
little later, many at a time. Nothing is begun for a driver that has stopped listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable

from slm_ray.errors import ResourceError
from slm_ray.evaluation.generate import Asking, Question
from slm_ray.ledger import Answer, Journal, Part
from slm_ray.types import Model

_AT_ONCE = 2  # calls begun in one turn of the event loop
_UNHEARD_S = 0.5  # so long after it was last listened to an actor begins nothing more


class AskingAhead(Asking):
    """As `Asking`, but for: `places` is how many calls may be in flight, and questions handed over wait for one.

    `gather_s` is how long what has arrived waits for more, so that it is heard in larger parts.
    """

    def __init__(self, model: Model, journal: Journal) -> None:
        super().__init__(model)
        self.places = 0
        self.gather_s = 0.0
        self._journal = journal
        self._waiting: deque[Question] = deque()
        self._due: deque[Question] = deque()
        self._busy = 0
        self._unwritten: list[Answer] = []
        self._begun: list[str] = []
        self._upto = 0
        self._writing = False
        self._pressing = asyncio.Event()
        self._listeners = 0
        self._listened_s = 0.0

    def ask(self, questions: Iterable[Question]) -> None:
        """Begin these as places become free; nothing is begun after a call has raised."""
        self._waiting.extend(questions)
        self._listened_s = time.monotonic()
        self._write_soon()

    async def heard(self) -> Part:
        """What has been begun and has arrived since the last time, all of it written down; else as the parent's."""
        self._listeners += 1
        try:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pressing.wait(), self.gather_s)
            self._pressing.clear()
            self._write()
            return await super().heard()
        finally:
            self._listeners -= 1
            self._listened_s = time.monotonic()

    async def close(self) -> None:
        """As the parent's, and write what has arrived."""
        self._waiting.clear()
        await super().close()
        self._write()
        self._journal.close()

    def wake(self) -> None:
        """As the parent's, and at once."""
        self._pressing.set()
        super().wake()

    def _fail(self, error: BaseException) -> None:
        super()._fail(error)
        self._pressing.set()

    def _taken(self) -> Part:
        begun, self._begun = self._begun, []
        return Part(begun=begun, answers=super()._taken().answers, upto=self._upto)

    def _arrive(self, answer: Answer) -> None:
        self._unwritten.append(answer)
        self._write_soon()

    def _write_soon(self) -> None:
        """What arrives in the same turn of the event loop is written together."""
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._writing = False
        answers, self._unwritten = self._unwritten, []
        questions = [self._waiting.popleft() for _ in range(self._next(len(answers)))]
        if not answers and not questions:
            return
        begun = [question.key for question in questions]
        self._arrived += answers
        try:
            self._upto = self._journal.write(begun, answers)
        except (ResourceError, ValueError, TypeError) as error:
            self._fail(error)  # the answers are paid for, and perhaps the driver can keep them
            return
        self._begun += begun
        self._busy += len(begun) - len(answers)
        idle = not self._due
        self._due.extend(questions)
        if idle:
            self._begin_some()
        self._news.set()

    def _begin_some(self) -> None:
        """Calls that begin together come back together, and then wait for one another, round after round."""
        self._begin([self._due.popleft() for _ in range(min(_AT_ONCE, len(self._due)))])
        if self._due:
            asyncio.get_running_loop().call_soon(self._begin_some)

    def _next(self, freed: int) -> int:
        """How many of the waiting may begin once `freed` places are."""
        listening = self._listeners or time.monotonic() < self._listened_s + _UNHEARD_S
        free = self.places - self._busy + freed
        return max(0, min(free, len(self._waiting))) if listening and self._failed is None else 0
