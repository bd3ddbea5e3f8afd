"""Between those who ask and the ledger: what may be asked, what is about to be asked, what has come back.

A row is on disk as started before it is asked: here before it is handed out, in one transaction with the answers at hand, so
that life, cost and answers cost one sync of the disk together, or in the journal of the actor that asks it. An answer shows on the board once it is on disk. Where a limit of the budget
would be passed, nothing more is granted. Pace and cost are noted in the ledger for those who watch from elsewhere, when
they have changed and once a second at most: beside the answers they belong to, in one more sync a second, and a watcher
needs neither keys nor prices to show what the run itself shows.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.generate import Question
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import Arm, Plan
from slm_ray.evaluation.speed import Speed
from slm_ray.ledger import Entry, Ledger, Part
from slm_ray.scoring import score
from slm_ray.types import Example, Prompt

NOTED_EVERY_S = 1.0


class Book:
    """The `Records` of `ask_all`, and `close` at its end."""

    def __init__(
        self, planned: Plan, ledger: Ledger, board: Board, budget: Budget,
        *, whole: Callable[[], AbstractContextManager[None]] = nullcontext, clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """In `whole()` nothing interrupts: what was heard and what is on disk of it change together or not at all."""
        self._plan = planned
        self._ledger = ledger
        self._board = board
        self._budget = budget
        self._rows = {row.id: row for row in planned.examples}
        self._arms = {arm.spec: arm for arm in planned.arms}
        self._repeat = {key: n for arm in planned.arms for n, keys in enumerate(arm.again, 1) for key in keys.values()}
        self._in_flight: Counter[str] = Counter()
        self._given: set[str] = set()
        self._asked: set[str] = set()
        self._heard: list[Entry] = []
        self._begun: list[str] = []
        self._journals: dict[str, int] = {}
        self._unshown: list[Entry] = []
        self._waited = False
        self._whole = whole
        self._clock_s = clock_s
        self._plan_id = planned.id
        self._speeds: Mapping[str, Speed] = {}
        self._noted: dict[str, Any] = {}
        self._noted_s = -math.inf
        self.handed_out = 0

    def open(self) -> None:
        """Count what earlier runs of this plan have asked, answered and spent."""
        for entry in self._ledger.history(self._plan_id):
            self._budget.settle(entry.spec, entry.key, self._prompt(entry.spec, entry.example_id), entry.completion)
        lost = self._ledger.unanswered(self._plan_id)
        for row in self._plan.rows() if lost else ():
            if row.key in lost:
                prompt = self._prompt(row.spec, row.example_id)
                for _ in range(lost[row.key]):
                    self._budget.lose(row.spec, prompt)

    def show_finished(self, pending: Mapping[str, Sequence[Question]]) -> None:
        """Put on the board what is answered already."""
        left = {question.key for questions in pending.values() for question in questions}
        for entry in self._ledger.entries(row.key for row in self._plan.rows() if row.key not in left):
            if entry is not None:
                self._show(entry, fresh=False)

    def grant(self, arm: Arm, questions: Sequence[Question], *, begin: bool) -> int:
        """How many of the questions, from the first, may be handed out; with `begin` they are on disk as started by then."""
        allowed = self._budget.room(arm.spec, questions)
        keys = [question.key for question in questions[:allowed]]
        with self._whole():
            self._grant(arm, keys, begin=begin)
        return allowed

    def _grant(self, arm: Arm, keys: Sequence[str], *, begin: bool) -> None:
        self.handed_out += len(set(keys) - self._given)  # a row whose actor died is handed out again and was counted
        self._given.update(keys)
        self._write(keys if begin else [])
        if begin:
            self._count(arm.spec, keys)

    def hear(self, arm: Arm, part: Part, journal: str | None = None) -> None:
        """Keep what was begun and answered; on disk before another row is handed out, and at the second tick at the latest."""
        with self._whole():
            self._hear(arm, part, journal)

    def _hear(self, arm: Arm, part: Part, journal: str | None) -> None:
        self._begun += part.begun
        self._count(arm.spec, part.begun)
        if journal is not None and (part.begun or part.answers):
            self._journals[journal] = part.upto
        for answer in part.answers:
            prompt = self._prompt(arm.spec, answer.example_id)
            self._budget.settle(arm.spec, answer.key, prompt, answer.completion)
            self._heard.append(
                Entry(
                    key=answer.key, spec=arm.spec, example_id=answer.example_id, completion=answer.completion,
                    answered_ns=answer.answered_ns, repeat=self._repeat.get(answer.key, 0),
                )
            )  # fmt: skip
            self._in_flight[arm.spec] -= answer.key in self._asked
            self._asked.discard(answer.key)
            self._given.discard(answer.key)

    def back(self, arm: Arm, questions: Sequence[Question]) -> None:
        """These were handed out and never asked: they cost nothing, and are to be handed out again."""
        for question in questions:
            self._budget.release(question.key)
            self._given.discard(question.key)
        self.handed_out -= len(questions)

    def _count(self, spec: str, keys: Sequence[str]) -> None:
        self._in_flight[spec] += len(set(keys) - self._asked)
        self._asked.update(keys)
        self._board.in_flight(spec, self._in_flight[spec])

    def tick(self, speeds: Mapping[str, Speed]) -> None:
        """Write what no grant has written, and show the board."""
        self._speeds = speeds
        for spec, speed in speeds.items():
            self._board.speed(spec, speed.in_flight_limit, speed.rate_limit_per_s, speed.turned_away)
        if self._waited and (self._heard or self._begun):
            self._write([])
        self._waited = bool(self._heard or self._begun)
        if self._clock_s() - self._noted_s >= NOTED_EVERY_S:
            self._note_speeds()
        self._show_written()
        self._board.show()

    def close(self) -> None:
        """Write and show the rest."""
        self._write([])
        self._show_written()
        self._note_speeds()

    def _note_speeds(self) -> None:
        plain = {spec: replace(speed, usd=self._budget.usd(spec)).plain() for spec, speed in self._speeds.items()}
        if plain != self._noted:
            self._ledger.note_speeds(self._plan_id, plain)
            self._noted = plain
        self._noted_s = self._clock_s()

    def _write(self, keys: Sequence[str]) -> None:
        with self._whole():
            self._ledger.put_all(self._heard, starts=[*self._begun, *keys], journals=self._journals)
            self._unshown += self._heard
            self._heard, self._begun, self._journals = [], [], {}

    def _show_written(self) -> None:
        """Scoring takes longer than writing, and no free place in flight should wait for it."""
        shown, self._unshown = self._unshown, []
        for entry in shown:
            self._show(entry, fresh=True)

    def _show(self, entry: Entry, *, fresh: bool) -> None:
        scored = None
        if entry.repeat == 0:
            row = self._rows[entry.example_id]
            scored = score(self._plan.track, row.id, entry.completion.text, row.target)
        self._board.add(entry.spec, scored, entry.completion, fresh=fresh)
        self._board.in_flight(entry.spec, self._in_flight[entry.spec])
        if (usd := self._budget.usd(entry.spec)) is not None:
            self._board.spent(entry.spec, usd)

    def _prompt(self, spec: str, example_id: str) -> Prompt:
        row: Example = self._rows[example_id]
        return self._arms[spec].prompts.get(example_id, row.prompt)


def pending_in(planned: Plan, ledger: Ledger) -> dict[str, list[Question]]:
    """By spec, what has no finished answer yet."""
    return {arm.spec: arm.pending(planned.examples, ledger) for arm in planned.arms}
