"""An adapter merged into its base answers as base and adapter do, and is a base of its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slm_ray import adapters
from slm_ray.cli.adapters import app
from slm_ray.config import Lora, Recipe
from slm_ray.errors import AdapterError
from slm_ray.training.merge import RECORD, merge
from slm_ray.training.model import add_lora, open_base
from tests.bases import make_base

IDS = torch.tensor([[5, 9, 200, 31, 77, 400, 12]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("phi") / "base", family="phi4", spread=0.2)


def published(root: Path, base: Path, lora: Lora) -> str:
    """An adapter that changes the base a great deal."""
    model = add_lora(open_base(base, Recipe(precision="16bit"), use_gpu=False, longest=10), lora)
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
        elif "magnitude" in name:
            weight.data = weight.data * (0.5 + torch.rand(weight.shape, generator=generator))
    model.save_pretrained(root / "trained")
    return adapters.publish(
        root / "trained", root / "adapters", name="dora", track="structured", base=str(base),
        base_fingerprint=adapters.base_fingerprint(base), config_digest="c", data_digest="d", metrics={}, train_prompts=[],
        recipe={}, base_shapes=adapters.base_shapes(base),
    ).id  # fmt: skip


def logits(folder: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def distance(one: Any, other: Any) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("variant", ["dora", "rslora"])
def test_the_merged_model_gives_the_logits_of_base_and_adapter(tmp_path: Path, base: Path, variant: Any) -> None:
    adapter = published(tmp_path, base, Lora(rank=8, alpha=16, variant=variant))
    manifest = merge(tmp_path / "adapters", adapter, str(base), tmp_path / "models" / "merged")
    whole = logits(tmp_path / "models" / "merged")
    apart = logits(base, tmp_path / "adapters" / adapter)
    assert distance(whole, apart) < 0.02 < 0.3 < distance(logits(base), apart)
    assert manifest.id == adapter


def test_it_is_a_base_of_its_own_with_the_base_s_tokenizer_and_template(tmp_path: Path, base: Path) -> None:
    adapter = published(tmp_path, base, Lora(rank=8, alpha=16, variant="dora"))
    out = tmp_path / "merged"
    done = CliRunner().invoke(app, ["merge", adapter, "--out", str(out), "--adapters_dir", str(tmp_path / "adapters")])
    assert done.exit_code == 0, done.output
    assert f"serve it with slm-ray serve --base {out}" in done.output.replace("\n", "")
    assert adapters.check_base(str(out), setting="base") == str(out)
    assert adapters.base_fingerprint(out) != adapters.base_fingerprint(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert json.loads((out / RECORD).read_text())["adapter"] == adapter
    with pytest.raises(AdapterError, match=r"is already there.*give a new folder"):
        merge(tmp_path / "adapters", adapter, str(base), out)


def test_what_a_killed_merge_left_is_swept_away_a_day_later(tmp_path: Path, base: Path) -> None:
    adapter = published(tmp_path, base, Lora(rank=8, alpha=16))
    old, young = tmp_path / "models/.merging-old", tmp_path / "models/.merging-young"
    for left in (old, young):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    merge(tmp_path / "adapters", adapter, str(base), tmp_path / "models" / "merged")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".merging-young", "merged"]


def test_another_base_is_refused_and_leaves_nothing_behind(tmp_path: Path, base: Path) -> None:
    adapter = published(tmp_path, base, Lora(rank=8, alpha=16, variant="dora"))
    other = make_base(tmp_path / "other", family="phi4", seed=1)
    with pytest.raises(AdapterError, match="was trained on base"):
        merge(tmp_path / "adapters", adapter, str(other), tmp_path / "models" / "merged")
    assert not (tmp_path / "models").exists()
