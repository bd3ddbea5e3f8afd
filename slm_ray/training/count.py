"""How many tokens an example has, by the base's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable

from slm_ray.training.pretrained import base_folder, open_tokenizer
from slm_ray.training.rows import conversation, token_ids
from slm_ray.types import Example


def token_counter(base: str) -> Callable[[Example], int]:
    """A function that gives the tokens of prompt and answer together, as training counts them against `max_length`."""
    tokenizer = open_tokenizer(base_folder(base))

    def count(example: Example) -> int:
        row = conversation(example)
        return len(token_ids(tokenizer, row["prompt"] + row["completion"], answer_next=False))

    return count
