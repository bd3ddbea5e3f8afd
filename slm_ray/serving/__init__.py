"""Serving: one base model and a folder of LoRA adapters behind one OpenAI-compatible endpoint.

`deploy` brings it up and returns once it answers; `shutdown` leaves no process behind; `token_ids` says what the server
sees of a prompt. The names are resolved on first use, because vLLM imports `serving.lora_kernel` in each of its processes
and must not get Ray Serve with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_ray.serving.endpoint import Endpoint, deploy, shutdown
    from slm_ray.serving.health import token_ids

__all__ = ["Endpoint", "deploy", "shutdown", "token_ids"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from slm_ray.serving import endpoint, health

    return getattr(health if name == "token_ids" else endpoint, name)
