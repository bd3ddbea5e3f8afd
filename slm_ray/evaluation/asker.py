"""The evaluation actor: one model, its gate and its calls in flight, behind three calls of the driver's.

Where it sees the run directory, which is where it runs on the driver's machine or a disk is shared, it keeps a journal there
and fills its places by itself (`ahead`). Where it does not, it asks what it is handed and no more.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm_ray.config import Generation
from slm_ray.evaluation.ahead import AskingAhead
from slm_ray.evaluation.generate import Asking, Question
from slm_ray.ledger import Journal, Part
from slm_ray.providers import Provider
from slm_ray.providers.pace import Gate, Limit, News


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an actor keeps to: the limit of its rate, its places in flight, and how long answers wait for company.

    `turn` counts up: of two terms the later one holds, in whatever order they arrive.
    """

    limit: Limit
    turn: int = 0
    places: int = 0
    gather_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """How to open the model; where to keep a journal, if beside it there is the file `token`, as the driver sees it."""

    provider: Provider
    endpoint: str
    generation: Generation
    environment: Mapping[str, str]
    journal: Path | None = None
    token: str = ""


class Asker:
    """One evaluation actor: a shell around `Asking`."""

    def __init__(self) -> None:
        self._gate = Gate()
        self._turn = 0
        self._opened = asyncio.Event()  # Ray may start later calls before the first one

    async def open(self, opened: Opened) -> bool:
        """Open the model; True when a journal is kept. Raises what opening raises."""
        try:
            model = opened.provider.open(
                endpoint=opened.endpoint, generation=opened.generation, environment=opened.environment, limiter=self._gate
            )  # fmt: skip
            here = opened.journal is not None and opened.journal.with_name(opened.token).is_file()
            self._asking = AskingAhead(model, Journal(opened.journal)) if opened.journal and here else Asking(model)
            self._gate.on_limited = self._asking.wake
            gc.collect()
            gc.freeze()  # what the libraries hold is looked through no more: that took a tenth of a second, in the middle of calls
            gc.set_threshold(50_000, 20, 100)
            return here
        finally:
            self._opened.set()

    async def ask(self, questions: Sequence[Question], terms: Terms) -> None:
        """Ask these, on these terms from now on."""
        await self._opened.wait()
        if terms.turn >= self._turn:
            self._turn = terms.turn
            self._gate.keep_to(terms.limit)
            if isinstance(self._asking, AskingAhead):
                self._asking.places, self._asking.gather_s = terms.places, terms.gather_s
        self._asking.ask(questions)

    async def heard(self, questions: Sequence[Question], terms: Terms) -> tuple[Part, News]:
        """Ask these and wait for the next answers, or for a call turned away."""
        await self.ask(questions, terms)
        return await self._asking.heard(), self._gate.news()
