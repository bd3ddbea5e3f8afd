"""Deploying as far as it goes without a cluster: who shares the address, and what is said while it is waited for."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus

from slm_ray.config import Serving
from slm_ray.errors import ModelError, ResourceError
from slm_ray.serving import endpoint
from slm_ray.serving.settings import AppSettings, app_settings


def running(
    monkeypatch: pytest.MonkeyPatch,
    *apps: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    state: dict[str, Any] | None = None,
    status: ApplicationStatus = ApplicationStatus.RUNNING,
) -> list[str]:
    """Serve with these applications at that address; what is taken down is noted in the list."""
    taken_down: list[str] = []
    app = SimpleNamespace(status=status, message="ValueError: no", deployments={})
    seen = SimpleNamespace(applications=dict.fromkeys(apps, app), proxies={"node": "HEALTHY"} if apps else {})
    config = {"user_config": {"digest": "abc", "stand_in": None, **(state or {})}}
    deployments = {"front": {"deployment_config": config}, "engine": {"deployment_config": {}}}
    details = {
        "http_options": {"host": host, "port": port},
        "applications": {name: {"deployments": deployments} for name in apps},
    }
    monkeypatch.setattr("ray.serve.status", lambda: seen)
    monkeypatch.setattr(
        endpoint, "_get_global_client", lambda: SimpleNamespace(get_serve_details=lambda: details), raising=True
    )
    monkeypatch.setattr(endpoint, "shutdown", lambda: taken_down.extend(apps))
    monkeypatch.setattr(endpoint, "_free", lambda host, port: True)
    return taken_down


def test_an_endpoint_is_known_by_its_address_and_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    running(monkeypatch, "slm-ray-8000", "slm-ray-rollout-8000")
    known = endpoint._running("slm-ray-8000", "127.0.0.1")
    assert known is not None and (known.digest, known.attempt, known.has_failed) == ("abc", 0, False)
    assert endpoint._running("slm-ray-8000", "0.0.0.0") is None, "Serve cannot change where it listens"
    assert endpoint._running("slm-ray-8001", "127.0.0.1") is None


@pytest.mark.parametrize(("host", "url"), [("::1", "http://[::1]:8000"), ("127.0.0.1", "http://127.0.0.1:8000")])
def test_the_address_is_a_url(host: str, url: str) -> None:
    assert endpoint.address(Serving(host=host)) == url


def deployed(monkeypatch: pytest.MonkeyPatch, config: Serving, *, has_room: bool = True) -> list[AppSettings]:
    """What Serve is asked to start by a deployment of `config`."""
    started: list[AppSettings] = []
    monkeypatch.setattr("slm_ray.cluster.connect", lambda: None)
    monkeypatch.setattr("slm_ray.cluster.require", lambda *_, **__: None)
    monkeypatch.setattr("slm_ray.cluster.is_on_head", lambda: True)
    monkeypatch.setattr("slm_ray.cluster.fits_now", lambda bundles: has_room)
    monkeypatch.setattr(endpoint, "_start", lambda config, endpoint, settings: started.append(settings))
    monkeypatch.setattr(endpoint, "_wait", lambda *_: None)
    endpoint.deploy(config, environment={})
    return started


def test_a_change_that_failed_is_tried_again_by_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = app_settings(Serving(), stand_in=None, environment={})
    state = {"digest": settings.digest, "engine_version": settings.engine_version, "attempt": 2}
    running(monkeypatch, "slm-ray-8000", state=state)
    assert deployed(monkeypatch, Serving()) == [], "what runs is left as it is"
    running(monkeypatch, "slm-ray-8000", state=state, status=ApplicationStatus.DEPLOY_FAILED)
    (again,) = deployed(monkeypatch, Serving())
    assert (again.attempt, again.digest) == (3, settings.digest)
    earlier = replace(settings, attempt=2)
    assert not {again.engine_version, again.front_version} & {earlier.engine_version, earlier.front_version}
    running(monkeypatch, "slm-ray-8000", state=state)
    (other,) = deployed(monkeypatch, Serving(name="other"))
    assert other.attempt == 2, "a version that runs keeps its number: nothing starts anew without need"


def test_a_changed_engine_without_room_beside_the_one_that_runs_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running(monkeypatch, "slm-ray-8000", state={"engine_version": "another"})
    with pytest.raises(ResourceError, match="max_surge_percent"):
        deployed(monkeypatch, Serving(), has_room=False)
    settings = app_settings(Serving(), stand_in=None, environment={})
    running(monkeypatch, "slm-ray-8000", state={"engine_version": settings.engine_version})
    assert len(deployed(monkeypatch, Serving(), has_room=False)) == 1, "the front alone needs none"


@pytest.mark.parametrize(
    ("apps", "port", "outcome"),
    [
        ((), 8000, "start"),
        (("slm-ray-8000",), 8001, "replace"),
        (("slm-ray-rollout-8000",), 8000, "start"),  # the roll-out came first, and sends its requests here
        (("slm-ray-rollout-8000",), 8001, "refuse"),
        (("slm-ray-8000", "slm-ray-rollout-8000"), 8001, "refuse"),
        (("their-app",), 8000, "refuse"),
        (("slm-ray-8000", "their-app"), 8001, "refuse"),
        (("slm-ray-rollout-8000", "their-app"), 8000, "refuse"),
    ],
)
def test_who_else_is_at_the_address(
    monkeypatch: pytest.MonkeyPatch, apps: tuple[str, ...], port: int, outcome: str
) -> None:
    taken_down = running(monkeypatch, *apps)
    config = Serving(port=port)
    if outcome == "refuse":
        with pytest.raises(ResourceError, match="other applications"):
            endpoint._replace_older(config)
    else:
        endpoint._replace_older(config)
    assert taken_down == (list(apps) if outcome == "replace" else [])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "shown"),
    [
        (io.StringIO(), "starting the engine: 10 s\nstarting the engine: 20 s\n"),
        (Terminal(), "".join(f"\rstarting the engine: {s} s\x1b[K" for s in range(1, 26)) + "\r\x1b[K"),
        (None, ""),
    ],
    ids=["file", "terminal", "nothing"],
)
def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, out: Any, shown: str) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    waiting = endpoint._Waiting(out)
    for _ in range(100):
        clock.now += 0.25
        waiting.tell("starting the engine")
    waiting.end()
    assert (out.getvalue() if out is not None else "") == shown


@pytest.mark.parametrize(("refusals", "within_s"), [(2, 5.0), (2, 0.0)])
def test_the_front_that_goes_may_refuse_the_new_key_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, refusals: int, within_s: float
) -> None:
    asked: list[str] = []

    def chat(url: str, model: str, body: object, *, key: str) -> None:
        asked.append(key)
        if len(asked) <= refusals:
            raise ModelError("HTTP 401")

    up = SimpleNamespace(status=ApplicationStatus.RUNNING, deployments={}, message="")
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"app": up}))
    monkeypatch.setattr(endpoint, "healthy", lambda url: True)
    monkeypatch.setattr(endpoint, "chat", chat)
    monkeypatch.setattr(endpoint, "_POLL_S", 0.001)
    monkeypatch.setattr(endpoint, "_SETTLED_WITHIN_S", within_s)
    there = endpoint.Endpoint(url="http://localhost", model_name="tiny", app="app")
    with contextlib.nullcontext() if within_s else pytest.raises(ModelError, match="401"):
        endpoint._wait(Serving(), there, "new", endpoint._Waiting(None))
    assert set(asked) == {"new"} and (len(asked) == refusals + 1 if within_s else len(asked) <= refusals)
