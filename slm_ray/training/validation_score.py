"""The score of a trial: answers to validation rows by the model just trained, judged by the track's own scorer.

Greedy, in batches, by the model in memory: quick, and close to what the served adapter answers, but not the evaluation
that decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from slm_ray.corpus.tracks import Track
from slm_ray.scoring.run import score, summarise
from slm_ray.training.rows import token_ids
from slm_ray.types import Example

_BATCH = 16
_MAX_NEW_TOKENS = 256


def validate(model: Any, tokenizer: Any, examples: Sequence[Example], judged: Track) -> dict[str, float]:
    """Run metrics of `model` on `examples` (undefined ones are left out), and `validation_score`, the track's primary one."""
    answers = generate(model, tokenizer, examples)
    rows = [score(judged, example.id, text, example.target) for example, text in zip(examples, answers, strict=True)]
    metrics = {name: value for name, value in summarise(judged, rows).items() if value is not None}
    return {**metrics, "validation_score": metrics.get(judged.primary, 0.0)}


def generate(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[str]:
    """One greedy answer per example, in order."""
    model.eval()
    prompts = [token_ids(tokenizer, example.prompt.as_dicts(), answer_next=True) for example in examples]
    # Rows of like length share a batch, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        for row, text in zip(batch, _answer(model, tokenizer, [prompts[row] for row in batch]), strict=True):
            answers[row] = text
    return answers


def _answer(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[str]:
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=_MAX_NEW_TOKENS, pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id, use_cache=True,
        )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
