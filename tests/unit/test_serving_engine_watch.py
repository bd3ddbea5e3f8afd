"""The watch over the engine: dead is seen at once, silence after five checks, and a recovery as soon as it answers."""

from __future__ import annotations

import asyncio

import pytest

from slm_ray.serving import engine_watch
from slm_ray.serving.engine_watch import EngineWatch


class Engine:
    """Answers, is dead, or says nothing."""

    def __init__(self) -> None:
        self.state = "well"
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if self.state == "dead":
            raise RuntimeError("EngineCore died")
        if self.state == "silent":
            await asyncio.sleep(60)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "ANSWER_WITHIN_S", 0.02)


def test_a_dead_engine_is_down_at_once_and_up_when_it_answers() -> None:
    async def scenario() -> list[bool]:
        engine = Engine()
        watch = EngineWatch(engine.check)
        seen = [await watch.ask_now()]
        engine.state = "dead"
        seen.append(await watch.ask_now())
        engine.state = "well"
        return [*seen, await watch.ask_now()]

    assert asyncio.run(scenario()) == [False, True, False]


def test_slow_answers_are_no_death_but_silence_is_in_the_end_and_mends_none() -> None:
    async def scenario() -> list[bool]:
        engine = Engine()
        watch = EngineWatch(engine.check, period_s=0.001)
        engine.state = "silent"
        seen = [await watch.ask_now() for _ in range(5)]
        engine.state = "well"
        seen.append(await watch.ask_now())
        engine.state = "dead"
        await watch.ask_now()
        engine.state = "silent"
        return [*seen, await watch.ask_now()]

    assert asyncio.run(scenario()) == [False, False, False, False, True, False, True]


def test_it_asks_again_and_again_however_often_it_is_started() -> None:
    async def scenario() -> tuple[bool, int]:
        engine = Engine()
        engine.state = "dead"
        watch = EngineWatch(engine.check, period_s=0.001)
        watch.start()
        watch.start()
        while engine.asked < 3:
            await asyncio.sleep(0.001)
        return watch.down, len(asyncio.all_tasks()) - 1

    assert asyncio.run(scenario()) == (True, 1)


def test_requests_that_fail_together_are_one_check() -> None:
    async def scenario() -> tuple[int, list[bool], bool]:
        engine = Engine()
        watch = EngineWatch(engine.check, engines=2)
        engine.state = "silent"
        together = await asyncio.gather(*(watch.ask_now() for _ in range(5)))
        asked, engine.state = engine.asked, "dead"
        for _ in range(5):  # one of two engines refuses each of them at once
            await watch.ask_now()
        return asked, together, watch.down

    assert asyncio.run(scenario()) == (1, [False] * 5, False)


def test_a_request_that_fails_is_not_told_by_a_check_that_began_before() -> None:
    """The engine says that it is well, dies, and the request that died with it asks while that answer is on its way."""

    async def scenario() -> tuple[bool, int]:
        alive, asked, answered = True, 0, asyncio.Event()

        async def check() -> None:
            nonlocal asked
            asked += 1
            was_alive = alive
            if asked == 1:
                await answered.wait()
            if not was_alive:
                raise RuntimeError("dead")

        watch = EngineWatch(check)
        periodic = asyncio.create_task(watch.ask_now())
        await asyncio.sleep(0.01)
        alive = False
        failed = [asyncio.create_task(watch.ask_now()) for _ in range(3)]
        await asyncio.sleep(0.01)
        answered.set()
        found = [await one for one in failed]
        await periodic
        return all(found), asked

    assert asyncio.run(scenario()) == (True, 2)


def test_a_request_that_is_cancelled_leaves_the_check_to_the_others() -> None:
    async def scenario() -> bool:
        engine = Engine()
        engine.state = "silent"
        watch = EngineWatch(engine.check, period_s=0.001)
        first, second = asyncio.create_task(watch.ask_now()), asyncio.create_task(watch.ask_now())
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(scenario()) is False


def test_five_bad_checks_of_several_engines_are_down() -> None:
    async def scenario() -> list[bool]:
        engine = Engine()
        engine.state = "dead"
        watch = EngineWatch(engine.check, engines=2, period_s=0.002)
        seen = []
        for _ in range(5):
            seen.append(await watch.ask_now())
            await asyncio.sleep(0.004)
        return seen

    assert asyncio.run(scenario()) == [False, False, False, False, True]
