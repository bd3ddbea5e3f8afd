"""What an adapter says of itself: the record in its folder, and the names of the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PROMPTS, MANIFEST, CARD = "train_prompts.json", "manifest.json", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an adapter is and where it comes from.

    `files` are SHA-256 digests; `train_prompts` counts training rows; `recipe` is the training's settings as plain JSON.
    """

    id: str
    name: str
    track: str
    base: str
    base_fingerprint: str
    config_digest: str
    data_digest: str
    metrics: Mapping[str, Any]
    created: str
    rank: int
    alpha: int | float
    hidden_size: int | None
    train_prompts: int
    files: Mapping[str, str]
    recipe: Mapping[str, Any] = field(default_factory=dict)
