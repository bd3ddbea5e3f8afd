"""Where a base model is, its tokenizer, and what it counts: all that has to be known of it before a worker starts.

Loads no weights and imports neither PEFT nor bitsandbytes. transformers and the hub's client, which take seconds, are
imported where they are used, and silenced before that.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slm_ray.chat_template import ChatTemplate, decide
from slm_ray.errors import ModelError
from slm_ray.training.rows import conversation, tokenised
from slm_ray.types import Example

_LOGGERS = ("bitsandbytes", "datasets", "accelerate", "trl", "ray.train", "transformers", "huggingface_hub")
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # one class under its old and its new name
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def silence_libraries() -> None:
    """Quiet for libraries that talk on a healthy run; errors still come through. Call before they are imported.

    For this process, from now on; what the user has set in the environment stays.
    """
    warnings.filterwarnings("ignore")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def base_folder(base: str) -> Path:
    """The folder of a base model: a folder as given, else a hub name from the local cache or the hub. ModelError if none."""
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder.resolve()
    silence_libraries()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"no base model {base!r}: no such folder, and as a hub name: {str(error).splitlines()[0]}; "
            "give the folder of a downloaded model"
        ) from None


def open_tokenizer(folder: Path) -> Any:
    """The base's own tokenizer, its chat template as it is rendered everywhere; ModelError when it has none."""
    return open_template(folder)[0]


def open_template(folder: Path) -> tuple[Any, ChatTemplate]:
    """The same tokenizer, and what was decided about its template."""
    silence_libraries()
    tokenizer = _opened(folder)
    if not tokenizer.chat_template:
        raise ModelError(f"the base {folder} has no chat template; take an instruct model, or add chat_template.jinja")
    template = decide(tokenizer)
    tokenizer.chat_template = template.text
    return tokenizer, template


def _opened(folder: Path) -> Any:
    """The tokenizer; AutoTokenizer imports torch and takes seconds to find a class, which a folder may name itself."""
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") if settings.is_file() else None
    if named in _PLAIN and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, mistral_format=False)


def token_counter(base: str) -> Callable[[Example], int]:
    """A function that gives the tokens of prompt and answer together, as training counts them against `max_length`."""
    tokenizer = open_tokenizer(base_folder(base))

    def count(example: Example) -> int:
        return len(tokenised(tokenizer, conversation(example))["input_ids"])

    return count
