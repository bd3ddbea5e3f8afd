"""The linear layers of a base and what else it holds, from its files' headers: whether a recipe fits it, before a worker starts.

Whatever the architecture: the names and sizes of the layers are read, not worked out from `config.json`, so fused layers
(`qkv_proj`, `gate_up_proj`) count as they are. No weights are loaded and no torch is imported. What a header cannot say is
taken from `config.json` and, where that is silent, from the sizes: heads, and how wide the layers are inside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray import adapters
from slm_ray.config import Recipe
from slm_ray.errors import ConfigError, ModelError, choices
from slm_ray.storage import read_json

_NUMBERED = re.compile(r"(?P<block>.*?\.\d+)\.(?P<layer>.+)\.weight")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight")
_EXPERT = re.compile(r"\.experts\.|\.(gate|router|shared_expert_gate)\.weight$")
_HEAD_WIDTH = 64  # of attention, where config.json states none

# Bytes of state per trained number. The paged ones may move theirs to the host: counted as if they did not.
OPTIMIZERS = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2,
    "paged_adamw_32bit": 8, "paged_adamw_8bit": 2, "ademamix": 12, "ademamix_8bit": 3, "paged_ademamix_32bit": 12,
    "paged_ademamix_8bit": 3, "lion_32bit": 4, "lion_8bit": 1, "paged_lion_32bit": 4,
    "paged_lion_8bit": 1, "rmsprop": 4, "rmsprop_bnb": 4, "rmsprop_bnb_32bit": 4, "rmsprop_bnb_8bit": 1, "adagrad": 4,
    "adafactor": 4, "sgd": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShape:
    """A base as its files describe it.

    `linears` maps the last part of a layer's name to the (outputs, inputs) of every layer so called, in all blocks;
    `other` counts the numbers that stay in 16 bits whatever the precision: embeddings, head, norms, experts.
    """

    linears: Mapping[str, tuple[tuple[int, int], ...]]
    other: int
    blocks: int
    hidden: int
    vocabulary: int
    heads: int
    key_value: int
    intermediate: int

    @classmethod
    def read(cls, folder: Path) -> BaseShape:
        """Of a base's folder; ModelError when its weights are already quantised, AdapterError when they are not whole."""
        config = read_json(folder / "config.json")
        shapes = adapters.base_shapes(folder)
        index = folder / "model.safetensors.index.json"
        if index.is_file():  # some folders hold the same weights a second time, under other names
            named = read_json(index)["weight_map"]
            if absent := sorted({named[name] for name in named if name not in shapes}):
                raise ModelError(f"{folder} lacks {', '.join(absent[:3])} of its weights; download the base again")
            shapes = {name: shapes[name] for name in named}
        if "quantization_config" in config:
            raise ModelError(
                f"the base {folder} is already quantised, and is neither trained nor served as such here; take the same model in"
                " 16 bits, precision does the rest"
            )
        return cls.of(config, shapes)

    @classmethod
    def of(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> BaseShape:
        """From config.json and the shapes of all tensors; ModelError when there is no linear layer among them."""
        text = {**config, **(config.get("text_config") or {})}  # of a base that also sees or hears
        linears: dict[str, list[tuple[int, int]]] = {}
        blocks, embeddings, other = set(), [(0, 0)], 0
        for name, shape in shapes.items():
            numbered = _NUMBERED.fullmatch(name)
            if numbered and len(shape) == 2 and not _EXPERT.search(name):
                linears.setdefault(numbered["layer"].rsplit(".", 1)[-1], []).append((shape[0], shape[1]))
                blocks.add(numbered["block"])
                continue
            if _HEAD.search(name) and text.get("tie_word_embeddings"):
                continue  # stored, but the same numbers as the embeddings
            if len(shape) == 2 and not numbered:
                embeddings.append((shape[0], shape[1]))
            other += _product(shape)
        if not linears:
            raise ModelError("the base holds no linear layers in numbered blocks, which LoRA here adapts; take another")
        vocabulary, hidden = max(embeddings)
        hidden = text.get("hidden_size") or hidden or _commonest(linears)
        heads = text.get("num_attention_heads") or max(1, hidden // _HEAD_WIDTH)
        head = text.get("head_dim") or hidden // heads
        widest = max(max(side) for sides in linears.values() for side in sides)
        return cls(
            linears={name: tuple(sides) for name, sides in sorted(linears.items())}, other=other, blocks=len(blocks),
            hidden=hidden, vocabulary=text.get("vocab_size") or vocabulary, heads=heads,
            key_value=head * (text.get("num_key_value_heads") or heads),
            intermediate=text.get("intermediate_size") or widest,
        )  # fmt: skip

    @property
    def linear_parameters(self) -> int:
        """Numbers in the layers that a precision below 16 bits applies to."""
        return sum(rows * columns for sides in self.linears.values() for rows, columns in sides)

    def targets(self, recipe: Recipe) -> list[tuple[int, int]]:
        """(outputs, inputs) of every layer that the recipe adapts."""
        wanted = recipe.lora.target_modules
        names = self.linears if wanted == "all-linear" else [name for name in wanted if name in self.linears]
        return [sides for name in names for sides in self.linears[name]]


def is_expert(layer: str) -> bool:
    """Whether a layer of this name belongs to a mixture of experts: an expert, or what chooses among them."""
    return _EXPERT.search(f"{layer}.weight") is not None


def check_recipe(base: BaseShape, recipe: Recipe) -> None:
    """ConfigError, with what the base has, when no worker could train this recipe on it."""
    lora, wanted = recipe.lora, recipe.lora.target_modules
    has = ", ".join(f"{name} ({_sizes(sides)})" for name, sides in base.linears.items())
    if wanted != "all-linear":
        if absent := [name for name in wanted if name not in base.linears]:
            hint = choices(absent[0], base.linears)
            raise ConfigError(
                f"lora.target_modules: the base has no linear layer {', '.join(map(repr, absent))} ({hint}); its layers"
                f" as (outputs x inputs) are {has}; name some of them, or set all-linear"
            )
        if len(set(wanted)) < len(wanted):
            raise ConfigError(f"lora.target_modules names a layer twice: {', '.join(wanted)}; name each once")
    narrowest = min(min(sides) for sides in base.targets(recipe))
    if lora.rank > narrowest:
        raise ConfigError(
            f"lora.rank {lora.rank} is above {narrowest}, the shortest side of an adapted layer, where LoRA can already be"
            f" any matrix; the base has {has}: set at most {narrowest}, or leave that layer out of lora.target_modules"
        )
    if recipe.precision == "8bit" and lora.variant == "dora" and not recipe.workers.per_worker.get("GPU"):
        raise ConfigError(
            "lora.variant dora with precision 8bit does not train on CPU: PEFT loses the scales of 8-bit layers there; set"
            " precision to 4bit or 16bit"
        )
    if recipe.optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer {recipe.optimizer!r} is not known here; {choices(recipe.optimizer, OPTIMIZERS)}")


def _sizes(sides: tuple[tuple[int, int], ...]) -> str:
    return " and ".join(f"{rows}x{columns}" for rows, columns in sorted(set(sides)))


def _commonest(linears: Mapping[str, list[tuple[int, int]]]) -> int:
    return Counter(columns for sides in linears.values() for _, columns in sides).most_common(1)[0][0]


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
