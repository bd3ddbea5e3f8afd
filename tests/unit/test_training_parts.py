"""The trainer's parts without Ray: row order, answer-only loss, NF4, parity, progress, answers."""

from __future__ import annotations

import dataclasses
import json
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback
from trl import SFTTrainer

from slm_ray.answer_distance import distance
from slm_ray.config import Lora, Recipe, TrainConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, TrainingError
from slm_ray.parity import PRECISION_TOLERANCE, Note, check
from slm_ray.reports.encoding import decode
from slm_ray.training import estimate, failures, meter, progress, rows, selection, validation_score, worker
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.estimate import ANSWER_TOKENS
from slm_ray.training.meter import gpu_of
from slm_ray.training.model import add_lora, open_base
from slm_ray.training.parity import NoteParity, note, prompt_and_answer, reference
from slm_ray.training.plan import WorkerPayload
from slm_ray.training.proof import NOTE
from slm_ray.training.trainer import LengthGroupedSampler, build
from slm_ray.training.validation_score import row_scores, summary, target_loss
from slm_ray.types import Example, Message, Prompt
from tests.bases import make_base

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
    found = rows.joined(rows.tokenised(tokenizer, rows.conversation(example)) for example in examples(8))
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


@pytest.fixture(scope="module")
def packed() -> Any:
    """The base as a CPU holds a large one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_UNPACKED_BYTES", 0)
        return add_lora(open_base(BASE, RECIPE, use_gpu=False, longest=100), RECIPE.lora)


def test_a_large_base_stays_in_nf4_with_double_quantisation_and_lora_in_fp32(packed: Any, trainer: Any) -> None:
    layers = [module for _, module in packed.named_modules() if type(module).__name__ == "Linear4bit"]
    states = [layer.base_layer.weight.quant_state for layer in layers if hasattr(layer, "base_layer")]
    assert len(states) == 7 * 4
    assert all(state.quant_type == "nf4" and state.nested for state in states)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_a_small_base_is_unpacked_on_cpu_and_answers_with_the_same_bits(packed: Any) -> None:
    unpacked = add_lora(open_base(BASE, RECIPE, use_gpu=False, longest=100), RECIPE.lora)
    assert not [part for part in unpacked.modules() if isinstance(part, Linear4bit)]
    ids = torch.arange(40).reshape(2, 20) + 100
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = [model(input_ids=ids).logits for model in (packed, unpacked)]
        plain = add_lora(open_base(BASE, Recipe(precision="16bit"), use_gpu=False, longest=100), RECIPE.lora)
        other = plain(input_ids=ids).logits
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], other), "quantised weights differ from the base's own"


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


def test_the_head_is_asked_for_answers_alone_and_by_the_loss_alone(trainer: Any) -> None:
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    answers = int((batch["labels"] != -100).sum())
    seen: list[torch.Size] = []
    remember = trainer.model.get_output_embeddings().register_forward_hook(
        lambda _, hidden, logits: seen.append(logits.shape)
    )
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=answers)
            trainer.model(input_ids=batch["input_ids"])
    finally:
        remember.remove()
    assert [tuple(shape[:-1]) for shape in seen] == [(answers,), tuple(batch["input_ids"].shape)]


def small_trainer(tokenizer: Any, folder: Path, *, asked: Sequence[Example] = (), **changed: Any) -> Any:
    """A trainer over a model of two narrow layers with random weights: a step of it takes milliseconds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    )  # fmt: skip
    model = add_lora(LlamaForCausalLM(shape).to(torch.bfloat16), RECIPE.lora)
    recipe = RECIPE.model_copy(update=changed)
    chats = [rows.conversation(example) for example in asked or examples(8)]
    found = rows.joined(rows.tokenised(tokenizer, chat, recipe.learn) for chat in chats)
    return build(model, tokenizer, found, recipe, folder=str(folder), use_gpu=False, steps=6)


def chats() -> list[Example]:
    """Of two turns of the assistant each."""
    return [
        Example(
            id=str(n),
            prompt=Prompt(
                messages=(
                    Message(role="user", content=f"Count to {n}."),
                    Message(role="assistant", content=" ".join(map(str, range(n + 1)))),
                    Message(role="user", content="And on."),
                )
            ),
            target=f"{n + 1}",
        )
        for n in range(8)
    ]


def test_with_every_turn_the_loss_is_the_stock_one_over_all_turns_of_the_assistant(
    tokenizer: Any, tmp_path: Path
) -> None:
    every = small_trainer(tokenizer, tmp_path / "every", asked=chats(), learn="every_turn")
    last = small_trainer(tokenizer, tmp_path / "last", asked=chats())
    assert every.train_dataset["input_ids"] == last.train_dataset["input_ids"]
    batch = every.data_collator([every.train_dataset[row] for row in range(4)])
    count = int((batch["labels"][:, 1:] != -100).sum())
    fewer = last.data_collator([last.train_dataset[row] for row in range(4)])
    assert count > int((fewer["labels"][:, 1:] != -100).sum())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = every.compute_loss(every.model, dict(batch), num_items_in_batch=count)
        stock = Trainer.compute_loss(every, every.model, dict(batch))
    assert ours.item() == pytest.approx(stock.item(), rel=2e-3)
    assert every.train().training_loss > 0
    every.save_model(str(tmp_path / "saved"))
    saved = (tmp_path / "saved" / "chat_template.jinja").read_text(encoding="utf-8")
    assert saved == tokenizer.chat_template, "what was rendered with goes with the checkpoint"


def test_loss_and_gradients_are_trl_s_own_for_padded_rows_with_turns_between_and_one_of_several_micro_batches(
    tokenizer: Any, tmp_path: Path
) -> None:
    every = small_trainer(tokenizer, tmp_path, asked=chats(), learn="every_turn")
    batch = every.data_collator([every.train_dataset[row] for row in (0, 3, 7)])
    assert not batch["attention_mask"].all(), "no row is padded"
    of_the_step = 3 * (batch["labels"][:, 1:] != -100).sum()

    def stepped(loss_of: Callable[..., Any]) -> tuple[float, list[torch.Tensor]]:
        every.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(every.model, dict(batch), num_items_in_batch=of_the_step)
        loss.backward()
        return loss.item(), [value.grad.clone() for value in every.model.parameters() if value.requires_grad]

    ours, gradients = stepped(every.compute_loss)
    trl, theirs = stepped(partial(SFTTrainer.compute_loss, every))
    assert ours == pytest.approx(trl, rel=2e-3)
    apart = [(one - other).norm() for one, other in zip(gradients, theirs, strict=True)]
    norms = [gradient.norm() for gradient in theirs]  # 0 of each A, since each B is nothing yet
    assert torch.stack(apart).norm() < 0.03 * torch.stack(norms).norm(), "the rounding of bf16"
    assert all(one <= 0.2 * norm for one, norm in zip(apart, norms, strict=True))


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


def evaluation(step: int, score: float, loss: float = 1.0) -> selection.Evaluation:
    return selection.Evaluation(step=step, score=score, loss=loss)


def test_the_best_checkpoint_has_the_highest_score_then_the_lower_loss_then_comes_first() -> None:
    assert selection.best([evaluation(2, 0.5), evaluation(4, 0.7, 9.0), evaluation(6, 0.6)]).step == 4
    assert selection.best([evaluation(2, 0.5, 1.0), evaluation(4, 0.5, 0.9), evaluation(6, 0.5, 0.9)]).step == 4
    log = [{"step": n, "validation_score": s, "validation_loss": 1.0} for n, s in ((2, 0.5), (4, 0.7), (6, 0.6))]
    ranks = [selection.rank(log[: n + 1], int(entry["step"])) for n, entry in enumerate(log)]
    assert ranks == [1, 2, 0], "the best so far ranks above all before it"
    assert selection.rank([{"step": 2, "loss": 1.0}], 2) == 0


def test_patience_counts_evaluations_without_a_better_metric_and_a_lower_loss_is_none() -> None:
    assert selection.since_best([]) == 0
    assert selection.since_best([evaluation(2, 0.5)]) == 0
    assert selection.since_best([evaluation(2, 0.5), evaluation(4, 0.5, 0.1), evaluation(6, 0.4)]) == 2
    assert selection.since_best([evaluation(2, 0.5), evaluation(4, 0.4), evaluation(6, 0.6)]) == 0


def test_a_run_stops_by_the_task_metric_and_a_resumed_one_knows_what_was_measured(
    tokenizer: Any, tmp_path: Path
) -> None:
    class Scripted(selection.Selection):
        """A metric that rises once and then stays; the rows are not answered."""

        def evaluate(self, model: Any) -> dict[str, float]:
            step = running.state.global_step
            return {"validation_score": 0.1 if step == 1 else 0.4, "validation_loss": 2.0 - step / 10}

    def trainer_of(folder: Path) -> Any:
        built = small_trainer(tokenizer, folder, epochs=20, checkpoint_steps=1)
        built.selection = Scripted(examples(2), track("structured"), tokenizer, patience=2)
        return metered(built, folder, selection=tuple(examples(2)))

    running = trainer_of(tmp_path)
    running.train()
    done = selection.figures(running.state.log_history, steps=running.state.max_steps)
    assert (running.state.global_step, running.state.max_steps) == (4, 40)
    assert (done["best_step"], done["validation_score"], done["stopped_early"]) == (4, 0.4, True)
    assert [one["step"] for one in done["evaluations"]] == [1, 2, 3, 4]
    log, before = running.state.log_history, tmp_path / "checkpoint-4"

    running = trainer_of(tmp_path / "again")
    running.train(resume_from_checkpoint=str(before))
    assert running.state.global_step == 5, "one step, and it knows that it is over"
    assert running.state.log_history[: len(log) - 1] == log[:-1], "the last entry sums the attempt up"
    assert selection.history(running.state.log_history) == selection.history(log), "that step is not judged"
    assert not (tmp_path / "again" / "checkpoint-5").exists(), "nor kept"


def test_validation_rows_are_answered_in_the_middle_of_a_training_without_changing_it(
    trainer: Any, tokenizer: Any
) -> None:
    chooser = selection.Selection(examples(5), track("structured"), tokenizer, patience=None)
    trainer.model.train()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    measured = chooser.evaluate(trainer.model)
    assert trainer.model.training
    assert torch.equal(torch.rand(1), expected), "the evaluation drew random numbers"
    assert set(measured) == {"validation_score", "validation_loss"}
    total, tokens = target_loss(trainer.model, tokenizer, examples(5))
    assert measured["validation_loss"] == pytest.approx(total / tokens)


def metered(trainer: Any, folder: Path, *, selection: tuple[Example, ...] = ()) -> Any:
    """The trainer with the meter that every run has."""
    payload = WorkerPayload(
        config=TrainConfig(track="structured", train="t", base="b", run_dir="r", adapters_dir="a", epochs=6),
        rows=None, lengths=(10,) * 8, use_gpu=False, progress_path=str(folder / "run.json"), selection=selection,
    )  # fmt: skip
    meter.Meter(payload, rank=0).attach(trainer)
    return trainer


def test_a_run_that_is_killed_inside_an_epoch_goes_on_with_the_same_loss_at_every_step(
    tokenizer: Any, tmp_path: Path
) -> None:
    class Killed(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 9:
                raise KeyboardInterrupt

    recipe: dict[str, Any] = {
        "epochs": 6,
        "per_device_batch": 2,
        "checkpoint_steps": 7,
        "lora": Lora(rank=4, alpha=8, dropout=0.2),
    }
    runs = [
        metered(small_trainer(tokenizer, tmp_path / name, **recipe), tmp_path) for name in ("one", "other", "again")
    ]
    for run in runs:
        run.args.logging_steps = 5  # the checkpoint of step 7 lies between two logs
    undisturbed, killed, resumed = runs
    undisturbed.train()
    killed.add_callback(Killed())
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "other/checkpoint-7"))
    curves = [progress.curve(run.state.log_history) for run in (undisturbed, resumed)]
    assert [point["step"] for point in curves[0]] == [5, 7, 10, 14, 15, 20, 21, 24]
    assert len(curves[1]) == len(curves[0])
    for one, other in zip(*curves, strict=True):
        assert other == pytest.approx(one, rel=1e-6)


def test_a_run_that_goes_on_saves_as_often_as_its_settings_say_now(tokenizer: Any, tmp_path: Path) -> None:
    first = metered(small_trainer(tokenizer, tmp_path, epochs=1, checkpoint_steps=1), tmp_path)
    first.train()
    again = metered(small_trainer(tokenizer, tmp_path, epochs=4, checkpoint_steps=3), tmp_path)
    saved = []

    class Saves(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            saved.append(state.global_step)

    again.add_callback(Saves())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert saved == [3, 6, 8], "the end is always saved"


def test_a_full_disk_is_named_and_the_checkpoint_before_it_stays_whole(tokenizer: Any, tmp_path: Path) -> None:
    running = metered(small_trainer(tokenizer, tmp_path, epochs=6, checkpoint_steps=2), tmp_path)

    class FullAt(TrainerCallback):  # type: ignore[misc]
        """From step 3 on the kernel refuses files of more than 2 kB, as a full disk refuses all."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    running.add_callback(FullAt())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(Exception) as raised:
            running.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    config = TrainConfig(track="structured", train="t", base="b", run_dir="r", adapters_dir="a")
    assert not failures.is_lost(raised.value)
    assert str(failures.explained(raised.value, config, "runs/x")).startswith(
        "no space left for the checkpoints of runs/x"
    )
    again = small_trainer(tokenizer, tmp_path / "again", epochs=6, checkpoint_steps=50)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 12


class StandInNvml:
    """A stand-in for NVIDIA's driver library on machines without a GPU: what it answers is invented."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, fails_at: str = "") -> None:
        self._fails_at = fails_at

    def __getattr__(self, name: str) -> Any:
        if name == self._fails_at:
            raise self.NVMLError(name)
        return lambda *_: SimpleNamespace(gpu=97, used=5, total=24)


def test_a_card_is_read_from_the_driver_library_and_one_that_says_nothing_is_not_shown() -> None:
    assert gpu_of(1, "GPU-1", StandInNvml()) == progress.Gpu(rank=1, load_percent=97, used_bytes=5, total_bytes=24)
    assert gpu_of(0, "GPU-1", StandInNvml(fails_at="nvmlInit")) is None
    assert gpu_of(0, "MIG-1", StandInNvml(fails_at="nvmlDeviceGetUtilizationRates")) is None
    assert gpu_of(0, "GPU-1", pynvml) is None or torch.cuda.is_available()


def test_progress_is_written_at_a_step_and_in_the_silence_of_a_long_one(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_EVERY_S", 0.05)
    running = small_trainer(tokenizer, tmp_path / "out", epochs=2)
    path = tmp_path / "run.json"
    payload = WorkerPayload(
        config=TrainConfig(track="structured", train="t", base="b", run_dir="r", adapters_dir="a", epochs=2),
        rows=None, lengths=(10,) * 8, use_gpu=False, progress_path=str(path),
    )  # fmt: skip
    watched, seen = meter.Meter(payload, rank=0), list[Any]()

    class LongStep(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 2:
                path.unlink()
                while (now := progress.read(path)) is None:
                    time.sleep(0.01)
                seen.append(now)

    running.add_callback(LongStep())
    watched.attach(running)
    running.train()
    (silence,) = seen
    assert (silence.step, silence.steps) == (2, 4)
    assert silence.eta_s > 0 < silence.tokens_per_s
    figures, now = watched.figures(), watched.now()
    assert now is not None
    last = progress.read(path)
    assert isinstance(last, progress.Progress)
    assert last.step == now.step == 4
    assert (figures["steps"], figures["tokens"], figures["gpus"]) == (4, 160, 0)
    assert figures["loss_last"] == pytest.approx(now.loss, rel=1e-3), "the last step's own loss"


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


def test_every_checkpoint_gets_its_note(trainer: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=3)
    NoteParity(trainer, precision="4bit").on_save(args, state, None)
    written = json.loads((tmp_path / "checkpoint-3" / NOTE).read_text())
    assert decode(written, Note, where="", fix="") == note(trainer, precision="4bit")


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
    judged = track("structured")
    found = summary(judged, row_scores(trainer.model, tokenizer, examples(3), judged))
    assert 0.0 <= found["validation_score"] == found["exact_match"] <= 1.0
    assert "json_valid" in found
    assert len(found["validation_rows"]) == 3
    assert sum(found["validation_rows"]) / 3 == pytest.approx(found["validation_score"])


def test_an_answer_ends_where_the_base_says_that_it_does(tmp_path: Path) -> None:
    """Phi-4's turns end in a token that is not the tokenizer's end of text."""

    class SaysEnd(torch.nn.Module):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            calls.append(hidden.shape[1])
            logits = torch.zeros(*hidden.shape[:2], len(phi))
            logits[..., end if len(calls) > 2 else word] = 9.0
            return logits

    base = make_base(tmp_path / "phi", family="phi4")
    phi, calls = open_tokenizer(base), list[int]()
    end, word = phi.convert_tokens_to_ids("<|end|>"), phi("yes", add_special_tokens=False)["input_ids"][0]
    assert end != phi.eos_token_id
    model = open_base(base, Recipe(precision="16bit"), use_gpu=False, longest=100)
    model.set_output_embeddings(SaysEnd())
    (answer,) = validation_score.generate(model, phi, examples(1))
    assert len(calls) == 3
    assert answer == phi.decode([word, word]).strip()


def test_an_answer_that_does_not_end_is_cut_by_its_own_target_whoever_is_beside_it(tmp_path: Path) -> None:
    class NeverEnds(torch.nn.Module):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(*hidden.shape[:2], len(llama))
            logits[..., word] = 9.0
            return logits

    base = make_base(tmp_path / "llama", family="llama31")
    llama = open_tokenizer(base)
    word = llama("yes", add_special_tokens=False)["input_ids"][0]
    model = open_base(base, Recipe(precision="16bit"), use_gpu=False, longest=100)
    model.set_output_embeddings(NeverEnds())
    short, long, endless = (dataclasses.replace(examples(1)[0], target="go on " * times) for times in (1, 9, 999))
    together = validation_score.generate(model, llama, [short, long])
    assert together == [validation_score.generate(model, llama, [one])[0] for one in (short, long)]
    limits = [validation_score.answer_limit(llama, one) for one in (short, long, endless)]
    assert [text.count(llama.decode([word])) for text in together] == limits[:2]
    assert limits[0] < 45 < limits[1] < limits[2] == ANSWER_TOKENS


def test_the_validation_loss_is_the_mean_over_the_tokens_that_training_learns(trainer: Any, tokenizer: Any) -> None:
    trainer.model.eval()
    total, tokens = target_loss(trainer.model, tokenizer, examples(8))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    assert tokens == int((batch["labels"] != -100).sum())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = Trainer.compute_loss(trainer, trainer.model, dict(batch))
    assert total / tokens == pytest.approx(stock.item(), rel=5e-3)


def test_the_logits_of_long_answers_are_never_built_all_at_once(
    trainer: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    remember = trainer.model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: built.append(logits.shape[0] * logits.shape[1])
    )
    long = [dataclasses.replace(example, target="answer " * 20) for example in examples(8)]
    try:
        whole = target_loss(trainer.model, tokenizer, long)
        monkeypatch.setattr(validation_score, "_BATCH_TOKENS", 100)
        parts = target_loss(trainer.model, tokenizer, long)
    finally:
        remember.remove()
    assert parts[1] == whole[1]
    assert parts[0] == pytest.approx(whole[0], rel=5e-3)
    assert max(built[1:]) < 150 < built[0]


def test_a_model_that_answers_keeps_the_bits_of_its_base(packed: Any, tokenizer: Any) -> None:
    weights = [part.weight for part in packed.modules() if isinstance(part, Linear4bit)]
    before = [(weight.data.clone(), weight.quant_state.absmax.clone()) for weight in weights]
    target_loss(packed, tokenizer, examples(2))
    assert len(weights) == 7 * 4 and all(weight.quant_state.nested for weight in weights)
    for weight, (bits, scales) in zip(weights, before, strict=True):
        assert torch.equal(weight.data, bits) and torch.equal(weight.quant_state.absmax, scales)


def test_a_log_repeats_no_line() -> None:
    said: set[str] = set()
    assert progress.news(["a: starting workers", "b: step 1/9"], said) == ["a: starting workers", "b: step 1/9"]
    assert progress.news(["a: starting workers", "b: step 2/9"], said) == ["b: step 2/9"]
    assert progress.news(["a: step 1/9", "b: step 2/9"], said) == ["a: step 1/9"]


def test_progress_is_read_back_and_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert progress.read(path) is None
    assert progress.line("run", None, 400.0) == "run: waiting for a slot (who holds them: ray status)"
    progress.start(path)
    starting = progress.read(path)
    assert progress.line("run", starting, 3.0) == "run: starting workers"
    assert progress.line("run", starting, 64.0).startswith("run: starting workers for 60 s; if others hold")
    assert progress.line("run", starting, 64.0) == progress.line("run", starting, 88.0), "no line for each second"
    now = progress.Progress(step=3, steps=10, loss=1.25, tokens_per_s=2000.0, eta_s=12.4)
    progress.write(path, now)
    assert progress.read(path) == now
    assert progress.line("run", now) == "run: step 3/10, loss 1.250, 2,000 tokens/s, 12 s left"
    cards = tuple(
        progress.Gpu(rank=rank, load_percent=90 + rank, used_bytes=18_000_000_000, total_bytes=24_000_000_000)
        for rank in range(2)
    )
    busy = dataclasses.replace(now, gpus=cards)
    progress.write(path, busy)
    assert progress.read(path) == busy
    assert progress.line("run", busy).endswith("12 s left, GPU 90 % 18.0/24 GB | 91 % 18.0/24 GB")
    path.write_text(json.dumps({"step": 3})[:-2])
    assert progress.read(path) is None


def test_a_training_that_fails_writes_no_more_progress(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_EVERY_S", 0.01)
    payload = WorkerPayload(
        config=TrainConfig(track="structured", train="t", base="b", run_dir="r", adapters_dir="a", epochs=6),
        rows=None, lengths=(10,) * 8, use_gpu=False, progress_path=str(tmp_path / "run.json"),
    )  # fmt: skip

    class Fails(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 2:
                raise ValueError

    running, before = small_trainer(tokenizer, tmp_path / "out", epochs=6), threading.enumerate()
    running.add_callback(Fails())
    with pytest.raises(ValueError):
        worker.run(running, meter.Meter(payload, rank=0))
    for thread in set(threading.enumerate()) - set(before):
        thread.join(timeout=5.0)
        assert not thread.is_alive(), thread
