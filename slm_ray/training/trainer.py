"""TRL's SFTTrainer as this house runs it: settings from the recipe, batches of like length, loss on answers only.

The order of rows depends on the seed and the epoch alone, so every rank agrees on it and a resumed run goes on where it
was. (The stock length-grouped sampler draws from the global generator: with dropout and rows of different lengths the
ranks drift apart and train on overlapping rows.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from slm_ray.config import Recipe
from slm_ray.errors import TrainingError
from slm_ray.training.model import keep_masters_in_fp32
from slm_ray.training.plan import CPU_THREADS
from slm_ray.training.rows import Tokens
from slm_ray.training.selection import Selection

_POOL = 8  # global batches that are sorted by length together
_WIDTH = 16  # tokens
_LOGS = 25  # reports of a run, at most about this many
_SCHEDULES = {
    "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine_with_restarts",
    "constant": "constant_with_warmup",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One optimizer step of one rank: `loss` is that of its whole batch, `grad_norm` that of all ranks, before clipping."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


def diverged(now: StepFigures, before: StepFigures, steps: int, recipe: Recipe) -> str:
    """What to say of a step whose loss or gradients are no numbers; `before` is the step before it in this attempt."""
    figures = (
        f"step {now.step} of {steps}: loss {now.loss:g}, gradient norm {now.grad_norm:g} at learning rate "
        f"{now.learning_rate:.2g}"
    )
    if now.step == 1:
        return (
            f"no number from the first step on ({figures}): nothing has been learned yet, so it is not the rate. The base's "
            "weights hold NaN or overflow in this precision; download it again, or take another one. Nothing is published"
        )
    past = f"; the step before had loss {before.loss:.3f}, gradient norm {before.grad_norm:.3g}" if before.step else ""
    return (
        f"training diverged at {figures}{past}. Lower learning_rate (now {recipe.learning_rate:g}, try "
        f"{recipe.learning_rate / 10:g}) or raise warmup_steps (now {recipe.warmup_steps}). Nothing is published"
    )


class LengthGroupedSampler(Sampler[int]):  # type: ignore[misc]
    """Row numbers, shuffled by seed and epoch, rows of like length in the same global batch; a short batch comes last."""

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed = lengths, global_batch, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed}/{self.epoch}")
        order = list(range(len(self._lengths)))
        chance.shuffle(order)
        whole = len(order) - len(order) % self._batch
        pooled = []
        for start in range(0, whole, self._batch * _POOL):
            pooled += sorted(order[start : min(start + self._batch * _POOL, whole)], key=self._lengths.__getitem__)
        batches = [pooled[start : start + self._batch] for start in range(0, whole, self._batch)]
        chance.shuffle(batches)
        yield from (row for batch in batches for row in batch)
        yield from order[whole:]


class _Resumed(TrainerCallback):  # type: ignore[misc]
    """What a resumed run would get wrong: which epoch begins, which accelerate does not tell the sampler inside an epoch,
    and how often to save, which the checkpoint remembers and the settings may say otherwise since."""

    def __init__(self, order: LengthGroupedSampler) -> None:
        self._order = order

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        state.save_steps = args.save_steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._order.epoch = int(state.epoch)


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with fp32 LoRA weights, our sampler and no model card beside every checkpoint."""

    control: Any

    def __init__(self, *, recipe: Recipe, **rest: Any) -> None:
        self._recipe = recipe
        self.latest = StepFigures(step=0, loss=math.nan, grad_norm=math.nan, learning_rate=0.0)
        self.selection: Selection | None = None
        self._losses: list[torch.Tensor] = []
        super().__init__(**rest)
        keep_masters_in_fp32(self.model)

    def training_step(self, *args: Any, **rest: Any) -> torch.Tensor:
        """One micro-batch, as the stock trainer; its loss is kept until the optimizer steps."""
        loss: torch.Tensor = super().training_step(*args, **rest)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Between the gradients and the step that would spoil the weights: TrainingError unless all is finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        now = StepFigures(
            step=self.state.global_step + 1, loss=float(torch.stack(self._losses).sum()), grad_norm=float(norm),
            learning_rate=float(self._get_learning_rate()),
        )  # fmt: skip
        self._losses.clear()
        if not (math.isfinite(now.loss) and math.isfinite(now.grad_norm)):
            raise TrainingError(diverged(now, self.latest, self.state.max_steps, self._recipe))
        self.latest = now
        return norm

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        recipe = self._recipe
        batch = recipe.per_device_batch * recipe.gradient_accumulation * self.args.world_size
        order = LengthGroupedSampler([len(ids) for ids in rows["input_ids"]], batch, recipe.seed)
        self.add_callback(_Resumed(order))
        return order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the answer tokens of all ranks: TRL's own on a GPU, on CPU the same sum, sooner.

        TRL's fused head saves memory by computing every prompt token's log-probability and entropy in fp32 chunks, 40 %
        of a step here, and gathers four figures per step across ranks. On CPU the head is asked for the answers' tokens
        alone: for the columns from the first to the last of them it took another tenth of a step.
        """
        if not self.args.use_cpu or return_outputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        learned = inputs["labels"][:, 1:] != -100
        wanted = inputs["labels"][:, 1:][learned]
        learned = learned[:, int(learned.any(0).nonzero()[0]) :]
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        answers_alone = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][:, :-1][learned],))
        try:
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False,
                logits_to_keep=learned.shape[1] + 1,
            ).logits  # fmt: skip
        finally:
            answers_alone.remove()
        self._metrics["train"]["mean_token_accuracy"].append(
            (logits.detach().argmax(-1) == wanted).float().mean().item()
        )
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum") / num_items_in_batch
        # The count is over all ranks, and DDP divides the gradients by their number.
        return loss * self.accelerator.num_processes

    def evaluate(self, *args: Any, **rest: Any) -> dict[str, float]:
        """The validation rows by the model so far, into the log; the run ends here when they have stopped it."""
        if self.selection is None:
            return dict(super().evaluate(*args, **rest))
        figures = self.selection.evaluate(self.accelerator.unwrap_model(self.model))
        self.log(figures)
        if self.selection.is_over(self.state.log_history):
            self.control.should_training_stop = True
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the manifest says what the adapter is."""


def build(
    model: Any,
    tokenizer: Any,
    rows: Tokens | Dataset,
    recipe: Recipe,
    *,
    folder: str,
    use_gpu: bool,
    steps: int,
    report_to: str = "none",
) -> AdapterTrainer:
    """A trainer over tokenised rows, or the `train_dataset` of a trainer before it, that checkpoints to `folder`."""
    args = SFTConfig(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.per_device_batch,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=_SCHEDULES[recipe.schedule],
        lr_scheduler_kwargs={"num_cycles": max(1, round(recipe.epochs))} if "restarts" in recipe.schedule else {},
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=recipe.optimizer,
        max_length=None,
        packing=False,
        # oneDNN compiles its CPU kernels per shape: few widths, few compilations, for some padding.
        pad_to_multiple_of=None if use_gpu else _WIDTH,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=True,
        use_cpu=not use_gpu,
        gradient_checkpointing=use_gpu,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=use_gpu,
        dataloader_num_workers=0,
        logging_steps=max(1, steps // _LOGS),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.checkpoint_steps,
        save_total_limit=1,
        report_to=report_to,
        disable_tqdm=True,
        log_level="error",
    )
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_dict(rows.columns)
    trainer = AdapterTrainer(recipe=recipe, model=model, args=args, processing_class=tokenizer, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    return trainer


def optimizer_name(trainer: Any) -> str:
    """The class that really steps, under accelerate's wrapper."""
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return f"{type(inner).__module__.split('.')[0]}.{type(inner).__name__}"


def deterministic(seed: int, use_gpu: bool) -> None:
    """Same seed, same bits, as far as the kernels allow; warns nowhere."""
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory finds reads of uninitialised tensors; it changes no result and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not use_gpu:
        torch.set_num_threads(CPU_THREADS)
