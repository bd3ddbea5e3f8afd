"""The driver's side of an evaluation actor: which rows it has, on which terms it asks, and how places are shared out."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from slm_ray.config import EvaluateConfig
from slm_ray.evaluation.asker import Asker, Opened, Terms
from slm_ray.evaluation.generate import Question
from slm_ray.evaluation.plan import Arm
from slm_ray.ledger import Part, given_up, parts
from slm_ray.providers.pace import Limit, Pace

LIVES = 3
_END_S = 10.0  # within which a dead actor's process must be gone
_GATHER_S = 0.02  # so long answers wait for company at full pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Journals:
    """The folder where actors keep journals, and a file in it by whose name, made for this run, they know it when they see it."""

    folder: Path
    token: str


class Worker:
    """One actor as the driver knows it: `has` are the rows it was handed and has not answered, `begun` those it has asked."""

    def __init__(self, arm: Arm, concurrency: int, pace: Pace, journals: Journals | None = None) -> None:
        self.arm = arm
        self.pace = pace
        self.concurrency = concurrency
        self.terms = Terms(limit=Limit())
        self.has: dict[str, Question] = {}
        self.begun: set[str] = set()
        self.journal: Path | None = None
        self.ahead = False
        self.upto = 0
        self.lives = LIVES
        self.turned_away = 0
        self.opening: Any = None
        self.opening_since_s = 0.0
        self.listening: Any = None
        self.actor: Any = None
        self._journals = journals

    def start(self, config: EvaluateConfig) -> Any:
        """A (new) actor; returns what can be waited for until it has a place and its model, as `opening` can."""
        resources = dict(config.shard_resources)
        self.actor = ray.remote(Asker).options(
            num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), memory=resources.pop("memory", None),
            resources=resources, scheduling_strategy="SPREAD",
        ).remote()  # fmt: skip
        self.journal = self._journals.folder / f"{uuid.uuid4().hex}.jsonl" if self._journals else None
        self.ahead, self.upto, self.opening_since_s = False, 0, time.monotonic()
        self.opening = self.actor.open.remote(
            Opened(
                provider=self.arm.provider, endpoint=config.endpoint, generation=config.generation,
                environment=dict(self.arm.environment), journal=self.journal, token=self._journals.token if self._journals else "",
            )
        )  # fmt: skip
        return self.opening

    def take(self, part: Part) -> None:
        """It has begun and answered these."""
        self.begun.update(part.begun)
        for answer in part.answers:
            self.has.pop(answer.key, None)
            self.begun.discard(answer.key)
        self.upto = part.upto

    def lost(self) -> Iterator[Part]:
        """Of an actor that has died, what it has begun and been answered and could not tell. ResourceError while it lives."""
        if self.journal is not None and self.journal.is_file():
            with given_up(self.journal, wait_s=_END_S):
                yield from parts(self.journal, self.upto)

    def give_back(self) -> list[Question]:
        """All that it has, of an actor that has died."""
        questions = list(self.has.values())
        self.has.clear()
        self.begun.clear()
        return questions

    def room(self, places: int) -> int:
        """How many rows it may be handed now: those it may ask, and as many again where it fills its places itself."""
        ahead = self.concurrency if self.ahead and places else 0  # rows that wait for a place hold a part of the budget
        return max(0, places + ahead - len(self.has))

    def hand(self, questions: Sequence[Question], terms: Terms) -> None:
        """Give the actor these rows to ask and its terms, and listen as long as it has any."""
        terms = replace(terms, turn=self.terms.turn + 1)
        self.has.update((question.key, question) for question in questions)
        if not self.ahead:
            self.begun.update(question.key for question in questions)
        if self.listening is None and self.has:
            self.listening = self.actor.heard.remote(questions, terms)
        elif questions or (self.has and _differ(terms, self.terms)):
            self.actor.ask.remote(questions, terms)
        self.terms = terms

    def stop(self) -> None:
        """Kill the actor, in the middle of its calls if need be."""
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = self.listening = self.opening = None


def _differ(terms: Terms, others: Terms) -> bool:
    """A rate that grows changes a little all the time, and travels with the next rows."""
    return (terms.limit.number, terms.places) != (others.limit.number, others.places)


def crew(
    arm: Arm, rows: int, pace: Pace, *, actors: int, concurrency: int, journals: Journals | None = None
) -> list[Worker]:
    """At most `actors` workers, whose calls in flight add up to at most `concurrency`."""
    count = min(actors, concurrency, rows)
    return [Worker(arm, concurrency // count + (at < concurrency % count), pace, journals) for at in range(count)]


def terms_of(worker: Worker, everyone: Sequence[Worker], waiting: Mapping[str, deque[Question]]) -> Terms:
    """Its part of what its endpoint allows, next to the others that have or may get rows to ask it."""
    together = [
        other for other in everyone
        if other.pace is worker.pace and other.opening is None
        and (other is worker or other.has or waiting[other.arm.spec])
    ]  # fmt: skip
    whole, before, allowed = 0, 0, worker.pace.in_flight
    for other in together:
        before = whole if other is worker else before
        whole += other.concurrency
    share = allowed * (before + worker.concurrency) // whole - allowed * before // whole
    places = min(worker.concurrency, share)
    limit = worker.pace.limit.share(worker.concurrency / whole)
    return Terms(limit=limit, places=places, gather_s=_GATHER_S if places == worker.concurrency else 0.0)
