"""The Serve application: Ray's own builder with our server and ingress in it.

`build` is for a job that deploys; `application` is what a Ray Serve file names as its `import_path`, so that the plain
`serve run serve_configs/X.yaml` and `serve deploy` bring the same endpoint up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray.serve.llm import LLMServingArgs, LoraConfig, build_openai_app

from slm_ray.config import Serving
from slm_ray.serving.ingress import AdapterIngress
from slm_ray.serving.server import AdapterServer, LocalModel
from slm_ray.serving.settings import AppSettings, most_engines, room, settings_of, takes_tools

OF_ARGUMENTS = ("base", "name", "adapters_dir", "keys_file", "tracks")


def application(arguments: Mapping[str, Any]) -> Any:
    """A bound application from the `args` of a Ray Serve file; the API key is in the environment of the cluster's nodes.

    ModelError or ConfigError, which `serve` prints, as for `slm-ray serve`.
    """
    given = {name: arguments[name] for name in OF_ARGUMENTS if name in arguments}
    return build(settings_of(arguments, Serving.model_validate(given), environment=os.environ))


def build(settings: AppSettings) -> Any:
    """A bound Serve application that `serve.run` takes.

    Engine and front carry versions of what they were built from: deployed again under the same name, Serve starts only
    those anew whose version is another.
    """
    serving = LLMServingArgs.model_validate(settings.serving)
    (model,) = serving.llm_configs
    # Ray's multiplexing and vLLM's table must hold the same number of adapters.
    slots = model.engine_kwargs.get("max_loras", 1)
    model.lora_config = LoraConfig(max_num_adapters_per_replica=slots)
    model.server_cls = AdapterServer
    model.callback_config.callback_class = LocalModel
    serving.ingress_cls_config.ingress_cls = AdapterIngress
    serving.ingress_cls_config.ingress_extra_kwargs = {
        "adapters_dir": settings.adapters_dir,
        "room": room(settings.serving),
        "engines": most_engines(settings.serving),
        "tools": takes_tools(settings.serving),
        "api_key_digest": settings.api_key_digest,
        "keys_file": settings.keys_file,
    }
    serving.ingress_deployment_config["user_config"] = {
        "digest": settings.digest, "stand_in": settings.stand_in, "schemas": settings.schemas,
    }  # fmt: skip
    front = build_openai_app(serving)
    (engine,) = front._bound_deployment.init_kwargs["llm_deployments"].values()
    for bound, version in ((front, settings.front_version), (engine, settings.engine_version)):
        bound._bound_deployment = bound._bound_deployment.options(version=version, _internal=True)
    return front
