"""What an evaluation is about to do, checked in full before anything starts: rows, models, log keys.

No call is made and nothing is written. A key holds the data, the row, the model, the body to be sent and the repeat, so
that a changed setting asks again and an unchanged one never does. Rows that a model was trained on are refused here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from slm_ray import adapters
from slm_ray.config import EvaluateConfig
from slm_ray.corpus.leakage import refuse_leakage
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.evaluation.few_shot import Demonstrations, open_demonstrations
from slm_ray.providers import ModelSpec, Provider, parse
from slm_ray.providers.request import request_body
from slm_ray.runlog import PlannedRequest, Request, RunLog, request_key
from slm_ray.tasks import open_dataset
from slm_ray.types import Example, ModelFacts, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model of the evaluation. `spec` is its name in the report, `provider` opens it on any worker.

    `keys` are the log keys by example id, `again` those of the further repeats. `prompts` are what it is shown, by
    example id, where that is not the example's own prompt.
    """

    spec: str
    provider: Provider
    facts: ModelFacts
    environment: Mapping[str, str] = field(repr=False)
    keys: Mapping[str, str]
    again: tuple[Mapping[str, str], ...] = ()
    prompts: Mapping[str, Prompt] = field(default_factory=dict, repr=False)

    @property
    def repeats(self) -> tuple[Mapping[str, str], ...]:
        """The keys by example id of every repeat, from the first."""
        return (self.keys, *self.again)

    def pending(self, examples: tuple[Example, ...], log: RunLog) -> list[Request]:
        """What has no finished answer yet, repeat by repeat."""
        return [
            Request(
                key=keys[row.id], spec=self.spec, example_id=row.id, prompt=self.prompts.get(row.id, row.prompt),
                repeat=repeat,
            )
            for repeat, keys in enumerate(self.repeats)
            for row in examples
            if not log.is_finished(keys[row.id])
        ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows and the arms of one evaluation. `left_out` counts training rows that no arm is shown: they are asked."""

    track: Track
    examples: tuple[Example, ...]
    arms: tuple[Arm, ...]
    digest: str
    prompts_digest: str = ""
    left_out: int = 0

    @property
    def id(self) -> str:
        """16 hex digits that two plans share when they ask the same."""
        parts = "\n".join(request.key for request in self.requests())
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def requests(self) -> Iterator[PlannedRequest]:
        """Everything that the plan asks."""
        for arm in self.arms:
            for repeat, keys in enumerate(arm.repeats):
                for example_id, key in keys.items():
                    yield PlannedRequest(key=key, spec=arm.spec, example_id=example_id, repeat=repeat)


def plan(
    config: EvaluateConfig, environment: Mapping[str, str], train_prompts: Mapping[str, Set[str]] | None = None
) -> Plan:
    """Read the rows and check every model; raises the one line that says what is missing.

    `train_prompts` are prompt hashes of rows that a model, by spec, was trained on. DataError when one of them is asked.
    """
    repeated = sorted({spec for spec in config.models if config.models.count(spec) > 1})
    if repeated:
        raise ConfigError(f"models: {', '.join(repeated)} is listed twice; list every model once")
    models = [parse(spec) for spec in config.models]
    for model in models:
        model.provider.check(environment)
    dataset = open_dataset(config.examples, config.track)
    # The digest is that of the whole file: a smoke test on its first rows is the start of the full run.
    data, rows = dataset.digest, dataset.examples[: config.limit]
    _refuse_training_rows(config, models, rows, train_prompts or {})
    shown = open_demonstrations(config.demonstrations or config.train, models, config.track, dataset.examples)
    arms = tuple(_arm(model, config, environment, data, rows, shown) for model in models)
    return Plan(
        track=dataset.track, examples=rows, arms=arms, digest=data, prompts_digest=_prompts_digest(rows, arms),
        left_out=shown.left_out if shown else 0,
    )  # fmt: skip


def _arm(
    model: ModelSpec, config: EvaluateConfig, environment: Mapping[str, str], data: str, rows: tuple[Example, ...],
    shown: Demonstrations | None,
) -> Arm:  # fmt: skip
    provider = model.provider.bind(rows, shown.files if shown else None)
    who = provider.identity(endpoint=config.endpoint, environment=environment)
    prompts = {row.id: shown.prompt(row.prompt, k) for row in rows} if shown and (k := model.demonstrations) else {}
    bodies = ((row.id, request_body(prompts.get(row.id, row.prompt), config.generation)) for row in rows)
    repeats: tuple[dict[str, str], ...] = tuple({} for _ in range(config.repeats))
    for example_id, body in bodies:
        for repeat, keys in enumerate(repeats):
            keys[example_id] = request_key(data, example_id, who, body, repeat)
    return Arm(
        spec=model.spec, provider=provider, facts=model.facts(endpoint=config.endpoint, environment=environment),
        environment=provider.select(environment), keys=repeats[0], again=repeats[1:], prompts=prompts,
    )  # fmt: skip


def _refuse_training_rows(
    config: EvaluateConfig,
    models: Sequence[ModelSpec],
    rows: tuple[Example, ...],
    train_prompts: Mapping[str, Set[str]],
) -> None:
    seen = dict(train_prompts)
    for model in models if config.adapters_dir else ():
        adapter = model.provider.adapter
        if adapter and config.adapters_dir:
            seen[model.spec] = adapters.train_prompts(config.adapters_dir, adapter)
    if config.train:
        seen[config.train] = open_dataset(config.train, config.track).question_hashes
    for where, trained in seen.items():
        refuse_leakage(rows, trained, rows=f"rows of {config.examples}", trained_name=where)


def _prompts_digest(rows: tuple[Example, ...], arms: tuple[Arm, ...]) -> str:
    shown = hashlib.sha256()
    for arm in arms:
        for row in rows:
            shown.update(repr(arm.prompts.get(row.id, row.prompt)).encode())
    return shown.hexdigest()
