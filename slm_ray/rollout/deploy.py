"""The front as a Ray Serve application of its own, beside the endpoint's, at the same port under /rollout.

One replica: it is the only writer of its routes' watches, and when it dies Serve starts it again, which reads them back. It
takes the LLMs' keys from its own environment, where Ray started it: they are in no setting, so in nothing that Ray stores
or shows. On a cluster they have to be in the environment of `ray start`. Endpoint and front come up and go down in any
order; Serve itself ends with the last of them.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from slm_ray import cluster, serving
from slm_ray.command import output_folder
from slm_ray.config import RolloutConfig, Serving
from slm_ray.costs.data_residency import is_loopback
from slm_ray.errors import ModelError, ResourceError
from slm_ray.reports.prices import open_prices
from slm_ray.rollout.declared import asks_endpoint, declare
from slm_ray.rollout.front import MOST_IN_FLIGHT, Front, FrontSettings
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.upstream import target
from slm_ray.serving.endpoint import address
from slm_ray.serving.health import healthy
from slm_ray.serving.settings import access
from slm_ray.signals import wait_for_signal
from slm_ray.traffic import TrafficLog

PREFIX = "/rollout"
READY_TIMEOUT_S = 60.0
_CPUS = 0.1
_POLL_S = 0.2
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A running front: clients take `url` with /v1 as their base URL."""

    url: str
    app: str


@serve.deployment(
    name="Front", num_replicas=1, max_ongoing_requests=2 * MOST_IN_FLIGHT, ray_actor_options={"num_cpus": _CPUS},
    health_check_period_s=1, health_check_timeout_s=10, graceful_shutdown_timeout_s=10,
)  # fmt: skip
@serve.ingress()
class FrontReplica:
    """The front in a process of Ray's."""

    def __init__(self, settings: FrontSettings, config: RolloutConfig) -> None:
        self._log = TrafficLog.of(config.traffic)
        self._front = Front(
            settings, environment=os.environ, log=self._log, prices=open_prices(config.prices), say=_logger.warning
        )

    async def __serve_build_asgi_app__(self) -> Any:
        """What Serve asks for once."""
        return self._front.app()


def deploy(config: RolloutConfig, *, environment: Mapping[str, str] | None = None) -> Rollout:
    """Bring the routes of the settings into the store and the front up; returns when it answers.

    A front that runs at this port is replaced. With SLM_RAY_API_KEY every request but for /health needs that key. ConfigError,
    ModelError (a key that is missing), ResourceError.
    """
    environment = os.environ if environment is None else environment
    cluster.connect()
    return _deploy(prepared(config, environment), environment)


def _deploy(config: RolloutConfig, environment: Mapping[str, str]) -> Rollout:
    """The front of settings that are prepared."""
    at, endpoint = config.serving, address(config.serving)
    # Serve's own words are in Ray's session folder.
    _logger.setLevel(logging.WARNING)
    _logger.handlers, _logger.propagate = [logging.NullHandler()], False
    digest, keys_file = access(at, environment)
    settings = FrontSettings(folder=config.routes_dir, endpoint=endpoint, api_key_digest=digest, keys_file=keys_file)
    cluster.require([{"CPU": _CPUS, **_place(at)}], setting="the roll-out's front")
    app = f"slm-ray-rollout-{at.port}"
    _check_address(at)
    logs: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(http_options={"host": at.host, "port": at.port}, logging_config=logs)
    bound = _front(at).bind(settings, config)
    application = serve.RunTarget(target=bound, name=app, route_prefix=PREFIX, logging_config=logs)
    try:
        serve.run_many([application], wait_for_applications_running=False)
        _wait(app, endpoint)
    except BaseException:
        shutdown()
        raise
    return Rollout(url=f"{endpoint}{PREFIX}", app=app)


def _place(at: Serving) -> dict[str, float]:
    """What keeps the front on the head where Serve listens on the head's loopback alone: elsewhere it would find no endpoint."""
    return cluster.ON_THE_HEAD if is_loopback(at.host) else {}


def _front(at: Serving) -> Any:
    front: Any = FrontReplica
    return front.options(ray_actor_options={"num_cpus": _CPUS, "resources": _place(at)})


def shutdown() -> None:
    """Take the fronts down; Serve itself too when nothing else uses it."""
    if not ray.is_initialized():
        return
    for name in serve.status().applications:
        if name.startswith("slm-ray-rollout-"):
            serve.delete(name)
    if not serve.status().applications:
        serving.shutdown()


def prepared(config: RolloutConfig, environment: Mapping[str, str]) -> RolloutConfig:
    """The settings with absolute folders, their routes in the store, and every key that a route needs there."""
    config = _absolute(config)
    store = RouteStore(config.routes_dir)
    declare(store, config)
    for line in store.damaged():
        print(f"warning: {line}", file=sys.stderr, flush=True)
    for state in store.routes().values():
        _check(state, address(config.serving), environment)
    return config


def rollout(config: RolloutConfig) -> None:
    """The whole of it until a signal comes: the endpoint where a route needs it, the front, and both down again."""
    cluster.connect()
    config = prepared(config, os.environ)
    store = RouteStore(config.routes_dir)
    try:
        if asks_endpoint(store):
            endpoint = serving.deploy(config.serving)
            print(f"{config.serving.name} answers at {endpoint.url}/v1", flush=True)
        running = _deploy(config, os.environ)
        for state in store.routes().values():
            print(f"{state.route.name}: {state.state} (LLM {state.route.llm}, SLM {state.route.slm})", flush=True)
        print(f"the routes answer at {running.url}/v1 (Ctrl-C ends it)", flush=True)
        wait_for_signal()
    finally:
        if not config.serving.keep_alive:
            shutdown()
            serving.shutdown()


def _absolute(config: RolloutConfig) -> RolloutConfig:
    """The folders as a process of any other folder finds them."""
    traffic = config.traffic
    if "://" not in traffic.folder:
        traffic = traffic.model_copy(update={"folder": str(output_folder(traffic.folder, setting="traffic.folder"))})
    prices = str(Path(config.prices).absolute()) if config.prices else None
    folder = str(output_folder(config.routes_dir, setting="routes_dir"))
    return config.model_copy(update={"routes_dir": folder, "traffic": traffic, "prices": prices})


def _check(state: RouteState, endpoint: str, environment: Mapping[str, str]) -> None:
    """What would fail every call is said before anything starts."""
    target(state.route.llm, arm="llm", endpoint=endpoint, environment=environment)
    target(state.route.slm, arm="slm", endpoint=endpoint, environment=environment)


def _check_address(at: Serving) -> None:
    """ResourceError where Serve listens already, and elsewhere, or where another program does."""
    status = serve.status()
    ours = re.compile(rf"slm-ray-(rollout-)?{at.port}(-[0-9a-f]+)?")
    if status.proxies and not any(ours.fullmatch(name) for name in status.applications):
        running = ", ".join(status.applications) or "nothing of ours"
        raise ResourceError(
            f"Ray Serve runs on this cluster already ({running}), and can listen at one address only; set serving.port to its"
            " port, or stop it with `serve shutdown`"
        )
    if not status.proxies and _answers(at):
        raise ResourceError(
            f"port {at.port} on {at.host} is in use by another program; set serving.port to a free one, or stop it"
        )


def _answers(at: Serving) -> bool:
    try:
        socket.create_connection(("127.0.0.1" if at.host == "0.0.0.0" else at.host, at.port), timeout=2.0).close()
    except OSError:
        return False
    return True


def _wait(app: str, url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        found = serve.status().applications.get(app)
        if found is not None and found.status == ApplicationStatus.RUNNING and healthy(f"{url}{PREFIX}"):
            return
        failed = (
            [one.message for one in found.deployments.values() if "failed to start" in one.message] if found else []
        )
        if failed or time.monotonic() > deadline:
            why = failed[0].strip().splitlines()[-1] if failed else f"not ready within {READY_TIMEOUT_S:g} s"
            raise ModelError(f"the front did not start: {why}; see the Serve logs in Ray's session folder")
        time.sleep(_POLL_S)
