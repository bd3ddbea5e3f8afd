"""The Serve application: Ray's own builder with our server and ingress in it."""

from __future__ import annotations

from typing import Any

from ray.serve.llm import LLMServingArgs, LoraConfig, build_openai_app

from slm_ray.serving.ingress import AdapterIngress
from slm_ray.serving.server import AdapterServer, LocalModel
from slm_ray.serving.settings import AppSettings, most_engines, room


def build(settings: AppSettings) -> Any:
    """A bound Serve application that `serve.run` takes."""
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
        "stand_in": settings.stand_in,
        "room": room(settings.serving),
        "engines": most_engines(settings.serving),
        "api_key_digest": settings.api_key_digest,
        "keys_file": settings.keys_file,
    }
    return build_openai_app(serving)
