"""A training run before it starts: rows, lengths, template and base checked, and its name, which follows from the content.

The same config over the same rows and base is the same run, wherever its files lie.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slm_ray import adapters
from slm_ray.config import TrainConfig
from slm_ray.corpus.render import digest
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.training import estimate, rows
from slm_ray.training.base_model import base_folder, open_template, silence_libraries
from slm_ray.training.base_shape import BaseShape, check_recipe
from slm_ray.training.rows import Tokens
from slm_ray.types import Example

RANK = "rank"  # of a checkpoint, in what is reported with it
CPU_THREADS = 1  # of torch, for each worker: a group has as many workers as pay

# Not part of what is learned: where files lie, how often a run saves, what the adapter is proved on.
_INCIDENTAL: Any = {
    "run_dir": True, "adapters_dir": True, "train": True, "base": True, "checkpoint_steps": True, "validation": True,
    "report_to": True, "prove_on": True,
    "mixture": {"__all__": {"train": True}},
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked run: what will be trained on what, under a name that follows from the content.

    `chat_template` says what was decided about the base's; `content_digest` is of rows, base and template together. `tokens`
    are the rows as they are trained on, None until they are tokenised; `lengths` theirs.
    """

    config: TrainConfig
    folder: Path
    examples: tuple[Example, ...]
    lengths: tuple[int, ...]
    base_fingerprint: str
    config_digest: str
    data_digest: str
    chat_template: str
    content_digest: str
    validation: tuple[Example, ...] = ()
    tokens: Tokens | None = None

    @property
    def progress_path(self) -> Path:
        return self.folder / f"{self.config.name}.json"

    @property
    def without_rows(self) -> Plan:
        """The same run, and of its rows the lengths alone: for the many processes that ask for nothing else."""
        return dataclasses.replace(self, examples=(), tokens=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPayload:
    """What the driver hands to every training worker: rows as TRL takes them, `lengths` in tokens per row.

    `rows` is None where a worker has the same rows already.

    `selection` are rows that choose the best checkpoint of a run; `validation` rows score a trial at its end; both as `track`
    says, which lies beside the rows, where a worker may not see it. Where workers do not see the run's folder, `keeper` is an
    actor beside the driver that writes what they tell (`progress.Keeper`), and `checkpoints` the URI where they send those.
    """

    config: TrainConfig
    rows: Tokens | None
    lengths: tuple[int, ...]
    use_gpu: bool
    progress_path: str
    keeper: Any = None
    checkpoints: str = ""
    validation: tuple[Example, ...] = ()
    selection: tuple[Example, ...] = ()
    track: Track | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return estimate.steps(self.config, len(self.lengths))

    @property
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints; where rows choose among them, at least one per epoch."""
        every = self.config.checkpoint_steps
        return min(every, estimate.epoch_steps(self.config, len(self.lengths))) if self.selection else every


def plan(
    config: TrainConfig, *, train: rows.Rows | None = None, meanwhile: Callable[[Path], None] | None = None
) -> Plan:
    """Read and check everything that needs no worker; `train` are some of the rows of `config.train`, None all of them.

    `meanwhile` is called with the run's folder while the rows are tokenised, which takes longest.
    """
    adapters.check_base(config.base, setting="base")
    folder = base_folder(config.base)
    adapters.check_base(str(folder), setting="base")  # what the hub's cache holds of a name may lack files
    check_recipe(BaseShape.read(folder), config)
    read = rows.mixed(train or rows.read(config.train, config.track), config)
    for file, track in rows.files(config):
        rows.refuse_leaks(read, track, beside=file)
    check_report_to(config.report_to)
    tokenizer, template = open_template(folder)
    validation = rows.held_out(config.validation, read, config.track, tokenizer=tokenizer) if config.validation else ()
    fingerprint = adapters.base_fingerprint(folder)
    data_digest = digest(read.examples)
    base = str(folder) if Path(config.base).expanduser().is_dir() else config.base
    checked = Plan(
        config=config, folder=Path(config.run_dir), examples=read.examples, lengths=(), base_fingerprint=fingerprint,
        config_digest="", data_digest=data_digest, chat_template=str(template), validation=validation,
        content_digest=hashlib.sha256(f"{data_digest}{fingerprint}{template.text}".encode()).hexdigest(),
    )  # fmt: skip
    named = varied(checked, config.model_copy(update={"base": base}))
    with ThreadPoolExecutor(1) as thread:
        counted = thread.submit(rows.tokens, read, tokenizer, max_length=config.max_length, learn=config.learn)
        if meanwhile is not None:
            meanwhile(named.folder)
        tokens = counted.result()
    return dataclasses.replace(named, lengths=tuple(tokens.lengths), tokens=tokens)


def varied(planned: Plan, config: TrainConfig) -> Plan:
    """Another recipe for the same rows and base, which are not read again: a run of its own name."""
    settings = json.dumps(config.model_dump(mode="json", exclude=_INCIDENTAL), sort_keys=True)
    if planned.validation:  # they choose what is published, and so does how often they are asked
        settings += f"{digest(planned.validation)}/{config.checkpoint_steps}"
    config_digest = hashlib.sha256(settings.encode()).hexdigest()
    run = hashlib.sha256(f"{config_digest}{planned.content_digest}".encode()).hexdigest()[:12]
    folder = Path(config.run_dir).absolute() / f"{config.name}-{run}"
    return dataclasses.replace(planned, config=config, folder=folder, config_digest=config_digest)


def check_report_to(tracker: str) -> None:
    """ConfigError unless Hugging Face's Trainer can report to this tracker here: its package is installed."""
    if tracker == "none":
        return
    silence_libraries()
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if tracker not in INTEGRATION_TO_CALLBACK:
        raise ConfigError(f"report_to {tracker!r}: {choices(tracker, ['none', *INTEGRATION_TO_CALLBACK])}")
    if tracker not in get_available_reporting_integrations():
        raise ConfigError(
            f"report_to {tracker}: its package is not installed; pip install {tracker}, or set report_to: none"
        )
