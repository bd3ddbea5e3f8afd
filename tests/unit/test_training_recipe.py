"""What a recipe asks for is what is trained: precision, variant of LoRA, target modules, schedule, clipping."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from slm_ray import adapters
from slm_ray.config import Lora, Recipe
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.training import rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.base_shape import BaseShape, check_recipe
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.trainer import build
from slm_ray.types import Example
from tests.bases import make_base

BASE = Path(__file__).parents[2] / "data" / "tiny_base"
ROWS = [
    rows.conversation(Example(id=str(n), prompt=prompt_of(track("structured"), f"Number {n}"), target=f'{{"n": {n}}}'))
    for n in range(6)
]


def recipe(**changed: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "per_device_batch": 2, "gradient_accumulation": 1, "optimizer": "adamw_torch", "epochs": 1, "warmup_steps": 0,
            "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "precision": "16bit", **changed,
        }
    )  # fmt: skip


def trained(folder: Path, chosen: Recipe, base: Path = BASE) -> Any:
    model = add_lora(open_base(base, chosen, use_gpu=False, longest=100), chosen.lora)
    tokenizer = open_tokenizer(base)
    found = rows.joined(rows.tokenised(tokenizer, row) for row in ROWS)
    trainer = build(model, tokenizer, found, chosen, folder=str(folder), use_gpu=False, steps=6)
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_8_bit_holds_the_base_in_int8_and_trains_on_a_cpu(tmp_path: Path) -> None:
    trainer = trained(tmp_path, recipe(precision="8bit"))
    kinds = {type(part).__name__: part for part in trainer.model.modules()}
    assert kinds["Linear8bitLt"].weight.dtype == torch.int8
    assert len(losses(trainer)) == 3
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_phi_4_trains_in_8_bits_on_its_fused_layers(tmp_path: Path) -> None:
    chosen = recipe(precision="8bit", lora={"rank": 8, "alpha": 2})
    base = make_base(tmp_path / "base", family="phi4", spread=0.2)
    check_recipe(BaseShape.read(base), chosen)
    trainer = trained(tmp_path / "run", chosen, base)
    assert losses(trainer)[-1] < losses(trainer)[0]
    trainer.model.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / adapters.SETTINGS).read_text())
    assert sorted(settings["target_modules"]) == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    adapters.check_tensors(tmp_path / "adapter" / adapters.WEIGHTS, settings, adapters.base_shapes(base))


def test_dora_learns_lengths_and_keeps_them_in_fp32(tmp_path: Path) -> None:
    trainer = trained(tmp_path, recipe(lora={"rank": 4, "alpha": 8, "variant": "dora"}, precision="4bit"))
    lengths = [weight for name, weight in trainer.model.named_parameters() if "lora_magnitude_vector" in name]
    assert len(lengths) == 7 * 4
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in lengths)
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize(("variant", "scale"), [("lora", 8 / 4), ("rslora", 8 / math.sqrt(4))])
def test_rslora_scales_by_the_root_of_the_rank(variant: Any, scale: float) -> None:
    chosen = recipe()
    lora = Lora(rank=4, alpha=8, variant=variant)
    model = add_lora(open_base(BASE, chosen, use_gpu=False, longest=100), lora)
    assert {part.scaling["default"] for part in model.modules() if isinstance(part, BaseTunerLayer)} == {scale}


def test_all_linear_finds_the_layers_of_any_architecture_and_leaves_the_head_alone() -> None:
    shape = PhiConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, dtype="float32"
    )
    model = add_lora(PhiForCausalLM(shape), Lora(rank=2))
    assert model.peft_config["default"].target_modules == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    transposed = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, dtype="float32"))
    model = add_lora(transposed, Lora(rank=2))
    assert model.peft_config["default"].target_modules == {"c_attn", "c_proj", "c_fc"}


def test_what_chooses_among_experts_is_not_adapted_and_such_an_adapter_is_published(tmp_path: Path) -> None:
    shape = Qwen2MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    moe = Qwen2MoeForCausalLM(shape)
    moe.save_pretrained(tmp_path / "base")
    model = add_lora(moe, Lora(rank=2))
    assert model.peft_config["default"].target_modules == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    model.save_pretrained(tmp_path / "made")
    adapters.publish(
        tmp_path / "made", tmp_path / "adapters", name="moe", track="structured", base=str(tmp_path / "base"),
        base_fingerprint="f" * 32, config_digest="c", data_digest="d", metrics={}, train_prompts=[], recipe={},
        base_shapes=adapters.base_shapes(tmp_path / "base"),
    )  # fmt: skip


def test_a_cosine_with_restarts_begins_again_at_every_epoch(tmp_path: Path) -> None:
    trainer = trained(tmp_path, recipe(schedule="cosine_with_restarts", epochs=2))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates[3] == pytest.approx(rates[0])
    assert rates[2] < rates[1] < rates[0]
    with pytest.raises(ValueError, match="1 epochs hold none; set schedule: cosine"):
        recipe(schedule="cosine_with_restarts", epochs=1)


def test_a_long_gradient_is_shortened(tmp_path: Path) -> None:
    weights = {}
    for norm in (0.0, 1e-6):
        chosen = recipe(max_grad_norm=norm, optimizer="sgd", learning_rate=1.0)
        trainer = trained(tmp_path / str(norm), chosen)
        weights[norm] = sum(
            float(weight.abs().sum()) for name, weight in trainer.model.named_parameters() if "lora_B" in name
        )
    assert 0 < weights[1e-6] < 1e-3 < weights[0.0]


def test_a_recipe_that_would_train_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="target_modules is empty"):
        Lora(target_modules=())
