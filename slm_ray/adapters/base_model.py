"""A base model as a folder of files: whether it is one, told in milliseconds before anything starts, and its name by content.

No torch here: safetensors headers are plain JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from slm_ray.adapters.weights import tensors
from slm_ray.errors import AdapterError, ModelError, SlmRayError
from slm_ray.storage import file_digest, read_json

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEMPLATE = "chat_template.jinja"
_FINGERPRINTED = ("tokenizer.json", "tokenizer.model", _TEMPLATE)
_VOLATILE_KEYS = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
_WHOLE_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 64 << 10


def check_base(base: str, *, setting: str) -> str:
    """The absolute folder of a base model, or a hub name as it is; ModelError that names what is missing.

    Reads `config.json` and the headers of the weights: what a worker would only find out after it has been started.
    """
    try:
        folder = Path(base).expanduser().absolute()
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{setting} {base!r} is no path ({error}); give the folder of a base model") from None
    if is_folder:
        if problem := _problem(folder):
            raise ModelError(f"{base} is no base model: {problem}; set {setting} to the folder of a whole one")
        return str(folder)
    if is_there:
        raise ModelError(f"{base} is a file, not the folder of a base model; set {setting} to the folder that holds it")
    if _HUB_NAME.fullmatch(base) and not folder.parent.is_dir():
        return base
    raise ModelError(f"there is no base model folder {base!r}; set {setting} to a folder or a hub name ORG/MODEL")


def _problem(folder: Path) -> str:
    """What keeps a folder from being a base model, or nothing."""
    missing = [
        name
        for name, is_there in {
            "config.json": (folder / "config.json").is_file(),
            "weights (*.safetensors)": any(folder.glob("*.safetensors")),
            "a tokenizer (tokenizer.json)": any((folder / name).is_file() for name in _TOKENIZERS),
            "a chat template (chat_template.jinja)": _has_chat_template(folder),
        }.items()
        if not is_there
    ]
    if missing:
        return f"it lacks {', '.join(missing)}"
    try:
        _check_architecture(folder / "config.json")
        shards = _shards_named_by_the_index(folder)
        if absent := [name for name in shards if not (folder / name).is_file()]:
            return f"it lacks {', '.join(absent[:3])}, {len(absent)} of the {len(shards)} files of its weights"
        for shard in sorted(folder.glob("*.safetensors")):
            tensors(shard)
    except SlmRayError as error:
        return str(error)
    return ""


def _check_architecture(path: Path) -> None:
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} describes no model (it has no model_type)")


def _shards_named_by_the_index(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    found = read_json(index)
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict):
        raise ModelError(f"{index} has no weight_map")
    return sorted({str(name) for name in shards.values()})


def _has_chat_template(folder: Path) -> bool:
    return (folder / _TEMPLATE).is_file() or bool(_template_of_tokenizer(folder))


def _template_of_tokenizer(folder: Path) -> Any:
    """The chat template in tokenizer_config.json, which counts where there is no file of its own; None without one."""
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None


def base_fingerprint(folder: str | Path) -> str:
    """32 hex digits naming a base model by content: architecture, tensor names and shapes, weights, tokenizer.

    Weight files up to 64 MiB are read whole; of larger ones the header and 256 evenly spaced blocks of 64 KiB, so that
    an 8B model takes a second. AdapterError when the folder is no safetensors model.
    """
    home = Path(folder)
    config = {key: value for key, value in base_config(home).items() if key not in _VOLATILE_KEYS}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    if not (shards := sorted(home.glob("*.safetensors"))):
        raise AdapterError(f"{home} holds no *.safetensors weights; give the folder of a base saved in that format")
    for shard in shards:
        tensors(shard)
        digest.update(f"\0{shard.name}\0".encode())
        _sample(shard, digest)
    for name in _FINGERPRINTED:
        if (home / name).is_file():
            digest.update(f"\0{name}\0{file_digest(home / name)}".encode())
    if not (home / _TEMPLATE).is_file() and (template := _template_of_tokenizer(home)):
        digest.update(f"\0{_TEMPLATE}\0{json.dumps(template, sort_keys=True)}".encode())
    return digest.hexdigest()[:32]


def base_config(home: Path) -> dict[str, Any]:
    """The base's `config.json`; AdapterError when there is none."""
    try:
        config: dict[str, Any] = read_json(home / "config.json")
    except SlmRayError as error:
        raise AdapterError(f"{home} is not a base model folder: {error}") from None
    return config


def _sample(path: Path, digest: Any) -> None:
    if (size := path.stat().st_size) <= _WHOLE_BYTES:
        digest.update(file_digest(path).encode())
        return
    with path.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        digest.update(f"{size}\0".encode() + source.read(length))
        for index in range(_SAMPLES):
            source.seek(8 + length + index * (size - 8 - length - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(source.read(_SAMPLE_BYTES))
