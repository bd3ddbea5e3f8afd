"""What one engine takes of a GPU's memory: weights, adapter slots, work space, and what is left for the cache of tokens.

Arithmetic on the base's `config.json` and the engine's settings as vLLM lays them out; nothing is loaded and nothing is
measured. Weights, slots and cache are exact for decoders with grouped attention and gated feed-forward layers (Llama,
Mistral, Qwen, Phi-3 and their like); work space is a bound. Reads no files and imports neither Ray nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.errors import ConfigError, ResourceError

GB = 1e9
CARD_24_GB = 24 * GB
_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "auto": 2, "float32": 4, "float": 4}
_CACHE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_CONTEXT_BYTES = 0.7e9  # CUDA context, cuBLAS work spaces, captured graphs
# What vLLM takes where the file does not say.
_SHARE, _BATCHED_TOKENS, _SEQUENCES, _RANK = 0.9, 2048, 256, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one card by cause; `cache` is what is left of `share` of the card, in tokens `tokens`.

    With several cards per engine all figures are one card's.
    """

    card: float
    share: float
    weights: float
    adapters: float
    work: float
    cache: float
    tokens: int
    longest: int

    @property
    def fits(self) -> bool:
        """Whether one request of the longest length finds room."""
        return self.tokens >= self.longest

    def __str__(self) -> str:
        return (
            f"{self.card * self.share / GB:.1f} GB of {self.card / GB:.1f}: weights {self.weights / GB:.1f}, adapter slots"
            f" {self.adapters / GB:.1f}, work space {self.work / GB:.1f}, cache {max(self.cache, 0) / GB:.1f}"
            f" ({self.tokens:,} tokens)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoder:
    """The sizes of a decoder as its `config.json` names them."""

    hidden: int
    layers: int
    inner: int
    heads: int
    key_value_heads: int
    head: int
    vocabulary: int
    tied: bool
    longest: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Decoder:
        text = {**config, **(config.get("text_config") or {})}
        try:
            hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
            return cls(
                hidden=hidden, layers=int(text["num_hidden_layers"]), inner=int(text["intermediate_size"]), heads=heads,
                key_value_heads=int(text.get("num_key_value_heads") or heads),
                head=int(text.get("head_dim") or hidden // heads),
                vocabulary=int(text["vocab_size"]), tied=bool(text.get("tie_word_embeddings")),
                longest=int(text.get("max_position_embeddings") or 2048),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"the base's config.json does not state its size ({error!r}), so that its memory cannot be told; take a"
                " decoder such as Llama, Mistral, Qwen or Phi"
            ) from None

    def linears(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the linear layers of one block."""
        queries, keys = self.heads * self.head, self.key_value_heads * self.head
        attention = [(queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries)]
        return [*attention, (self.inner, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)]

    @property
    def parameters(self) -> int:
        block = sum(rows * columns for rows, columns in self.linears()) + 2 * self.hidden
        return self.layers * block + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)


def parameters(config: Mapping[str, Any]) -> int:
    """Numbers that a base of this `config.json` has; biases are left out."""
    return _Decoder.of(config).parameters


def estimate(config: Mapping[str, Any], engine: Mapping[str, Any], *, card: float) -> Memory:
    """What an engine with these `engine_kwargs` takes of each of its cards of `card` bytes.

    `config` is the base's `config.json`. ConfigError where it states no size or `engine` a number format that is unknown.
    """
    base, cards = _Decoder.of(config), int(engine.get("tensor_parallel_size", 1))
    number = _of(_BYTES, engine, "dtype")
    weights = number * base.parameters / cards / int(engine.get("pipeline_parallel_size", 1))
    adapters = _slots(base, engine, number) / cards if engine.get("enable_lora") else 0.0
    sequences = int(engine.get("max_num_seqs", _SEQUENCES))
    batched = int(engine.get("max_num_batched_tokens", max(_BATCHED_TOKENS, sequences)))
    # A block's widest moment: its input, the residual, both halves of the feed-forward layer and their product. Then the
    # logits of one token of each sequence, in fp32 twice.
    work = batched * number * (2 * base.hidden + 3 * base.inner / cards) + sequences * base.vocabulary * 2 * 4
    token = 2 * base.layers * base.key_value_heads * base.head * _of(_CACHE_BYTES, engine, "kv_cache_dtype") / cards
    share = float(engine.get("gpu_memory_utilization", _SHARE))
    left = card * share - weights - adapters - work - _CONTEXT_BYTES
    cache = min(left, float(engine.get("kv_cache_memory_bytes") or left))
    return Memory(
        card=card, share=share, weights=weights, adapters=adapters, work=work + _CONTEXT_BYTES, cache=cache,
        tokens=max(0, int(cache / token)), longest=int(engine.get("max_model_len") or base.longest),
    )  # fmt: skip


def require_room(config: Mapping[str, Any], engine: Mapping[str, Any], *, card: float) -> Memory:
    """The estimate; ResourceError that says what to change where one request of the longest length has no room."""
    found = estimate(config, engine, card=card)
    if found.fits:
        return found
    advice = f"a max_model_len of at most {found.tokens:,}, " if found.tokens >= 256 else ""
    raise ResourceError(
        f"this GPU is too small for the engine: {found}, but one request may have {found.longest:,} (max_model_len); set"
        f" {advice}fewer max_loras or a lower max_lora_rank, or more cards (tensor_parallel_size) in the serve file"
    )


def _slots(base: _Decoder, engine: Mapping[str, Any], number: int) -> float:
    """The buffers that vLLM lays out for `max_loras` adapters of `max_lora_rank`, filled or not, head and embeddings too."""
    rank, slots = int(engine.get("max_lora_rank", _RANK)), int(engine.get("max_loras", 1))
    block = sum(rows + columns for rows, columns in base.linears())
    ends = 2 * (base.vocabulary + base.hidden)
    return float(number * rank * slots * (base.layers * block + ends))


def _of(known: Mapping[str, int], engine: Mapping[str, Any], key: str) -> int:
    name = str(engine.get(key, "auto")).removeprefix("torch.")
    if name not in known:
        raise ConfigError(f"{key} {name!r} of the serve file is none of {', '.join(known)}; set one of these")
    return known[name]
