"""All models at the same time, on Ray: evaluation actors ask, the driver hears every answer.

Each model gets its own actors and each actor a share of that model's rows and calls in flight. An actor that dies with
its node is replaced and goes on where its answers stopped. Answers reach one callback in the calling thread, so the
ledger has one writer. Keys travel as call arguments, never as environment variables that Ray would show.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from slm_ray import cluster
from slm_ray.config import EvaluateConfig, GenerationConfig
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.generate import Answer, generate
from slm_ray.evaluation.plan import Arm
from slm_ray.models import open_model
from slm_ray.types import Example

OnAnswers = Callable[[Arm, list[Answer]], None]
_TICK_S = 0.5
_START_TIMEOUT_S = 180.0
_LIVES = 3
_UNHEARD_BATCHES = 1  # a driver that is gone hears nothing more, and then no more is asked


class Asker:
    """One evaluation actor: opens its model and streams the answers back."""

    async def ask(
        self, spec: str, endpoint: str, generation: GenerationConfig, environment: Mapping[str, str],
        examples: Sequence[Example], concurrency: int,
    ) -> AsyncIterator[list[Answer]]:  # fmt: skip
        """Batches of answers as they arrive."""
        model = open_model(spec, endpoint=endpoint, generation=generation, environment=environment)
        try:
            async for batch in generate(model, examples, concurrency=concurrency):
                yield batch
        finally:
            await model.close()


class Shard:
    """One actor's share of one model's rows: what is still to be answered, and the actor that is at it."""

    def __init__(self, arm: Arm, rows: Iterable[Example], concurrency: int) -> None:
        self.arm = arm
        self.concurrency = concurrency
        self.remaining = {row.id: row for row in rows}
        self.lives = _LIVES
        self.actor: Any = None

    def start(self, config: EvaluateConfig) -> Any:
        """A (new) actor and its stream of answers."""
        resources = dict(config.actor_resources)
        self.actor = ray.remote(Asker).options(
            num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), memory=resources.pop("memory", None),
            resources=resources, scheduling_strategy="SPREAD",
        ).remote()  # fmt: skip
        return self.actor.ask.options(num_returns="streaming", _generator_backpressure_num_objects=_UNHEARD_BATCHES).remote(
            self.arm.opens, config.endpoint, config.generation, dict(self.arm.environment),
            list(self.remaining.values()), self.concurrency,
        )  # fmt: skip

    def stop(self) -> None:
        """Kill the actor, in the middle of its calls if need be."""
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None


def shards(arm: Arm, pending: Sequence[Example], *, actors: int, concurrency: int) -> list[Shard]:
    """At most `actors` equal shares, whose calls in flight add up to at most `concurrency`."""
    count = min(actors, concurrency, len(pending))
    return [Shard(arm, pending[at::count], concurrency // count + (at < concurrency % count)) for at in range(count)]


def ask_all(
    work: Mapping[str, Sequence[Example]], arms: Sequence[Arm], config: EvaluateConfig,
    *, on_answers: OnAnswers, on_tick: Callable[[], None],
) -> None:  # fmt: skip
    """Ask every arm its pending rows (`work`, by spec), all arms at once; returns when all are answered.

    Raises what a model raised (after handing over what had arrived), or ResourceError when actors cannot be placed.
    Whatever ends it, no actor is left behind.
    """
    crew = [
        shard for arm in arms
        for shard in shards(arm, work[arm.spec], actors=config.actors, concurrency=config.generation.concurrency)
    ]  # fmt: skip
    cluster.require([config.actor_resources] * len(crew), setting="actors x actor_resources")
    try:
        streams = {shard.start(config): shard for shard in crew}
        _await_start(crew)
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=_TICK_S)
            for stream in ready:
                _hear(stream, streams, config, on_answers)
            on_tick()
    finally:
        for shard in crew:
            shard.stop()


def _hear(stream: Any, streams: dict[Any, Shard], config: EvaluateConfig, on_answers: OnAnswers) -> None:
    shard = streams[stream]
    try:
        answers: list[Answer] = ray.get(next(stream))
    except StopIteration:
        del streams[stream]
        shard.stop()
        return
    except RayTaskError as error:
        if isinstance(error.cause, SlmRayError):
            raise error.cause from None
        raise
    except RayActorError as error:
        del streams[stream]
        streams[_replace(shard, config, error)] = shard
        return
    for answer in answers:
        shard.remaining.pop(answer.example_id, None)
    on_answers(shard.arm, answers)


def _replace(shard: Shard, config: EvaluateConfig, error: RayActorError) -> Any:
    shard.lives -= 1
    if shard.lives == 0:
        raise ResourceError(
            f"an evaluation actor of {shard.arm.spec} died {_LIVES} times ({str(error).splitlines()[0]}); "
            "look for memory limits or failing nodes, then run the same command again"
        ) from None
    return shard.start(config)


def _await_start(crew: Sequence[Shard]) -> None:
    """Ray waits without a word for resources that others hold."""
    waiting = [shard.actor.__ray_ready__.remote() for shard in crew]
    _, late = ray.wait(waiting, num_returns=len(waiting), timeout=_START_TIMEOUT_S)
    if late:
        raise ResourceError(
            f"{len(late)} of {len(waiting)} evaluation actors found no free place within {_START_TIMEOUT_S:g} s; "
            f"free now: {ray.available_resources().get('CPU', 0):g} CPU; stop other jobs or ask for less in actor_resources"
        )
