"""The Serve application: one deployment of engines and one of fronts, as a serve file has them, or of engines alone (`direct`).

`build` is for a job that deploys; `application` is what a Ray Serve file names as its `import_path`, so that the plain
`serve run serve_configs/X.yaml` and `serve deploy` bring the same endpoint up. Both import no vLLM: the options that Ray's own
builder would derive from an `llm_configs` entry are derived here, and the entry itself is the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve

from slm_ray.config import Serving
from slm_ray.serving.direct import DirectReplica
from slm_ray.serving.ingress import AdapterIngress
from slm_ray.serving.replica import EngineReplica
from slm_ray.serving.settings import (
    AppSettings,
    context,
    engine_bundles,
    most_engines,
    room,
    settings_of,
    takes_tools,
)

OF_ARGUMENTS = ("base", "name", "adapters_dir", "keys_file", "tracks")
_MOST_ONGOING = 10**9  # as Ray's own builder has it: fronts bound what is in flight
_ENGINE = {"max_ongoing_requests": _MOST_ONGOING, "health_check_period_s": 10, "health_check_timeout_s": 10}
# Of a runtime environment what brings packages; of one kind Ray takes one.
_PACKAGES = ({"pip", "uv", "conda"}, {"py_modules"})
_FRONT = {"max_ongoing_requests": _MOST_ONGOING}
_BOUNDS = {"max_ongoing_requests", "max_queued_requests"}  # of requests, whoever gets them from the proxy


def application(arguments: Mapping[str, Any]) -> Any:
    """A bound application from the `args` of a Ray Serve file; the API key is in the environment of the cluster's nodes.

    ModelError or ConfigError, which `serve` prints, as for `slm-ray serve`.
    """
    given = {name: arguments[name] for name in OF_ARGUMENTS if name in arguments}
    return build(settings_of(arguments, Serving.model_validate(given), environment=os.environ))


def build(settings: AppSettings) -> Any:
    """A bound Serve application that `serve.run` takes; ValueError for options of a deployment that Serve does not know.

    Engine and front carry versions of what they were built from: deployed again under the same name, Serve starts only
    those anew whose version is another.
    """
    (model,) = settings.serving["llm_configs"]
    of_engine = engine_options(model, job=_environment_of_job()) | {
        "version": settings.engine_version,
        "_internal": True,
    }
    of_front = {
        "base": settings.name, "context": context(model), "adapters_dir": settings.adapters_dir,
        "room": room(settings.serving, is_direct=settings.is_direct), "tools": takes_tools(settings.serving),
        "api_key_digest": settings.api_key_digest, "keys_file": settings.keys_file,
    }  # fmt: skip
    state = {
        "digest": settings.digest, "engine_version": settings.engine_version, "attempt": settings.attempt,
        "stand_in": settings.stand_in, "schemas": settings.schemas,
    }  # fmt: skip
    front_options = {**_FRONT, **(settings.serving.get("ingress_deployment_config") or {})}
    if settings.is_direct:
        options = of_engine | {name: front_options[name] for name in _BOUNDS & front_options.keys()}
        direct = serve.deployment(serve.ingress()(DirectReplica)).options(**options, user_config=state)
        return direct.bind(model, engines=1, **of_front)
    engine = serve.deployment(EngineReplica).options(**of_engine)
    front = serve.deployment(serve.ingress()(AdapterIngress)).options(
        **front_options, name="AdapterIngress", user_config=state, version=settings.front_version, _internal=True
    )
    return front.bind(engine.bind(model), engines=most_engines(settings.serving), **of_front)


def engine_options(model: Mapping[str, Any], *, job: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the engine's deployment, from an entry of `llm_configs`; `job` is the runtime environment deployed from.

    Serve hands that on whole to a deployment that names none. To one that does it hands on the working folder alone, so
    that the packages which the job brought are put in here.
    """
    named = dict(model.get("deployment_config") or {})
    actor = dict(named.pop("ray_actor_options", None) or {})
    if environment := {**(actor.get("runtime_env") or {}), **(model.get("runtime_env") or {})}:
        taken = {name for kind in _PACKAGES if kind & environment.keys() for name in kind}
        brought = {name: job[name] for kind in _PACKAGES for name in kind if job.get(name) and name not in taken}
        actor["runtime_env"] = {**brought, **environment}
    placement = model.get("placement_group_config") or {}
    label = model["model_loading_config"]["model_id"].replace("/", "--").replace(".", "_")
    return {
        **_ENGINE, **named, "name": f"AdapterServer:{label}", "ray_actor_options": actor,
        "placement_group_bundles": engine_bundles(model), "placement_group_strategy": placement.get("strategy", "PACK"),
    }  # fmt: skip


def _environment_of_job() -> Mapping[str, Any]:
    return ray.get_runtime_context().runtime_env if ray.is_initialized() else {}
