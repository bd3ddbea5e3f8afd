"""The guard of an endpoint: it deletes what a dead driver left, not what another one has taken over, and then it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from slm_ray.serving.lifetime import _Guard


class Driver:
    """A pulse that a test ends."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.ends = SimpleNamespace(remote=self._ends)

    async def _ends(self) -> None:
        await self.over.wait()
        raise RayActorError


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(serve, "delete", lambda app: found.append(f"deleted {app}"))
    monkeypatch.setattr(ray, "kill", lambda actor: found.append("guard ended"))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    return found


async def settled(guard: Any) -> None:
    await asyncio.wait_for(guard._waiting, 10)


def test_a_dead_driver_s_endpoint_is_deleted_and_the_guard_ends(done: list[str]) -> None:
    async def one() -> None:
        guard, driver = _Guard("slm-ray-1"), Driver()
        await guard.wait_for(driver)
        await asyncio.sleep(0.01)
        assert not done
        driver.over.set()
        await settled(guard)

    asyncio.run(one())
    assert done == ["deleted slm-ray-1", "guard ended"]


def test_an_endpoint_that_another_driver_has_taken_over_is_left_alone(done: list[str]) -> None:
    async def two() -> None:
        guard, first, second = _Guard("slm-ray-1"), Driver(), Driver()
        await guard.wait_for(first)
        waiting = guard._waiting
        await guard.wait_for(second)
        first.over.set()
        await asyncio.wait_for(waiting, 10)
        assert not done
        second.over.set()
        await settled(guard)

    asyncio.run(two())
    assert done == ["deleted slm-ray-1", "guard ended"]


def test_the_guard_ends_where_serve_is_gone(done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(app: str) -> None:
        raise RayServeException("There is no Serve instance running")

    async def one() -> None:
        monkeypatch.setattr(serve, "delete", gone)
        guard, driver = _Guard("slm-ray-1"), Driver()
        await guard.wait_for(driver)
        driver.over.set()
        await settled(guard)

    asyncio.run(one())
    assert done == ["guard ended"]
