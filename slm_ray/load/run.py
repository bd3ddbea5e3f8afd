"""One load measurement from config to load.json: every rate against every model, then the search for the most that holds.

Models are measured one after the other, each rate by itself. `load.json` is written after each rate, and the same command
continues behind the last one that was finished; a rate that was broken off is measured again. Neither Ray nor the
evaluation's limiter is in the way: a rate is sent as it is, and nothing is tried again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from slm_ray import storage
from slm_ray.config import LoadConfig
from slm_ray.costs.cost import on_cpu
from slm_ray.errors import ConfigError, ResourceError
from slm_ray.evaluation.budget import Budget, Spent, prices_of
from slm_ray.evaluation.provenance import versions
from slm_ray.load.arrivals import Arrival, Call, poisson, send
from slm_ray.load.progress import LoadProgress
from slm_ray.load.quantiles import quantiles
from slm_ray.load.search import most, next_rate
from slm_ray.load_records import LoadRate, LoadReport, ModelLoad, Spending
from slm_ray.providers import Provider, parse
from slm_ray.records import SCHEMA_VERSION
from slm_ray.reports.encoding import check_version, decode, encode
from slm_ray.runlog import Request
from slm_ray.signals import SignalGuard
from slm_ray.tasks import Dataset, open_dataset
from slm_ray.types import Completion, ModelFacts, Usage

RESULT = "load.json"
SEARCH_STEPS = 4  # further rates, each between the highest that held the target and the next that did not
_REASONS = 3
_SENT = (
    "max_tokens",
    "temperature",
    "seed",
    "timeout_s",
    "stream",
    "logprobs",
)  # of `generation`: what a rate depends on
_AGAIN = "give another run_dir, or remove the file to measure again"


def measure(config: LoadConfig, *, environment: Mapping[str, str] | None = None) -> LoadReport:
    """Measure what is not measured yet, write `RUN_DIR/load.json` and return it.

    Raises ConfigError, DataError or ModelError before any call for what can be known by then, ModelError for a key or name
    that every call would fail with, ResourceError when a budget ends the measurement.
    """
    environment = os.environ if environment is None else environment
    dataset = open_dataset(config.examples, config.track)
    models = {spec: _provider(spec, dataset, environment) for spec in config.models}
    facts = {spec: one.facts(endpoint=config.endpoint, environment=environment) for spec, one in models.items()}
    prices = prices_of(config, list(facts.values()))
    # One call for one arrival. Without a second attempt the deadline, which rate limits wait for, is over at once.
    once = config.generation.model_copy(update={"max_attempts": 1, "retry_deadline_s": 0.0})
    config = config.model_copy(update={"generation": once})
    path = Path(config.run_dir) / RESULT
    with storage.lock(config.run_dir):
        identities = {
            spec: one.identity(endpoint=config.endpoint, environment=environment) for spec, one in models.items()
        }
        report = _begun(config, path, dataset, identities, facts)
        budget = Budget(config, prices)
        budget.spent = Spent(**asdict(report.spent))
        run = _Run(config=config, path=path, dataset=dataset, budget=budget, facts=facts, report=report)
        with LoadProgress() as progress, SignalGuard():
            for spec, provider in models.items():
                chosen = sorted(set(config.rates))
                for rate in chosen:
                    run.rate(spec, provider, rate, environment, progress)
                for _ in range(SEARCH_STEPS):  # of these rates alone, so that the same command takes the same steps
                    seen = [one for one in run.report.models[spec].rates if one.requests_per_s in chosen]
                    between = next_rate(seen, config.p95_s, duration_s=config.duration_s)
                    if between is None:
                        break
                    run.rate(spec, provider, between, environment, progress)
                    chosen.append(between)
        run.write()  # nothing may have been measured, and another target or price tell something else of what is there
        return run.report


def _provider(spec: str, dataset: Dataset, environment: Mapping[str, str]) -> Provider:
    model = parse(spec)
    if model.needs_training_rows:
        raise ConfigError(f"{spec} needs training rows, and a load is of an endpoint; name the model alone")
    model.provider.check(environment)
    return model.provider.bind(dataset.examples, None)


def _begun(
    config: LoadConfig, path: Path, dataset: Dataset, identities: Mapping[str, str], facts: Mapping[str, ModelFacts]
) -> LoadReport:
    """What is measured already, with the prices and the target of now; a new report where there is none."""
    settings = {
        "examples": dataset.digest,
        "duration_s": f"{config.duration_s:g}",
        "generation": json.dumps({name: getattr(config.generation, name) for name in _SENT}),
    }
    new = LoadReport(
        schema_version=SCHEMA_VERSION, rows=len(dataset.examples), settings=settings, machine=config.cost.machine,
        hourly_usd=config.cost.hourly_usd, models={},
    )  # fmt: skip
    if path.exists():
        plain = storage.read_json(path)
        check_version(plain, where=str(path), fix=_AGAIN)
        earlier = decode(plain, LoadReport, where=str(path), fix=_AGAIN)
        for name, value in settings.items():
            if earlier.settings.get(name) != value:
                raise ConfigError(
                    f"{path} was measured with another {name} ({earlier.settings.get(name)} there, {value} now), and its"
                    f" rates say nothing of this one; {_AGAIN}"
                )
        # A rate that was under way when the process was killed may have been billed in full.
        spent = Spending(
            **{name: value + getattr(earlier.begun, name) for name, value in asdict(earlier.spent).items()}
        )
        new = replace(new, models=earlier.models, spent=spent)
    models = dict(new.models)
    for spec, identity in identities.items():
        if spec in models and models[spec].identity != identity:
            raise ConfigError(f"{path} holds {spec} of another address ({models[spec].identity}); {_AGAIN}")
        no_gpu = on_cpu(facts[spec], versions())
        models.setdefault(spec, ModelLoad(identity=identity, billing=facts[spec].billing, on_cpu=no_gpu))
    return replace(new, models={spec: _rated(one, config) for spec, one in models.items()})


def _rated(model: ModelLoad, config: LoadConfig) -> ModelLoad:
    found = most(model.rates, config.p95_s, model.billing, config.cost.hourly_usd, on_cpu=model.on_cpu)
    return replace(model, most=found)


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """The measurement under way; `report` is what `path` holds."""

    config: LoadConfig
    path: Path
    dataset: Dataset
    budget: Budget
    facts: Mapping[str, ModelFacts]
    report: LoadReport

    def rate(
        self, spec: str, provider: Provider, rate: float, environment: Mapping[str, str], progress: LoadProgress
    ) -> None:
        """Measure one rate unless it is measured already."""
        model = self.report.models[spec]
        if any(math.isclose(one.requests_per_s, rate) for one in model.rates):
            return
        config = self.config
        arrivals = poisson(
            self.dataset.examples, rate, config.duration_s, seed=config.generation.seed, name=f"{spec} {rate:g}/s"
        )
        # The first call opens a connection and may load an adapter; nobody wants to know that of a rate.
        first = replace(arrivals[0], at_s=0.0, key=f"{arrivals[0].key} first")
        self.write(begun=self._worst(spec, [first, *arrivals]))
        progress.begin(spec, rate, len(arrivals))
        try:
            found = asyncio.run(self._calls(spec, provider, first, arrivals, environment, progress))
        finally:
            self.write()
        if found is None:
            spent = self.budget.spent
            raise ResourceError(
                f"{self.budget.blocked_by} does not allow another call: {spec} at {rate:g} requests/s is not measured;"
                f" spent at most {spent.calls} calls, {spent.tokens} tokens, {spent.usd:.4f} USD; finished rates are in"
                f" {self.path}, and the same command with a higher {str(self.budget.blocked_by).split()[0]} continues"
            )
        calls, usd = found
        measured = rate_of(calls, rate, seed=config.generation.seed, usd=usd)
        progress.end(measured)
        rates = sorted([*model.rates, measured], key=lambda one: one.requests_per_s)
        models = {**self.report.models, spec: _rated(replace(model, rates=tuple(rates)), config)}
        self.report = replace(self.report, models=models)
        self.write()

    async def _calls(
        self, spec: str, provider: Provider, first: Arrival, arrivals: Sequence[Arrival],
        environment: Mapping[str, str], progress: LoadProgress,
    ) -> tuple[list[Call], float | None] | None:  # fmt: skip
        """All calls of a rate and what they cost, both without the first one; None where the budget ended it."""
        config = self.config
        model = provider.open(endpoint=config.endpoint, generation=config.generation, environment=environment)

        def may_send(arrival: Arrival) -> bool:
            return self.budget.reserve(
                Request(key=arrival.key, spec=spec, example_id=arrival.example_id, prompt=arrival.prompt)
            )

        def on_call(arrival: Arrival, completion: Completion | None) -> None:
            if completion is None:
                self.budget.charge_worst_case(spec, arrival.prompt)
            else:
                self.budget.charge(spec, arrival.key, arrival.prompt, completion)
                progress.advance(completion)

        try:
            if await send(model, [first], may_send=may_send, on_call=on_call) is None:
                return None
            before = self.budget.usd(spec)
            calls = await send(model, arrivals, may_send=may_send, on_call=on_call)
            after = self.budget.usd(spec)
            usd = None if before is None or after is None else after - before
            return None if calls is None else (calls, usd)
        finally:
            await model.close()

    def _worst(self, spec: str, arrivals: Sequence[Arrival]) -> Spending:
        each = [self.budget.worst(spec, arrival.prompt) for arrival in arrivals]
        return Spending(calls=len(each), tokens=sum(one.tokens for one in each), usd=math.fsum(one.usd for one in each))

    def write(self, *, begun: Spending | None = None) -> None:
        """Put the report on disk with what is spent; `begun` is the most that what starts now may cost."""
        spent = self.budget.spent
        spending = Spending(calls=spent.calls, tokens=spent.tokens, usd=spent.usd)
        self.report = replace(self.report, spent=spending, begun=begun or Spending())
        storage.write_json(self.path, encode(self.report))


def rate_of(calls: Sequence[Call], requests_per_s: float, *, seed: int, usd: float | None) -> LoadRate:
    """The figures of one rate."""
    answered = [call for call in calls if call.is_answered]
    refused = [call for call in calls if call.is_refused]
    ends = [call.at_s + call.latency_s for call in answered]
    begun_s = min(call.at_s for call in calls)
    seconds = max(ends, default=begun_s) - begun_s
    streamed = any(call.first_token_s is not None for call in answered)
    reasons = Counter(_reason(call) for call in calls if not call.is_answered)
    return LoadRate(
        requests_per_s=requests_per_s,
        sent=len(calls),
        answered=len(answered),
        refused=len(refused),
        failed=len(calls) - len(answered) - len(refused),
        seconds=round(seconds, 6),
        answered_per_s=round(len(answered) / seconds, 6) if answered else 0.0,
        latency_s=quantiles([call.latency_s if call.is_answered else None for call in calls], seed=seed),
        first_token_s=quantiles([call.first_token_s for call in calls], seed=seed) if streamed else None,
        client_late_s=round(float(np.percentile([call.late_s for call in calls], 99)), 6),
        usage=sum((call.completion.usage for call in calls if call.completion.usage), Usage()),
        usd=usd,
        reasons=dict(reasons.most_common(_REASONS)),
    )


def _reason(call: Call) -> str:
    failure = call.completion.failure
    return "" if failure is None else failure.reason
