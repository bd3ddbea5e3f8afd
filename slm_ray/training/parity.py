"""The parity check: the tokens that the trainer saw for a prompt are the tokens that the server sees.

An adapter trained with a chat template and served without one, or with another, scores near zero and looks healthy.
The trainer's side is read off TRL's tokenised dataset, never derived a second time; the server's side is whatever the
server says it tokenised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from slm_ray.config import Recipe
from slm_ray.errors import ModelError
from slm_ray.training.rows import conversation
from slm_ray.training.trainer import build, prompt_ids
from slm_ray.types import Example, Prompt

_AROUND = 6


def prompt_token_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of `prompt` in TRL's own dataset, by the real trainer over a model too small to matter."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    row = conversation(Example(id="parity", prompt=prompt, target="answer"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(model, tokenizer, [row], Recipe(optimizer="adamw_torch"), folder=folder, use_gpu=False, steps=1)
        return prompt_ids(trainer.train_dataset[0])


def check_parity(
    trainer_ids: Sequence[int],
    server_ids: Sequence[int],
    decode: Callable[[list[int]], str],
    *,
    server: str = "the server",
) -> None:
    """ModelError that shows the first difference, in tokens and as text; nothing when both are equal."""
    if list(trainer_ids) == list(server_ids):
        return
    pairs = zip(trainer_ids, server_ids, strict=False)
    at = next(
        (place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(trainer_ids), len(server_ids))
    )
    start, end = max(0, at - _AROUND), at + _AROUND
    raise ModelError(
        f"the prompt's tokens differ from token {at} on: training saw {decode(list(trainer_ids[start:end]))!r} "
        f"({len(trainer_ids)} tokens in all), {server} sees {decode(list(server_ids[start:end]))!r} ({len(server_ids)}); "
        "serve the adapter's own base with that base's chat template, or train again with the template that is served"
    )
