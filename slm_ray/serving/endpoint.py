"""Bringing the endpoint up and down: `deploy` returns when it answers, `shutdown` when nothing of it is left.

What cannot work (no model in the base folder, too few CPUs or GPUs, the port taken, an engine that will not start) ends at
once in one error that names the setting. Deploying what already runs takes it as it is. An endpoint of ours at the same
address is changed in place: the stand-in and the schemas while it answers, the front and engines one after the other as
the serve file's `max_surge_percent` has it, each only if it has changed, and what it is writing is written to its end
(`graceful_shutdown_timeout_s`). One at another address is replaced. Applications of others are left alone.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from slm_ray import cluster
from slm_ray.api_key import KEY_NAME, api_key
from slm_ray.config import Serving
from slm_ray.costs.data_residency import is_loopback
from slm_ray.errors import ConfigError, ModelError, ResourceError
from slm_ray.serving.app import build
from slm_ray.serving.health import chat, healthy
from slm_ray.serving.settings import AppSettings, app_settings, bundles, engine_bundles

CONTROLLER = "SERVE_CONTROLLER_ACTOR"
READY_TIMEOUT_S = 300.0
_APP = re.compile(r"slm-ray-(\d+)")
# What else of ours may run beside an endpoint, at its port and under a path of its own.
_BESIDE = re.compile(r"slm-ray-rollout-\d+")
_LIVE_EVERY_S, _LINE_EVERY_S = 1.0, 10.0
_POLL_S = 0.25
_FREE_WITHIN_S = 30.0
_SETTLED_WITHIN_S = 5.0  # proxies hear of a new front a moment after it counts as up
_HEARD_WITHIN_S = (
    2.0  # a controller says of an attempt before this one that it failed, until it has begun with this one
)
_DRAINED_WITHIN_S = 150.0  # answers that are being written end first, as long as the serve file lets them


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A running endpoint: `url` has no path (add /v1 for OpenAI clients), `model_name` is the base's name."""

    url: str
    model_name: str
    app: str


def deploy(
    config: Serving,
    *,
    stand_in: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    log_file: str | None = None,
    progress: TextIO | None = None,
) -> Endpoint:
    """Serve the base and its adapters; returns once a real completion has come back.

    `stand_in` is {"deployment", "demonstrations", "pools": {track: JSONL path}}. With SLM_RAY_API_KEY in the environment
    every request needs that key. This process's Serve and vLLM messages go to `log_file`, or nowhere; the replicas' own
    are in Ray's session folder. `progress` is told what is waited for and how long: every second on a terminal, else a line
    every ten. Raises ModelError, ConfigError or ResourceError; an endpoint that was to be changed and could not is left as
    far as it still answers.
    """
    environment = os.environ if environment is None else environment
    settings = app_settings(config, stand_in=stand_in, environment=environment)
    _quiet(log_file)
    cluster.connect()
    cluster.require(
        bundles(settings.serving, is_direct=settings.is_direct), setting=f"serving.config ({config.config})"
    )
    _check_seen_from_here(config)
    endpoint = Endpoint(url=address(config), model_name=config.name, app=app_name(config))
    key = api_key(environment)
    waiting = _Waiting(progress)
    running = _running(endpoint.app, config.host)
    if running is None:
        _replace_older(config)
    elif running.digest == settings.digest and not running.has_failed:
        _wait(config, endpoint, key, waiting)
        return endpoint
    else:
        settings = replace(settings, attempt=running.attempt + running.has_failed)
        _check_surge(config, settings, running)
    try:
        _start(config, endpoint, settings)
        _wait(config, endpoint, key, waiting)
    except BaseException:
        if running is None or not healthy(endpoint.url):
            shutdown()
        raise
    finally:
        waiting.end()
    return endpoint


def shutdown() -> None:
    """Take our endpoints down and wait until their port is free; Serve itself too when nothing else uses it."""
    if not ray.is_initialized():
        return
    status = serve.status()
    ours = _ours(status)
    if set(status.applications) - set(ours):
        for name in ours:
            serve.delete(name)
    elif status.proxies or ours:
        _stop_serve()
        for name in ours:
            _await_free("127.0.0.1", _port(name))


def _stop_serve() -> None:
    """`serve.shutdown`, less the call that dies with the controller and that Ray reports on the terminal as a failure."""
    controller = ray.get_actor(CONTROLLER, namespace="serve")
    ray.get(controller.graceful_shutdown.remote(False))
    deadline = time.monotonic() + _DRAINED_WITHIN_S
    while _controller_lives() and time.monotonic() < deadline:
        time.sleep(0.05)
    serve.shutdown()  # forgets the client of the controller that is gone


def _controller_lives() -> bool:
    try:
        ray.get_actor(CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


def _ours(status: Any) -> list[str]:
    return [name for name in status.applications if _APP.fullmatch(name)]


def _port(app: str) -> int:
    return int(app.rsplit("-", 1)[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """What an endpoint was last deployed with, and whether that has failed."""

    digest: str
    engine_version: str
    attempt: int
    has_failed: bool


def _running(app: str, host: str) -> _Running | None:
    """What the endpoint `app` at `host` runs with; None where there is none."""
    status = serve.status().applications.get(app)
    if status is None:
        return None
    details = _get_global_client().get_serve_details()
    if details["http_options"]["host"] != host:
        return None
    deployments = details["applications"][app]["deployments"].values()
    states = [deployment["deployment_config"].get("user_config") or {} for deployment in deployments]
    state = next((state for state in states if "digest" in state), {})
    return _Running(
        digest=state.get("digest", ""), engine_version=state.get("engine_version", ""), attempt=state.get("attempt", 0),
        has_failed=bool(_failure(status)),
    )  # fmt: skip


def _check_seen_from_here(config: Serving) -> None:
    """ResourceError where the endpoint would be the head's alone and this job is not there."""
    if is_loopback(config.host) and not cluster.is_on_head():
        name = cluster.head()["NodeManagerHostname"]
        raise ResourceError(
            f"serving.host {config.host}: the endpoint would answer on the head alone ({name}), and this job runs on"
            f" {socket.gethostname()}: submit it without --entrypoint-resources, or set {KEY_NAME} and serving.host to 0.0.0.0"
        )


def _check_surge(config: Serving, settings: AppSettings, running: _Running) -> None:
    """ResourceError where the next engine is to start beside the one that runs, and has no room there."""
    (model,) = settings.serving["llm_configs"]
    surge = (model.get("deployment_config") or {}).get("max_surge_percent", 0)
    if not surge or running.engine_version == settings.engine_version:
        return
    if not cluster.fits_now(engine_bundles(model)):
        raise ResourceError(
            f"{config.config} has max_surge_percent {surge}: the changed engine starts beside the one that runs, and the cluster"
            f" has no room for {engine_bundles(model)} now; free it, or set max_surge_percent to 0, and clients are told to come"
            " back (503) while one takes the place of the other"
        )


def _replace_older(config: Serving) -> None:
    """Say who holds the address, or take an older endpoint of ours down."""
    status = serve.status()
    ours = _ours(status)
    others = set(status.applications) - set(ours)
    if others and all(_BESIDE.fullmatch(name) for name in others) and _same_address(config):
        return  # Serve listens there already, for what goes to this endpoint
    if others or (status.proxies and not ours):
        raise ResourceError(
            "Ray Serve already runs other applications on this cluster, and its address cannot be changed while it does; "
            "use another cluster, or stop it with `serve shutdown`"
        )
    if config.port not in [_port(name) for name in ours] and not _free(config.host, config.port):
        raise ResourceError(
            f"port {config.port} on {config.host} is in use by another program; set serving.port to a free one, or stop it"
        )
    if ours:
        shutdown()


def _same_address(config: Serving) -> bool:
    options = _get_global_client().get_serve_details()["http_options"]
    return bool((options["host"], options["port"]) == (config.host, config.port))


class _Waiting:
    """Says what is waited for and since when: in place on a terminal, else by a line now and then."""

    def __init__(self, out: TextIO | None) -> None:
        self._out, self._live = out, bool(out and out.isatty())
        self._began = self._said = time.monotonic()

    def tell(self, what: str) -> None:
        now = time.monotonic()
        if self._out is None or now - self._said < (_LIVE_EVERY_S if self._live else _LINE_EVERY_S):
            return
        self._said = now
        text = f"{what}: {now - self._began:.0f} s"
        print(f"\r{text}\x1b[K" if self._live else text, end="" if self._live else "\n", file=self._out, flush=True)

    def end(self) -> None:
        if self._live and self._said > self._began:
            print("\r\x1b[K", end="", file=self._out, flush=True)


def _start(config: Serving, endpoint: Endpoint, settings: AppSettings) -> None:
    logs = {"log_level": "WARNING", "enable_access_log": False}
    try:
        application = build(settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{config.config} is no Ray Serve file that fits: {error}; correct it") from error
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=logs)
    target = serve.RunTarget(target=application, name=endpoint.app, route_prefix="/", logging_config=logs)
    serve.run_many([target], wait_for_applications_running=False)


def _wait(config: Serving, endpoint: Endpoint, key: str, waiting: _Waiting) -> None:
    """/v1/models answers before the engine is up, so only a completion counts."""
    began = time.monotonic()
    deadline = began + READY_TIMEOUT_S
    refused_until = None
    while True:
        app = serve.status().applications.get(endpoint.app)
        if app is not None and app.status == ApplicationStatus.RUNNING and healthy(endpoint.url):
            refused_until = refused_until or time.monotonic() + _SETTLED_WITHIN_S
            try:
                chat(endpoint.url, config.name, {"messages": [{"role": "user", "content": "ready?"}]}, key=key)
                return
            except ModelError:  # perhaps of the front that goes, which knows the earlier key
                if time.monotonic() > refused_until:
                    raise
        problem = _failure(app)
        if problem and time.monotonic() - began > _HEARD_WITHIN_S:
            raise ModelError(f"the engine did not start: {problem}; correct {config.config} or serving.base")
        if time.monotonic() > deadline:
            raise ModelError(
                f"the endpoint was not ready within {READY_TIMEOUT_S:g} s"
                f" ({app.status if app else 'no application'}); see the Serve logs in Ray's session folder"
            )
        waiting.tell("starting the engine")
        time.sleep(_POLL_S)


def _failure(app: Any) -> str:
    """The reason that a replica gave for failing to start, without its traceback; Ray would try twice more."""
    if app is None:
        return ""
    messages = [
        deployment.message for deployment in app.deployments.values() if "failed to start" in deployment.message
    ]
    if app.status == ApplicationStatus.DEPLOY_FAILED:
        messages.append(app.message)
    lines = [line.strip() for message in messages[:1] for line in message.splitlines() if line.strip()]
    named = [place for place, line in enumerate(lines) if "Error" in line.split(":")[0] and not line.startswith("File")]
    return " ".join(lines[named[-1] if named else 0 :])[:500]


def app_name(config: Serving) -> str:
    """The application's name in Serve."""
    return f"slm-ray-{config.port}"


def address(config: Serving) -> str:
    """The URL at which Serve's proxy answers, which is on the head, without a path."""
    host = cluster.head()["NodeManagerAddress"] if config.host in ("0.0.0.0", "::") else config.host
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def _free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def _await_free(host: str, port: int) -> None:
    deadline = time.monotonic() + _FREE_WITHIN_S
    while not _free(host, port):
        if time.monotonic() > deadline:
            raise ResourceError(
                f"port {port} is still held {_FREE_WITHIN_S:g} s after shutdown; find its process and stop it"
            )
        time.sleep(0.1)


def _quiet(log_file: str | None) -> None:
    """Serve's loggers write to the terminal unless their parent already has somewhere to write."""
    logger = logging.getLogger("ray.serve")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.handlers = [logging.FileHandler(log_file) if log_file else logging.NullHandler()]
