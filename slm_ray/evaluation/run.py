"""One evaluation from config to report: plan, ask what is not yet answered, score, write.

The run directory holds config.yaml, log/, report.json, scores.jsonl, answers.parquet and traces.jsonl, and one process
owns it. Stopped at any point (Ctrl-C, SIGTERM, a kill, a lost node), the same command continues; with nothing left to ask
it touches neither Ray nor a model and writes the same report again. Recorded answers and baselines need no Ray either.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from slm_ray.config import Declaration, EvaluateConfig, dump
from slm_ray.corpus.render import prompt_hash
from slm_ray.encoders import similar_by
from slm_ray.errors import ConfigError, ResourceError, SlmRayError
from slm_ray.evaluation.asking_order import keep_order
from slm_ray.evaluation.budget import Budget, prices_of
from slm_ray.evaluation.local import ask_here, is_local
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.progress import LogFeed, ProgressDisplay
from slm_ray.evaluation.provenance import commands
from slm_ray.evaluation.score import sequential_run, write_report
from slm_ray.evaluation.stopping import SequentialSettings, Stopping
from slm_ray.executor import RayExecutor
from slm_ray.records import Report
from slm_ray.remote import addressed
from slm_ray.reports.candidates import candidate_of, reserve, said
from slm_ray.reports.files import CONFIG, declare, declared_in, declared_rule
from slm_ray.runlog import (
    RUN_FILE,
    LogWriter,
    Request,
    RunLog,
    await_writers,
    begin_note,
    encoded,
    end_note,
    write_plan,
)
from slm_ray.scoring import score_all
from slm_ray.signals import SignalGuard
from slm_ray.storage import lock, write_text
from slm_ray.tracing import Tracer
from slm_ray.types import DeclaredRule


def evaluate(
    config: EvaluateConfig,
    *,
    environment: Mapping[str, str] | None = None,
    train_prompts: Mapping[str, Set[str]] | None = None,
) -> Report:
    """Ask every model every example, score, and return the report (also in `run_dir`).

    `environment` is where keys are read (the process's own when not given); `train_prompts` holds, by model spec, the
    prompt hashes that an adapter was trained on. Raises ConfigError, DataError or ModelError before any call for what
    can be known by then, ModelError when a model refuses every call, ResourceError when the run directory is in use.
    """
    environment = os.environ if environment is None else environment
    tracer = Tracer(config.run_dir, environment, adapters_dir=config.adapters_dir)
    planned = plan(config, environment, train_prompts)
    prices = prices_of(config, [arm.facts for arm in planned.arms])
    executor = RayExecutor()
    similar = similar_by(config.encoder, executor=executor) if config.encoder else None
    run_dir = Path(config.run_dir)
    with lock(run_dir), contextlib.closing(RunLog(run_dir)) as log:
        _refuse_other_rule(config)
        if planned.order is not None:
            keep_order(run_dir, planned.order)
        write_text(run_dir / CONFIG, dump(addressed(config)))
        await_writers(log.folder)
        log.read()
        stopping = _stopping(planned, config, log)
        stops = stopping if config.stops_when_decided else None
        asked = [arm for arm in planned.arms if stops is None or stops.is_needed(arm.spec)]
        requests = [request for arm in asked for request in arm.pending(planned.examples, log)]
        answered = sum(log.is_finished(request.key) for request in planned.requests())
        if config.declare is not None:
            declare(run_dir, _declared(config.declare, planned, answers_before=answered))
        if requests:
            try:
                _ask(planned, requests, config, log, Budget(config, prices), stopping)
            finally:
                if stopping is not None:  # whoever watched has seen these answers, whether he compares them or not
                    _levels(planned, config, log, stopping.settings.llm, list(stopping.settings.levels))
        del requests  # one for every row, and the report needs none
        return write_report(
            planned, log, config, train_prompts or {}, tracer, similar=similar,
            score_all=partial(score_all, executor=executor),
            sequential=sequential_run(planned, log, config, stopping, Budget(config, prices)) if stopping else None,
            rows={arm.spec: stops.rows_of(arm.spec) for arm in planned.arms} if stops else None,
        )  # fmt: skip


def _declared(settings: Declaration, planned: Plan, *, answers_before: int) -> DeclaredRule:
    """What the verdict on the planned rows is to be made by."""
    return declared_rule(
        settings, planned.track, examples=planned.digest, rows=len(planned.examples), answers_before=answers_before,
        baselines=[arm.spec for arm in planned.arms if arm.facts.kind == "baseline"],
    )  # fmt: skip


def _refuse_other_rule(config: EvaluateConfig) -> None:
    """A run directory has rows in a drawn order or in that of their file, whatever is declared for it later."""
    declared = declared_in(config.run_dir)
    if declared is not None and (declared.rule == "sequential") != config.is_sequential:
        asked = "in a drawn order" if declared.rule == "sequential" else "not asked in a drawn order"
        wanted = f"rule: {config.declare.rule}" if config.declare else "a run that declares nothing"
        raise ConfigError(
            f"{config.run_dir} was declared under the rule {declared.rule}, and its rows are {asked};"
            f" choose another run_dir for {wanted}"
        )


def _stopping(planned: Plan, config: EvaluateConfig, log: RunLog) -> Stopping | None:
    """The sequential rule on what is answered already; None where another rule is declared.

    A failed call does not count yet: it is asked again.
    """
    if config.declare is None or planned.order is None:
        return None
    llm, *others = planned.arms
    candidates = [config.slm] if config.slm else [arm.spec for arm in others if arm.facts.kind != "baseline"]
    settings = SequentialSettings(
        llm=llm.spec, levels=_levels(planned, config, log, llm.spec, candidates), delta=config.declare.delta,
        companions=tuple(arm.spec for arm in others if arm.spec not in candidates),
        guardrails=planned.track.guardrails_with(config.declare.guardrails),
        largest_group=planned.order.largest_group, rounds=planned.rounds,
    )  # fmt: skip
    ahead = config.generation.concurrency if config.stops_when_decided else None
    stopping = Stopping(planned.track, planned.examples, settings, ahead)
    for request in planned.requests():
        if request.repeat == 0 and log.is_finished(request.key) and (response := log.response(request.key)):
            stopping.add(request.spec, request.example_id, response.completion)
    return stopping


def _levels(
    planned: Plan, config: EvaluateConfig, log: RunLog, llm: str, candidates: Sequence[str]
) -> dict[str, float]:
    """The error that each candidate may be tested with, beside all that were tried on these rows before.

    Noted with the answers that are there, by which a model of the same name that answers otherwise is another candidate.
    """
    assert config.declare is not None and planned.order is not None
    now = _declared(config.declare, planned, answers_before=0)
    there = {
        (request.spec, request.example_id): response.completion
        for request in planned.requests()
        if request.repeat == 0 and log.is_finished(request.key) and (response := log.response(request.key))
    }
    hashes = {row.id: prompt_hash(row.prompt) for row in planned.examples}
    tried = [
        candidate_of(
            now, llm=llm, slm=slm, order=(planned.order.seed, planned.order.files[0]),
            rows=[(found, said(there.get((llm, row)), there.get((slm, row)))) for row, found in hashes.items()],
        )
        for slm in candidates
    ]  # fmt: skip
    return reserve(tried, config.run_dir, examples=config.examples, planned=config.declare.candidates)


def _ask(
    planned: Plan, requests: Sequence[Request], config: EvaluateConfig, log: RunLog, budget: Budget,
    stopping: Stopping | None,
) -> None:  # fmt: skip
    """Ask the pending requests, on Ray where one is of an endpoint; what is shown comes from the log, which feeds the
    driver's `stopping` too."""
    ask = ask_here if is_local(requests, planned.arms) else _on_ray()
    _charge_earlier(planned, log, budget)
    specs, total = [arm.spec for arm in planned.arms], len(planned.examples) * config.repeats
    display = ProgressDisplay(
        planned.track, specs, total, concurrency=config.generation.concurrency, stopping=stopping,
    )  # fmt: skip
    with display, SignalGuard():
        feed = LogFeed(log, display, planned.requests(), {row.id: row.target for row in planned.examples})
        with _noted(planned, config, log, stopping) as run:
            try:
                result = ask(
                    requests, planned.arms, config, budget, run=run, tick=feed.read,
                    stopping=stopping if config.stops_when_decided else None,
                )  # fmt: skip
            finally:
                feed.read()
    if result.left:
        raise ResourceError(_over_budget(result.left, config, result.budget))


def _on_ray() -> Any:
    """`ask_all`, once there is a cluster."""
    from slm_ray import cluster
    from slm_ray.evaluation.shards import ask_all  # Ray takes seconds to import, and a finished run needs none of it

    cluster.connect()
    return ask_all


def _charge_earlier(planned: Plan, log: RunLog, budget: Budget) -> None:
    """What earlier runs of this plan have spent counts, and what they started without an answer as its worst case.

    Where nothing is made of it the log is not read for it: it may hold a hundred thousand answers.
    """
    if not budget.is_counted:
        return
    shown = {arm.spec: arm.prompts for arm in planned.arms}
    own = {row.id: row.prompt for row in planned.examples}
    requests = {request.key: request for request in planned.requests()}
    for response in log.responses(requests.keys()):
        prompt = shown[response.spec].get(response.example_id, own[response.example_id])
        budget.charge(response.spec, response.key, prompt, response.completion)
    for key, calls in log.in_doubt(requests).items():
        request = requests[key]
        for _ in range(calls):
            budget.charge_worst_case(request.spec, shown[request.spec].get(request.example_id, own[request.example_id]))


def _over_budget(left: int, config: EvaluateConfig, budget: Budget) -> str:
    spent = budget.spent
    return (
        f"{budget.blocked_by} does not allow another call: {left} requests are not asked, and no report is written; spent "
        f"at most {spent.calls} calls, {spent.tokens} tokens, {spent.usd:.4f} USD; what was answered is kept, and the same "
        f"command with a higher {str(budget.blocked_by).split()[0]} continues ({commands(config).resume})"
    )


@contextlib.contextmanager
def _noted(planned: Plan, config: EvaluateConfig, log: RunLog, stopping: Stopping | None) -> Iterator[str]:
    """The log says when the asking begins and ends, for whoever watches the run from elsewhere; gives the run's id."""
    track = config.track if not Path(config.track).is_file() else str(Path(config.track).absolute())
    facts = {
        "examples": str(Path(config.examples).absolute()), "track": track, "models": list(config.models),
        "repeats": config.repeats, "rows": len(planned.examples), "pid": os.getpid(), "host": socket.gethostname(),
        "concurrency": config.generation.concurrency,
        "extend": [str(Path(path).absolute()) for path in config.extensions],
        "sequential": asdict(stopping.settings) if stopping else None, "stops": config.stops_when_decided,
    }  # fmt: skip
    run, ended = uuid.uuid4().hex[:8], "stopped"
    write_plan(log.folder, planned.id, planned.requests())
    writer = LogWriter(log.folder / RUN_FILE)
    try:
        writer.append(encoded([begin_note(run, planned.id, facts)]))
        writer.sync()
        yield run
        ended = "done"
    finally:
        with contextlib.suppress(SlmRayError):  # a full disk is told of by what ended the run
            writer.append(encoded([end_note(ended)]))
            writer.sync()
        writer.close()
