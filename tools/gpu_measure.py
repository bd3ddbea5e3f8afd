"""One training of `tools.gpu_check`, measured: tokens per second, the peak of memory, the share of the card that is used.

Work of one token, in floating-point operations, with N the weights of all frozen linear layers (the head too) and n those
of LoRA: 2N + 2n forward, 2N + 2n for the gradients of activations, 2n for those of LoRA's weights (frozen ones have none):
4N + 6n. That is what the model needs (`model_utilisation`); the hardware also does each layer's forward again under
checkpointing: 2 (N - head) + 2n more (`hardware_utilisation`). Attention's own products are left out of both: about 4 % of an
8B's at 2,048 tokens.
"""

from __future__ import annotations

import functools
import gc
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from peft import prepare_model_for_kbit_training
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from slm_ray.config import Recipe
from slm_ray.errors import ConfigError
from slm_ray.training import estimate
from slm_ray.training.model import add_lora
from slm_ray.training.rows import NOT_LEARNED, joined
from slm_ray.training.trainer import build
from tools.random_base import base_shape, random_base

_WARM_UP = 2  # micro-batches that are not timed
_LEARNED = 0.25  # of a row's tokens, those of the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One training to measure. `batch_tokens`: micro-batches are filled up to so many tokens, not to a number of rows."""

    recipe: Recipe
    lengths: tuple[int, ...]
    head: Literal["fused", "full"] = "fused"
    attention: str | None = None
    earlier_stack: bool = False
    batch_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Where it runs, and a base's shape (keys of its config.json). `outside_bytes`: in use beside torch's allocator."""

    device: torch.device
    tokenizer: Any
    shape: Mapping[str, Any]
    matmul_flops: float
    outside_bytes: float
    seed: int

    @property
    def use_gpu(self) -> bool:
        return bool(self.device.type == "cuda")


class OutOfTime(Exception):
    """The variant's time is over."""


class _Meter(TrainerCallback):  # type: ignore[misc]
    """When each micro-batch was done; ends the training once `until` has passed."""

    def __init__(self, device: torch.device, until: float) -> None:
        self._device, self._until = device, until
        self.marks: list[float] = []

    def _mark(self, control: Any) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append(time.monotonic())
        if self.marks[-1] > self._until:
            control.should_training_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._mark(control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._mark(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._mark(control)


class TokenBatches:
    """Row numbers in batches whose padded tokens stay within `most`, rows of like length together, in a drawn order."""

    def __init__(self, lengths: Sequence[int], most: int, seed: int) -> None:
        self._batches: list[list[int]] = []
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and lengths[row] * (len(batch) + 1) > most:
                self._batches.append(batch)
                batch = []
            batch.append(row)
        self._batches.append(batch)
        random.Random(seed).shuffle(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


def measure(variant: Variant, card: Card, until: float) -> dict[str, Any]:
    """Make the base, train on rows of random tokens until `until`, and sum up what was seen."""

    def in_time() -> None:
        if time.monotonic() > until:
            raise OutOfTime("the time was over before the base was made")

    started, recipe = time.monotonic(), variant.recipe
    base = random_base(
        card.shape, recipe, device=card.device, seed=card.seed, between=in_time
    )  # fmt: skip
    if variant.earlier_stack:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    if variant.attention is not None:
        base.set_attn_implementation(variant.attention)
    loaded = {"load_s": round(time.monotonic() - started, 2), "base_bytes": _bytes_of(base)}
    model = add_lora(base, recipe.lora)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = build(
            model, card.tokenizer, joined(_rows(variant, card)), recipe, folder=folder, use_gpu=card.use_gpu, steps=1
        )  # fmt: skip
        trainer.args.save_strategy = SaveStrategy.NO
        if variant.head == "full":
            trainer.compute_loss = functools.partial(Trainer.compute_loss, trainer)
        sizes = _count_tokens(trainer)
        if variant.batch_tokens is not None:
            batches = TokenBatches(variant.lengths, variant.batch_tokens, recipe.seed)
            loader = DataLoader(trainer.train_dataset, batch_sampler=batches, collate_fn=trainer.data_collator)
            trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(loader)
        meter = _Meter(card.device, until)
        trainer.add_callback(meter)
        trainer.train()
    return {**loaded, **_summary(variant, card, trainer, meter.marks, sizes)}


def _summary(
    variant: Variant, card: Card, trainer: Any, marks: list[float], sizes: list[tuple[int, int]]
) -> dict[str, Any]:
    warm = min(_WARM_UP, len(marks) - 2)
    done = sizes[warm : len(marks) - 1]
    seconds, tokens = marks[-1] - marks[warm], sum(real for real, _ in done)
    needed, spent = work_per_token(trainer.model, checkpointing=trainer.args.gradient_checkpointing)
    expected = estimate.estimate(
        base_shape(card.shape), variant.recipe, row_tokens=max(variant.lengths), use_gpu=card.use_gpu,
        trainer=estimate.Trainer(
            checkpointing=trainer.args.gradient_checkpointing, fused_head=variant.head == "fused",
            upcast=variant.earlier_stack,
        ),
    ).total  # fmt: skip
    reserved = (
        torch.cuda.max_memory_reserved() + card.outside_bytes if card.use_gpu else psutil.Process().memory_info().rss
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "micro_batches": len(done), "tokens": tokens, "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1), "padding_share": round(1 - tokens / sum(all_ for _, all_ in done), 4),
        "step_tokens": round(tokens / len(done)), "peak_bytes": int(reserved), "estimate_bytes": round(expected),
        "peak_over_estimate": round(reserved / expected, 3),
        "model_utilisation": round(needed * tokens / seconds / card.matmul_flops, 4),
        "hardware_utilisation": round(spent * tokens / seconds / card.matmul_flops, 4),
        "loss_last": losses[-1] if losses else None,
    }  # fmt: skip


def work_per_token(model: Any, *, checkpointing: bool) -> tuple[float, float]:
    """Floating-point operations of one trained token: what the model needs, and what the hardware does."""
    inner = model.get_base_model()
    head = inner.get_output_embeddings()
    head_weights = head.in_features * head.out_features
    lora = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = head_weights + sum(
        part.base_layer.in_features * part.base_layer.out_features
        for part in inner.modules()
        if hasattr(part, "base_layer")
    )
    needed = 4.0 * frozen + 6.0 * lora
    return needed, needed + (2.0 * (frozen - head_weights) + 2.0 * lora if checkpointing else 0.0)


def guarded(variant: Variant, card: Card, until: float) -> dict[str, Any]:
    """The variant's figures, or why there are none. What the variant before it held is given back first."""
    gc.collect()
    if card.use_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        result = {"status": "measured", "error": None, **measure(variant, card, until)}
    except torch.OutOfMemoryError as error:
        result = {"status": "out_of_memory", "error": str(error).splitlines()[0]}
    except OutOfTime as error:
        result = {"status": "out_of_time", "error": str(error)}
    except (
        RuntimeError,
        ValueError,
        ImportError,
        TypeError,
        AttributeError,
        NotImplementedError,
        ConfigError,
    ) as error:
        # A kernel or an implementation that this card or stack lacks: the other variants must still be measured.
        result = {"status": "failed", "error": f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"}
    return result


def _rows(variant: Variant, card: Card) -> list[dict[str, list[int]]]:
    """Rows of random tokens whose last quarter is learned, in the shape that the trainer's own rows have."""
    chance = random.Random(card.seed)
    vocabulary = card.shape["vocab_size"]
    rows = []
    for length in variant.lengths:
        learned = max(1, round(length * _LEARNED))
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [NOT_LEARNED] * (length - learned) + ids[length - learned :]})
    return rows


def _count_tokens(trainer: Any) -> list[tuple[int, int]]:
    """A list that grows by (tokens, tokens with padding) of each micro-batch as it is collated."""
    sizes: list[tuple[int, int]] = []
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        sizes.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch

    trainer.data_collator = counted
    return sizes


def _bytes_of(model: Any) -> int:
    """Bytes of a base's weights as they lie in memory; quantisation's own statistics are left out."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
