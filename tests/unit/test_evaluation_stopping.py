"""When models have been asked enough: by the order of the rows alone, never by the order of arrival; and how far ahead."""

from __future__ import annotations

import asyncio
import math
import pickle
import random
from collections import Counter, deque
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Request, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.config import EvaluateConfig
from slm_ray.corpus.tracks import track
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.engine import ArmQueue, Engine
from slm_ray.evaluation.limiter import ArmLimiter, Limit, RateLimiter
from slm_ray.evaluation.local import LocalLog
from slm_ray.evaluation.stopping import SequentialSettings, Stopping
from slm_ray.providers import parse
from slm_ray.runlog import Request as Ask
from slm_ray.runlog import Response, records
from slm_ray.types import Completion, Example, Failure, Message, Prompt, Rounds

LLM, SLM, OTHER = "served:llm", "served:slm", "served:other"
TARGET = '{"a": 1}'


def rows(count: int, group_of: int = 1) -> list[Example]:
    return [
        Example(
            id=f"r{n}", prompt=Prompt(messages=(Message(role="user", content=f"q{n}"),)), target=TARGET,
            group=None if group_of == 1 else f"g{n // group_of}",
        )
        for n in range(count)
    ]  # fmt: skip


def rule(
    count: int = 200, *, candidates: tuple[str, ...] = (SLM,), ahead: int | None = 8, group_of: int = 1, delta: float = 0.1,
    companions: tuple[str, ...] = (), rounds: Rounds = (),
) -> Stopping:  # fmt: skip
    settled = SequentialSettings(
        llm=LLM, levels=dict.fromkeys(candidates, 0.05), companions=companions, delta=delta, guardrails=(),
        largest_group=group_of, rounds=rounds,
    )  # fmt: skip
    return Stopping(track("structured"), rows(count, group_of), settled, ahead)


def right(ok: bool = True) -> Completion:
    return Completion(text=TARGET if ok else "{}")


def feed(stopping: Stopping, answers: list[tuple[str, int, Completion]]) -> Stopping:
    for spec, n, completion in answers:
        stopping.add(spec, f"r{n}", completion)
    return stopping


def answers(count: int = 200, *, slm_wrong_every: int = 1, specs: tuple[str, ...] = (LLM, SLM)) -> list[Any]:
    """The LLM right on all rows, every other model wrong on some."""
    return [(spec, n, right(spec == LLM or n % slm_wrong_every != 0)) for n in range(count) for spec in specs]


DECIDED = feed(rule(), answers()).results[SLM].decided_at or 0


def test_a_model_that_is_wrong_on_every_row_is_out_after_a_few() -> None:
    assert 2 < DECIDED < 20
    seen = feed(rule(), answers()).results[SLM]
    assert (seen.action, seen.rows) == ("fine_tune", DECIDED)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 3]))
def test_the_order_of_arrival_changes_nothing(order: random.Random, group_of: int) -> None:
    everything = answers(60, slm_wrong_every=2)
    wanted = feed(rule(60, group_of=group_of), everything)
    shuffled = feed(rule(60, group_of=group_of), order.sample(everything, len(everything)))
    assert shuffled.results == wanted.results
    assert shuffled.rows_of(SLM) == wanted.rows_of(SLM) == wanted.results[SLM].decided_at


def test_a_row_that_one_of_both_has_not_answered_holds_up_everything_behind_it() -> None:
    waiting = feed(rule(), [one for one in answers() if one[:2] != (SLM, 1)])
    assert waiting.results[SLM].rows == 1
    assert waiting.is_needed(LLM) and waiting.is_needed(SLM)
    waiting.add(SLM, "r1", Completion(failure=Failure(kind="error", reason="gone")))
    assert waiting.results[SLM].rows >= DECIDED  # a call that failed for good holds up nothing
    assert not waiting.is_needed(LLM)


def test_rows_of_a_group_are_looked_at_together() -> None:
    stopping = rule(9, group_of=3)
    feed(stopping, answers(5))
    assert (stopping.results[SLM].rows, stopping.results[SLM].groups) == (3, 1)
    feed(stopping, [(spec, 5, right()) for spec in (LLM, SLM)])
    assert (stopping.results[SLM].rows, stopping.results[SLM].groups) == (6, 2)


def test_a_stratified_order_is_looked_at_round_by_round() -> None:
    stopping = rule(22, rounds=((5, 4), (1, 2)))
    for answered, looked in ((4, 0), (5, 5), (9, 5), (10, 10)):
        feed(stopping, answers(answered)[2 * stopping.results[SLM].rows :])
        assert stopping.results[SLM].rows == looked
    assert stopping.results[SLM].decided_at == stopping.rows_of(SLM) == 10 > DECIDED
    undecided = feed(rule(22, rounds=((5, 4), (1, 2))), [(spec, n, right()) for n in range(21) for spec in (LLM, SLM)])
    assert (undecided.results[SLM].rows, undecided.results[SLM].groups) == (21, 21), "the last ones one by one"
    whole = feed(rule(24, group_of=2, rounds=((3, 4),)), answers(11))
    assert (whole.results[SLM].rows, whole.results[SLM].groups) == (6, 3)


def test_nobody_is_asked_further_ahead_than_allowed_and_a_decision_ends_it_all() -> None:
    stopping = rule(ahead=8)
    assert [stopping.may_ask(f"r{n}") for n in (0, 7, 8)] == [True, True, False]
    feed(stopping, [(LLM, n, right()) for n in range(8)])
    assert not stopping.may_ask("r8"), "the other has answered nothing yet"
    feed(stopping, [(SLM, 0, right())])
    assert [stopping.may_ask(f"r{n}") for n in (8, 9)] == [True, False]
    feed(stopping, answers())
    assert not stopping.is_needed(LLM) and not stopping.is_needed(SLM)


def test_a_candidate_that_is_decided_is_dropped_and_the_others_go_on() -> None:
    stopping = rule(candidates=(SLM, OTHER), companions=("baseline:majority",), delta=0.2)
    for n in range(200):
        for spec in (LLM, OTHER, "baseline:majority"):
            stopping.add(spec, f"r{n}", right())
        if stopping.is_needed(SLM):
            stopping.add(SLM, f"r{n}", right(False))
        if not stopping.is_needed(OTHER):
            break
    first, second = stopping.results[SLM], stopping.results[OTHER]
    assert (first.action, second.action) == ("fine_tune", "swap")
    assert first.decided_at is not None and second.decided_at is not None
    assert first.decided_at < second.decided_at
    assert {spec: stopping.rows_of(spec) for spec in (SLM, OTHER, LLM, "baseline:majority")} == {
        SLM: first.decided_at, OTHER: second.decided_at, LLM: second.decided_at, "baseline:majority": second.decided_at,
    }  # fmt: skip


def test_it_goes_on_in_another_process_as_it_would_have_here() -> None:
    """Sent as Ray sends it: arrays beside the object, which come back read-only."""
    everything = answers(60, slm_wrong_every=2)
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(feed(rule(60), everything[:15]), protocol=5, buffer_callback=buffers.append)
    there = pickle.loads(sent, buffers=[buffer.raw().toreadonly() for buffer in buffers])
    assert feed(there, everything[15:]).results == feed(rule(60), everything).results


def test_rows_that_do_not_decide_count_all() -> None:
    stopping = feed(rule(5), answers(5, slm_wrong_every=2))
    assert stopping.results[SLM].action is None
    assert stopping.rows_of(SLM) == stopping.rows_of(LLM) == 5


async def engine(
    url: str, path: Path, stopping: Stopping, *, owned: Callable[[], bool] = lambda: True, answered: Set[str] = frozenset()
) -> Stopping:  # fmt: skip
    """Ask what is not answered, four calls of each model in flight, until it is decided or nobody wants it any more."""
    limiter, arms = RateLimiter(None), []
    limiter.keep_to(Limit(), 100)
    config = EvaluateConfig.model_validate(
        {"track": "structured", "examples": "x", "models": [LLM, SLM], "run_dir": "x", "endpoint": url}
    )
    for spec in (LLM, SLM):
        mine = ArmLimiter(limiter)
        model = parse(spec).provider.open(endpoint=url, generation=config.generation, environment={}, limiter=mine)
        asks = (Ask(key=f"{spec} {row.id}", spec=spec, example_id=row.id, prompt=row.prompt) for row in stopping.rows)
        waiting = deque(ask for ask in asks if ask.key not in answered)
        arms.append(ArmQueue(spec=spec, model=model, limiter=mine, waiting=waiting, slots=4))
    log = LocalLog(path)
    await Engine(arms, log, Budget(config, {}), owned=owned, stopping=stopping).run()
    await log.close()
    return stopping


@pytest.mark.parametrize(("llm_s", "slm_s"), [(0.0, 0.0), (0.0, 0.03), (0.03, 0.0)])
def test_an_engine_asks_no_more_rows_than_the_decision_needs_and_calls_in_flight(
    tmp_path: Path, llm_s: float, slm_s: float
) -> None:
    """However fast the one and slow the other: each is asked for fewer rows than the stop row and what is in flight."""

    def script(request: Request) -> Reply:
        is_llm = request.body["model"] == "llm"
        return Reply(body=answer(TARGET if is_llm else "{}").body, after_s=llm_s if is_llm else slm_s)

    with ChatServer(script) as server:
        stopping = asyncio.run(engine(server.url, tmp_path / "a.jsonl", rule(ahead=4)))
        asked = {name: sum(request.body["model"] == name for request in server.requests) for name in ("llm", "slm")}
    assert stopping.results[SLM].decided_at == DECIDED
    assert all(DECIDED <= count < DECIDED + 4 for count in asked.values()), asked


@pytest.mark.parametrize("rounds", [(), ((10, 20),)])
@pytest.mark.parametrize("ended_after", [1, 6, 13, 20, 27])
def test_a_run_that_ended_anywhere_goes_on_to_the_same_row(tmp_path: Path, ended_after: int, rounds: Rounds) -> None:
    stop = 10 * math.ceil(DECIDED / 10) if rounds else DECIDED
    path = tmp_path / "a.jsonl"

    def script(request: Request) -> Reply:
        return Reply(body=answer(TARGET if request.body["model"] == "llm" else "{}").body, after_s=0.005)

    with ChatServer(script) as server:
        asyncio.run(
            engine(server.url, path, rule(ahead=4, rounds=rounds), owned=lambda: len(server.requests) < ended_after)
        )
        kept = [one for one in records(path.read_bytes(), str(path)) if isinstance(one, Response)]
        again = rule(ahead=4, rounds=rounds)
        for one in kept:
            again.add(one.spec, one.example_id, one.completion)
        keys = {one.key for one in kept}
        stopping = asyncio.run(engine(server.url, tmp_path / "b.jsonl", again, answered=keys))
        asked = Counter((request.body["model"], request.text) for request in server.requests)
    assert stopping.results[SLM].decided_at == stop
    assert set(asked.values()) == {1}
    assert all(stop <= sum(name == model for name, _ in asked) < stop + 4 for model in ("llm", "slm")), asked
