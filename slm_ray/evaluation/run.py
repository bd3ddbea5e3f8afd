"""One evaluation from config to report: plan, ask what is not yet answered, score, write.

The run directory holds config.yaml, ledger.sqlite, report.json, scores.jsonl, answers.parquet and traces.jsonl (and, while
actors ask, journals/), and one process owns it.
Stopped at any point (Ctrl-C, SIGTERM, a kill, a lost node), the same command continues; with nothing left to ask it
touches neither Ray nor a model and writes the same report again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from slm_ray.config import EvaluateConfig, dump
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.evaluation.book import Book, pending_in
from slm_ray.evaluation.budget import Budget, prices_of
from slm_ray.evaluation.generate import Question
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.provenance import commands
from slm_ray.evaluation.score import write_report
from slm_ray.fanout import score_all, similar_by
from slm_ray.ledger import Ledger, bring_in
from slm_ray.records import Report
from slm_ray.reports.files import declare
from slm_ray.signals import SignalGuard
from slm_ray.storage import lock, write_text
from slm_ray.tracing import Tracer

LEDGER = "ledger.sqlite"
CONFIG = "config.yaml"
JOURNALS = "journals"


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
    similar = similar_by(config.encoder, idf=config.encoder_idf) if config.encoder else None
    run_dir = Path(config.run_dir)
    with lock(run_dir), Ledger(run_dir / LEDGER) as ledger:
        write_text(run_dir / CONFIG, dump(config))
        bring_in(run_dir / JOURNALS, ledger)
        ledger.plan(planned.id, planned.rows())
        work = pending_in(planned, ledger)
        answered = sum(1 for _ in planned.rows()) - sum(map(len, work.values()))
        declare(run_dir, config.declare, primary=planned.track.primary, answers_before=answered)
        if any(work.values()):
            with _noted(planned, config, ledger):
                _ask(planned, work, config, ledger, Budget(config, prices))
        del work  # a question for every row, and the report needs none
        return write_report(planned, ledger, config, train_prompts or {}, tracer, similar=similar, score_all=score_all)


def _ask(
    planned: Plan, work: Mapping[str, list[Question]], config: EvaluateConfig, ledger: Ledger, budget: Budget
) -> None:
    """Ask the pending rows on Ray; every answer is in the ledger before it shows."""
    from slm_ray import cluster
    from slm_ray.evaluation.actors import ask_all  # Ray takes seconds to import, and a finished run needs none of it

    cluster.connect()
    journals = (Path(config.run_dir) / JOURNALS).absolute()
    specs, total = [arm.spec for arm in planned.arms], len(planned.examples) * config.repeats
    board = Board(planned.track, specs, total, concurrency=config.generation.concurrency, plain=config.no_progress_bar)
    with board, SignalGuard() as guard:
        book = Book(planned, ledger, board, budget, whole=guard.deferred)
        book.open()
        book.show_finished(work)
        try:
            ask_all(work, planned.arms, config, book, journals=journals)
        finally:
            book.close()
            bring_in(journals, ledger)
    left = sum(map(len, work.values())) - book.handed_out
    if left:
        raise ResourceError(_over_budget(left, config, budget))


def _over_budget(left: int, config: EvaluateConfig, budget: Budget) -> str:
    spent = budget.spent
    return (
        f"{budget.blocked_by} does not allow another call: {left} questions are not asked, and no report is written; spent "
        f"at most {spent.calls} calls, {spent.tokens} tokens, {spent.usd:.4f} USD; what was answered is kept, and the same "
        f"command with a higher {str(budget.blocked_by).split()[0]} continues ({commands(config.run_dir).resume})"
    )


@contextlib.contextmanager
def _noted(planned: Plan, config: EvaluateConfig, ledger: Ledger) -> Iterator[None]:
    """The ledger says when the asking begins and ends, for whoever watches the run from elsewhere."""
    track = config.track if not Path(config.track).is_file() else str(Path(config.track).absolute())
    facts = {
        "examples": str(Path(config.examples).absolute()), "track": track, "models": list(config.models),
        "repeats": config.repeats, "rows": len(planned.examples), "pid": os.getpid(), "host": socket.gethostname(),
        "concurrency": config.generation.concurrency,
    }  # fmt: skip
    ledger.begin(planned.id, facts)
    ended = "stopped"
    try:
        yield
        ended = "done"
    finally:
        with contextlib.suppress(SlmRayError):  # a full disk is told of by what ended the run
            ledger.end(planned.id, ended)
