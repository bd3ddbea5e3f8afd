"""What an adapter says of itself: the record in its folder, and the names of the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PROMPTS, MANIFEST, CARD = "train_prompts.json", "manifest.json", "README.md"
TEMPLATE = "chat_template.jinja"  # what chats were rendered with in training; where training left one
PARITY = "parity.json"  # what it was proved with, for the next proof; holds a few training prompts
CANDIDATES = ".candidates"  # in an adapters_dir: adapters that are being proved, under no name that is listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an adapter is and where it comes from.

    `files` are SHA-256 digests; `train_prompts` counts training rows; `recipe` is the training's settings as plain JSON;
    `proof` is what was seen of the served adapter before it was published, None when nobody looked.
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
    proof: Mapping[str, Any] | None = None
