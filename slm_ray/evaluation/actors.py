"""All models at the same time, on Ray: evaluation actors ask, the driver hands out rows and hears every answer.

An actor has as many rows as it may have calls in flight and gets the next one when the driver has taken an answer, so
that never more rows are paid for and not yet heard of than `concurrency` says, and a driver that is gone asks nothing
more. Rows of an actor that died go back to the others; the actor is replaced. Answers reach one callback in the calling
thread, so the ledger has one writer. The pace of an endpoint is decided here too, for all arms and actors that ask it, from
what every actor reports; until its first answers only a few calls go out, so that a wrong key or name costs as few. Keys travel as call arguments, never as environment variables that Ray would show.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from slm_ray import cluster
from slm_ray.config import EvaluateConfig, GenerationConfig
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.generate import Answer, Asking, Question
from slm_ray.evaluation.plan import Arm
from slm_ray.evaluation.speed import Speed
from slm_ray.models import address, open_model
from slm_ray.models.pace import Gate, Limit, News, Pace

Grant = Callable[[Arm, Sequence[Question]], int]
OnAnswers = Callable[[Arm, list[Answer]], None]
OnTick = Callable[[Mapping[str, Speed]], None]
_TICK_S = 0.5
_START_TIMEOUT_S = 180.0
_LAST_WORDS_S = 0.2
_LIVES = 3


class Asker:
    """One evaluation actor: a shell around `Asking`."""

    def __init__(self) -> None:
        self._gate = Gate()
        self._opened = asyncio.Event()  # Ray may start later calls before the first one

    async def open(
        self, spec: str, endpoint: str, generation: GenerationConfig, environment: Mapping[str, str]
    ) -> None:
        """Open the model; raises what opening raises."""
        try:
            model = open_model(spec, endpoint=endpoint, generation=generation, environment=environment, gate=self._gate)
            self._asking = Asking(model)
            self._gate.on_limited = self._asking.wake
        finally:
            self._opened.set()

    async def ask(self, questions: Sequence[Question], limit: Limit) -> None:
        """Start these calls, no faster than the limit."""
        await self._opened.wait()
        self._gate.keep_to(limit)
        self._asking.ask(questions)

    async def heard(self, questions: Sequence[Question], limit: Limit) -> tuple[list[Answer], News]:
        """Start these calls and wait for the next answers, or for a call turned away."""
        await self.ask(questions, limit)
        return await self._asking.heard(), self._gate.news()


class Worker:
    """The driver's side of one actor: the rows it has and how many it may have."""

    def __init__(self, arm: Arm, concurrency: int, pace: Pace) -> None:
        self.arm = arm
        self.pace = pace
        self.limit = Limit()
        self.concurrency = concurrency
        self.has: dict[str, Question] = {}
        self.lives = _LIVES
        self.turned_away = 0
        self.listening: Any = None
        self.actor: Any = None

    def start(self, config: EvaluateConfig) -> Any:
        """A (new) actor; returns what can be waited for until it has a place and its model."""
        resources = dict(config.actor_resources)
        self.actor = ray.remote(Asker).options(
            num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), memory=resources.pop("memory", None),
            resources=resources, scheduling_strategy="SPREAD",
        ).remote()  # fmt: skip
        return self.actor.open.remote(self.arm.opens, config.endpoint, config.generation, dict(self.arm.environment))

    def hand(self, questions: Sequence[Question], limit: Limit) -> None:
        """Give the actor these rows to ask and its limit, and listen as long as it has any."""
        self.has.update((question.key, question) for question in questions)
        if self.listening is None and self.has:
            self.listening = self.actor.heard.remote(questions, limit)
        elif questions or (self.has and limit.number != self.limit.number):
            self.actor.ask.remote(questions, limit)
        self.limit = limit

    def stop(self) -> None:
        """Kill the actor, in the middle of its calls if need be."""
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = self.listening = None


def crew(arm: Arm, rows: int, pace: Pace, *, actors: int, concurrency: int) -> list[Worker]:
    """At most `actors` workers, whose calls in flight add up to at most `concurrency`."""
    count = min(actors, concurrency, rows)
    return [Worker(arm, concurrency // count + (at < concurrency % count), pace) for at in range(count)]


def ask_all(
    work: Mapping[str, Sequence[Question]], arms: Sequence[Arm], config: EvaluateConfig,
    *, grant: Grant, on_answers: OnAnswers, on_tick: OnTick,
) -> None:  # fmt: skip
    """Ask every arm its questions (`work`, by spec), all arms at once; returns when all that was granted is answered.

    `grant(arm, questions)` is called before questions are handed over and says how many of them, from the first, may be
    asked; a row is granted again when its actor died, and offered again, while any call is in flight, when it was not.
    Raises what a model raised (after handing over what had arrived), or ResourceError when actors cannot be placed.
    Whatever ends it, no actor is left behind.
    """
    paces = _paces(arms, config)
    everyone = [
        worker for arm in arms
        for worker in crew(
            arm, len(work[arm.spec]), paces[arm.spec],
            actors=config.actors, concurrency=config.generation.concurrency,
        )
    ]  # fmt: skip
    cluster.require([config.actor_resources] * len(everyone), setting="actors x actor_resources")
    waiting = {arm.spec: deque(work[arm.spec]) for arm in arms}
    try:
        _await_start([worker.start(config) for worker in everyone])
        while True:
            for worker in everyone:
                _hand_out(worker, everyone, waiting[worker.arm.spec], grant)
            on_tick({arm.spec: _speed(arm, paces[arm.spec], everyone) for arm in arms})
            listening = {worker.listening: worker for worker in everyone if worker.listening is not None}
            if not listening:
                return
            ray.wait(list(listening), num_returns=1, timeout=_TICK_S)
            ready, _ = ray.wait(list(listening), num_returns=len(listening), timeout=0)
            for heard in ready:
                _hear(listening[heard], waiting, config, on_answers)
    except SlmRayError:
        _last_words(everyone, on_answers)
        raise
    finally:
        for worker in everyone:
            worker.stop()


def _speed(arm: Arm, pace: Pace, everyone: Sequence[Worker]) -> Speed:
    turned_away = sum(worker.turned_away for worker in everyone if worker.arm is arm)
    return Speed(in_flight_limit=pace.in_flight, rate_limit_per_s=pace.limit.rate_per_s, turned_away=turned_away)


def _paces(arms: Sequence[Arm], config: EvaluateConfig) -> dict[str, Pace]:
    """By spec: one pace per endpoint, and one without bounds for a model that is no endpoint."""
    where = {arm.spec: address(arm.opens, endpoint=config.endpoint, environment=arm.environment) for arm in arms}
    shared = {place: Pace() for place in where.values() if place is not None}
    return {
        spec: Pace(in_flight=config.generation.concurrency) if place is None else shared[place]
        for spec, place in where.items()
    }


def _hand_out(worker: Worker, everyone: Sequence[Worker], waiting: deque[Question], grant: Grant) -> None:
    """As many rows as the worker has room for, its endpoint's pace allows and `grant` lets pass."""
    together = [other for other in everyone if other.pace is worker.pace]
    free = worker.pace.in_flight - sum(len(other.has) for other in together)
    room = max(0, min(worker.concurrency - len(worker.has), len(waiting), free))
    rows = [waiting[at] for at in range(room)]
    granted = grant(worker.arm, rows) if rows else 0  # when none, it is asked again once something has been answered
    busy = sum(other.concurrency for other in together if other.has or other is worker)
    worker.hand([waiting.popleft() for _ in range(granted)], worker.pace.limit.share(worker.concurrency / busy))


def _hear(
    worker: Worker, waiting: Mapping[str, deque[Question]], config: EvaluateConfig, on_answers: OnAnswers
) -> None:
    heard, worker.listening = worker.listening, None
    try:
        answers, news = ray.get(heard)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        waiting[worker.arm.spec].extendleft(reversed(worker.has.values()))
        worker.has.clear()
        _replace(worker, config, error)
        return
    worker.pace.hear(news)
    worker.turned_away += sum(news.limited.values())
    if answers:
        on_answers(worker.arm, answers)
    for answer in answers:
        worker.has.pop(answer.key, None)


def _cause(error: RayTaskError) -> Exception:
    """Our own errors cross Ray as they are; anything else keeps Ray's account of where it happened."""
    return error.cause if isinstance(error.cause, SlmRayError) else error


def _last_words(everyone: Sequence[Worker], on_answers: OnAnswers) -> None:
    """When one model ends the run, what the others have answered by now is paid for and kept."""
    listening = {worker.listening: worker for worker in everyone if worker.listening is not None}
    ready, _ = ray.wait(list(listening), num_returns=len(listening), timeout=_LAST_WORDS_S) if listening else ([], [])
    for heard in ready:
        try:
            answers, _ = ray.get(heard)
            on_answers(listening[heard].arm, answers)
        except (RayTaskError, RayActorError):
            continue  # the error that ended the run is the one to tell


def _replace(worker: Worker, config: EvaluateConfig, error: RayActorError) -> None:
    worker.lives -= 1
    if worker.lives == 0:
        raise ResourceError(
            f"an evaluation actor of {worker.arm.spec} died {_LIVES} times ({str(error).splitlines()[0]}); "
            "look for memory limits or failing nodes, then run the same command again"
        ) from None
    worker.start(config)


def _await_start(starting: Sequence[Any]) -> None:
    """Ray waits without a word for resources that others hold."""
    started, late = ray.wait(list(starting), num_returns=len(starting), timeout=_START_TIMEOUT_S)
    if late:
        raise ResourceError(
            f"{len(late)} of {len(starting)} evaluation actors found no free place within {_START_TIMEOUT_S:g} s; "
            f"free now: {ray.available_resources().get('CPU', 0):g} CPU; stop other jobs or ask for less in actor_resources"
        )
    for opened in started:
        try:
            ray.get(opened)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError:
            continue  # found out, and replaced, when it is listened to
