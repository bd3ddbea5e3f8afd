"""One evaluation from config to report: plan, ask what is not yet answered, score, write.

The run directory holds config.yaml, ledger.sqlite, report.json, scores.jsonl and traces.jsonl, and one process owns it.
Stopped at any point (Ctrl-C, SIGTERM, a kill, a lost node), the same command continues; with nothing left to ask it
touches neither Ray nor a model and writes the same report again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NoReturn

from slm_ray.config import EvaluateConfig, dump
from slm_ray.corpus.tracks import Track
from slm_ray.encoders import Encoder
from slm_ray.evaluation.generate import Answer, Question
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import Arm, Plan, plan
from slm_ray.evaluation.score import entries, write_report
from slm_ray.ledger import Entry, Ledger
from slm_ray.scoring import score
from slm_ray.storage import lock, write_text
from slm_ray.tracing import Tracer
from slm_ray.types import Completion, RowScore

LEDGER = "ledger.sqlite"
CONFIG = "config.yaml"


def evaluate(
    config: EvaluateConfig,
    *,
    environment: Mapping[str, str] | None = None,
    train_prompts: Mapping[str, Set[str]] | None = None,
) -> dict[str, Any]:
    """Ask every model every example, score, and return the report (also in `run_dir`).

    `environment` is where keys are read (the process's own when not given); `train_prompts` holds, by model spec, the
    prompt hashes that an adapter was trained on. Raises ConfigError, DataError or ModelError before any call for what
    can be known by then, ModelError when a model refuses every call, ResourceError when the run directory is in use.
    """
    environment = os.environ if environment is None else environment
    tracer = Tracer(config.run_dir, environment, adapters_dir=config.adapters_dir)
    planned = plan(config, environment)
    encode = Encoder(config.encoder).tokens if config.encoder else None
    run_dir = Path(config.run_dir)
    with lock(run_dir), Ledger(run_dir / LEDGER) as ledger:
        write_text(run_dir / CONFIG, dump(config))
        work = {
            arm.spec: [
                Question(key=arm.keys[row.id], example_id=row.id, prompt=row.prompt)
                for row in arm.pending(planned.examples, ledger)
            ]
            for arm in planned.arms
        }
        if any(work.values()):
            _ask(planned, work, config, ledger)
        return write_report(planned, entries(planned, ledger), run_dir, train_prompts or {}, tracer, encode=encode)


def _ask(planned: Plan, work: Mapping[str, list[Question]], config: EvaluateConfig, ledger: Ledger) -> None:
    """Ask the pending rows on Ray; every answer is in the ledger before it shows."""
    from slm_ray import cluster
    from slm_ray.evaluation.actors import ask_all  # Ray takes seconds to import, and a finished run needs none of it

    cluster.connect()
    references = {row.id: row.reference for row in planned.examples}
    with Board(planned.track, [arm.spec for arm in planned.arms], len(planned.examples)) as board, _interruptible():
        for arm in planned.arms:
            _show_finished(board, planned, arm, {question.example_id for question in work[arm.spec]}, ledger)

        def hear(arm: Arm, answers: list[Answer]) -> None:
            ledger.put_all(_entry(arm, answer) for answer in answers)
            for answer in answers:
                score = _score(planned.track, answer.example_id, answer.completion, references[answer.example_id])
                board.add(arm.spec, score, failed=answer.completion.failure is not None, fresh=True)
            board.show()

        def grant(arm: Arm, questions: Sequence[Question]) -> int:
            return len(questions)

        ask_all(work, planned.arms, config, grant=grant, on_answers=hear, on_tick=board.show)


def _show_finished(board: Board, planned: Plan, arm: Arm, pending: set[str], ledger: Ledger) -> None:
    for row in planned.examples:
        completion = ledger.get(arm.keys[row.id]) if row.id not in pending else None
        if completion is not None:
            score = _score(planned.track, row.id, completion, row.reference)
            board.add(arm.spec, score, failed=completion.failure is not None, fresh=False)


def _entry(arm: Arm, answer: Answer) -> Entry:
    return Entry(
        key=answer.key, spec=arm.spec, example_id=answer.example_id,
        completion=answer.completion, answered_ns=answer.answered_ns,
    )  # fmt: skip


def _score(track: Track, example_id: str, completion: Completion, reference: str) -> RowScore:
    return score(track, example_id, completion.text, reference)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that actors are killed and the ledger is closed.

    Needed here because `ray.init` puts a handler of its own in place of the job's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
