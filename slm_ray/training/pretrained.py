"""Where a base model is, and its tokenizer: all that has to be known of it before a worker starts.

Loads no weights and imports neither PEFT nor bitsandbytes, which take seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer

from slm_ray.errors import ModelError


def base_folder(base: str) -> Path:
    """The folder of a base model: a folder as given, else a hub name from the local cache or the hub. ModelError if none."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"no base model {base!r}: no such folder, and as a hub name: {str(error).splitlines()[0]}; "
            "give the folder of a downloaded model"
        ) from None


def open_tokenizer(folder: Path) -> Any:
    """The base's own tokenizer; ModelError when it has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ModelError(f"the base {folder} has no chat template; take an instruct model, or add chat_template.jinja")
    return tokenizer
