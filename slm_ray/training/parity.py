"""The trainer's side of the parity check: what it saw and answered, and what PEFT answers over the saved files.

`NoteParity` writes a `slm_ray.parity.Note` into every checkpoint, from TRL's own tokenised rows and the model in memory;
nothing is tokenised a second time. `reference` loads base and adapter as they will be served and follows given tokens.
Both run where torch and PEFT are: in a worker or a Ray task, never in a driver that does not need them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, TrainerCallback

from slm_ray.answer_distance import Position, Positions
from slm_ray.errors import ModelError
from slm_ray.parity import (
    POSITIONS,
    TOP,
    Note,
    NotedRow,
    Reference,
    Served,
    ServedAnswer,
    chosen_rows,
)
from slm_ray.reports.encoding import encode
from slm_ray.storage import write_json
from slm_ray.training.proof import NOTE


class NoteParity(TrainerCallback):  # type: ignore[misc]
    """Writes the note into each checkpoint folder; add it before whatever hands the folder on, on one rank only."""

    def __init__(self, trainer: Any, *, precision: str) -> None:
        self._trainer, self._precision = trainer, precision

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_json(folder / NOTE, encode(note(self._trainer, precision=self._precision)))


def note(trainer: Any, *, precision: str) -> Note:
    """What `trainer` sees of some of its rows, and what its model answers to them at this moment.

    Costs one pass over each of `parity.ROWS` rows; changes no weight and draws no random number.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    rows = trainer.train_dataset
    noted = []
    with _answering(model):
        for row in chosen_rows([len(ids) for ids in rows["input_ids"]]):
            prompt, answer = prompt_and_answer(rows[row])
            noted.append(
                NotedRow(row=row, prompt=prompt, answer=answer, trained=follow(model, prompt, answer[:POSITIONS]))
            )
    return Note(rows=tuple(noted), scaling=scaling(model), precision=precision)


def prompt_and_answer(tokenised: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A row of TRL's dataset: the tokens before its last run of learned tokens, and that run, the answer."""
    labels, ids = list(tokenised["labels"]), [int(token) for token in tokenised["input_ids"]]
    end = max(place for place, label in enumerate(labels) if label != -100) + 1
    start = next((place + 1 for place in range(end - 1, -1, -1) if labels[place] == -100), 0)
    return tuple(ids[:start]), tuple(ids[start:end])


def scaling(model: Any) -> float:
    """The factor of B·A, which must be one for all layers; ModelError when layers differ, as vLLM has one only."""
    factors = {
        round(float(part.scaling[name]), 9)
        for part in model.modules() if isinstance(part, LoraLayer)
        for name in part.scaling
    }  # fmt: skip
    if len(factors) != 1:
        raise ModelError(
            f"the adapter's layers are scaled by {sorted(factors)}, a server takes one factor; leave out rank_pattern and alpha_pattern"
        )
    return float(factors.pop())


def follow(
    model: Any, prompt: Sequence[int], answer: Sequence[int], listed: Sequence[Sequence[int]] | None = None
) -> Positions:
    """What `model` says at each position of `answer`, after the prompt and the answer's own earlier tokens.

    Its `parity.TOP` most probable tokens and the answer's own; with `listed` its most probable one and those listed.
    """
    if not answer:
        return ()
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.topk(1 if listed is not None else TOP, dim=-1).indices.tolist()
    found = []
    for place, token in enumerate(answer):
        tokens = dict.fromkeys([*best[place], *(listed[place] if listed is not None else ()), token])
        top = [(one, round(float(logprobs[place, one]), 4)) for one in tokens]
        found.append(Position(token=token, top=tuple(sorted(top, key=lambda entry: -entry[1]))))
    return tuple(found)


def reference(
    base: Path,
    adapter: Path,
    *,
    note: Note | None,
    served: Served | None,
    others: Mapping[str, Path],
    use_gpu: bool,
) -> Reference:
    """PEFT's answers over the folders `base` and `adapter` in bf16; `others` are adapters it may have been taken for.

    Holds the base once, about 2 bytes per parameter, and a few layers of an adapter at a time.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, device_map={"": 0} if use_gpu else None, local_files_only=True
    )
    model = PeftModel.from_pretrained(loaded, str(adapter), adapter_name="adapter", autocast_adapter_dtype=False)
    model.eval()
    asked = served.adapter if served else ()
    with model.disable_adapter():
        noted_base = _follow_note(model, note)
        followed_base = _follow_served(model, served.base if served else ())
        alternatives = {"no adapter": _follow_served(model, asked)}
    found = Reference(
        scaling=scaling(model), all_b_zero=_all_b_zero(model), stop_tokens=_stop_tokens(loaded),
        noted=_follow_note(model, note), noted_base=noted_base, base=followed_base, adapter=_follow_served(model, asked),
    )  # fmt: skip
    for name, factor in _wrong_factors(model).items():
        with _scaled(model, factor):
            alternatives[name] = _follow_served(model, asked)
    for name, folder in others.items():
        model.load_adapter(str(folder), adapter_name="other", autocast_adapter_dtype=False)
        model.set_adapter("other")
        alternatives[f"the adapter {name}"] = _follow_served(model, asked)
        model.delete_adapter("other")
    return Reference(**{**_fields(found), "alternatives": alternatives})


def _fields(found: Reference) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Reference.__dataclass_fields__}


def _follow_note(model: Any, note: Note | None) -> tuple[Positions, ...]:
    rows = note.rows if note else ()
    return tuple(follow(model, row.prompt, row.answer[:POSITIONS], _listed(row.trained)) for row in rows)


def _follow_served(model: Any, answers: Sequence[ServedAnswer]) -> tuple[Positions, ...]:
    return tuple(
        follow(model, answer.prompt, [one.token for one in answer.positions], _listed(answer.positions))
        for answer in answers
    )


def _listed(positions: Positions) -> list[list[int]]:
    return [[token for token, _ in one.top] for one in positions]


def _wrong_factors(model: Any) -> dict[str, float]:
    """Faults of a server that scale the adapter, by what they multiply its own factor with."""
    factors = {"alpha doubled": 2.0, "alpha halved": 0.5}
    settings = model.peft_config["adapter"]
    if settings.use_rslora:
        factors["rsLoRA ignored"] = settings.r**-0.5
    return factors


@contextlib.contextmanager
def _scaled(model: Any, factor: float) -> Iterator[None]:
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    for layer in layers:
        layer.scaling["adapter"] *= factor
    try:
        yield
    finally:
        for layer in layers:
            layer.scaling["adapter"] /= factor


@contextlib.contextmanager
def _answering(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _all_b_zero(model: Any) -> bool:
    return not any(
        bool(parameter.any()) for name, parameter in model.named_parameters() if ".lora_B." in name
    )  # fmt: skip


def _stop_tokens(model: Any) -> tuple[int, ...]:
    stop = model.generation_config.eos_token_id
    return () if stop is None else tuple(stop if isinstance(stop, list) else [stop])
