"""The Serve application: one deployment of engines and one of fronts, as a serve file has them.

`build` is for a job that deploys; `application` is what a Ray Serve file names as its `import_path`, so that the plain
`serve run serve_configs/X.yaml` and `serve deploy` bring the same endpoint up. Both import no vLLM: the options that Ray's own
builder would derive from an `llm_configs` entry are derived here, and the entry itself is the engine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from slm_ray.config import Serving
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
_FRONT = {"max_ongoing_requests": _MOST_ONGOING}


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
    engine = serve.deployment(EngineReplica).options(
        **engine_options(model), version=settings.engine_version, _internal=True
    )
    state = {
        "digest": settings.digest, "engine_version": settings.engine_version, "attempt": settings.attempt,
        "stand_in": settings.stand_in, "schemas": settings.schemas,
    }  # fmt: skip
    front_options = {**_FRONT, **(settings.serving.get("ingress_deployment_config") or {})}
    front = serve.deployment(serve.ingress()(AdapterIngress)).options(
        **front_options, name="AdapterIngress", user_config=state, version=settings.front_version, _internal=True
    )
    return front.bind(
        engine.bind(model), base=settings.name, context=context(model), adapters_dir=settings.adapters_dir,
        room=room(settings.serving), engines=most_engines(settings.serving), tools=takes_tools(settings.serving),
        api_key_digest=settings.api_key_digest, keys_file=settings.keys_file,
    )  # fmt: skip


def engine_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the engine's deployment, from an entry of `llm_configs`."""
    named = dict(model.get("deployment_config") or {})
    actor = dict(named.pop("ray_actor_options", None) or {})
    if environment := {**(actor.get("runtime_env") or {}), **(model.get("runtime_env") or {})}:
        actor["runtime_env"] = environment  # an empty one would keep the job's own from the engine
    placement = model.get("placement_group_config") or {}
    label = model["model_loading_config"]["model_id"].replace("/", "--").replace(".", "_")
    return {
        **_ENGINE, **named, "name": f"AdapterServer:{label}", "ray_actor_options": actor,
        "placement_group_bundles": engine_bundles(model), "placement_group_strategy": placement.get("strategy", "PACK"),
    }  # fmt: skip
