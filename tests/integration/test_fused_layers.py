"""A base with fused layers (Phi's qkv_proj and gate_up_proj): its adapter answers behind vLLM as it does in PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bases import make_base

pytestmark = pytest.mark.heavy
PROMPTS = [[5, 9, 200, 31, 77, 400, 12], [8, 8, 301, 99, 1000, 6]]


def in_peft(base: Path, adapter: Path) -> list[Any]:
    """Log-probabilities of every first token: of the adapter that is made here, then of the base."""
    import torch

    from slm_ray.config import Lora, Recipe
    from slm_ray.training.model import add_lora, open_base

    model = add_lora(open_base(base, Recipe(precision="16bit"), use_gpu=False, longest=10), Lora(rank=8, alpha=16))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(adapter)
    model.eval()  # without dropout

    def scores() -> list[Any]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = [model(input_ids=torch.tensor([ids])).logits[0, -1].float() for ids in PROMPTS]
        return [torch.log_softmax(row, -1) for row in logits]

    adapted = scores()
    with model.disable_adapter():
        return adapted + scores()


def test_fused_layers_answer_alike_in_vllm_and_peft_base_and_adapter_in_one_batch(tmp_path: Path) -> None:
    base, adapter = make_base(tmp_path / "base", family="phi4", spread=0.2), tmp_path / "adapter"
    expected = in_peft(base, adapter)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_scores.py")), str(base), str(adapter), "8"],
        input=json.dumps(PROMPTS), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    served = json.loads(done.stdout.splitlines()[-1])
    assert len(served) == len(expected) == 4
    for ours, theirs in zip(expected, served, strict=True):
        assert len(theirs) >= 20
        furthest = max(abs(float(ours[int(token)]) - score) for token, score in theirs.items())
        assert furthest < 0.25, "two or three steps of bf16 at logits of this size"
    of_base, of_adapter = expected[2], served[0]
    assert max(abs(float(of_base[int(token)]) - score) for token, score in of_adapter.items()) > 1
