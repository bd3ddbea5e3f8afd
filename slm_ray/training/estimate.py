"""What a training will need before any weight is loaded: memory of one worker, time and money, and what to change if it is too much.

Arithmetic on the base's headers and the recipe; nothing is measured and no torch is imported. Memory is made to be within
about 10 % on GPUs and is a bound, not a promise: kernels keep work spaces of their own. Advice is only given when the
changed recipe fits by the same arithmetic. Time follows an earlier run of the same base where there is one; else it is an
anchor from the literature, and says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from slm_ray.adapters import Manifest
from slm_ray.config import Precision, Recipe
from slm_ray.errors import ResourceError
from slm_ray.training.base_shape import OPTIMIZERS, BaseShape

GB = 1e9
_BF16_BYTES, _FP32_BYTES = 2, 4
_PRECISION_BYTES: dict[Precision, float] = {
    "4bit": 0.5 + 1 / 64 + 4 / (64 * 256),  # 4 bits, an 8-bit scale per 64 weights, an fp32 scale per 256 of those
    "8bit": 1.0,
    "16bit": _BF16_BYTES,
}
_GPU_OVERHEAD_BYTES = 0.9e9  # CUDA context, cuBLAS and NCCL buffers
_CPU_OVERHEAD_BYTES = 0.9e9  # what torch, transformers, TRL and Ray occupy in a worker that has loaded nothing
_FRAGMENTATION = 1.10  # what a caching allocator holds above the peak of live tensors
_FUSED_ROWS = 1024  # TRL's fused head builds logits for this many tokens at a time
PRECISIONS: tuple[Precision, ...] = ("16bit", "8bit", "4bit")
EAGER_TOKENS = 1024  # on a CPU, attention of longer rows is the fused kernel, which keeps no matrix of weights
ANSWER_ROWS, ANSWER_TOKENS = 16, 256  # validation rows that are answered together, and the longest answer
_UNPACKED_BYTES = 1e9  # on a CPU, 4-bit weights that take no more in bf16 are unpacked once
_SMALLEST_RANK, _SHORTEST = 4, 64  # what advice goes down to, at most

# torchtune on one RTX 4090: Llama 3.1 8B, NF4, r=32, 2,413 tokens/s, by memory bandwidth and FLOPs about 1,040 on a 3090.
_ANCHOR_TOKENS_PER_S, _ANCHOR_PARAMETERS = 1_040, 6.98e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What a trainer does to save memory.

    `checkpointing`: only layer inputs are kept, one layer at a time is computed again. `fused_head`: logits exist for
    1,024 tokens at a time, not for the batch. `upcast`: everything that is not quantised is held in fp32, as PEFT's
    `prepare_model_for_kbit_training` does.
    """

    checkpointing: bool = True
    fused_head: bool = True
    upcast: bool = False


ON_GPU = Trainer()  # ours
ON_CPU = Trainer(checkpointing=False, fused_head=False)  # builds the logits of the answers: of whole rows at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes of one worker at its peak, by cause.

    `answers` is what the cache of a validation takes above the activations and logits of a step, which are gone by then.
    """

    base: float
    lora: float
    optimizer: float
    activations: float
    logits: float
    answers: float
    overhead: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))

    def __str__(self) -> str:
        parts = ", ".join(f"{part.name} {getattr(self, part.name) / GB:.2g}" for part in fields(self))
        return f"{self.total / GB:.1f} GB per worker ({parts})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Steps and tokens of a run, and how long it may take. `seconds` is None where nothing is known of this machine."""

    steps: int
    tokens: int
    seconds: float | None
    usd: float | None
    source: str

    def __str__(self) -> str:
        work = f"{self.steps:,} steps over {self.tokens:,} tokens"
        if self.seconds is None:
            return f"{work}; how long is not known: {self.source}"
        time = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        cost = "" if self.usd is None else f" and {self.usd:,.2f} USD"
        return f"{work}, about {time}{cost} ({self.source})"


def estimate(
    base: BaseShape, recipe: Recipe, *, row_tokens: int, use_gpu: bool, trainer: Trainer | None = None,
    asked_tokens: int = 0,
) -> Estimate:  # fmt: skip
    """Bytes for this base, rows padded to `row_tokens`; `trainer` is ours for the device unless another one is named.

    `asked_tokens` are those of the longest validation prompt that is answered during the run, 0 for none.
    """
    trainer = trainer or (ON_GPU if use_gpu else ON_CPU)
    tokens = recipe.per_device_batch * row_tokens
    layers = base.targets(recipe)
    dora = recipe.lora.variant == "dora"
    lora = sum(recipe.lora.rank * (rows + columns) + (rows if dora else 0) for rows, columns in layers)
    copies = 3 if recipe.workers.count > 1 else 2  # weights, gradients and DDP's buckets
    layer = tokens * _layer_bytes(base, recipe, row_tokens, eager=not use_gpu and row_tokens <= EAGER_TOKENS)
    kept = base.blocks * tokens * base.hidden * _BF16_BYTES + layer if trainer.checkpointing else base.blocks * layer
    if dora:  # the length of every row of the weights, worked out from the whole matrix in each pass
        kept += max(4 * _BF16_BYTES * rows * columns + 6 * columns**2 for rows, columns in layers)
    if trainer.fused_head:
        logits = min(tokens, _FUSED_ROWS) * 2 * _FP32_BYTES
    else:  # in bf16, in fp32, as log-probability and as gradient
        logits = tokens * (3 * _FP32_BYTES + _BF16_BYTES)
    slack = _FRAGMENTATION if use_gpu else 1.0
    step = (kept + logits * base.vocabulary) * slack
    cached = ANSWER_ROWS * (asked_tokens + ANSWER_TOKENS) * 2 * base.key_value * base.blocks * _BF16_BYTES * slack
    return Estimate(
        base=base.linear_parameters * _weight_bytes(base, recipe, use_gpu=use_gpu)
        + base.other * (_FP32_BYTES if trainer.upcast else _BF16_BYTES),
        lora=lora * copies * _FP32_BYTES,
        optimizer=lora * OPTIMIZERS[recipe.optimizer],
        activations=kept * slack,
        logits=logits * base.vocabulary * slack,
        answers=max(0.0, cached - step) if asked_tokens else 0.0,
        overhead=_GPU_OVERHEAD_BYTES if use_gpu else _CPU_OVERHEAD_BYTES,
    )


def is_unpacked(parameters: int) -> bool:
    """Whether a CPU holds so many 4-bit weights in 16 bits, which takes a tenth less time for a step."""
    return parameters * _BF16_BYTES <= _UNPACKED_BYTES


def _weight_bytes(base: BaseShape, recipe: Recipe, *, use_gpu: bool) -> float:
    if recipe.precision == "4bit" and not use_gpu and is_unpacked(base.linear_parameters):
        return _BF16_BYTES
    return _PRECISION_BYTES[recipe.precision]


def check(
    base: BaseShape, recipe: Recipe, available_bytes: float, *, row_tokens: int, use_gpu: bool,
    trainer: Trainer | None = None, asked_tokens: int = 0,
) -> None:  # fmt: skip
    """ResourceError, with a change that does fit, when a worker would not fit into `available_bytes`."""
    device: dict[str, Any] = {"use_gpu": use_gpu, "trainer": trainer, "asked_tokens": asked_tokens}
    needed = estimate(base, recipe, row_tokens=row_tokens, **device)
    if needed.total <= available_bytes:
        return
    shortage = f"training needs {needed}, but {available_bytes / GB:.1f} GB are available to each"
    for changed, tokens in _changes(recipe, row_tokens, use_gpu=use_gpu):
        would_need = estimate(base, changed, row_tokens=tokens, **device).total
        if would_need <= available_bytes:
            advice = _in_words(recipe, changed, shorter=tokens < row_tokens)
            raise ResourceError(f"{shortage}: set {advice}; that needs {would_need / GB:.1f} GB")
    if needed.total - needed.answers <= available_bytes:
        raise ResourceError(
            f"{shortage}: answering {ANSWER_ROWS} validation rows at a time takes the rest, the longest asks in {asked_tokens:,} "
            "tokens; leave long rows out of the validation file, or set no validation"
        )
    raise ResourceError(
        f"{shortage}, and no recipe for this base fits: not in 4 bits with batches of one row, lora.rank {_SMALLEST_RANK} and rows"
        f" of {_SHORTEST} tokens; take a smaller base, or workers with more memory"
    )


def epoch_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps that go once through so many rows; the last one may be short."""
    return -(-rows // (recipe.per_device_batch * recipe.gradient_accumulation * recipe.workers.count))


def steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run over so many rows: part of an epoch is rounded up, as the trainer does."""
    return math.ceil(recipe.epochs * epoch_steps(recipe, rows))


def duration(
    base: BaseShape, recipe: Recipe, *, lengths: Sequence[int], fingerprint: str, earlier: Sequence[Manifest],
    hourly_usd: float | None = None,
) -> Duration:  # fmt: skip
    """How long a run over rows of `lengths` tokens may take and, at `hourly_usd` per GPU, what it costs.

    `earlier` are published adapters, the newest last: the last one of this base (`fingerprint`) and precision that was
    trained on the same kind of device gives the speed, brought to this run's number of workers.
    """
    workers, gpus = recipe.workers.count, recipe.workers.count * recipe.workers.per_worker.get("GPU", 0)
    tokens = round(sum(lengths) * recipe.epochs)
    speed, source = None, "no training of this base on this kind of machine is recorded yet"
    for manifest in earlier:
        figures = [manifest.metrics.get(name) for name in ("tokens_per_s", "workers", "gpus")]
        tokens_per_s, count, cards = (float(figure) if isinstance(figure, int | float) else 0.0 for figure in figures)
        alike = manifest.base_fingerprint == fingerprint and manifest.recipe.get("precision") == recipe.precision
        if alike and tokens_per_s and count and (cards > 0) == (gpus > 0):
            speed, source = tokens_per_s / count * workers, f"at the speed of {manifest.id}"
    if speed is None and gpus:
        speed = _ANCHOR_TOKENS_PER_S * _ANCHOR_PARAMETERS / base.linear_parameters * gpus
        source = (
            f"an anchor, not measured here: {_ANCHOR_TOKENS_PER_S:,} tokens/s for 8B in 4 bits on an RTX 3090, after torchtune"
            " on a 4090"
        )
    seconds = None if speed is None else tokens / speed
    usd = seconds / 3600 * hourly_usd * gpus if seconds is not None and hourly_usd is not None and gpus else None
    return Duration(steps=steps(recipe, len(lengths)), tokens=tokens, seconds=seconds, usd=usd, source=source)


def _layer_bytes(base: BaseShape, recipe: Recipe, row_tokens: int, *, eager: bool) -> float:
    """Bytes that backward keeps of one block, per token.

    bf16: residuals, q and k before and after rotation, v, attention output, gate, up, their product and SiLU. fp32: the
    two norms. LoRA keeps the dropped-out input of each layer it adapts and a mask of one byte; DoRA the output of the
    base, that of LoRA and their sum.
    """
    bf16 = 7 * base.hidden + 3 * base.key_value + 4 * base.intermediate
    attention = base.heads * row_tokens * (2 * _BF16_BYTES + _FP32_BYTES) if eager else 0
    layers = base.targets(recipe)
    adapted = 0.0
    if recipe.lora.dropout:
        adapted += (_BF16_BYTES + 1) * sum(columns for _, columns in layers) / base.blocks
    if recipe.lora.variant == "dora":
        adapted += 3 * _BF16_BYTES * sum(rows for rows, _ in layers) / base.blocks
    return _BF16_BYTES * bf16 + 2 * _FP32_BYTES * base.hidden + adapted + attention


def _changes(recipe: Recipe, row_tokens: int, *, use_gpu: bool) -> Iterator[tuple[Recipe, int]]:
    """Recipes that need less, each with its longest row; what costs the result least is changed first.

    A smaller batch with more accumulation teaches the same. Then follow precision, the optimizer's states, DoRA, the rank
    (alpha keeps its ratio to it) and, last, the rows.
    """
    together = recipe.per_device_batch * recipe.gradient_accumulation
    divisors = [one for one in range(1, math.isqrt(together) + 1) if together % one == 0]
    divisors += [together // one for one in divisors]
    batches = sorted({one for one in divisors if one <= recipe.per_device_batch}, reverse=True)
    precisions = PRECISIONS[PRECISIONS.index(recipe.precision) :]
    lighter = use_gpu and OPTIMIZERS[recipe.optimizer] > OPTIMIZERS["adamw_8bit"]
    optimizers = [recipe.optimizer, "adamw_8bit"] if lighter else [recipe.optimizer]
    variants = ["dora", "lora"] if recipe.lora.variant == "dora" else [recipe.lora.variant]
    choices = itertools.product(
        _halved(row_tokens, _SHORTEST),
        _halved(recipe.lora.rank, _SMALLEST_RANK),
        variants,
        optimizers,
        precisions,
        batches,
    )
    for tokens, rank, variant, optimizer, precision, batch in choices:
        if variant == "dora" and precision == "8bit" and not use_gpu:
            continue  # does not train there
        alpha = max(1, round(recipe.lora.alpha * rank / recipe.lora.rank))
        changes: dict[str, Any] = {
            "lora": recipe.lora.model_copy(update={"rank": rank, "alpha": alpha, "variant": variant}),
            "optimizer": optimizer, "precision": precision, "per_device_batch": batch,
            "gradient_accumulation": together // batch, "max_length": recipe.max_length if tokens == row_tokens else tokens,
        }  # fmt: skip
        yield recipe.model_copy(update=changes), tokens


def _halved(number: int, least: int) -> list[int]:
    """The number, its half, and so on, down to `least`."""
    halves = [number]
    while halves[-1] // 2 >= least:
        halves.append(halves[-1] // 2)
    return halves


def _in_words(recipe: Recipe, changed: Recipe, *, shorter: bool) -> str:
    """The settings that differ, as a config names them."""
    flat = ("precision", "optimizer", "per_device_batch", "gradient_accumulation")
    settings = [(name, getattr(recipe, name), getattr(changed, name)) for name in flat]
    for name in ("variant", "rank", "alpha"):
        settings.append((f"lora.{name}", getattr(recipe.lora, name), getattr(changed.lora, name)))
    named = [f"{name}: {new}" for name, old, new in settings if old != new]
    if shorter:
        named.append(
            f"max_length: {changed.max_length} (and prepare the rows with curation.max_tokens: {changed.max_length})"
        )
    same = " (the result is the same)" if len(named) == 2 and named[0].startswith("per_device_batch") else ""
    return ", ".join(named) + same
