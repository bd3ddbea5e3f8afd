"""When the models of a run have been asked enough: the sequential rule over the rows in their asking order.

Answers arrive in any order; the rule looks at the longest beginning of the asking order for which every model that is
still needed has an answer, one whole group after the other, or one round of groups in a stratified order. So what it
decides, and at which row, follows from the answers alone, and the evaluation actor, the run, a watcher and whoever writes
the report come to the same result.

With `ahead` it also says what may be asked: nobody more than `ahead` rows beyond that beginning. It is at most one row
short of the row at which a decision falls, so that each model is asked for fewer than (that row + `ahead`) rows, however
fast it answers and however slow the other is. Knows nothing of Ray, logs and files; can be sent to another process.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from slm_ray.corpus.tracks import Track
from slm_ray.scoring import score
from slm_ray.types import Completion, Example, Rounds, RowScore, SequentialResult
from slm_ray.verdict.sequential import PairedRow, SequentialTest, paired_row, rounds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialSettings:
    """What the rule decides by. `levels` are the candidates by spec, each with the error it may be wrong with.

    `llm` is whom they are compared with, `companions` are arms that are asked as long as it is and decide nothing.
    """

    llm: str
    levels: Mapping[str, float]
    companions: tuple[str, ...]
    delta: float
    guardrails: tuple[str, ...]
    largest_group: int
    rounds: Rounds = ()


@dataclass(frozen=True, slots=True)
class _Answer:
    scores: Mapping[str, float | None]
    reached: bool
    answered: bool


@dataclass(slots=True, eq=False)
class Stopping:
    """The rule at work on the answers of one run."""

    track: Track
    rows: Sequence[Example]
    settings: SequentialSettings
    ahead: int | None = None
    _tests: dict[str, SequentialTest] = field(init=False)
    _answers: dict[str, dict[str, _Answer]] = field(init=False, default_factory=dict)
    _place: dict[str, int] = field(init=False)
    _answered: int = field(init=False, default=0)  # rows from the first on that all needed models have answered
    _looked: int = field(init=False, default=0)  # those of them in rounds that are complete
    _rounds: deque[Sequence[Sequence[Example]]] = field(init=False)  # those that are not

    def __post_init__(self) -> None:
        self._place = {row.id: place for place, row in enumerate(self.rows)}
        groups = [list(rows) for _, rows in groupby(self.rows, lambda row: row.group or (row.id,))]
        self._rounds = deque(rounds_of(groups, self.settings.rounds))
        self._tests = {
            spec: SequentialTest(
                primary=self.track.primary, delta=self.settings.delta, level=level,
                guardrails=self.settings.guardrails, largest_group=self.settings.largest_group,
            )
            for spec, level in self.settings.levels.items()
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        """As bytes: arrays that travel beside an object come back from Ray read-only, and tests go on counting in theirs."""
        return _restored, (pickle.dumps({slot: getattr(self, slot) for slot in self.__slots__}),)

    def add(self, spec: str, example_id: str, completion: Completion, scored: RowScore | None = None) -> None:
        """An answer that counts, or a call that failed for good; `scored` where it is scored already."""
        if self._place[example_id] < self._looked or not self.is_needed(spec):
            return
        scored = scored or score(self.track, example_id, completion.text, self.rows[self._place[example_id]].target)
        failure = completion.failure
        self._answers.setdefault(example_id, {})[spec] = _Answer(
            {name: scored.value(name) for name in (self.track.primary, *self.settings.guardrails)},
            reached=failure is None or not failure.in_transport,
            answered=failure is None,
        )
        self._advance()

    def is_needed(self, spec: str) -> bool:
        """Whether a further answer of this model could change anything."""
        test = self._tests.get(spec)
        if test is not None:
            return test.action is None
        return not self._tests or any(other.action is None for other in self._tests.values())

    def may_ask(self, example_id: str) -> bool:
        """Whether this row is near enough to the rows that are answered."""
        return self.ahead is None or self._place[example_id] < self._answered + self.ahead

    def rows_of(self, spec: str) -> int:
        """How many rows of this model count for the decision: all of them where it never fell."""
        if self.is_needed(spec):
            return len(self.rows)
        decided = {name: test.result.decided_at or 0 for name, test in self._tests.items()}
        return decided.get(spec) or max(decided.values())

    @property
    def results(self) -> dict[str, SequentialResult]:
        """What the rule has seen, by candidate."""
        return {spec: test.result for spec, test in self._tests.items()}

    def _advance(self) -> None:
        needed = [spec for spec in self._arms() if self.is_needed(spec)]
        while needed and self._answered < len(self.rows):
            if not self._answers.get(self.rows[self._answered].id, {}).keys() >= set(needed):
                return
            self._answered += 1
            if self._rounds and self._answered == self._looked + sum(map(len, self._rounds[0])):
                self._look(self._rounds.popleft())
                self._looked = self._answered
                needed = [spec for spec in needed if self.is_needed(spec)]

    def _look(self, groups: Sequence[Sequence[Example]]) -> None:
        for spec, test in self._tests.items():
            if test.action is None:
                test.add_round([[self._paired(row, spec) for row in rows] for rows in groups])
        for row in (row for rows in groups for row in rows):
            self._answers.pop(row.id)

    def _paired(self, row: Example, spec: str) -> PairedRow:
        llm, slm = self._answers[row.id][self.settings.llm], self._answers[row.id][spec]
        return paired_row(
            llm.scores, slm.scores, llm.scores, group=row.group, reached=llm.reached and slm.reached,
            answered=llm.answered and slm.answered,
        )  # fmt: skip

    def _arms(self) -> tuple[str, ...]:
        return (self.settings.llm, *self.settings.companions, *self._tests)


def _restored(state: bytes) -> Stopping:
    stopping: Stopping = object.__new__(Stopping)
    for slot, value in pickle.loads(state).items():
        setattr(stopping, slot, value)
    return stopping
