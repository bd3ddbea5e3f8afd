"""How much memory one training worker will need, told before any weight is loaded, with the setting to change.

Arithmetic on the base's `config.json` and the recipe; nothing is measured and no torch is imported. It is made to be
within about 10 % on GPUs and is a bound, not a promise: kernels keep work spaces of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from slm_ray.config import Recipe
from slm_ray.errors import ModelError, ResourceError

GB = 1e9
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale per 64 weights, an fp32 scale per 256 of those
_BF16_BYTES, _FP32_BYTES = 2, 4
_GPU_OVERHEAD_BYTES = 0.9e9  # CUDA context, cuBLAS and NCCL buffers
_CPU_OVERHEAD_BYTES = 0.9e9  # what torch, transformers, TRL and Ray occupy in a worker that has loaded nothing
_FRAGMENTATION = 1.10  # what a caching allocator holds above the peak of live tensors
_NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size")
_FUSED_ROWS = 1024  # TRL's fused head builds logits for this many tokens at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes of one worker at its peak, by cause."""

    base: float
    lora: float
    optimizer: float
    activations: float
    logits: float
    overhead: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))

    def __str__(self) -> str:
        parts = ", ".join(f"{part.name} {getattr(self, part.name) / GB:.2g}" for part in fields(self))
        return f"{self.total / GB:.1f} GB per worker ({parts})"


def estimate(
    architecture: Mapping[str, Any],
    recipe: Recipe,
    *,
    row_tokens: int,
    use_gpu: bool,
    checkpointing: bool,
) -> Estimate:
    """Bytes for a Llama-like base described by its config.json, rows padded to `row_tokens`; ModelError for another.

    `checkpointing`: only layer inputs are kept and one layer at a time is computed again.
    """
    shape = _Shape.of(architecture)
    tokens = recipe.per_device_batch * row_tokens
    linear = shape.layers * sum(rows * columns for rows, columns in shape.linears.values())
    embedding = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    weight_bytes = {"4bit": _NF4_BYTES, "8bit": 1, "16bit": _BF16_BYTES}[recipe.precision]
    targets = recipe.lora.target_modules
    chosen = [size for name, size in shape.linears.items() if targets == "all-linear" or name in targets]
    lora = shape.layers * recipe.lora.rank * sum(rows + columns for rows, columns in chosen)
    layer = tokens * shape.layer_bytes(row_tokens, eager=not use_gpu)
    kept = shape.layers * tokens * shape.hidden * _BF16_BYTES + layer if checkpointing else shape.layers * layer
    logits = min(tokens, _FUSED_ROWS) * 2 * _FP32_BYTES
    slack = _FRAGMENTATION if use_gpu else 1.0
    return Estimate(
        base=linear * weight_bytes + embedding * _BF16_BYTES,
        lora=lora * 3 * _FP32_BYTES,  # weights, gradients and DDP's buckets
        optimizer=lora * (2 if "8bit" in recipe.optimizer else 8),
        activations=kept * slack,
        logits=logits * shape.vocabulary * slack,
        overhead=_GPU_OVERHEAD_BYTES if use_gpu else _CPU_OVERHEAD_BYTES,
    )


def check(needed: Estimate, available_bytes: float, recipe: Recipe, *, row_tokens: int) -> None:
    """ResourceError, with the setting to change, when a worker would not fit into `available_bytes`."""
    if needed.total <= available_bytes:
        return
    if recipe.precision != "4bit":
        advice = "set precision to 4bit"
    elif recipe.per_device_batch > 1:
        advice = (
            f"lower per_device_batch from {recipe.per_device_batch} to {recipe.per_device_batch // 2} and double "
            f"gradient_accumulation to {2 * recipe.gradient_accumulation}: the result is the same"
        )
    elif needed.activations + needed.logits > needed.base:
        advice = f"shorten the rows (the longest has {row_tokens} tokens) and lower max_length, or lower lora.rank"
    else:
        advice = "take a smaller base, or workers with more memory"
    raise ResourceError(f"training needs {needed}, but {available_bytes / GB:.1f} GB are available to each: {advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    hidden: int
    layers: int
    vocabulary: int
    heads: int
    key_value: int
    intermediate: int
    tied: bool

    @classmethod
    def of(cls, architecture: Mapping[str, Any]) -> _Shape:
        architecture = {**architecture, **(architecture.get("text_config") or {})}  # of a base that also sees or hears
        if missing := [name for name in _NEEDED if not isinstance(architecture.get(name), int)]:
            raise ModelError(
                f"config.json of a base of type {architecture.get('model_type', 'unknown')!r} states no {', '.join(missing)}:"
                " the memory estimate and QLoRA here know bases with Llama's layers (Llama, Mistral, Qwen, Gemma, ...); take one"
            )
        hidden, heads = architecture["hidden_size"], architecture["num_attention_heads"]
        head = architecture.get("head_dim") or hidden // heads
        return cls(
            hidden=hidden, layers=architecture["num_hidden_layers"], vocabulary=architecture["vocab_size"], heads=heads,
            key_value=head * (architecture.get("num_key_value_heads") or heads),
            intermediate=architecture["intermediate_size"], tied=bool(architecture.get("tie_word_embeddings")),
        )  # fmt: skip

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        return {
            "q_proj": (self.hidden, self.hidden), "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value), "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.hidden, self.intermediate), "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }  # fmt: skip

    def layer_bytes(self, row_tokens: int, *, eager: bool) -> float:
        """Bytes that backward keeps of one layer, per token.

        bf16: residuals, q and k before and after rotation, v, attention output, gate, up, their product and SiLU. fp32:
        the two norms. LoRA keeps the dropped-out input of each of its seven layers and a mask of one byte.
        """
        bf16 = 7 * self.hidden + 3 * self.key_value + 4 * self.intermediate
        dropped = 6 * self.hidden + self.intermediate
        attention = self.heads * row_tokens * (2 * _BF16_BYTES + _FP32_BYTES) if eager else 0
        return _BF16_BYTES * bf16 + 2 * _FP32_BYTES * self.hidden + (_BF16_BYTES + 1) * dropped + attention
