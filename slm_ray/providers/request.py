"""The body of a chat call: the same for every arm, and the part of a log key that says what was asked.

The model's name is not in it: each kind of model adds its own.
"""

from __future__ import annotations

from typing import Any

from slm_ray.config import Generation
from slm_ray.types import Prompt


def request_body(prompt: Prompt, generation: Generation) -> dict[str, Any]:
    """Messages, token limit, temperature and seed, as the OpenAI API spells them; what is not asked for is not sent."""
    body: dict[str, Any] = {
        "messages": prompt.as_dicts(),
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "seed": generation.seed,
    }
    if generation.logprobs:
        body["logprobs"] = True
    if generation.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body
