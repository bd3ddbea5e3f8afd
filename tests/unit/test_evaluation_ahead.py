"""Places filled again without the driver: never more calls than places that are not written down, and nothing for nobody."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Request, answer, error

from slm_ray.config import EvaluateConfig, Generation
from slm_ray.errors import ModelError, ResourceError
from slm_ray.evaluation.ahead import AskingAhead
from slm_ray.evaluation.asker import Asker, Opened, Terms
from slm_ray.evaluation.book import Book
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.generate import Question
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.worker import Worker, terms_of
from slm_ray.ledger import Answer, Journal, Ledger, Part, parts
from slm_ray.providers import parse
from slm_ray.providers.pace import Gate, Limit, Pace
from slm_ray.signals import SignalGuard
from slm_ray.types import Completion, Message, Prompt

ROWS = [
    Question(key=f"k{n}", example_id=str(n), prompt=Prompt(messages=(Message(role="user", content=f"q{n}"),)))
    for n in range(60)
]


def run(path: Path, url: str, what: Callable[[AskingAhead], Awaitable[Any]], **settings: Any) -> Any:
    async def inside() -> Any:
        generation = Generation(**{"max_attempts": 2, "timeout_s": 10, **settings})
        model = parse("served:m").provider.open(endpoint=url, generation=generation, environment={}, limiter=Gate())
        asking = AskingAhead(model, Journal(path))
        try:
            return await what(asking)
        finally:
            await asking.close()

    return asyncio.run(inside())


def written(path: Path) -> Part:
    found = list(parts(path, 0))
    return Part(
        begun=[key for part in found for key in part.begun], answers=[one for part in found for one in part.answers],
        upto=found[-1].upto if found else 0,
    )  # fmt: skip


async def heard_of(asking: AskingAhead, rows: int) -> Part:
    begun: list[str] = []
    answers: list[Answer] = []
    upto = 0
    while len(answers) < rows:
        part = await asking.heard()
        begun += part.begun
        answers += part.answers
        upto = part.upto
    return Part(begun=begun, answers=answers, upto=upto)


@pytest.mark.parametrize("gather_s", [0.0, 0.03])
def test_places_are_filled_again_and_what_is_heard_is_what_is_written(tmp_path: Path, gather_s: float) -> None:
    path = tmp_path / "a.jsonl"

    async def all_of_them(asking: AskingAhead) -> Part:
        asking.places, asking.gather_s = 7, gather_s
        asking.ask(ROWS)
        return await heard_of(asking, len(ROWS))

    with ChatServer(lambda request: Reply(body=answer(request.text).body, after_s=0.02)) as server:
        heard = run(path, server.url, all_of_them)
        assert server.most_in_flight == 7
        assert len(server.requests) == len(ROWS)
    assert heard == written(path)
    assert {one.key: one.completion.text for one in heard.answers} == {f"k{n}": f"q{n}" for n in range(60)}


def test_never_more_calls_than_places_are_not_written_down(tmp_path: Path) -> None:
    """Looked at by the endpoint, at every call: what a kill at that moment would leave behind."""
    path = tmp_path / "a.jsonl"
    unwritten: list[int] = []

    def script(request: Request) -> Reply:
        now = written(path)
        assert request.text.replace("q", "k") in now.begun
        unwritten.append(request.nth + 1 - len(now.answers))
        return answer("{}")

    async def all_of_them(asking: AskingAhead) -> Part:
        asking.places = 5
        asking.ask(ROWS)
        return await heard_of(asking, len(ROWS))

    with ChatServer(script) as server:
        heard = run(path, server.url, all_of_them)
    assert all(one.completion.text == "{}" for one in heard.answers)
    assert 1 <= max(unwritten) <= 5


def test_nothing_is_begun_for_a_driver_that_has_stopped_listening(tmp_path: Path) -> None:
    async def listen_once(asking: AskingAhead) -> tuple[int, int, int]:
        asking.places = 2
        asking.ask(ROWS)
        await asking.heard()
        await asyncio.sleep(1.0)
        alone = len(server.requests)
        await asyncio.sleep(1.0)
        later = len(server.requests)
        asking.ask([])
        await heard_of(asking, 50)
        return alone, later, len(server.requests)

    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.1)) as server:
        alone, later, again = run(tmp_path / "a.jsonl", server.url, listen_once)
    assert 4 <= alone == later <= 18, "half a second of two calls at a time"
    assert again > later
    assert len(written(tmp_path / "a.jsonl").answers) >= 50


def test_more_places_are_used_at_once_and_fewer_as_calls_end(tmp_path: Path) -> None:
    async def change(asking: AskingAhead) -> None:
        asking.places = 1
        asking.ask(ROWS)
        await heard_of(asking, 3)
        assert server.most_in_flight == 1
        asking.places = 9
        asking.ask([])
        await heard_of(asking, 20)
        assert server.most_in_flight == 9
        asking.places = 2
        await heard_of(asking, 9)
        server.most_in_flight = 0
        await heard_of(asking, 8)
        assert server.most_in_flight <= 2

    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.03)) as server:
        run(tmp_path / "a.jsonl", server.url, change)


def test_answers_come_before_the_error_that_ends_the_asking(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return error(401) if request.text == "q9" else answer("{}")

    async def until_it_ends(asking: AskingAhead) -> list[str]:
        asking.places, asking.gather_s = 1, 0.5
        asking.ask(ROWS)
        found: list[str] = []
        with pytest.raises(ModelError, match="refuses the key"):
            while True:
                found += [one.key for one in (await asking.heard()).answers]
        return found

    with ChatServer(script) as server:
        assert run(tmp_path / "a.jsonl", server.url, until_it_ends) == [f"k{n}" for n in range(9)]
        assert len(server.requests) == 10
    assert len(written(tmp_path / "a.jsonl").answers) == 9


def test_a_disk_that_takes_no_more_ends_the_asking_and_keeps_what_is_paid_for(tmp_path: Path) -> None:
    async def until_it_ends(asking: AskingAhead) -> tuple[int, int]:
        asking.places = 4
        asking.ask(ROWS)
        found = len((await heard_of(asking, 8)).answers)
        os.close(asking._journal._file)
        asking._journal._file = os.open(os.devnull, os.O_RDONLY)
        with pytest.raises(ResourceError, match=r"cannot be written .* free the disk"):
            while True:
                found += len((await asking.heard()).answers)
        asked = len(server.requests)
        await asyncio.sleep(0.3)
        return found, len(server.requests) - asked

    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.05)) as server:
        found, more = run(tmp_path / "a.jsonl", server.url, until_it_ends)
        assert more == 0
        assert len(server.requests) - 4 <= found <= len(server.requests)
    assert len(written(tmp_path / "a.jsonl").answers) < found


def planned(tmp_path: Path, **changes: Any) -> tuple[EvaluateConfig, Plan]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"id": "r{n}", "prompt": "q{n}", "completion": "{{}}"}}\n' for n in range(10)))
    config = EvaluateConfig.model_validate(
        {
            "track": "structured", "examples": str(rows), "models": ["served:a", "served:b"], "run_dir": str(tmp_path),
            "generation": {"max_attempts": 1}, **changes,
        }
    )  # fmt: skip
    return config, plan(config, {})


def test_places_add_up_to_what_the_endpoint_allows(tmp_path: Path) -> None:
    _, found = planned(tmp_path)
    now_s = time.monotonic()
    pace = Pace(clock_s=lambda: now_s)
    ours = [Worker(arm, count, pace) for arm in found.arms for count in (6, 5, 5)]
    other = Worker(found.arms[0], 4, Pace(in_flight=4))
    everyone = [*ours, other]
    waiting = {arm.spec: deque(ROWS) for arm in found.arms}
    for allowed in (3, 7, 20, 32, 500):
        pace.in_flight = allowed
        places = [terms_of(worker, everyone, waiting).places for worker in ours]
        assert sum(places) == min(32, allowed)
        assert all(have <= worker.concurrency for have, worker in zip(places, ours, strict=True))
    pace.limit = Limit(rate_per_s=32.0, number=4)
    assert [terms_of(worker, everyone, waiting).limit.rate_per_s for worker in ours] == [6, 5, 5, 6, 5, 5]
    assert {terms_of(worker, everyone, waiting).gather_s > 0 for worker in everyone} == {True}
    pace.in_flight = 16
    waiting["served:b"].clear()
    assert [terms_of(worker, everyone, waiting).places for worker in ours[:3]] == [6, 5, 5]
    assert terms_of(other, everyone, waiting).places == 4
    ours[0].ahead = True

    assert (ours[0].room(2), ours[1].room(2)) == (2 + 6, 2)
    assert ours[0].room(0) == 0, "rows without a place would hold the budget that others need to begin"
    ours[0].opening = object()
    assert [terms_of(worker, everyone, waiting).places for worker in ours[1:3]] == [5, 5]


def test_rows_that_were_handed_out_and_never_asked_cost_nothing(tmp_path: Path) -> None:
    config, found = planned(tmp_path, max_calls=10, models=["served:a"])
    arm = found.arms[0]
    with Ledger(tmp_path / "ledger.sqlite") as ledger, Board(found.track, ["served:a"], 10, plain=True) as board:
        ledger.plan(found.id, found.rows())
        ledger.begin(found.id, {})
        budget = Budget(config, {})
        book = Book(found, ledger, board, budget)
        questions = arm.pending(found.examples, ledger)
        assert book.grant(arm, questions, begin=False) == 10
        assert ledger.unanswered(found.id) == {}, "what an actor begins by itself is known from its journal"
        said = Answer(key=questions[0].key, example_id="r0", completion=Completion(text="{}"), answered_ns=5)
        book.hear(arm, Part(begun=[one.key for one in questions[:4]], answers=[said], upto=77), "a.jsonl")
        assert ledger.count() == 0
        book.back(arm, questions[4:])
        assert (book.handed_out, budget.spent.calls) == (4, 1)
        assert book.grant(arm, questions[1:], begin=False) == 6, "three of nine may have been billed for and count"
        assert (book.handed_out, budget.spent.calls) == (7, 4)
        assert ledger.count() == 1
        assert set(ledger.unanswered(found.id)) == {one.key for one in questions[1:4]}
        book.close()
        (tmp_path / "a.jsonl").write_bytes(b"x" * 77)
        ledger.take_in(tmp_path / "a.jsonl")  # has nothing beyond byte 77, before which nobody looks


@pytest.mark.parametrize("when", ["while it is heard", "while it is written"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_of_what_was_heard(tmp_path: Path, when: str, number: signal.Signals) -> None:
    config, found = planned(tmp_path, models=["served:a"])
    arm = found.arms[0]
    journal = Journal(tmp_path / "a.jsonl")

    class Signalling(Budget):
        def settle(self, spec: str, key: str, *more: Any) -> None:
            super().settle(spec, key, *more)
            if when == "while it is heard" and key == questions[3].key:
                os.kill(os.getpid(), number)

    class Ledgering(Ledger):
        def put_all(self, *given: Any, **more: Any) -> None:
            super().put_all(*given, **more)
            if when == "while it is written" and more["starts"]:
                os.kill(os.getpid(), number)

    with Ledgering(tmp_path / "ledger.sqlite") as ledger, Board(found.track, ["served:a"], 10, plain=True) as board:
        ledger.plan(found.id, found.rows())
        ledger.begin(found.id, {})
        questions = arm.pending(found.examples, ledger)
        with SignalGuard() as guard:
            book = Book(found, ledger, board, Signalling(config, {}), whole=guard.deferred)
            with pytest.raises(KeyboardInterrupt):
                book.grant(arm, questions, begin=False)
                answers = [
                    Answer(key=one.key, example_id=one.example_id, completion=Completion(text="{}"), answered_ns=5)
                    for one in questions[:8]
                ]
                upto = journal.write([one.key for one in questions], answers)
                book.hear(arm, Part(begun=[one.key for one in questions], answers=answers, upto=upto), "a.jsonl")
                book.grant(arm, [], begin=False)
            book.close()
        journal.close()
        ledger.take_in(tmp_path / "a.jsonl")
        assert ledger.count() == 8
        assert ledger.unanswered(found.id) == {one.key: 1 for one in questions[8:]}
        assert ledger.starts(questions[0].key) == 1


def test_of_two_terms_the_later_one_holds(tmp_path: Path) -> None:
    async def out_of_order() -> int:
        asker = Asker()
        (tmp_path / "mine").touch()
        opened = Opened(
            provider=parse("served:m").provider, endpoint=server.url, generation=Generation(), environment={},
            journal=tmp_path / "a.jsonl", token="mine",
        )  # fmt: skip
        assert await asker.open(opened)
        await asker.ask([], Terms(limit=Limit(), turn=2, places=3))
        async with asyncio.timeout(5):  # without places nothing would ever be heard
            part, _ = await asker.heard(ROWS[:12], Terms(limit=Limit(), turn=1, places=0))
        gc.unfreeze()
        return len(part.begun)

    thresholds = gc.get_threshold()
    try:
        with ChatServer(lambda _: answer("{}")) as server:
            assert asyncio.run(out_of_order()) >= 3
    finally:
        gc.set_threshold(*thresholds)


def test_a_folder_that_is_another_runs_is_no_place_for_a_journal(tmp_path: Path) -> None:
    async def open_there() -> bool:
        opened = Opened(
            provider=parse("served:m").provider, endpoint="http://127.0.0.1:1", generation=Generation(), environment={},
            journal=tmp_path / "a.jsonl", token="mine",
        )  # fmt: skip
        return await Asker().open(opened)

    (tmp_path / "others").touch()
    thresholds = gc.get_threshold()
    try:
        assert not asyncio.run(open_there())
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert not (tmp_path / "a.jsonl").exists()
