"""The engine on its own: slots, what is written before what, budgets, fatal answers, an owner that is gone."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Request, answer, error

from slm_ray.config import EvaluateConfig
from slm_ray.errors import ModelError, ResourceError
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.engine import ArmQueue, Engine
from slm_ray.evaluation.limiter import AimdLimiter, ArmLimiter, Limit, RateLimiter
from slm_ray.evaluation.local import LocalLog
from slm_ray.providers import parse
from slm_ray.runlog import Record, Response, records
from slm_ray.runlog import Request as Ask
from slm_ray.types import Message, Prompt

ROWS = 60


def asks(spec: str = "served:m", rows: int = ROWS) -> deque[Ask]:
    return deque(
        Ask(
            key=f"{spec} k{n}",
            spec=spec,
            example_id=str(n),
            prompt=Prompt(messages=(Message(role="user", content=f"q{n}"),)),
        )
        for n in range(rows)
    )


def lines(path: Path) -> list[Record]:
    return list(records(path.read_bytes(), str(path)))


def keys_of(found: list[Record]) -> tuple[list[str], list[str]]:
    """(started, answered), in their order."""
    return [one for one in found if isinstance(one, str)], [one.key for one in found if isinstance(one, Response)]


def config(url: str, **changes: Any) -> EvaluateConfig:
    generation = {"max_attempts": 2, "timeout_s": 10, **changes.pop("generation", {})}
    return EvaluateConfig.model_validate(
        {"track": "structured", "examples": "x", "models": ["served:m"], "run_dir": "x", "endpoint": url,
         "generation": generation, **changes}
    )  # fmt: skip


def run(
    path: Path, url: str, *, slots: int = 5, specs: tuple[str, ...] = ("served:m",), rows: int = ROWS, ready: int | None = None,
    owned: Callable[[], bool] = lambda: True, log: Any = None, ahead_s: float = 0.0, **changes: Any,
) -> tuple[int, Budget]:  # fmt: skip
    """Ask all rows of all arms, which share one endpoint; what is left, and the budget."""
    settings = config(url, **changes)

    async def inside() -> tuple[int, Budget]:
        limiter = RateLimiter(AimdLimiter() if ready is None else None)
        if ready is not None:
            limiter.keep_to(Limit(), ready)
        arms = []
        for spec in specs:
            mine = ArmLimiter(limiter)
            model = parse(spec).provider.open(
                endpoint=url, generation=settings.generation, environment={}, limiter=mine
            )
            arms.append(ArmQueue(spec=spec, model=model, limiter=mine, waiting=asks(spec, rows), slots=slots))
        file = log or LocalLog(path)
        budget = Budget(settings, {})
        try:
            return await Engine(arms, file, budget, owned=owned, ahead_s=ahead_s).run(), budget
        finally:
            await file.close()

    return asyncio.run(inside())


def test_answers_are_dated_by_the_driver_s_clock(tmp_path: Path) -> None:
    with ChatServer(lambda _: answer("yes")) as server:
        before_s = time.time()
        run(tmp_path / "log", server.url, rows=5, ahead_s=60.0)
    dated = [one.answered_ns / 1e9 for one in lines(tmp_path / "log") if isinstance(one, Response)]
    assert len(dated) == 5 and all(before_s - 60.0 < at < before_s - 30.0 for at in dated)


def test_slots_are_filled_again_and_everything_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with ChatServer(lambda request: Reply(body=answer(request.text).body, after_s=0.02)) as server:
        assert run(path, server.url, slots=7)[0] == 0
        assert server.most_in_flight == 7
        assert len(server.requests) == ROWS
    started, answered = keys_of(lines(path))
    assert sorted(started) == sorted(answered) == sorted(f"served:m k{n}" for n in range(ROWS))
    texts = {one.example_id: one.completion.text for one in lines(path) if isinstance(one, Response)}
    assert texts == {str(n): f"q{n}" for n in range(ROWS)}


def test_never_more_calls_than_slots_are_not_in_the_log(tmp_path: Path) -> None:
    """Looked at by the endpoint, at every call: what a kill at that moment would leave behind."""
    path = tmp_path / "a.jsonl"
    unwritten: list[int] = []

    def script(request: Request) -> Reply:
        started, answered = keys_of(lines(path))
        assert f"served:m {request.text.replace('q', 'k')}" in started
        unwritten.append(request.nth + 1 - len(answered))
        return answer("{}")

    with ChatServer(script) as server:
        assert run(path, server.url, slots=5)[0] == 0
    assert all(one.completion.text == "{}" for one in lines(path) if isinstance(one, Response))
    assert 1 <= max(unwritten) <= 5


def test_arms_of_one_endpoint_share_what_it_allows_and_none_starves(tmp_path: Path) -> None:
    with ChatServer(lambda request: Reply(body=answer(request.body["model"]).body, after_s=0.02)) as server:
        assert run(tmp_path / "a.jsonl", server.url, specs=("served:a", "served:b"), slots=8, ready=5, rows=20)[0] == 0
        assert server.most_in_flight <= 5
        first = [request.body["model"] for request in server.requests[:10]]
    assert 3 <= first.count("a") <= 7


def test_few_calls_go_out_before_the_first_answer(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return Reply(body=answer("{}").body, after_s=0.3 if request.nth < 3 else 0.2)

    with ChatServer(script) as server:
        run(tmp_path / "a.jsonl", server.url, slots=32)
        starts = sorted(span[0] for span in server.spans)
        assert starts[3] - starts[0] >= 0.28
        assert server.most_in_flight > 16


def test_nothing_starts_for_an_owner_that_is_gone_and_what_is_in_flight_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.1)) as server:
        left, _ = run(path, server.url, slots=4, owned=lambda: len(server.requests) < 20)
        assert 20 <= len(server.requests) <= 20 + 4
        assert left == ROWS - len(server.requests)
        assert len(keys_of(lines(path))[1]) == len(server.requests)


def test_a_budget_ends_it_with_what_is_left_and_nothing_in_flight(tmp_path: Path) -> None:
    with ChatServer(lambda _: answer("{}")) as server:
        left, budget = run(tmp_path / "a.jsonl", server.url, max_calls=20, generation={"max_attempts": 1})
        assert (len(server.requests), left, budget.spent.calls) == (20, 40, 20)
        assert budget.blocked_by == "max_calls 20"


def test_answers_are_in_the_log_before_the_error_that_ends_it(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return error(401) if request.text == "q9" else answer("{}")

    with ChatServer(script) as server:
        with pytest.raises(ModelError, match="refuses the key"):
            run(tmp_path / "a.jsonl", server.url, slots=1)
        assert len(server.requests) == 10
    assert keys_of(lines(tmp_path / "a.jsonl"))[1] == [f"served:m k{n}" for n in range(9)]


def test_answers_that_arrive_just_after_the_error_are_kept(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return error(401) if request.text == "q0" else Reply(body=answer("{}").body, after_s=0.1)

    with ChatServer(script) as server, pytest.raises(ModelError, match="refuses the key"):
        run(tmp_path / "a.jsonl", server.url, slots=3)
    assert sorted(keys_of(lines(tmp_path / "a.jsonl"))[1]) == ["served:m k1", "served:m k2"]


@pytest.mark.parametrize(
    "fatal",
    [error(401), error(403), error(404, "model_not_found"), error(402), error(429, "insufficient_quota")],
    ids=["401", "403", "404", "402", "quota"],
)
def test_after_a_fatal_answer_no_waiting_row_is_tried_again(tmp_path: Path, fatal: Reply) -> None:
    """A key that dies in mid-run: of 16 rows 3 are answered, 8 wait out a limit, 4 are on their way, then one is refused."""
    refused_at: list[int] = []

    def script(request: Request) -> Reply:
        number = int(request.text[1:])
        if refused_at:
            return fatal
        if number < 3:
            return answer("{}")
        if number < 11:
            return error(429, "rate_limit_exceeded", Retry_After="0.4")
        if number != 15:
            return Reply(body=answer("{}").body, after_s=0.6)
        time.sleep(0.2)
        refused_at.append(len(server.requests))
        return fatal

    with ChatServer(script, models_after_s=0.8) as server:
        with pytest.raises(ModelError):
            run(tmp_path / "a.jsonl", server.url, slots=16, rows=20, ready=16)
        time.sleep(1.0)  # waits are over, and slow answers in
        assert len(refused_at) == 1
        assert len(server.requests) == 19, "rows 16 to 18 took the places of the three that were answered, and no more"


class FullDisk(LocalLog):
    """A log that takes a number of appends."""

    def __init__(self, path: Path, appends: int) -> None:
        super().__init__(path)
        self.appends = appends

    async def append(self, lines: bytes) -> None:
        self.appends -= 1
        if self.appends < 0:
            raise ResourceError("cannot be written (No space left on device); free the disk")
        await super().append(lines)


def test_a_disk_that_takes_no_more_ends_it_and_nothing_more_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    async def full() -> FullDisk:
        return FullDisk(path, 8)

    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.05)) as server:
        with pytest.raises(ResourceError, match="free the disk"):
            run(path, server.url, slots=4, log=asyncio.run(full()))
        asked = len(server.requests)
        time.sleep(0.3)
        assert len(server.requests) == asked
    started, answered = keys_of(lines(path))
    assert asked - len(answered) <= 2 * 4
    assert len(started) == asked


def test_a_thousand_calls_in_flight_on_one_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    left, _ = run(path, "http://127.0.0.1:1", specs=("fake:echo",), slots=1000, ready=1000, rows=10_000)
    assert left == 0
    assert len(keys_of(lines(path))[1]) == 10_000
