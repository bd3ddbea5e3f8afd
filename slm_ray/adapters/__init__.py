"""Base models and the adapters made from them, as folders of files: what they are, what they are called, whether they fit."""

from slm_ray.adapters.base_model import base_fingerprint, check_base
from slm_ray.adapters.card import licence_of, model_card
from slm_ray.adapters.history import HISTORY, AliasTable, Promotions, delete, promote, promotions, resolve, roll_back
from slm_ray.adapters.manifest import CANDIDATES, MANIFEST, PARITY, PROMPTS, SETTINGS, TEMPLATE, WEIGHTS, Manifest
from slm_ray.adapters.registry import (
    Checker,
    adapter_ids,
    export,
    inside,
    is_id,
    list_adapters,
    load_manifest,
    newest,
    publish,
    train_prompts,
    training_effort,
    verify,
)
from slm_ray.adapters.weights import base_shapes, check_tensors, tensors

__all__ = [
    "CANDIDATES", "HISTORY", "MANIFEST", "PARITY", "PROMPTS", "SETTINGS", "TEMPLATE", "WEIGHTS", "AliasTable", "Checker", "Manifest", "Promotions", "adapter_ids",
    "base_fingerprint", "base_shapes", "check_base", "check_tensors", "delete", "export", "inside", "is_id", "licence_of", "list_adapters",
    "load_manifest", "model_card", "newest", "promote", "promotions", "publish", "resolve", "roll_back", "tensors", "train_prompts", "training_effort", "verify",
]  # fmt: skip
