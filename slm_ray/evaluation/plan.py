"""What an evaluation is about to do, checked in full before anything starts: rows, models, log keys.

No call is made and nothing is written. A key holds the data, the row, the model, the body to be sent and the repeat, so
that a changed setting asks again and an unchanged one never does. Rows that a model was trained on are refused here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from slm_ray import adapters
from slm_ray.config import EvaluateConfig
from slm_ray.corpus import render
from slm_ray.corpus.leakage import question_hash, question_hashes, refuse_leakage
from slm_ray.corpus.tracks import Track
from slm_ray.costs.data_residency import is_loopback
from slm_ray.errors import ConfigError, DataError, choices
from slm_ray.evaluation.asking_order import AskingOrder, drawn, largest_group, run_lengths, whole_rounds
from slm_ray.evaluation.few_shot import Demonstrations, open_demonstrations
from slm_ray.providers import ModelSpec, Provider, parse
from slm_ray.providers.request import request_body
from slm_ray.runlog import PlannedRequest, Request, RunLog, request_key
from slm_ray.scoring import row_metrics
from slm_ray.tasks import Dataset, open_dataset
from slm_ray.types import Example, ModelFacts, Prompt, Rounds


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


def asked_on_loopback(arms: Sequence[Arm]) -> str:
    """Why all arms have to be asked from the driver's node, in words; empty where every node reaches every endpoint."""
    for arm in arms:
        if arm.facts.host is not None and is_loopback(arm.facts.host):
            return (
                f"{arm.spec} is asked at {arm.facts.host}, which is another machine on every node: ask for less, or give an"
                " address that all nodes reach (serving.host: 0.0.0.0 and a key)"
            )
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows and the arms of one evaluation, rows in the order in which they are asked.

    `order` is what a drawn order follows from; None: rows are asked as they stand in the file. `rounds` is what the rule
    looks after. `left_out` counts training rows that no arm is shown: they are asked.
    """

    track: Track
    examples: tuple[Example, ...]
    arms: tuple[Arm, ...]
    digest: str
    prompts_digest: str = ""
    left_out: int = 0
    order: AskingOrder | None = None
    rounds: Rounds = ()

    def upto(self, rows: Mapping[str, int]) -> Plan:
        """The plan of the first rows only: so many for each arm, by spec."""
        count = max(rows.values())
        ids = [row.id for row in self.examples]
        arms = tuple(
            replace(
                arm, keys=(cut := [{key: keys[key] for key in ids[: rows[arm.spec]]} for keys in arm.repeats])[0],
                again=tuple(cut[1:]),
            )
            for arm in self.arms
        )  # fmt: skip
        return replace(self, examples=self.examples[:count], arms=arms)

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
    if config.stops_when_decided and len(models) < 2:
        raise ConfigError(
            f"models: only {models[0].spec}; stop: when_decided needs two or more, the LLM first: name a candidate, or set"
            " stop: never"
        )
    dataset = open_dataset(config.examples, config.track)
    _refuse_unknown_guardrails(config, dataset.track)
    further = [open_dataset(path, config.track) for path in config.extensions]
    parts, rounds = _parts(config, dataset, further)
    rows = tuple(row for _, part in parts for row in part)
    _refuse_training_rows(config, models, parts, train_prompts or {})
    shown = open_demonstrations(
        config.demonstrations or config.train, models, config.track, dataset.examples, retriever=config.retriever
    )
    if shown:
        for one in further:  # to leave them out now would change what the first rows were shown
            refuse_leakage(
                one.examples, question_hashes(shown.rows), rows=f"rows of {one.path}", trained_name="demonstrations"
            )
    arms = tuple(_arm(model, config, environment, parts, shown) for model in models)
    digests = tuple(data for data, _ in parts)
    return Plan(
        track=dataset.track, examples=rows, arms=arms, prompts_digest=_prompts_digest(rows, arms),
        digest=render.digest([*dataset.examples, *(row for one in further for row in one.examples)])
        if further else digests[0],
        left_out=shown.left_out if shown else 0,
        order=AskingOrder(
            seed=config.generation.seed, files=digests, largest_group=largest_group(dataset.examples),
            stratify=config.declare.stratify,
        ) if config.declare and config.is_sequential else None,
        rounds=rounds,
    )  # fmt: skip


def _refuse_unknown_guardrails(config: EvaluateConfig, track: Track) -> None:
    """ConfigError for a declared guardrail that no row will have; an encoder adds metrics once all rows are answered."""
    if config.declare is None or (config.encoder is not None and not config.is_sequential):
        return
    known = row_metrics(track)
    for name in config.declare.guardrails:
        if name not in known:
            raise ConfigError(f"declare.guardrails: {name!r} is no metric of a row: {choices(name, known)}")


_Parts = list[tuple[str, tuple[Example, ...]]]


def _parts(config: EvaluateConfig, dataset: Dataset, further: Sequence[Dataset]) -> tuple[_Parts, Rounds]:
    """The rows to ask, in their order, by the file that they are of, each with its digest; and the rounds, if stratified.

    A digest is that of a whole file: a smoke test on its first rows is the start of the full run, and a run that is added
    to keeps its answers.
    """
    if config.declare is None or not config.is_sequential:
        return [(dataset.digest, dataset.examples[: config.limit])], ()
    earlier = list(dataset.examples)
    for one in further:
        _refuse_unfit(one, dataset, earlier)
        earlier += one.examples
    stratify = config.declare.stratify
    orders = [(one.digest, drawn(one.examples, config.generation.seed, stratify)) for one in (dataset, *further)]
    kept = whole_rounds([round_ for _, order in orders for round_ in order], config.limit)
    left = iter(kept)
    parts = [
        (data, tuple(row for groups in itertools.islice(left, len(order)) for group in groups for row in group))
        for data, order in orders
    ]
    return parts, run_lengths(kept) if stratify else ()


def _refuse_unfit(further: Dataset, first: Dataset, earlier: Sequence[Example]) -> None:
    """DataError for rows that were there before, share a group with those, or have larger groups than the bets allow."""
    if further.track != first.track:
        raise DataError(f"{further.path}: its track is not that of {first.path}; give rows of one track")
    asked, ids = question_hashes(earlier), {row.id for row in earlier}
    groups = {row.group for row in earlier} - {None}
    for what, found in (
        ("ask what earlier rows ask", [row.id for row in further.examples if question_hash(row) in asked]),
        ("have the id of an earlier row", [row.id for row in further.examples if row.id in ids]),
        ("are of the group of an earlier row", [row.id for row in further.examples if row.group in groups]),
    ):
        if found:
            raise DataError(
                f"{further.path}: {len(found)} of {len(further.examples)} rows {what} ({', '.join(found[:3])}); extend takes"
                " fresh rows only: take them out"
            )
    most = largest_group(first.examples)
    if (largest := largest_group(further.examples)) > most:
        raise DataError(
            f"{further.path}: a group of {largest} rows, and {first.path} has none of more than {most}, by which the"
            " sequential rule sized its bets; give groups of at most as many rows, or evaluate these rows"
            " alone, in another run_dir"
        )


def _arm(
    model: ModelSpec, config: EvaluateConfig, environment: Mapping[str, str], parts: _Parts,
    shown: Demonstrations | None,
) -> Arm:  # fmt: skip
    rows = tuple(row for _, part in parts for row in part)
    provider = model.provider.bind(rows, shown.files if shown else None)
    who = provider.identity(endpoint=config.endpoint, environment=environment)
    prompts = shown.prompts(rows, model.demonstrations) if shown else {}
    repeats: tuple[dict[str, str], ...] = tuple({} for _ in range(config.repeats))
    for data, row in ((data, row) for data, part in parts for row in part):
        body = request_body(prompts.get(row.id, row.prompt), config.generation)
        for repeat, keys in enumerate(repeats):
            keys[row.id] = request_key(data, row.id, who, body, repeat)
    return Arm(
        spec=model.spec, provider=provider, facts=model.facts(endpoint=config.endpoint, environment=environment),
        environment=provider.select(environment), keys=repeats[0], again=repeats[1:], prompts=prompts,
    )  # fmt: skip


def _refuse_training_rows(
    config: EvaluateConfig,
    models: Sequence[ModelSpec],
    parts: _Parts,
    train_prompts: Mapping[str, Set[str]],
) -> None:
    seen = dict(train_prompts)
    for model in models if config.adapters_dir else ():
        adapter = model.provider.adapter
        if adapter:
            seen[model.spec] = adapters.train_prompts(config.adapters_dir, adapter)
    if config.train:
        seen[config.train] = open_dataset(config.train, config.track).question_hashes
    for path, (_, rows) in zip((config.examples, *config.extensions), parts, strict=True):
        for where, trained in seen.items():
            refuse_leakage(rows, trained, rows=f"rows of {path}", trained_name=where)


def _prompts_digest(rows: tuple[Example, ...], arms: tuple[Arm, ...]) -> str:
    shown = hashlib.sha256()
    for arm in arms:
        for row in rows:
            shown.update(repr(arm.prompts.get(row.id, row.prompt)).encode())
    return shown.hexdigest()
