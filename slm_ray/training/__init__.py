"""Task rows become an adapter: QLoRA under Ray Train, checkpointed, resumable, published by content.

The names are resolved on first use: whoever only counts tokens with a base's tokenizer does not wait for Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm_ray.training.launch import train, train_many

__all__ = ["train", "train_many"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from slm_ray.training import launch

    return getattr(launch, name)
