"""The GPU check on a CPU and a tiny shape: every part runs, what fails loses nothing else, the work is counted rightly."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer_utils import SaveStrategy
from trl import SFTTrainer

from slm_ray.config import Lora, Recipe
from slm_ray.errors import ConfigError
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.model import add_lora
from slm_ray.training.rows import joined, tokenised
from slm_ray.training.trainer import build
from tools import gpu_check
from tools.config import GpuCheckConfig
from tools.gpu_measure import TokenBatches, Variant, guarded, work_per_token
from tools.random_base import SHAPES, random_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("gpu") / "runs" / "check.json"
    parts = ("recipes", "micro_batches")
    gpu_check.main(GpuCheckConfig(shape="tiny", device="cpu", out=str(out), parts=parts))
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_variant_is_measured_by_the_product_s_own_trainer(result: Any) -> None:
    assert list(result["parts"]) == ["recipes", "micro_batches"]
    seen = {
        (part, label): figures
        for part, found in result["parts"].items()
        for label, figures in found["variants"].items()
    }
    assert {label: figures["error"] for label, figures in seen.items() if figures["status"] != "measured"} == {}
    assert len(seen) == 3 + 2
    for figures in seen.values():
        assert figures["tokens"] > 0 and figures["tokens_per_s"] > 0 and figures["peak_bytes"] > 0
        assert 0 < figures["model_utilisation"] <= figures["hardware_utilisation"]
        assert figures["estimate_bytes"] * figures["peak_over_estimate"] == pytest.approx(
            figures["peak_bytes"], rel=0.01
        )
    assert result["card"]["matmul_flops"] > 0


def test_the_earlier_stack_holds_more(result: Any) -> None:
    stacks = result["parts"]["recipes"]["variants"]
    assert stacks["earlier recipe, our stack"]["base_bytes"] < stacks["earlier recipe, earlier stack"]["base_bytes"]


def test_fewer_bits_are_fewer_bytes_and_each_part_has_the_variants_that_it_compares() -> None:
    bench, _ = gpu_check.look_at_the_card(GpuCheckConfig(shape="tiny", device="cpu"))
    variants = {name: make(bench) for name, (_, make) in gpu_check.PARTS.items()}
    held = []
    for bits, variant in variants["precision"].items():
        base = random_base(SHAPES["tiny"], variant.recipe, device=CPU, seed=1, between=lambda: None)
        assert variant.recipe.precision == bits
        held.append(sum(weight.numel() * weight.element_size() for weight in base.parameters()))
    assert held == sorted(set(held)) and len(held) == 3
    assert {variant.head for variant in variants["heads"].values()} == {"fused", "full"}
    assert {"sdpa", "eager"} <= {variant.attention for variant in variants["attention"].values()}


def test_batches_by_tokens_carry_more_tokens_a_step_than_batches_by_rows(result: Any) -> None:
    rows, tokens = result["parts"]["micro_batches"]["variants"].values()
    assert tokens["step_tokens"] > rows["step_tokens"]


def test_what_fails_or_is_late_says_so() -> None:
    bench, _ = gpu_check.look_at_the_card(GpuCheckConfig(shape="tiny", device="cpu"))
    recipe = bench.recipe()
    lacking = Variant(recipe=recipe, lengths=bench.rows(recipe), attention="flash_attention_2")
    failed = guarded(lacking, bench.card, until=float("inf"))
    assert failed["status"] == "failed" and "flash" in failed["error"].lower()
    late = guarded(Variant(recipe=recipe, lengths=bench.rows(recipe)), bench.card, until=0.0)
    assert late["status"] == "out_of_time"


def test_token_batches_hold_every_row_once_and_stay_within_the_limit() -> None:
    lengths = [5 + (7 * n) % 60 for n in range(101)]
    batches = list(TokenBatches(lengths, 200, seed=1))
    assert sorted(row for batch in batches for row in batch) == list(range(101))
    assert all(max(lengths[row] for row in batch) * len(batch) <= 200 for batch in batches)


def test_the_work_of_a_token_is_that_of_the_weights() -> None:
    recipe = Recipe(lora=Lora(rank=2, alpha=4), precision="16bit")
    model = add_lora(
        random_base(SHAPES["tiny"], recipe, device=CPU, seed=1, between=lambda: None), recipe.lora
    )  # fmt: skip
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    lora = 2 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    head = 64 * 3072
    needed, spent = work_per_token(model, checkpointing=True)
    assert needed == 4 * (2 * layer + head) + 6 * lora
    assert spent - needed == 2 * 2 * layer + 2 * lora


def test_a_part_that_is_none_and_a_gpu_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="no speed; there are recipes"):
        gpu_check.main(GpuCheckConfig(shape="tiny", device="cpu", parts=("speed",)))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device here"):
            gpu_check.main(GpuCheckConfig())


def test_checkpointing_and_the_fused_head_which_gpus_train_with_learn_what_is_learned_without(tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=1, per_device_batch=2, gradient_accumulation=1, warmup_steps=0, optimizer="adamw_torch",
        lora=Lora(rank=2, alpha=4, dropout=0.0),
    )  # fmt: skip
    chat = {"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five"}
    tokenizer = open_tokenizer(gpu_check.ROOT / "data" / "tiny_base")
    rows = joined([tokenised(tokenizer, {"prompt": [chat[0]], "completion": [chat[1]]})] * 4)
    learned = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        base = random_base(SHAPES["tiny"], recipe, device=CPU, seed=1, between=lambda: None)
        model = add_lora(base, recipe.lora)
        trainer: Any = build(model, tokenizer, rows, recipe, folder=str(tmp_path), use_gpu=False, steps=1)
        trainer.args.gradient_checkpointing, trainer.args.save_strategy = checkpointing, SaveStrategy.NO
        trainer.compute_loss = functools.partial(SFTTrainer.compute_loss, trainer)
        trainer.train()
        assert base.is_gradient_checkpointing == checkpointing
        learned.append({name: weight for name, weight in model.named_parameters() if weight.requires_grad})
    without, with_it = learned
    assert all(bool(weight.any()) for name, weight in with_it.items() if ".lora_B." in name)
    assert all(torch.equal(weight, without[name]) for name, weight in with_it.items())
