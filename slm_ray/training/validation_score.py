"""What a trial is worth on validation rows: the loss on their targets, and the model's own answers, judged by the track's scorer.

The loss takes one forward pass a batch; answers are generated, which is dear. Greedy, in batches, by the model in memory,
and no further than an answer has any business to go: twice its target. Quick, and close to what the served adapter answers,
but not the evaluation that decides anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from slm_ray.corpus.tracks import Track
from slm_ray.scoring.run import score, summarise
from slm_ray.training.estimate import ANSWER_ROWS, ANSWER_TOKENS
from slm_ray.training.rows import NOT_LEARNED, conversation, token_ids, tokenised
from slm_ray.types import Example, RowScore

_BATCH_TOKENS = 2048  # of targets whose logits exist at a time: of long answers in batches of 16 they would fill a card
_SPARE_TOKENS = 32


def row_scores(model: Any, tokenizer: Any, examples: Sequence[Example], judged: Track) -> list[RowScore]:
    """The scores of the model's own answers, in order."""
    answers = generate(model, tokenizer, examples)
    return [score(judged, example.id, text, example.target) for example, text in zip(examples, answers, strict=True)]


def longest_prompt(tokenizer: Any, examples: Sequence[Example]) -> int:
    """Tokens of the longest prompt among the examples; 0 where there are none."""
    return max((len(_prompt(tokenizer, example)) for example in examples), default=0)


def summary(judged: Track, rows: Sequence[RowScore]) -> dict[str, Any]:
    """The run metrics that are defined, with `validation_score` and `validation_rows`."""
    metrics = {name: value for name, value in summarise(judged, rows).items() if value is not None}
    primary = [row.value(judged.primary) for row in rows]
    return {**metrics, "validation_score": metrics.get(judged.primary, 0.0), "validation_rows": primary}


def target_loss(model: Any, tokenizer: Any, examples: Sequence[Example]) -> tuple[float, int]:
    """Cross-entropy of the targets in nats, summed over their tokens (the end of the answer is one), and the tokens' number."""
    encoded = [_with_target(tokenizer, example) for example in examples]
    encoded.sort(key=lambda row: len(row[0]))  # rows of like length share a batch, so that little is padded
    total, tokens = 0.0, 0
    with answering(model):
        for batch in _batches(encoded):
            batch_total, batch_tokens = _batch_loss(model, tokenizer.pad_token_id, batch)
            total, tokens = total + batch_total, tokens + batch_tokens
    return total, tokens


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """The model without dropout and gradients while the block runs; it may be in the middle of its training."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
            yield
    finally:
        model.train(was)


def _batches(encoded: Sequence[tuple[list[int], int]]) -> Iterator[list[tuple[list[int], int]]]:
    """Rows in order, as many together as `ANSWER_ROWS` and `_BATCH_TOKENS` allow, and at least one."""
    batch: list[tuple[list[int], int]] = []
    for row in encoded:
        more = [*batch, row]
        wide = max(len(ids) for ids, _ in more) - min(asked for _, asked in more)
        if batch and (len(more) > ANSWER_ROWS or len(more) * wide > _BATCH_TOKENS):
            yield batch
            more = [row]
        batch = more
    if batch:
        yield batch


def _batch_loss(model: Any, pad: int, batch: Sequence[tuple[list[int], int]]) -> tuple[float, int]:
    width, first = max(len(ids) for ids, _ in batch), min(asked for _, asked in batch)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch], device=model.device)
    wanted = torch.tensor(
        [[-100] * asked + row[asked:] + [-100] * (width - len(row)) for row, asked in batch], device=model.device
    )[:, first:]
    # Logits of the prompts, the larger part, are not built.
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=wanted.shape[1] + 1
    ).logits[:, :-1]  # fmt: skip
    learned = wanted != -100
    total = torch.nn.functional.cross_entropy(logits[learned].float(), wanted[learned], reduction="sum")
    return total.item(), int(learned.sum())


def _with_target(tokenizer: Any, example: Example) -> tuple[list[int], int]:
    """Token ids of the row as it is trained on, and how many of them are the prompt's."""
    row = tokenised(tokenizer, conversation(example))
    return row["input_ids"], row["labels"].count(NOT_LEARNED)


def generate(model: Any, tokenizer: Any, examples: Sequence[Example]) -> list[str]:
    """One greedy answer per example, in order, cut at `answer_limit` tokens: whoever else is in its batch or on its rank."""
    prompts = [_prompt(tokenizer, example) for example in examples]
    limits = [answer_limit(tokenizer, example) for example in examples]
    # Rows of like length share a batch, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    with answering(model):
        for start in range(0, len(order), ANSWER_ROWS):
            batch = order[start : start + ANSWER_ROWS]
            tokens = _answers(model, tokenizer, [prompts[row] for row in batch], max(limits[row] for row in batch))
            for row, answer in zip(batch, tokens, strict=True):
                answers[row] = tokenizer.decode(answer[: limits[row]], skip_special_tokens=True).strip()
    return answers


def answer_limit(tokenizer: Any, example: Example) -> int:
    """The tokens that an answer to `example` may have: twice its target's and a few; an untrained model seldom ends one."""
    target = tokenizer(example.target, add_special_tokens=False)["input_ids"]
    return min(ANSWER_TOKENS, 2 * len(target) + _SPARE_TOKENS)


def _prompt(tokenizer: Any, example: Example) -> list[int]:
    return token_ids(tokenizer, example.prompt.as_dicts(), answer_next=True)


def _answers(model: Any, tokenizer: Any, prompts: Sequence[list[int]], most: int) -> Any:
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=most, pad_token_id=pad,
        eos_token_id=_stop_tokens(model, tokenizer), use_cache=True,
    )  # fmt: skip
    return out[:, width:]


def _stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Where an answer ends: the base's own list, as a server has it (Phi-4's `<|end|>`), and the tokenizer's end."""
    stated = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])}
    return sorted(stops - {None})
