"""The guard of an endpoint: it deletes what a dead driver left, not what another one has taken over, and then it ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve.exceptions import RayServeException

from slm_ray.serving import lifetime
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


def test_a_network_that_is_cut_for_a_while_is_no_end_of_the_driver(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "_ASKS_AGAIN_S", 0.0)

    class FarDriver(Driver):
        """One that is out of reach at first."""

        cuts = 2

        async def _ends(self) -> None:
            if self.cuts:
                self.cuts -= 1
                raise ActorUnavailableError("connection reset", None)
            await super()._ends()

    async def one() -> None:
        guard, driver = _Guard("slm-ray-1"), FarDriver()
        await guard.wait_for(driver)
        await asyncio.sleep(0.05)
        assert driver.cuts == 0 and not done
        driver.over.set()
        await settled(guard)

    asyncio.run(one())
    assert done == ["deleted slm-ray-1", "guard ended"]


def test_the_guard_stands_on_the_head_and_the_pulse_beside_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker node that is lost takes neither: without the pulse the endpoint of a living loop would be deleted."""
    asked: dict[str, dict[str, Any]] = {}

    def remote(**options: Any) -> Any:
        def placed(kind: type) -> Any:
            asked[kind.__name__] = options
            handle = SimpleNamespace(wait_for=SimpleNamespace(remote=lambda pulse: pulse))
            return SimpleNamespace(remote=lambda *_: handle)

        return placed

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "ab" * 28))
    lifetime.ends_with_driver("slm-ray-1")
    assert asked["_Pulse"]["scheduling_strategy"].node_id == "ab" * 28
    assert not asked["_Pulse"]["scheduling_strategy"].soft
    assert "node:__internal_head__" in asked["_Guard"]["resources"]
