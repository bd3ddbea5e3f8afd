"""What one NVIDIA GPU shows of training here in some minutes: memory against the estimate, speed, what each choice costs.

A base of the given shape with random weights is made on the card and trained by the product's own code (`training.model`,
`training.trainer`) under a cap of `memory_gb`: an earlier system's recipe as it was and ours, the fused head on and off,
micro-batches by rows and by tokens, attention implementations, 4, 8 and 16 bits. It needs torch, transformers, peft, trl,
bitsandbytes, the small packages that `slm_ray.training` imports, and this repository; no network, no Ray, no vLLM. Each
part has its share of `seconds`; a variant that runs out of memory or fails says so and loses no other; `out` is written
anew after each.

    python -m tools.gpu_check                             # set to end within 8 minutes; not run on a card yet
    python -m tools.gpu_check --shape tiny --device cpu   # the same code on a CPU, in seconds: its figures mean nothing

`out` is one JSON object. `card`: name, memory, cap, versions, `matmul_flops` (a measured bf16 product) and `table_flops`
(the vendor's dense bf16 figure, null for an unknown card). `parts`: name -> `seconds` and `variants`: label -> `status`
(measured, out_of_memory, out_of_time, failed), `error`, and where measured: `load_s`, `base_bytes`, `micro_batches`,
`tokens` (without padding) and `seconds` after warm-up, `tokens_per_s`, `padding_share`, `step_tokens`, `peak_bytes` (of the
card, or of the process on a CPU), `estimate_bytes`, `peak_over_estimate`, `model_utilisation` and `hardware_utilisation`
(of the measured product), `loss_last`.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
import transformers

from slm_ray.command import Usage, run
from slm_ray.config import Recipe, TrainConfig, load
from slm_ray.errors import ConfigError
from slm_ray.storage import write_text
from slm_ray.training import estimate
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.trainer import deterministic
from tools.config import GpuCheckConfig
from tools.gpu_measure import Card, Variant, guarded
from tools.random_base import SHAPES

ROOT = Path(__file__).parents[1]
RECIPES = {"llama31_8b": "r1_llama31_8b", "llama32_3b": "r5_llama32_3b", "tiny": "r1_llama31_8b"}
# Dense bf16 with fp32 accumulation, as the vendor's data sheets have it; found by a part of the card's name.
TABLE_FLOPS = {
    "RTX 3090": 71e12, "RTX 4090": 165.2e12, "A100": 312e12, "L40S": 362e12, "H100": 989e12, "H200": 989e12,
}  # fmt: skip
_MOST = 40  # micro-batches of a variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is the same for all variants."""

    config: GpuCheckConfig
    card: Card

    @property
    def longest(self) -> int:
        return 64 if self.config.shape == "tiny" else 2048

    def recipe(self, suffix: str = "", **changed: Any) -> Recipe:
        """The shape's recipe file, to be run once over few rows without saving; on a CPU with an optimizer that it has."""
        path = ROOT / "recipes" / f"{RECIPES[self.config.shape]}{suffix}.yaml"
        known = {"epochs": 1.0} | ({} if self.card.use_gpu else {"optimizer": "adamw_torch"})
        return load(TrainConfig, path).model_copy(update={**known, **changed})

    def rows(self, recipe: Recipe, length: int | None = None) -> tuple[int, ...]:
        """Lengths of as many rows of one length as a variant may need."""
        most = _MOST if self.card.use_gpu else 3
        return (length or self.longest,) * (most * recipe.per_device_batch)


def earlier_and_ours(bench: Bench) -> dict[str, Variant]:
    """The recipe with every logit built and the embeddings in fp32 (PEFT's k-bit preparation), then on our stack; ours."""
    was, ours = bench.recipe(), bench.recipe("_ours")
    return {
        "earlier recipe, earlier stack": Variant(
            recipe=was, lengths=bench.rows(was), head="full", earlier_stack=True
        ),
        "earlier recipe, our stack": Variant(recipe=was, lengths=bench.rows(was)),
        "our recipe": Variant(recipe=ours, lengths=bench.rows(ours)),
    }  # fmt: skip


def heads(bench: Bench) -> dict[str, Variant]:
    """Our recipe's micro-batch with the fused head, and with all logits at once."""
    recipe = bench.recipe("_ours", gradient_accumulation=1)
    return {head: Variant(recipe=recipe, lengths=bench.rows(recipe), head=head) for head in ("fused", "full")}


def micro_batches(bench: Bench) -> dict[str, Variant]:
    """Rows of mixed lengths, a median of a sixth of the longest: micro-batches of so many rows, and of as many tokens."""
    recipe = bench.recipe("_ours", gradient_accumulation=1)
    chance = random.Random(bench.config.seed)
    count = 4 * len(bench.rows(recipe))
    lengths = tuple(
        min(bench.longest, max(16, round(chance.lognormvariate(0, 0.8) * bench.longest / 6))) for _ in range(count)
    )
    by_rows = Variant(recipe=recipe, lengths=lengths)
    tokens = recipe.per_device_batch * bench.longest
    return {"by rows": by_rows, "by tokens": Variant(recipe=recipe, lengths=lengths, batch_tokens=tokens)}


def attentions(bench: Bench) -> dict[str, Variant]:
    """One row of the longest length at a time under each implementation of attention."""
    recipe = bench.recipe("_ours", gradient_accumulation=1, per_device_batch=1)
    names = ("sdpa", "eager", "flash_attention_2") if bench.card.use_gpu else ("sdpa", "eager")
    return {name: Variant(recipe=recipe, lengths=bench.rows(recipe), attention=name) for name in names}


def precisions(bench: Bench) -> dict[str, Variant]:
    """One row of the longest length at a time over the frozen base in 4, 8 and 16 bits."""
    changed = {"gradient_accumulation": 1, "per_device_batch": 1}
    recipes = {name: bench.recipe("_ours", precision=name, **changed) for name in ("4bit", "8bit", "16bit")}
    return {name: Variant(recipe=recipe, lengths=bench.rows(recipe)) for name, recipe in recipes.items()}


# name -> its share of the time, and its variants
PARTS: dict[str, tuple[float, Callable[[Bench], dict[str, Variant]]]] = {
    "recipes": (0.32, earlier_and_ours),
    "heads": (0.15, heads),
    "micro_batches": (0.15, micro_batches),
    "attention": (0.18, attentions),
    "precision": (0.20, precisions),
}


def main(config: GpuCheckConfig) -> None:
    if unknown := sorted(set(config.parts) - PARTS.keys()):
        raise ConfigError(f"parts: no {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: torch sees no CUDA device here; --device cpu --shape tiny runs the same code")
    started = time.monotonic()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the product's workers have it
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    deterministic(config.seed, config.device == "cuda")
    bench, facts = look_at_the_card(config)
    result: dict[str, Any] = {
        "schema_version": 1,
        "settings": config.model_dump(mode="json"),
        "card": facts,
        "parts": {},
    }
    chosen = config.parts or tuple(PARTS)
    whole = sum(PARTS[name][0] for name in chosen)
    for name in chosen:
        share, variants_of = PARTS[name]
        begun, variants = time.monotonic(), variants_of(bench)
        budget = (config.seconds - (begun - started)) * share / whole
        whole -= share
        result["parts"][name] = {"seconds": 0.0, "variants": {}}
        for place, (label, variant) in enumerate(variants.items(), start=1):
            seen = guarded(variant, bench.card, begun + budget * place / len(variants))
            result["parts"][name]["variants"][label] = seen
            result["parts"][name]["seconds"] = round(time.monotonic() - begun, 1)
            # Whole at any moment: a card may be taken away in the middle.
            write_text(config.out, json.dumps(result, indent=1) + "\n")
            print(f"{time.monotonic() - started:5.0f} s  {name}, {label}: {said(seen)}", flush=True)
    print(f"written: {config.out}")


def said(seen: dict[str, Any]) -> str:
    """A variant's figures in one line."""
    if seen["status"] != "measured":
        return f"{seen['status'].replace('_', ' ')}: {seen['error']}"
    return (
        f"{seen['tokens_per_s']:,.0f} tokens/s, peak {seen['peak_bytes'] / estimate.GB:.1f} GB"
        f" ({seen['peak_over_estimate']:.2f} of the estimate), {seen['model_utilisation']:.0%} of a bf16 product"
    )


def look_at_the_card(config: GpuCheckConfig) -> tuple[Bench, dict[str, Any]]:
    """The card, capped at `memory_gb` for this process, and what a plain bf16 product reaches on it."""
    device = torch.device(config.device)
    name, memory, outside, cap = "CPU", psutil.virtual_memory().total, 0, None
    if device.type == "cuda":
        torch.zeros(1, device=device)
        free, memory = torch.cuda.mem_get_info()
        name, outside = torch.cuda.get_device_name(), memory - free - torch.cuda.memory_reserved()
        cap = min(config.memory_gb * estimate.GB, memory)
        torch.cuda.set_per_process_memory_fraction((cap - outside) / memory)
    flops = matmul_flops(device, 8192 if device.type == "cuda" else 256)
    card = Card(
        device=device, tokenizer=open_tokenizer(ROOT / "data" / "tiny_base"), shape=SHAPES[config.shape],
        matmul_flops=flops, outside_bytes=float(outside), seed=config.seed,
    )  # fmt: skip
    table = next((peak for part, peak in TABLE_FLOPS.items() if part in name), None)
    return Bench(config=config, card=card), {
        "name": name, "memory_bytes": memory, "cap_bytes": cap, "outside_bytes": outside, "matmul_flops": round(flops),
        "table_flops": table, "date": time.strftime("%Y-%m-%d"), "cuda": torch.version.cuda,
        "versions": {part.__name__: part.__version__ for part in (torch, transformers)},
    }  # fmt: skip


def matmul_flops(device: torch.device, size: int) -> float:
    """Floating-point operations a second of a square bf16 product: the median of five after two."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    times = []
    for _ in range(7):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 2.0 * size**3 / statistics.median(times[2:])


if __name__ == "__main__":
    run(main, GpuCheckConfig, __doc__ or "", usage=Usage(program="python -m tools.gpu_check"))
