"""One evaluation from config to report: plan, ask what is not yet answered, score, write.

The run directory holds config.yaml, log/, report.json, scores.jsonl, answers.parquet and traces.jsonl, and one process
owns it. Stopped at any point (Ctrl-C, SIGTERM, a kill, a lost node), the same command continues; with nothing left to ask
it touches neither Ray nor a model and writes the same report again.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

from slm_ray.config import Declaration, EvaluateConfig, dump
from slm_ray.encoders import similar_by
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.budget import Budget, prices_of
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.progress import LogFeed, ProgressDisplay
from slm_ray.evaluation.provenance import commands
from slm_ray.evaluation.score import write_report
from slm_ray.executor import RayExecutor
from slm_ray.records import Report
from slm_ray.reports.files import declare, declared_rule
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

CONFIG = "config.yaml"


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
    similar = similar_by(config.encoder, idf=config.encoder_idf, executor=executor) if config.encoder else None
    run_dir = Path(config.run_dir)
    with lock(run_dir), contextlib.closing(RunLog(run_dir)) as log:
        write_text(run_dir / CONFIG, dump(config))
        await_writers(log.folder)
        log.read()
        requests = [request for arm in planned.arms for request in arm.pending(planned.examples, log)]
        answered = sum(1 for _ in planned.requests()) - len(requests)
        if config.declare is not None:
            declare(run_dir, _declared(config.declare, planned, answers_before=answered))
        if requests:
            _ask(planned, requests, config, log, Budget(config, prices))
        del requests  # one for every row, and the report needs none
        scored = partial(score_all, executor=executor)
        return write_report(planned, log, config, train_prompts or {}, tracer, similar=similar, score_all=scored)


def _declared(settings: Declaration, planned: Plan, *, answers_before: int) -> DeclaredRule:
    """What the verdict on the planned rows is to be made by."""
    return declared_rule(
        settings, planned.track, examples=planned.digest, rows=len(planned.examples), answers_before=answers_before,
        baselines=[arm.spec for arm in planned.arms if arm.facts.kind == "baseline"],
    )  # fmt: skip


def _ask(planned: Plan, requests: Sequence[Request], config: EvaluateConfig, log: RunLog, budget: Budget) -> None:
    """Ask the pending requests on Ray; what is shown comes from the log."""
    from slm_ray import cluster
    from slm_ray.evaluation.shards import ask_all  # Ray takes seconds to import, and a finished run needs none of it

    cluster.connect()
    _charge_earlier(planned, log, budget)
    specs, total = [arm.spec for arm in planned.arms], len(planned.examples) * config.repeats
    display = ProgressDisplay(
        planned.track, specs, total, concurrency=config.generation.concurrency, no_progress_bar=config.no_progress_bar
    )
    with display, SignalGuard():
        feed = LogFeed(log, display, planned.requests(), {row.id: row.target for row in planned.examples})
        with _noted(planned, config, log) as run:
            try:
                result = ask_all(requests, planned.arms, config, budget, run=run, tick=feed.read)
            finally:
                feed.read()
    if result.left:
        raise ResourceError(_over_budget(result.left, config, result.budget))


def _charge_earlier(planned: Plan, log: RunLog, budget: Budget) -> None:
    """What earlier runs of this plan have spent counts, and what they started without an answer as its worst case."""
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
        f"command with a higher {str(budget.blocked_by).split()[0]} continues ({commands(config.run_dir).resume})"
    )


@contextlib.contextmanager
def _noted(planned: Plan, config: EvaluateConfig, log: RunLog) -> Iterator[str]:
    """The log says when the asking begins and ends, for whoever watches the run from elsewhere; gives the run's id."""
    track = config.track if not Path(config.track).is_file() else str(Path(config.track).absolute())
    facts = {
        "examples": str(Path(config.examples).absolute()), "track": track, "models": list(config.models),
        "repeats": config.repeats, "rows": len(planned.examples), "pid": os.getpid(), "host": socket.gethostname(),
        "concurrency": config.generation.concurrency,
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
