"""Engines on Ray: a shard is one evaluation actor, with its part of every arm's requests and a log file of its own.

One by default, since one event loop keeps a thousand calls in flight; more when asked, all of them on the driver's node where
an endpoint is on loopback. A shard works by itself: the driver waits for the end and watches the log. A lost one is started
again by Ray, reads its own log and goes on; a node that is out of reach for a while, or long enough to be lost, is waited
for, and no line of its log is written twice. It begins nothing once the run directory is nobody's any more (the driver's
lock on it is free), so a killed driver is noticed at the next call. Where a shard does not see the run directory, `LogKeeper` writes its file beside the driver. Two shards and more
share what an endpoint allows through one `LimiterHub`, which no call waits for. A run with a budget (one account) or that
stops when it is decided (each start depends on all answers) has one shard. Keys travel as call arguments, never as
environment variables that Ray would show.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import itertools
import os
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from slm_ray import cluster
from slm_ray.config import EvaluateConfig
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.engine import ArmQueue, Engine, Log
from slm_ray.evaluation.limiter import AimdLimiter, Feedback, Limit, RateLimiter, ThrottleStatus
from slm_ray.evaluation.local import LocalLog, ShardResult, queue_of
from slm_ray.evaluation.plan import Arm, asked_on_loopback
from slm_ray.evaluation.stopping import Stopping
from slm_ray.runlog import FOLDER, LogWriter, Request, Response, encoded, throttle_note
from slm_ray.runlog import records as log_records
from slm_ray.storage import LOCK_NAME

MAX_RESTARTS = 2
_START_TIMEOUT_S = 180.0
_TICK_S = 0.2
_EXCHANGE_S = 0.03
_NOTED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one shard does: a part of each arm's requests and of its calls in flight (`slots`, by spec)."""

    run: str
    number: int
    folder: Path
    config: EvaluateConfig
    arms: tuple[Arm, ...]
    requests: tuple[Request, ...]
    slots: Mapping[str, int]
    budget: Budget
    driver_node: str
    stopping: Stopping | None = None
    ahead_s: float = 0.0  # the clock of the shard's node, before the driver's

    @property
    def log_path(self) -> Path:
        """The file that only this shard writes."""
        return self.folder / FOLDER / f"shard-{self.run}-{self.number}.jsonl"

    @property
    def mark(self) -> Path:
        """A file that is there while the run is: who sees it sees the driver's run directory."""
        return self.folder / FOLDER / f".{self.run}"


class RemoteLog:
    """The log file of a shard that does not see the run directory."""

    def __init__(self, keeper: Any, name: str) -> None:
        self._keeper = keeper
        self._name = name
        self._writer = uuid.uuid4().hex
        self._numbers = itertools.count()

    async def append(self, lines: bytes) -> None:
        """As `LogWriter.append`, where the driver is. Ray repeats a call whose answer is lost, hence the number."""
        await self._keeper.append.remote(self._name, lines, self._writer, next(self._numbers))

    async def close(self) -> None:
        """Give up the file."""
        await self._keeper.close.remote(self._name)


class LogKeeper:
    """Writes the log files of distant shards; an actor on the driver's node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, LogWriter] = {}
        self._written: dict[str, set[int]] = defaultdict(set)

    def append(self, name: str, lines: bytes, writer: str, number: int) -> None:
        """Append and sync, unless this writer's lines of that number are there already."""
        if number in self._written[writer]:
            return
        if name not in self._writers:
            self._writers[name] = LogWriter(self._folder / name)
        self._writers[name].append(lines)
        self._written[writer].add(number)
        self._writers[name].sync()

    def close(self, name: str) -> None:
        """The shard is done."""
        if name in self._writers:
            self._writers.pop(name).close()

    def answered(self, name: str) -> bytes:
        """What a shard that was started again has written so far."""
        path = self._folder / name
        return path.read_bytes() if path.exists() else b""


class LimiterHub:
    """What each endpoint allows, decided from what all shards report, and shared out by their slots."""

    def __init__(self, slots: Mapping[str, Sequence[int]]) -> None:
        """`slots` holds, by endpoint, the calls in flight that each shard could have there."""
        self._slots = {key: list(counts) for key, counts in slots.items()}
        self._aimd = {key: AimdLimiter() for key in slots}

    def exchange(self, shard: int, feedback: Mapping[str, Feedback]) -> dict[str, tuple[Limit, int]]:
        """Learn from one shard; what it may do now, by endpoint: its limit and its calls in flight."""
        for key, counted in feedback.items():
            self._aimd[key].receive(counted)
        return {key: self._share(shard, key) for key in self._slots}

    def leave(self, shard: int) -> None:
        """This shard is done: the others share what it had."""
        for counts in self._slots.values():
            counts[shard] = 0

    def _share(self, shard: int, key: str) -> tuple[Limit, int]:
        aimd, counts = self._aimd[key], self._slots[key]
        whole, before, mine = sum(counts), sum(counts[:shard]), counts[shard]
        if not mine:
            return aimd.limit, 0
        in_flight = aimd.in_flight * (before + mine) // whole - aimd.in_flight * before // whole
        return aimd.limit.share(mine / whole), in_flight


class Shard:
    """One evaluation actor: a shell around `Engine`."""

    def __init__(self) -> None:
        self._running: asyncio.Future[ShardResult] | None = None

    def sees(self, mark: Path) -> bool:
        """Whether the run directory is on a disk of this node's."""
        return mark.is_file()

    def clock_s(self) -> float:
        """This node's clock."""
        return time.time()

    async def run(self, work: Work, hub: Any = None, keeper: Any = None) -> ShardResult:
        """Ask all of it. Raises what a model raises, ResourceError when the log cannot be written.

        Called once more, as Ray does when it could not reach this process for a while, it waits for the same work.
        """
        if self._running is None:
            self._running = asyncio.ensure_future(self._run(work, hub, keeper))
        return await asyncio.shield(self._running)

    async def _run(self, work: Work, hub: Any, keeper: Any) -> ShardResult:
        gc.collect()
        gc.freeze()  # what libraries hold is looked through no more: that took a tenth of a second in the middle of calls
        gc.set_threshold(50_000, 20, 100)
        path = work.log_path
        if keeper is None and not self.sees(work.mark):
            raise ResourceError(
                f"evaluation shard {work.number} was started again on a node that does not see {work.folder}; run the same "
                "command again"
            )
        log: LocalLog | RemoteLog = RemoteLog(keeper, path.name) if keeper else LocalLog(path)
        limiters: dict[str, RateLimiter] = {}
        finished = _charge_earlier(work, await keeper.answered.remote(path.name) if keeper else path.read_bytes())
        arms = [_queue(work, arm, limiters, finished, shared=hub is not None) for arm in work.arms]
        noting = asyncio.ensure_future(_note_throttle(work, arms, log))
        exchanging = asyncio.ensure_future(_exchange(work.number, limiters, hub)) if hub else None
        try:
            engine = Engine(arms, log, work.budget, owned=_owned(work), stopping=work.stopping, ahead_s=work.ahead_s)
            left = await engine.run()
            return ShardResult(left=left, budget=work.budget)
        finally:
            for task in (noting, exchanging):
                if task is not None:
                    task.cancel()
            if hub:
                await hub.leave.remote(work.number)
            await log.close()


def _queue(work: Work, arm: Arm, limiters: dict[str, RateLimiter], finished: set[str], *, shared: bool) -> ArmQueue:
    """An arm's queue; arms of one endpoint share its limiter, and what is no endpoint has none."""
    key = arm.provider.rate_limit_key(endpoint=work.config.endpoint, environment=arm.environment)
    limiter = None if key is None else limiters.setdefault(key, RateLimiter(None if shared else AimdLimiter()))
    waiting = deque(one for one in work.requests if one.spec == arm.spec and one.key not in finished)
    return queue_of(arm, waiting, work.config, slots=work.slots[arm.spec], limiter=limiter)


def _charge_earlier(work: Work, lines: bytes) -> set[str]:
    """The keys that this shard, before it was lost, has finished; what it has spent is charged."""
    prompts = {request.key: request for request in work.requests}
    open_calls: dict[str, int] = defaultdict(int)
    done: set[str] = set()
    for record in log_records(lines, str(work.log_path)):
        if isinstance(record, str):
            open_calls[record] += 1
        elif isinstance(record, Response):
            open_calls[record.key] -= 1
            work.budget.charge(record.spec, record.key, prompts[record.key].prompt, record.completion)
            done.add(record.key)  # a failed call was tried as often as it may be
            if work.stopping is not None:
                work.stopping.add(record.spec, record.example_id, record.completion)
    for key, calls in open_calls.items():
        for _ in range(calls):
            work.budget.charge_worst_case(prompts[key].spec, prompts[key].prompt)
    return done


def _owned(work: Work) -> Callable[[], bool]:
    """Whether a driver still holds the run directory. On other nodes, whose locks may be their own, Ray ends the shard."""
    if ray.get_runtime_context().get_node_id() != work.driver_node:
        return lambda: True
    file = os.open(work.folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)

    def owned() -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
        return False

    return owned


async def _note_throttle(work: Work, arms: Sequence[ArmQueue], log: Log) -> None:
    noted: dict[str, ThrottleStatus] = {}
    while True:
        rates = {arm.spec: arm.limiter.shared.limit.rate_per_s for arm in arms}
        now = {
            arm.spec: ThrottleStatus(
                in_flight_limit=arm.limiter.shared.in_flight, rejections=arm.limiter.rejections,
                rate_limit_per_s=None if rates[arm.spec] == float("inf") else rates[arm.spec],
                usd=work.budget.usd(arm.spec),
            )
            for arm in arms
        }  # fmt: skip
        if now != noted:
            with contextlib.suppress(ResourceError):  # the engine says so when it writes next
                await log.append(encoded([throttle_note(work.run, work.number, now)]))
            noted = now
        await asyncio.sleep(_NOTED_EVERY_S)


async def _exchange(number: int, limiters: Mapping[str, RateLimiter], hub: Any) -> None:
    while True:
        feedback = {key: counted for key, one in limiters.items() if (counted := one.feedback())}
        for key, (limit, in_flight) in (await hub.exchange.remote(number, feedback)).items():
            if key in limiters:
                limiters[key].keep_to(limit, in_flight)
        await asyncio.sleep(_EXCHANGE_S)


def ask_all(
    requests: Sequence[Request], arms: Sequence[Arm], config: EvaluateConfig, budget: Budget, *, run: str,
    tick: Callable[[], None], stopping: Stopping | None = None,
) -> ShardResult:  # fmt: skip
    """Ask all requests, all arms at once; with `stopping`, which has seen the earlier answers, as many as a decision needs.

    `tick` is called a few times a second. Raises what a model raised, or ResourceError when shards cannot be placed, are
    lost too often, or cannot write. Whatever ends it, no actor is left behind.
    """
    works = _split(requests, arms, config, budget, run, stopping)
    bundles, stay = [config.shard_resources] * len(works), asked_on_loopback(works[0].arms)
    cluster.require(bundles, setting="shards x shard_resources")
    if stay:
        cluster.require_here(bundles, setting="shards x shard_resources", why=stay)
    actors = [_actor(config.shard_resources, first=number == 0, stays=bool(stay)) for number in range(len(works))]
    try:
        works[0].mark.touch()
        seen = _all_see(actors, works[0].mark)
        distant = None if all(seen) else cluster.beside_driver(LogKeeper, max_task_retries=-1)
        keeper = distant and distant.remote(works[0].log_path.parent)
        hub = _hub(works, config) if len(works) > 1 else None
        running = {
            actor.run.remote(
                replace(work, ahead_s=cluster.ahead_s(actor.clock_s)), hub, None if sees else keeper
            ): work.number
            for actor, work, sees in zip(actors, works, seen, strict=True)
        }
        results = [_result(ref, running[ref]) for ref in _ending(running, tick)]
        return ShardResult(left=sum(result.left for result in results), budget=results[0].budget)
    finally:
        for actor in actors:
            ray.kill(actor)
        works[0].mark.unlink(missing_ok=True)


def _ending(running: Mapping[Any, int], tick: Callable[[], None]) -> Any:
    waiting = list(running)
    while waiting:
        ended, waiting = ray.wait(waiting, num_returns=1, timeout=_TICK_S)
        tick()
        yield from ended


def _result(ref: Any, number: int) -> ShardResult:
    try:
        result: ShardResult = ray.get(ref)
        return result
    except RayTaskError as error:
        # Our own errors cross Ray as they are; anything else keeps Ray's account of where it happened.
        raise (error.cause if isinstance(error.cause, SlmRayError) else error) from None
    except RayActorError as error:
        raise ResourceError(
            f"evaluation shard {number} died {MAX_RESTARTS + 1} times ({str(error).splitlines()[0]}); look for memory "
            "limits or failing nodes, then run the same command again"
        ) from None


def _split(
    requests: Sequence[Request], arms: Sequence[Arm], config: EvaluateConfig, budget: Budget, run: str, stopping: Stopping | None
) -> list[Work]:  # fmt: skip
    """At most `shards` parts, whose calls in flight add up to at most `concurrency` for each arm."""
    concurrency = config.generation.concurrency
    driver_node = ray.get_runtime_context().get_node_id()
    count = 1 if budget.is_limited or stopping else min(config.shards, concurrency, len(requests))
    asked = {request.spec for request in requests}
    return [
        Work(
            run=run, number=number, folder=Path(config.run_dir).absolute(), config=config, budget=budget.of_shard(number),
            arms=tuple(replace(arm, keys={}, again=(), prompts={}) for arm in arms if arm.spec in asked),
            requests=tuple(requests[number::count]), driver_node=driver_node, stopping=stopping, slots={arm.spec: concurrency // count + (number < concurrency % count) for arm in arms},
        )
        for number in range(count)
    ]  # fmt: skip


def _actor(resources: Mapping[str, float], *, first: bool, stays: bool) -> Any:
    """A shard. All beside the driver where one `stays`; else the first, where it finds room there."""
    further = dict(resources)
    place = cluster.this_node(soft=not stays) if first or stays else "SPREAD"
    return ray.remote(Shard).options(
        num_cpus=further.pop("CPU", 0), num_gpus=further.pop("GPU", 0), memory=further.pop("memory", None),
        resources=further, scheduling_strategy=place, max_restarts=MAX_RESTARTS,
        max_task_retries=-1,  # a call that cannot reach a lost node fails every few seconds until the node is given up
    ).remote()  # fmt: skip


def _hub(works: Sequence[Work], config: EvaluateConfig) -> Any:
    slots: dict[str, list[int]] = {}
    for arm in works[0].arms:
        key = arm.provider.rate_limit_key(endpoint=config.endpoint, environment=arm.environment)
        if key is not None:
            before = slots.get(key, [0] * len(works))
            slots[key] = [have + work.slots[arm.spec] for have, work in zip(before, works, strict=True)]
    return cluster.beside_driver(LimiterHub, max_task_retries=-1).remote(slots)


def _all_see(actors: Sequence[Any], mark: Path) -> list[bool]:
    """Which shards see the run directory, once all have a place; Ray waits without a word for resources that others hold."""
    starting = [actor.sees.remote(mark) for actor in actors]
    _, late = ray.wait(starting, num_returns=len(starting), timeout=_START_TIMEOUT_S)
    if late:
        raise ResourceError(
            f"{len(late)} of {len(actors)} evaluation shards found no free place within {_START_TIMEOUT_S:g} s; free now: "
            f"{ray.available_resources().get('CPU', 0):g} CPU; stop other jobs or ask for less in shard_resources"
        )
    try:
        return [bool(sees) for sees in ray.get(starting)]
    except RayError as error:
        raise cluster.not_started("evaluation shards", error) from None
