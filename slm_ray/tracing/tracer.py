"""The trace of a run as its job sees it: written at once, offered to Langfuse for a moment, never in the way.

What a run may spend on Langfuse is bounded by the clock, not by good behaviour of a server: the sending runs in a thread
that is left behind when its time is up (a host name that does not resolve, bytes that drip, all of it). An evaluation
spends at most 4 % of the time it took, so that Langfuse down, slow or full stays within 5 %; a comparison or a training
run 3 s. What did not get through is one warning line with the command that sends the rest. No result depends on it.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.errors import SlmRayError
from slm_ray.records import Report
from slm_ray.tracing.delivery import Delivery
from slm_ray.tracing.delivery_log import DeliveryLog
from slm_ray.tracing.file import write_run
from slm_ray.tracing.langfuse import Langfuse
from slm_ray.tracing.replay import folders_of, lineage, send_folders
from slm_ray.tracing.retry_policy import Problem, RetryPolicy
from slm_ray.tracing.spans import Entries, Lineage, Rows, Run, comparison, evaluation, training
from slm_ray.types import Comparison, Decision

_SHARE, _MOST_S, _MOMENT_S = 0.04, 30.0, 3.0
_SETTLE_S = 5.0


class Tracer:
    """Traces one run of one folder, given by its path or by that of a file in it, such as a report.

    Make it when the run begins: what sending may take is measured from there.
    """

    def __init__(self, run_dir: str | Path, environment: Mapping[str, str], *, adapters_dir: str | None = None) -> None:
        path = Path(run_dir)
        self._folder = path.parent if path.is_file() else path
        self._environment = environment
        self._adapters_dir = adapters_dir
        self._began_s = time.monotonic()

    def evaluation(self, report: Report, rows: Rows, answers: Entries) -> None:
        """Write and offer an evaluation that has its report."""
        origins = lineage([model.facts for model in report.models.values()], self._adapters_dir)
        self._offer(evaluation(report, rows, answers, origins), self._share_s)

    def comparison(self, found: Comparison, decision: Decision) -> None:
        """Write and offer a comparison; done again, it stays as it was."""
        self._offer(comparison(found, decision, at_ns=time.time_ns()), lambda: _MOMENT_S)

    def training(
        self, name: str, *, origin: Lineage, metrics: Mapping[str, Any], curve: Sequence[Mapping[str, float]],
        bounds_ns: tuple[int, int],
    ) -> None:  # fmt: skip
        """Write and offer a training run that is over."""
        run = training(name, lineage=origin, metrics=metrics, curve=curve, bounds_ns=bounds_ns)
        self._offer(run, lambda: _MOMENT_S)

    def _share_s(self) -> float:
        return min(_MOST_S, _SHARE * (time.monotonic() - self._began_s))

    def _offer(self, run: Run, budget_s: Callable[[], float]) -> None:
        langfuse = Langfuse.from_environment(self._environment)
        if langfuse is not None:  # the sending has a thread of its own, which may not read the log
            run = dataclasses.replace(run, spans=tuple(run.spans))
        try:
            write_run(self._folder, run)
        except SlmRayError as error:
            _warn(f"the trace is not kept: {error}")
            if langfuse is not None:
                langfuse.close()
            return
        if langfuse is None:
            return

        def send(retry: RetryPolicy) -> None:
            retry.call(langfuse.check)
            Delivery(run, langfuse, DeliveryLog(self._folder, langfuse.destination), retry, settle_s=_SETTLE_S).run()

        _bounded(send, budget_s(), langfuse, self._folder)


def offer_all(run_dir: str | Path, environment: Mapping[str, str], *, took_s: float) -> None:
    """Offer all runs below a directory, as a replay would, within the share of the time that they took."""
    langfuse = Langfuse.from_environment(environment)
    if langfuse is None:
        return
    root = Path(run_dir)

    def send(retry: RetryPolicy) -> None:
        send_folders(folders_of(root), langfuse, retry, settle_s=_SETTLE_S)

    _bounded(send, min(_MOST_S, _SHARE * took_s), langfuse, root)


def _bounded(send: Callable[[RetryPolicy], None], budget_s: float, langfuse: Langfuse, folder: Path) -> None:
    """Let `send` have `budget_s` and no more; one warning when it did not get to its end."""
    retry = RetryPolicy(budget_s)
    problem: str | None = "the sending broke off"

    def work() -> None:
        nonlocal problem
        try:
            send(retry)
            problem = None
        except (Problem, SlmRayError, OSError) as error:
            problem = str(error)
        finally:
            langfuse.close()

    sender = threading.Thread(target=work, name="langfuse", daemon=True)
    sender.start()
    sender.join(budget_s)
    retry.stop()
    if problem and (sender.is_alive() or retry.is_over()):
        problem = f"not done within {budget_s:.2g} s"
    if problem:
        _warn(
            f"{langfuse.url} does not have all traces of {folder} ({problem}); nothing is lost, "
            f"and this sends the rest: slm-ray trace {shlex.quote(str(folder))}"
        )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
