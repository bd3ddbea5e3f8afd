"""Bringing the endpoint up and down: `deploy` returns when it answers, `shutdown` when nothing of it is left.

What cannot work (no model in the base folder, too few CPUs or GPUs, the port taken, an engine that will not start) ends at
once in one error that names the setting. Deploying what already runs takes it as it is; another endpoint of ours on the
same address is replaced; applications of others are left alone.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from slm_ray import cluster
from slm_ray.config import Serving
from slm_ray.errors import ConfigError, ModelError, ResourceError
from slm_ray.serving.health import chat, healthy
from slm_ray.serving.settings import KEY_NAME, AppSettings, app_settings, bundles

CONTROLLER = "SERVE_CONTROLLER_ACTOR"
READY_TIMEOUT_S = 300.0
_APP = "slm-ray"
_POLL_S = 0.25
_FREE_WITHIN_S = 30.0


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
) -> Endpoint:
    """Serve the base and its adapters; returns once a real completion has come back.

    `stand_in` is {"deployment", "demonstrations", "pools": {track: JSONL path}}. With SLM_RAY_API_KEY in the environment
    every request needs that key. This process's Serve and vLLM messages go to `log_file`, or nowhere; the replicas' own
    are in Ray's session folder. Raises ModelError, ConfigError or ResourceError.
    """
    environment = os.environ if environment is None else environment
    settings = app_settings(config, stand_in=stand_in, environment=environment)
    _quiet(log_file)
    cluster.connect()
    cluster.require(bundles(settings.serving), setting=f"serving.config ({config.config})")
    endpoint = Endpoint(url=_url(config), model_name=config.name, app=f"{_APP}-{config.port}-{settings.digest}")
    key = environment.get(KEY_NAME, "")
    if endpoint.app in _ours(serve.status()):
        _wait(config, endpoint, key)
        return endpoint
    _replace_older(config)
    try:
        _start(config, endpoint, settings)
        _wait(config, endpoint, key)
    except BaseException:
        shutdown()
        raise
    return endpoint


def shutdown() -> None:
    """Take our endpoints down and wait until their port is free; Serve itself too when nobody else uses it."""
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
    deadline = time.monotonic() + _FREE_WITHIN_S
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
    return [name for name in status.applications if name.startswith(f"{_APP}-")]


def _port(app: str) -> int:
    return int(app.split("-")[2])


def _replace_older(config: Serving) -> None:
    """Say who holds the address, or take an older endpoint of ours down."""
    status = serve.status()
    ours = _ours(status)
    if set(status.applications) - set(ours) or (status.proxies and not ours):
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


def _start(config: Serving, endpoint: Endpoint, settings: AppSettings) -> None:
    logs = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=logs)
    with _root_logger_kept():
        from slm_ray.serving.app import build  # brings vLLM in: seconds that a refused deployment should not cost

        try:
            app = build(settings)
        except ValueError as error:
            raise ConfigError(f"{config.config} is no Ray Serve LLM file that fits: {error}; correct it") from None
    target = serve.RunTarget(target=app, name=endpoint.app, route_prefix="/", logging_config=logs)
    serve.run_many([target], wait_for_applications_running=False)


def _wait(config: Serving, endpoint: Endpoint, key: str) -> None:
    """/v1/models answers before the engine is up, so only a completion counts."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        app = serve.status().applications.get(endpoint.app)
        if app is not None and app.status == ApplicationStatus.RUNNING and healthy(endpoint.url):
            chat(endpoint.url, config.name, {"messages": [{"role": "user", "content": "ready?"}]}, key=key)
            return
        if problem := _failure(app):
            raise ModelError(f"the engine did not start: {problem}; correct {config.config} or serving.base")
        if time.monotonic() > deadline:
            raise ModelError(
                f"the endpoint was not ready within {READY_TIMEOUT_S:g} s"
                f" ({app.status if app else 'no application'}); see the Serve logs in Ray's session folder"
            )
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


def _url(config: Serving) -> str:
    host = ray.util.get_node_ip_address() if config.host in ("0.0.0.0", "::") else config.host
    return f"http://{host}:{config.port}"


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


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Importing ray.serve.llm takes over the root logger: INFO and JSON for everybody. Undone, and silent meanwhile."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers = handlers
        root.setLevel(level)


def _quiet(log_file: str | None) -> None:
    """Serve's loggers write to the terminal unless their parent already has somewhere to write."""
    logger = logging.getLogger("ray.serve")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.handlers = [logging.FileHandler(log_file) if log_file else logging.NullHandler()]
