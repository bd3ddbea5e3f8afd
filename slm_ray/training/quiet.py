"""Silence for libraries that talk on a healthy run; errors still come through. Call before they are imported."""

from __future__ import annotations

import logging
import os
import warnings

_LOGGERS = ("bitsandbytes", "datasets", "accelerate", "trl", "ray.train", "transformers", "huggingface_hub")
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def quiet() -> None:
    """For this process, from now on; what the user has set in the environment stays."""
    warnings.filterwarnings("ignore")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
