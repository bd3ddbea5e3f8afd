"""The body of a chat call: the same for every arm, and the part of a ledger key that says what was asked.

The model's name is not in it: each kind of model adds its own.
"""

from __future__ import annotations

from typing import Any

from slm_ray.config import GenerationConfig
from slm_ray.types import Prompt


def request_body(prompt: Prompt, generation: GenerationConfig) -> dict[str, Any]:
    """Messages, token limit, temperature and seed, as the OpenAI API spells them."""
    return {
        "messages": prompt.as_dicts(),
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "seed": generation.seed,
    }
