"""All models at the same time, on Ray: evaluation actors ask, the driver hands out rows and hears every answer.

An actor has as many rows as it may have calls in flight and gets the next one when the driver has taken an answer; one that
keeps a journal in the run directory has as many again at hand and goes on by itself (`ahead`). Either way never more rows are
paid for and not on disk than `concurrency` says. Rows of an actor that died go back to the others; the actor is replaced.
Answers reach one callback in the calling thread, so the ledger has one writer. The pace of an endpoint is decided here too,
for all arms and actors that ask it, from what every actor reports; until its first answers only a few calls go out, so that a
wrong key or name costs as few. Keys travel as call arguments, never as environment variables that Ray would show.
"""

from __future__ import annotations

import gc
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from slm_ray import cluster
from slm_ray.config import EvaluateConfig
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.generate import Question
from slm_ray.evaluation.plan import Arm
from slm_ray.evaluation.speed import Speed
from slm_ray.evaluation.worker import LIVES, Journals, Worker, crew, terms_of
from slm_ray.ledger import Part
from slm_ray.providers.pace import Pace

_TICK_S = 0.5
_START_TIMEOUT_S = 180.0
_LAST_WORDS_S = 0.2


class Records(Protocol):
    """Who keeps what the asking brings: `Book`."""

    def grant(self, arm: Arm, questions: Sequence[Question], *, begin: bool) -> int:
        """How many of the questions, from the first, may be handed out, and, with `begin`, are begun by that."""

    def hear(self, arm: Arm, part: Part, journal: str | None = None) -> None:
        """What an actor has begun and been answered, by its journal where it keeps one."""

    def back(self, arm: Arm, questions: Sequence[Question]) -> None:
        """These were handed out and not begun."""

    def tick(self, speeds: Mapping[str, Speed]) -> None:
        """Called whenever something may have changed, and twice a second."""


def ask_all(
    work: Mapping[str, Sequence[Question]], arms: Sequence[Arm], config: EvaluateConfig, records: Records,
    *, journals: Path | None = None,
) -> None:  # fmt: skip
    """Ask every arm its questions (`work`, by spec), all arms at once; returns when all that was granted is answered.

    Questions are granted by `records` before they are handed over; a row is granted again when its actor died, and offered
    again, while any call is in flight, when it was not. In the folder `journals`, actors that see it keep journals, which
    are the caller's to take in and remove. Raises what a model raised (after handing over what had arrived), or
    ResourceError when actors cannot be placed. Whatever ends it, no actor is left behind.
    """
    everyone = _everyone(work, arms, config, _marked(journals) if journals else None)
    cluster.require([config.shard_resources] * len(everyone), setting="shards x shard_resources")
    waiting = {arm.spec: deque(work[arm.spec]) for arm in arms}
    try:
        _await_start([worker.start(config) for worker in everyone])
        gc.collect()
        gc.freeze()  # as the actors do
        while True:
            for worker in everyone:
                if worker.opening is None:
                    _hand_out(worker, everyone, waiting, records)
            records.tick({arm.spec: _speed(arm, everyone) for arm in arms})
            waited = _waited(everyone, waiting)
            if not waited:
                return
            ray.wait(list(waited), num_returns=1, timeout=_TICK_S)
            ready, _ = ray.wait(list(waited), num_returns=len(waited), timeout=0)
            for ref in ready:
                _hear(waited[ref], ref, waiting, config, records)
    except SlmRayError:
        _last_words(everyone, records)
        raise
    finally:
        gc.unfreeze()
        for worker in everyone:
            worker.stop()


def _everyone(
    work: Mapping[str, Sequence[Question]], arms: Sequence[Arm], config: EvaluateConfig, journals: Journals | None
) -> list[Worker]:
    """One pace per endpoint, and one without bounds for a model that is no endpoint and whose answers cost nothing."""
    places = {
        arm.spec: arm.provider.rate_limit_key(endpoint=config.endpoint, environment=arm.environment) for arm in arms
    }
    shared = {place: Pace() for place in places.values() if place is not None}
    concurrency = config.generation.concurrency
    return [
        worker for arm in arms for place in [places[arm.spec]]
        for worker in crew(
            arm, len(work[arm.spec]), Pace(in_flight=concurrency) if place is None else shared[place],
            actors=config.shards, concurrency=concurrency, journals=None if place is None else journals,
        )
    ]  # fmt: skip


def _marked(folder: Path) -> Journals:
    token = uuid.uuid4().hex
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / token).touch()
    except OSError as error:
        raise ResourceError(
            f"cannot use {folder}: {error.strerror}; make it a folder that you may write to, or choose another run_dir"
        ) from None
    return Journals(folder=folder, token=token)


def _waited(everyone: Sequence[Worker], waiting: Mapping[str, deque[Question]]) -> dict[Any, Worker]:
    """What is to be heard, and the new actors that there are still rows for; ResourceError when one finds no place."""
    opening = [worker for worker in everyone if worker.opening is not None and waiting[worker.arm.spec]]
    late = [worker for worker in opening if time.monotonic() > worker.opening_since_s + _START_TIMEOUT_S]
    if late:
        raise _no_place(len(late), len(everyone))
    listening = {worker.listening: worker for worker in everyone if worker.listening is not None}
    return listening | {worker.opening: worker for worker in opening}


def _speed(arm: Arm, everyone: Sequence[Worker]) -> Speed:
    mine = [worker for worker in everyone if worker.arm is arm]
    pace = mine[0].pace if mine else Pace()
    return Speed(
        in_flight_limit=pace.in_flight, rate_limit_per_s=pace.limit.rate_per_s,
        turned_away=sum(worker.turned_away for worker in mine),
    )  # fmt: skip


def _hand_out(
    worker: Worker, everyone: Sequence[Worker], waiting: Mapping[str, deque[Question]], records: Records
) -> None:
    """As many rows as the worker has room for and `records` lets pass."""
    terms, mine = terms_of(worker, everyone, waiting), waiting[worker.arm.spec]
    rows = [mine[at] for at in range(min(len(mine), worker.room(terms.places)))]
    # Where none is granted, it is asked again once something has been answered.
    granted = records.grant(worker.arm, rows, begin=not worker.ahead) if rows else 0
    worker.hand([mine.popleft() for _ in range(granted)], terms)


def _hear(
    worker: Worker, ref: Any, waiting: Mapping[str, deque[Question]], config: EvaluateConfig, records: Records
) -> None:
    try:
        heard = ray.get(ref)
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        _bury(worker, waiting[worker.arm.spec], records)
        _replace(worker, config, error)
        return
    if ref is worker.opening:
        worker.ahead, worker.opening = heard, None
        return
    worker.listening = None
    part, news = heard
    worker.pace.hear(news)
    worker.turned_away += sum(news.limited.values())
    _take(worker, part, records)


def _take(worker: Worker, part: Part, records: Records) -> None:
    records.hear(worker.arm, part, worker.journal.name if worker.journal and worker.ahead else None)
    worker.take(part)


def _bury(worker: Worker, waiting: deque[Question], records: Records) -> None:
    """What a dead actor has written counts; what it has not begun was never asked; the rest may have been billed."""
    worker.stop()  # it may only be out of reach, and then it must not go on
    for part in worker.lost():
        _take(worker, part, records)
    records.back(worker.arm, [question for key, question in worker.has.items() if key not in worker.begun])
    waiting.extendleft(reversed(worker.give_back()))


def _cause(error: RayTaskError) -> Exception:
    """Our own errors cross Ray as they are; anything else keeps Ray's account of where it happened."""
    return error.cause if isinstance(error.cause, SlmRayError) else error


def _last_words(everyone: Sequence[Worker], records: Records) -> None:
    """When one model ends the run, what the others have answered by now is paid for and kept."""
    listening = {worker.listening: worker for worker in everyone if worker.listening is not None}
    ready, _ = ray.wait(list(listening), num_returns=len(listening), timeout=_LAST_WORDS_S) if listening else ([], [])
    for heard in ready:
        try:
            _take(listening[heard], ray.get(heard)[0], records)
        except (RayTaskError, RayActorError):
            continue  # the error that ended the run is the one to tell


def _replace(worker: Worker, config: EvaluateConfig, error: RayActorError) -> None:
    worker.lives -= 1
    if worker.lives == 0:
        raise ResourceError(
            f"an evaluation actor of {worker.arm.spec} died {LIVES} times ({str(error).splitlines()[0]}); "
            "look for memory limits or failing nodes, then run the same command again"
        ) from None
    worker.start(config)


def _await_start(starting: Sequence[Any]) -> None:
    """Ray waits without a word for resources that others hold."""
    _, late = ray.wait(list(starting), num_returns=len(starting), timeout=_START_TIMEOUT_S)
    if late:
        raise _no_place(len(late), len(starting))


def _no_place(late: int, actors: int) -> ResourceError:
    return ResourceError(
        f"{late} of {actors} evaluation actors found no free place within {_START_TIMEOUT_S:g} s; "
        f"free now: {ray.available_resources().get('CPU', 0):g} CPU; stop other jobs or ask for less in shard_resources"
    )
