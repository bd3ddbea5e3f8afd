"""Bases and adapters of a few bytes, for the tests of what is published."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from slm_ray import adapters


def safetensors(path: Path, shapes: dict[str, tuple[int, ...]], fill: int = 0) -> Path:
    """Write fp32 tensors of the given shapes, every byte `fill`."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([fill]) * offset)
    return path


def base(folder: Path, *, hidden: int = 16, fill: int = 1, tokenizer: str = "{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": hidden, "model_type": "llama"}))
    (folder / "tokenizer.json").write_text(tokenizer)
    safetensors(folder / "model.safetensors", base_shapes(hidden), fill)
    return folder


def base_shapes(hidden: int = 16) -> dict[str, tuple[int, ...]]:
    layers = {f"model.layers.0.self_attn.{name}.weight": (hidden, hidden) for name in ("q_proj", "v_proj", "o_proj")}
    return {"model.embed_tokens.weight": (8, hidden), **layers}


def trained(folder: Path, *, hidden: int = 16, fill: int = 2, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> Path:
    folder.mkdir(parents=True)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(modules), "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.self_attn"
    pairs: dict[str, tuple[int, ...]] = {f"{prefix}.{name}.lora_A.weight": (4, hidden) for name in sorted(modules)}
    pairs |= {f"{prefix}.{name}.lora_B.weight": (hidden, 4) for name in sorted(modules)}
    safetensors(folder / "adapter_model.safetensors", pairs, fill)
    return folder


def publish(source: Path, root: Path, fingerprint: str, **changed: Any) -> adapters.Manifest:
    return adapters.publish(
        source, root,
        **{
            "name": "structured", "track": "structured", "base": "tiny", "base_fingerprint": fingerprint,
            "config_digest": "c", "data_digest": "d", "metrics": {"loss": 0.5}, "train_prompts": ["b", "a", "a"],
            "recipe": {}, "base_shapes": base_shapes(), **changed,
        },
    )  # fmt: skip
