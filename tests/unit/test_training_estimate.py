"""The memory estimate, held against what the earlier system measured on 24 GB cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import Recipe
from slm_ray.errors import ModelError, ResourceError
from slm_ray.training.estimate import GB, check, estimate

LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
}  # fmt: skip
MEASURED_BYTES = 21.8 * GB
RTX_3090_BYTES = 23.7 * GB


def llama(recipe: Recipe, **changed: Any) -> Any:
    return estimate(LLAMA_8B, recipe, **{"row_tokens": 2048, "use_gpu": True, "checkpointing": True, **changed})


def earlier_stack_bytes(recipe: Recipe) -> float:
    """The same run as it was measured, before TRL's fused head.

    Embeddings upcast to fp32 (PEFT's k-bit preparation) and every logit built, in bf16, in fp32, as log-probability and
    as gradient, where the fused head holds 1,024 rows of two in fp32.
    """
    vocabulary, hidden = LLAMA_8B["vocab_size"], LLAMA_8B["hidden_size"]
    tokens = recipe.per_device_batch * 2048
    embeddings = 2 * vocabulary * hidden * (4 - 2)
    logits = (tokens * (3 * 4 + 2) - min(tokens, 1024) * 2 * 4) * vocabulary * 1.10
    return float(llama(recipe).total + embeddings + logits)


def test_llama_8b_on_the_earlier_stack_is_within_six_percent_of_what_was_measured() -> None:
    assert earlier_stack_bytes(Recipe()) == pytest.approx(MEASURED_BYTES, rel=0.06)


def test_our_stack_fits_the_same_recipe_into_a_3090() -> None:
    needed = llama(Recipe())
    assert needed.total < earlier_stack_bytes(Recipe())
    check(needed, RTX_3090_BYTES, Recipe(), row_tokens=2048)


@pytest.mark.parametrize(
    ("recipe", "advice"),
    [
        (Recipe(per_device_batch=32), "lower per_device_batch from 32 to 16"),
        (Recipe(precision="16bit"), "set precision to 4bit"),
    ],
)
def test_what_does_not_fit_names_the_setting_to_change(recipe: Recipe, advice: str) -> None:
    with pytest.raises(ResourceError, match=advice):
        check(llama(recipe), 16 * GB, recipe, row_tokens=2048)


def test_one_long_row_and_one_large_base_get_other_advice() -> None:
    one = Recipe(per_device_batch=1)
    with pytest.raises(ResourceError, match="shorten the rows"):
        check(llama(one, row_tokens=60_000), 16 * GB, one, row_tokens=60_000)
    with pytest.raises(ResourceError, match="smaller base"):
        check(llama(one, row_tokens=64), 4 * GB, one, row_tokens=64)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ({"per_device_batch": 2}, {"per_device_batch": 4}),
        ({"lora": {"rank": 16}}, {"lora": {"rank": 64}}),
        ({"optimizer": "adamw_8bit"}, {"optimizer": "adamw_torch"}),
        ({"precision": "4bit"}, {"precision": "16bit"}),
    ],
)
def test_it_grows_with_what_costs_memory(small: dict[str, Any], large: dict[str, Any]) -> None:
    assert llama(Recipe(**small)).total < llama(Recipe(**large)).total
    assert llama(Recipe()).total < llama(Recipe(), checkpointing=False).total


def test_the_tiny_base_fits_any_laptop() -> None:
    config = json.loads((Path(__file__).parents[2] / "data/tiny_base/config.json").read_text())
    needed = estimate(config, Recipe(per_device_batch=8), row_tokens=400, use_gpu=False, checkpointing=False)
    check(needed, 2 * GB, Recipe(per_device_batch=8), row_tokens=400)
    assert needed.total > 0.9 * GB


def test_a_base_of_another_kind_is_refused_in_one_line_and_one_with_a_text_part_is_not() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    with pytest.raises(
        ModelError, match=r"type 'gpt2' states no hidden_size, num_attention_heads, .*Llama's layers"
    ) as said:
        estimate(gpt2, Recipe(), row_tokens=64, use_gpu=False, checkpointing=False)
    assert "\n" not in str(said.value)
    nested = {"model_type": "sees", "text_config": LLAMA_8B}
    assert estimate(nested, Recipe(), row_tokens=2048, use_gpu=True, checkpointing=True) == llama(Recipe())
