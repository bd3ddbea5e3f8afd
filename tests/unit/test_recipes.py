"""The recipes: they are settings of `train`, say what the earlier systems said, and train on a base of their family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

from slm_ray.config import TrainConfig, load
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ResourceError
from slm_ray.training import estimate, rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.base_shape import BaseShape, check_recipe
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.trainer import build
from slm_ray.types import Example
from tests.bases import Family, make_base
from tests.unit.test_training_estimate import LLAMA_8B, PHI_4_MINI, RTX_3090_BYTES, shapes

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
EARLIER = [path for path in RECIPES if not path.stem.endswith("_ours")]
FAMILIES = {"r1": "llama31", "r2": "phi4", "r3": "mistral_v3", "r5": "llama32"}
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MISTRAL_7B = {**LLAMA_8B, "vocab_size": 32768}
LLAMA_3B = {
    **LLAMA_8B, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
    "intermediate_size": 8192, "tie_word_embeddings": True,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {"r1": LLAMA_8B, "r2": PHI_4_MINI, "r3": MISTRAL_7B, "r5": LLAMA_3B}
# What the earlier systems state of their training; whatever else a file of theirs sets was chosen here.
STATED: dict[str, dict[str, Any]] = {
    "r1_llama31_8b": {
        "precision": "4bit", "lora.rank": 32, "lora.alpha": 64, "lora.dropout": 0.1, "lora.target_modules": LLAMA_LAYERS,
        "epochs": 3, "per_device_batch": 2, "gradient_accumulation": 4, "learning_rate": 2e-4, "schedule": "linear",
        "warmup_steps": 10, "weight_decay": 0.01, "optimizer": "adamw_8bit", "max_length": 2048, "workers.count": 2,
    },
    "r2_phi4_mini": {
        "precision": "8bit", "lora.rank": 64, "lora.alpha": 16, "lora.dropout": 0.1, "epochs": 1, "learning_rate": 2e-4,
        "max_length": 2048, "workers.count": 2, "seed": 42,
    },
    "r3_mistral_7b": {"precision": "4bit", "optimizer": "paged_adamw_32bit", "track": "gsm8k"},
    "r5_llama32_3b": {
        "precision": "4bit", "learn": "every_turn", "epochs": 1, "per_device_batch": 2, "gradient_accumulation": 4, "learning_rate": 2e-4,
        "warmup_steps": 5, "weight_decay": 0.01, "optimizer": "adamw_8bit", "track": "chat",
    },
}  # fmt: skip
# Where things lie and what they are called, and what any run has to say.
_INCIDENTAL = {
    "track",
    "train",
    "validation",
    "base",
    "run_dir",
    "adapters_dir",
    "name",
    "workers.count",
    "workers.per_worker",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the product's workers have it: more would only wait for each other on so small a base."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"lora": {"rank": 8}}` as `{"lora.rank": 8}`; `per_worker` stays whole."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and name != "per_worker"
        result |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return result


def settings(path: Path) -> dict[str, Any]:
    return flat(load(TrainConfig, path).model_dump())


def test_each_earlier_recipe_has_one_of_ours_beside_it_and_nothing_else_lies_there() -> None:
    assert {path.stem for path in EARLIER} == STATED.keys()
    assert {path.stem for path in RECIPES} == {f"{name}{kind}" for name in STATED for kind in ("", "_ours")}
    assert {path.name for path in (ROOT / "recipes").iterdir()} == {path.name for path in RECIPES}


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_an_earlier_recipe_says_what_its_system_said_and_marks_the_rest(path: Path) -> None:
    stated, seen = STATED[path.stem], settings(path)
    assert {name: seen[name] for name in stated} == stated
    text = path.read_text(encoding="utf-8")
    for name in flat(yaml.safe_load(text)).keys() - stated.keys() - _INCIDENTAL:
        line = re.search(rf"^ *{name.rpartition('.')[2]}:.*$", text, re.MULTILINE)
        assert line and "not stated" in line[0], (
            f"{path.name}: {name} is no setting of that system, and does not say so"
        )


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_ours_says_each_setting_that_differs_and_no_other(path: Path) -> None:
    ours = path.with_stem(f"{path.stem}_ours")
    was, now = settings(path), settings(ours)
    changed = {name for name in was if was[name] != now[name]} - {
        "name",
        "run_dir",
        "validation",
        "lora.target_modules",
    }
    head = re.match(r"(#.*\n)+", ours.read_text(encoding="utf-8"))
    reasons = " ".join(re.findall(r"^#   (?:  )?(.*?)(?:: |$)", head[0] if head else "", re.MULTILINE))
    named = {name for name in was if re.search(rf"\b{name.rpartition('.')[2]}\b", reasons)} | (
        {"gradient_accumulation"} if "per_device_batch" in reasons else set()
    )
    named |= {"schedule"} if "cosine" in reasons else set()
    named |= {"warmup_steps"} if "warm-up" in reasons else set()
    named |= {"workers.count"} if "workers instead" in reasons else set()
    assert changed <= named, f"{ours.name}: no reason for {sorted(changed - named)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_a_3090_on_our_stack_with_the_longest_rows_that_it_takes(path: Path) -> None:
    recipe = load(TrainConfig, path)
    config = ARCHITECTURES[path.stem[:2]]
    base = BaseShape.of(config, shapes(config))
    check_recipe(base, recipe)
    estimate.check(base, recipe, RTX_3090_BYTES, row_tokens=recipe.max_length, use_gpu=True)
    needed = estimate.estimate(base, recipe, row_tokens=recipe.max_length, use_gpu=True).total / estimate.GB
    page = (ROOT / "docs/how-to/training.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `recipes/{path.name}` \|.*$", page, re.MULTILINE)
    assert row and f"| {needed:.1f} GB |" in row[0]


def test_what_died_on_four_cards_is_refused_as_it_was_and_ours_passes_with_a_third_to_spare() -> None:
    """Why that run died is not recorded: its settings without checkpointing, fused head and 16-bit embeddings cannot fit."""
    base = BaseShape.of(LLAMA_8B, shapes(LLAMA_8B))
    four = load(TrainConfig, ROOT / "recipes/r1_llama31_8b.yaml", ["workers.count=4"])
    bare = estimate.Trainer(checkpointing=False, fused_head=False, upcast=True)
    with pytest.raises(ResourceError, match=r"23\.7 GB are available to each"):
        estimate.check(base, four, RTX_3090_BYTES, row_tokens=2048, use_gpu=True, trainer=bare)
    ours = load(TrainConfig, ROOT / "recipes/r1_llama31_8b_ours.yaml", ["workers.count=4"])
    estimate.check(base, ours, RTX_3090_BYTES * 2 / 3, row_tokens=2048, use_gpu=True)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_where_it_ran_and_is_in_the_documents(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert re.search(r"Ran on: CPU, tiny base: .+ GPU: none\.", head)
    assert f"`recipes/{path.name}`" in (ROOT / "docs/how-to/training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_on_a_base_of_its_family(path: Path, tmp_path: Path) -> None:
    recipe = load(TrainConfig, path).model_copy(update={"epochs": 1.0, "gradient_accumulation": 1, "warmup_steps": 0})
    base = make_base(tmp_path / "base", family=cast(Family, FAMILIES[path.stem[:2]]), hidden_size=32, layers=1)
    tokenizer = open_tokenizer(base)
    asked = [
        Example(id=str(n), prompt=prompt_of(track(recipe.track), f"Number {n}"), target=f'{{"n": {n}}}')
        for n in range(2 * recipe.per_device_batch)
    ]
    model = add_lora(open_base(base, recipe, use_gpu=False, longest=100), recipe.lora)
    trainer = build(
        model, tokenizer, rows.joined(rows.tokenised(tokenizer, rows.conversation(example)) for example in asked), recipe,
        folder=str(tmp_path / "out"), use_gpu=False, steps=2,
    )  # fmt: skip
    before = {
        name: weight.clone() for name, weight in model.named_parameters() if name.endswith("lora_B.default.weight")
    }
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(0 < loss < 20 for loss in losses)
    assert before and all(
        bool((weight != before[name]).any()) for name, weight in model.named_parameters() if name in before
    )
