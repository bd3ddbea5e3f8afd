"""The records of a load measurement: what a model did at each rate of arrivals, and the most that it carries.

They hold values only (`slm_ray.load` measures them) and are what `load.json` holds; a figure that is not known is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from slm_ray.types import Billing, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A quantile of times in seconds with its 95 % interval.

    A request without an answer counts as later than any: None where the quantile, or that bound, falls on one of them.
    `upper` is None too where so few requests say nothing of how late the quantile may be.
    """

    value: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of one kind of times; None where too few requests were sent to speak of it."""

    p50: Quantile | None
    p95: Quantile | None
    p99: Quantile | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRate:
    """One rate: `sent` requests arrived at `requests_per_s` on average; each was answered, refused (429, 503) or failed.

    Latencies begin at the intended arrival. `answered_per_s` is over `seconds`, from the first arrival to the last answer.
    `client_late_s` is by how much this client itself sent late, its 99th percentile. `usd` is what these calls cost by the
    token, those without an answer that may have been billed at their most; None where they have no price.
    """

    requests_per_s: float
    sent: int
    answered: int
    refused: int
    failed: int
    seconds: float
    answered_per_s: float
    latency_s: Quantiles
    first_token_s: Quantiles | None
    client_late_s: float
    usage: Usage
    usd: float | None
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The most requests per second that were answered with a p95 of `p95_target_s` or less.

    `fails_at` is the next higher rate measured, which missed it; None where no such rate was tried, so that more may be
    possible. `usd_per_thousand` is the cost of 1,000 requests at that rate, of a machine without idle time or by the token.
    `on_cpu`: what answered is known to have had no GPU, whatever the machine of the price is called.
    """

    requests_per_s: float
    p95_s: float
    p95_target_s: float
    fails_at: float | None
    usd_per_thousand: float | None
    on_cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """One model: where it answered (`identity`, without secrets), its rates in rising order, and the most it carries.

    `on_cpu` as in `Throughput`.
    """

    identity: str
    billing: Billing
    on_cpu: bool = False
    rates: tuple[LoadRate, ...] = ()
    most: Throughput | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Calls that were or may have been billed, their tokens and USD."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """A whole measurement, by spec. `settings` are those that make its rates comparable.

    `rows` are the prompts that requests were made of. `spent` counts all calls so far, and `begun` the most that the rate under way may have cost: after a kill nobody knows.
    """

    schema_version: int
    rows: int
    settings: Mapping[str, str]
    machine: str
    hourly_usd: float
    models: Mapping[str, ModelLoad]
    spent: Spending = Spending()
    begun: Spending = Spending()
