"""An open loop: requests are sent when they are due, however many are still in flight, as independent users send theirs.

A loop that waits for answers before it asks again hides every stall, because nobody arrives during it (coordinated
omission). Here each latency begins at the moment at which its request was due, so that also a client that is late itself
makes it longer and never shorter. Each request is one call: nothing is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slm_ray.types import Completion, Example, Model, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request and when it is due, in seconds after the beginning."""

    at_s: float
    key: str
    example_id: str
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What became of an arrival: `late_s` after it was due it was sent, and `latency_s` after that moment it was over."""

    at_s: float
    late_s: float
    latency_s: float
    completion: Completion

    @property
    def is_answered(self) -> bool:
        """Whether an answer came, be it of any use or not."""
        return self.completion.failure is None or not self.completion.failure.in_transport

    @property
    def is_refused(self) -> bool:
        """Whether the endpoint said that it has too much to do."""
        return self.completion.failure is not None and self.completion.failure.status in (429, 503)

    @property
    def first_token_s(self) -> float | None:
        """From the intended arrival to the first text; None where the answer was not streamed."""
        first_s = self.completion.first_token_s
        return None if first_s is None or not self.is_answered else self.late_s + first_s


def poisson(
    rows: Sequence[Example], requests_per_s: float, duration_s: float, *, seed: int, name: str
) -> list[Arrival]:
    """Arrivals of a Poisson process over `duration_s`, the same for the same seed and rate.

    There are `requests_per_s` · `duration_s` of them, rounded: given their number, the moments of such a process are
    independent and uniform. Rows come in a drawn order, each once before any comes again.
    """
    random = np.random.default_rng([seed, round(requests_per_s * 1e6)])
    due = [float(at) for at in np.sort(random.uniform(0, duration_s, size=round(requests_per_s * duration_s)))]
    order = [int(row) for _ in range(-(-len(due) // len(rows))) for row in random.permutation(len(rows))]
    return [
        Arrival(at_s=at, key=f"{name} {number}", example_id=rows[row].id, prompt=rows[row].prompt)
        for number, (at, row) in enumerate(zip(due, order, strict=False))
    ]


async def send(
    model: Model,
    arrivals: Sequence[Arrival],
    *,
    may_send: Callable[[Arrival], bool] = lambda arrival: True,
    on_call: Callable[[Arrival, Completion | None], None] = lambda arrival, completion: None,
) -> list[Call] | None:
    """Send every arrival when it is due and wait for all of them; None where `may_send` forbade one of them.

    `on_call` hears of the end of each, with no completion where the call was broken off. Time is the loop's own. An error
    that every call would meet (a key, a name) ends them all and is raised.
    """
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    calls: list[Call] = []

    async def one(arrival: Arrival) -> None:
        due_s = begun_s + arrival.at_s
        late_s = loop.time() - due_s
        try:
            completion = await model.complete(arrival.example_id, arrival.prompt)
        except asyncio.CancelledError:
            on_call(arrival, None)
            raise
        latency_s = loop.time() - due_s
        on_call(arrival, completion)
        calls.append(Call(at_s=arrival.at_s, late_s=late_s, latency_s=latency_s, completion=completion))

    try:
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals:
                if (wait_s := begun_s + arrival.at_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if not may_send(arrival):
                    break
                group.create_task(one(arrival))
    except ExceptionGroup as errors:
        raise _first(errors) from None
    return sorted(calls, key=lambda call: call.at_s) if len(calls) == len(arrivals) else None


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first
