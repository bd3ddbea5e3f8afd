"""What a model's calls cost and how they went, whatever the answers say, summed one answer at a time."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slm_ray.records import Attempts, Breakdown, Metrics, ModelReport, Noise
from slm_ray.types import Completion, ModelFacts, Percentiles, Usage

STAND_IN = "stand-in:"
_KINDS = 1000  # reasons that are told apart: one that names its row must not be kept a hundred thousand times
_SHOWN = 3


class CallStats:
    """Latencies are seconds over answered rows; usage includes failed calls that were billed."""

    def __init__(self) -> None:
        self._rows = self._calls = self._possibly_billed = 0
        self._latencies, self._firsts = array("d"), array("d")
        self._usage = Usage()
        self._served_by: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, answer: Completion) -> None:
        """Count one answer."""
        self._rows += 1
        self._calls += answer.attempts
        self._possibly_billed += answer.possibly_billed
        if answer.text is not None and answer.latency_s is not None:
            self._latencies.append(answer.latency_s)
        if answer.text is not None and answer.first_token_s is not None:
            self._firsts.append(answer.first_token_s)
        if answer.usage is not None:
            self._usage += answer.usage
        if answer.served_by is not None:
            self._served_by.add(answer.served_by)
        if answer.failure is not None:
            self._failures[answer.failure.kind] += 1
            if answer.failure.in_transport and (answer.failure.reason in self._reasons or len(self._reasons) < _KINDS):
                self._reasons[answer.failure.reason] += 1

    def report(
        self,
        facts: ModelFacts,
        *,
        metrics: Metrics,
        issues: Mapping[str, int],
        analysis: Breakdown,
        trained_on: int,
        noise: Noise | None,
    ) -> ModelReport:
        """The model's report, with what its scores say; no percentile of nothing, none of first tokens nobody saw."""
        served_by = tuple(sorted(self._served_by))
        return ModelReport(
            facts=replace(facts, stand_in=any(name.startswith(STAND_IN) for name in served_by)),
            n=self._rows,
            metrics=metrics,
            latency_s=_percentiles(self._latencies, 50, 95, 99),
            first_token_s=_percentiles(self._firsts, 50, 95) if self._firsts else None,
            usage=self._usage,
            attempts=Attempts(
                calls=self._calls, retried=self._calls - self._rows, possibly_billed=self._possibly_billed
            ),
            failures=dict(sorted(self._failures.items())),
            error_reasons=dict(sorted(self._reasons.items(), key=_commonest)[:_SHOWN]),
            served_by=served_by,
            issues=issues,
            analysis=analysis,
            trained_on=trained_on,
            noise=noise,
        )


def _commonest(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]


def _percentiles(values: Sequence[float], *shares: int) -> Percentiles:
    return Percentiles(**{f"p{share}": float(np.percentile(values, share)) for share in shares if values})
