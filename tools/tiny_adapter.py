"""LoRA adapters of the tiny base for benchmarks: trained and asked in one process, on one core, and continued after a kill.

Neither Ray nor vLLM: PEFT, a plain loop in bfloat16 and greedy decoding. The settings are the demo's recipe (rank 32, alpha
64, 3e-3, AdamW, cosine) but for the base's four bits. The same rows and seed give the same order of batches, whether or not
a run was interrupted. Not for anything that is served: no manifest, no proof.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import storage
from slm_ray.training.rows import conversation, tokenised
from slm_ray.types import Example

RANK, ALPHA, LEARNING_RATE, WARMUP = 32, 64, 3e-3, 10
MOST_TOKENS = 120  # of an answer
_SAVE_EVERY = 50  # steps
_LIKE_LENGTHS = 40  # batches that are sorted by length among themselves
_ASKED_AT_ONCE = 64
_LIKE_SIZES = 32  # tokens: for every other shape the kernels are compiled anew

Tokens = dict[str, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`steps` optimizer steps of `batch` rows each, whatever the number of rows: they are gone through again and again."""

    base: str
    steps: int
    batch: int = 8
    seed: int = 42


def adapter_answers(recipe: Recipe, train: Sequence[Example], asked: Sequence[Example], folder: Path) -> list[str]:
    """The answers to `asked` of an adapter trained on `train`, in their order.

    FOLDER keeps the training every 50 steps and the answers at the end: the same rows and recipe go on where they were.
    """
    answers = folder / f"answers-{_digest(recipe, train, asked)}.json"
    if answers.exists():
        return list(storage.read_json(answers))
    model, tokenizer = _trained(recipe, train, folder / f"training-{_digest(recipe, train)}.pt")
    found = _asked(model, tokenizer, asked)
    storage.write_json(answers, found)
    return found


def _digest(recipe: Recipe, *rows: Sequence[Example]) -> str:
    said = [[row.prompt.as_dicts(), row.target] for some in rows for row in some]
    settings = [recipe.base, recipe.steps, recipe.batch, recipe.seed, said]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def _trained(recipe: Recipe, rows: Sequence[Example], checkpoint: Path) -> tuple[Any, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base)
    base = AutoModelForCausalLM.from_pretrained(recipe.base, dtype=torch.float32)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    begun = 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        begun = kept["step"]
        optimizer.load_state_dict(kept["optimizer"])
        with torch.no_grad():
            for weight, value in zip(weights, kept["weights"], strict=True):
                weight.copy_(value)
    lengths = [sum(len(turn.content) for turn in row.prompt.messages) + len(row.target) for row in rows]
    started = time.process_time()
    model.train()
    for step, numbers in enumerate(_batches(recipe, lengths)):
        if step < begun:
            continue
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _scale(step, recipe.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            some = [tokenised(tokenizer, conversation(rows[number])) for number in numbers]
            loss = _loss(model, some, tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == recipe.steps:
            _save(checkpoint, {"step": step + 1, "optimizer": optimizer.state_dict(), "weights": weights})
            took = (time.process_time() - started) / (step + 1 - begun)
            print(
                f"step {step + 1:,} of {recipe.steps:,}: loss {loss.item():.3f}, {took:.2f} s of CPU a step", flush=True
            )
    return model.merge_and_unload().eval(), tokenizer


def _save(path: Path, state: dict[str, Any]) -> None:
    import io

    import torch

    held = io.BytesIO()
    torch.save(state, held)
    storage.write_bytes(path, held.getvalue())


def _scale(step: int, steps: int) -> float:
    """Of the learning rate: a linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def _batches(recipe: Recipe, lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows of every step: each round takes all in another order, those of like length beside each other."""
    order, given = random.Random(recipe.seed), 0
    numbers = list(range(len(lengths)))
    while True:
        order.shuffle(numbers)
        batches: list[list[int]] = []
        for start in range(0, len(numbers), recipe.batch * _LIKE_LENGTHS):
            some = sorted(numbers[start : start + recipe.batch * _LIKE_LENGTHS], key=lambda row: lengths[row])
            batches += [some[at : at + recipe.batch] for at in range(0, len(some), recipe.batch)]
        order.shuffle(batches)
        for rows in batches:
            if given == recipe.steps:
                return
            given += 1
            yield rows


def _loss(model: Any, parts: Sequence[Tokens], pad: int) -> Any:
    """The mean loss of the answers' tokens; only for those is a vocabulary's worth of logits made.

    Rows are filled up on the right, where causal attention sees nothing of it and nothing is learned.
    """
    import torch

    longest = -(-max(len(part["input_ids"]) for part in parts) // _LIKE_SIZES) * _LIKE_SIZES
    ids = torch.tensor([part["input_ids"] + [pad] * (longest - len(part["input_ids"])) for part in parts])
    labels = torch.tensor([part["labels"] + [-100] * (longest - len(part["labels"])) for part in parts])
    inner = model.get_base_model()
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state
    # The token after each place, those that are learned first: as many places as there are of them, rounded up.
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    order = torch.argsort((following == -100).int(), stable=True)
    learned = -(-int((following != -100).sum()) // (8 * _LIKE_SIZES)) * 8 * _LIKE_SIZES
    places = order[:learned]
    logits = inner.lm_head(hidden.flatten(0, 1)[places])
    return torch.nn.functional.cross_entropy(logits.float(), following[places], ignore_index=-100)


def _asked(model: Any, tokenizer: Any, rows: Sequence[Example]) -> list[str]:
    """The greedy answers, in the order of the rows; rows of like length are asked together."""
    import torch

    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(row.prompt.as_dicts(), tokenize=False, add_generation_prompt=True) for row in rows
    ]
    by_length = sorted(range(len(rows)), key=lambda row: len(texts[row]))
    answers = [""] * len(rows)
    for start in range(0, len(rows), _ASKED_AT_ONCE):
        some = by_length[start : start + _ASKED_AT_ONCE]
        given = tokenizer([texts[row] for row in some], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            said = model.generate(
                **given, max_new_tokens=MOST_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        told = tokenizer.batch_decode(said[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(some, told, strict=True):
            answers[row] = text
    return answers
