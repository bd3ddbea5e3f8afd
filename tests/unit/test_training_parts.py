"""The trainer's parts without Ray: row order, answer-only loss, NF4, parity, progress, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from slm_ray.config import Lora, Recipe
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, TrainingError
from slm_ray.parity import PRECISION_TOLERANCE, check, distance
from slm_ray.training import progress, rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.parity import note, prompt_and_answer, reference
from slm_ray.training.trainer import LengthGroupedSampler, build
from slm_ray.training.validation_score import target_loss, validate
from slm_ray.types import Example

BASE = Path(__file__).parents[2] / "data" / "tiny_base"
RECIPE = Recipe(
    per_device_batch=4, gradient_accumulation=1, optimizer="adamw_torch", lora=Lora(rank=4, alpha=8, dropout=0.0)
)  # fmt: skip


def examples(count: int) -> list[Example]:
    return [
        Example(id=str(n), prompt=prompt_of(track("structured"), f"Number {n} " * (1 + n % 5)), target=f'{{"n": {n}}}')
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_tokenizer(BASE)


@pytest.fixture(scope="module")
def trainer(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = add_lora(open_base(BASE, RECIPE, use_gpu=False, longest=100), RECIPE.lora)
    found = [rows.conversation(example) for example in examples(8)]
    return build(model, tokenizer, found, RECIPE, folder=str(tmp_path_factory.mktemp("out")), use_gpu=False, steps=2)


def test_every_rank_agrees_on_the_order_whatever_its_generator_has_done() -> None:
    lengths = [10 + (7 * n) % 50 for n in range(103)]
    one, other = LengthGroupedSampler(lengths, 8, 42), LengthGroupedSampler(lengths, 8, 42)
    torch.manual_seed(1)
    first = list(one)
    torch.rand(5)
    assert list(other) == first
    assert sorted(first) == list(range(103))
    one.epoch = 1
    assert list(one) != first
    one.epoch = 0
    assert list(one) == first


def test_rows_of_like_length_share_a_batch_and_the_short_batch_is_last() -> None:
    lengths = [10 + (7 * n) % 50 for n in range(67)]
    order = list(LengthGroupedSampler(lengths, 8, 42))
    spreads = [
        max(batch) - min(batch) for i in range(0, 64, 8) if (batch := [lengths[row] for row in order[i : i + 8]])
    ]
    assert sum(spreads) / len(spreads) < 15
    assert len(order) % 8 == 3


def test_the_base_is_in_nf4_with_double_quantisation_and_lora_in_fp32(trainer: Any) -> None:
    layers = [module for _, module in trainer.model.named_modules() if type(module).__name__ == "Linear4bit"]
    states = [layer.base_layer.weight.quant_state for layer in layers if hasattr(layer, "base_layer")]
    assert len(states) == 7 * 4
    assert all(state.quant_type == "nf4" and state.nested for state in states)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_loss_is_on_the_answer_and_its_end_only(trainer: Any, tokenizer: Any) -> None:
    row = trainer.train_dataset[3]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == '{"n": 3}<|eot_id|>'
    assert tokenizer.decode(list(prompt_and_answer(row)[0])).endswith("assistant<|end_header_id|>\n\n")


def test_the_loss_is_the_stock_trainer_s_loss(trainer: Any) -> None:
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    count = int((batch["labels"][:, 1:] != -100).sum())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
        stock = Trainer.compute_loss(trainer, trainer.model, dict(batch))
    assert ours.item() == pytest.approx(stock.item(), rel=2e-3)


def small_trainer(tokenizer: Any, folder: Path, **changed: Any) -> Any:
    """A trainer over a model of two narrow layers with random weights: a step of it takes milliseconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    model = add_lora(LlamaForCausalLM(shape).to(torch.bfloat16), RECIPE.lora)
    found = [rows.conversation(example) for example in examples(8)]
    recipe = RECIPE.model_copy(update=changed)
    return build(model, tokenizer, found, recipe, folder=str(folder), use_gpu=False, steps=6)


def test_a_loss_that_is_no_number_stops_before_the_step_and_says_where(tokenizer: Any, tmp_path: Path) -> None:
    wild = small_trainer(tokenizer, tmp_path, learning_rate=1e36, warmup_steps=0)
    with pytest.raises(
        TrainingError,
        match=r"diverged at step 2 of 6: loss nan, gradient norm nan at learning rate \d.*the step before had loss "
        r"\d.*Lower learning_rate \(now 1e\+36, try 1e\+35\).*Nothing is published",
    ):
        wild.train()
    assert not list(tmp_path.iterdir())


def test_gradients_that_are_no_numbers_stop_too_and_at_the_first_step_the_base_is_named(
    tokenizer: Any, tmp_path: Path
) -> None:
    sick = small_trainer(tokenizer, tmp_path)
    before = {name: value.clone() for name, value in sick.model.named_parameters() if value.requires_grad}
    last = [value for value in sick.model.parameters() if value.requires_grad][-1]
    last.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"from the first step on.*loss \d.*norm (nan|inf).*The base's weights"):
        sick.train()
    assert all(torch.equal(value, before[name]) for name, value in sick.model.named_parameters() if name in before)


def test_an_unknown_target_module_lists_the_known_ones() -> None:
    model = open_base(BASE, RECIPE, use_gpu=False, longest=100)
    with pytest.raises(ConfigError, match=r"no query_key_value; it has down_proj.*q_proj"):
        add_lora(model, Lora(target_modules=("query_key_value",)))


def test_the_note_holds_the_tokens_that_trl_made_and_what_the_model_in_memory_says(
    trainer: Any, tokenizer: Any
) -> None:
    before = torch.get_rng_state()
    trainer.model.train()
    seen = note(trainer, precision="4bit")
    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), before), "a resumed run would draw other dropout masks"
    assert seen.scaling == 2.0
    assert [row.row for row in seen.rows] == list(range(8))
    for row, example in zip(seen.rows, examples(8), strict=True):
        assert list(row.prompt) == rows.token_ids(tokenizer, example.prompt.as_dicts(), answer_next=True)
        assert tokenizer.decode(list(row.answer)) == f"{example.target}<|eot_id|>"
        assert [one.token for one in row.trained] == list(row.answer)[: len(row.trained)]
        assert all(value <= 0 for one in row.trained for _, value in one.top)


def test_of_a_conversation_the_last_answer_is_noted() -> None:
    row = {"input_ids": [1, 2, 3, 4, 5, 6, 7], "labels": [-100, 2, -100, -100, 5, 6, -100]}
    assert prompt_and_answer(row) == ((1, 2, 3, 4), (5, 6))


@pytest.fixture
def adapter(trainer: Any, tmp_path: Path) -> Iterator[Path]:
    """The trainer's adapter with B drawn at random, as files; its B is zero again afterwards."""
    drawn = torch.Generator().manual_seed(1)
    learned = {name: one for name, one in trainer.model.named_parameters() if ".lora_B." in name}
    for one in learned.values():
        one.data = torch.randn(one.shape, generator=drawn) * 0.2
    trainer.model.save_pretrained(tmp_path)
    yield tmp_path
    for one in learned.values():
        one.data.zero_()


def test_peft_over_the_saved_files_answers_as_the_model_in_memory_did(trainer: Any, adapter: Path) -> None:
    seen = note(trainer, precision="4bit")
    same = reference(BASE, adapter, note=seen, served=None, others={}, use_gpu=False)
    assert check(seen, same, None, str) == ()
    apart = distance([row.trained for row in seen.rows], same.noted)
    assert 0 < apart.mean < PRECISION_TOLERANCE, apart  # NF4 in training, bf16 here
    assert distance(same.noted, same.noted_base).mean > PRECISION_TOLERANCE


@pytest.mark.parametrize(
    ("changed", "fault"),
    [({"lora_alpha": 16}, "alpha of the files"), ({"use_rslora": True}, "alpha of the files"), ({}, "zero B")],
)
def test_files_that_were_changed_after_training_are_caught(
    trainer: Any, adapter: Path, changed: dict[str, Any], fault: str
) -> None:
    seen = note(trainer, precision="4bit")
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **changed}))
    if fault == "zero B":
        weights = adapter / "adapter_model.safetensors"
        save_file({n: one * 0 if ".lora_B." in n else one for n, one in load_file(weights).items()}, weights)
    found = check(seen, reference(BASE, adapter, note=seen, served=None, others={}, use_gpu=False), None, str)
    assert fault in {finding.fault for finding in found}


def test_answers_are_scored_by_the_track_s_own_scorer(trainer: Any, tokenizer: Any) -> None:
    found = validate(trainer.model, tokenizer, examples(3), track("structured"))
    assert 0.0 <= found["validation_score"] == found["exact_match"] <= 1.0
    assert "json_valid" in found
    assert len(found["validation_rows"]) == 3
    assert sum(found["validation_rows"]) / 3 == pytest.approx(found["validation_score"])


def test_the_validation_loss_is_the_mean_over_the_tokens_that_training_learns(trainer: Any, tokenizer: Any) -> None:
    trainer.model.eval()
    total, tokens = target_loss(trainer.model, tokenizer, examples(8))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    assert tokens == int((batch["labels"] != -100).sum())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = Trainer.compute_loss(trainer, trainer.model, dict(batch))
    assert total / tokens == pytest.approx(stock.item(), rel=5e-3)


def test_a_log_repeats_no_line() -> None:
    said: set[str] = set()
    assert progress.news(["a: starting workers", "b: step 1/9"], said) == ["a: starting workers", "b: step 1/9"]
    assert progress.news(["a: starting workers", "b: step 2/9"], said) == ["b: step 2/9"]
    assert progress.news(["a: step 1/9", "b: step 2/9"], said) == ["a: step 1/9"]


def test_progress_is_read_back_and_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert progress.read(path) is None
    assert progress.line("run", None, 400.0) == "run: waiting for a slot"
    progress.start(path)
    starting = progress.read(path)
    assert progress.line("run", starting, 3.0) == "run: starting workers"
    assert progress.line("run", starting, 64.0).startswith("run: starting workers for 60 s; if others hold")
    assert progress.line("run", starting, 64.0) == progress.line("run", starting, 88.0), "no line for each second"
    now = progress.Progress(step=3, steps=10, loss=1.25, tokens_per_s=2000.0, eta_s=12.4)
    progress.write(path, now)
    assert progress.read(path) == now
    assert progress.line("run", now) == "run: step 3/10, loss 1.250, 2,000 tokens/s, 12 s left"
    path.write_text(json.dumps({"step": 3})[:-2])
    assert progress.read(path) is None
