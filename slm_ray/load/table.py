"""A load measurement as a person reads it: one line per rate, and the most that each model carries."""

from __future__ import annotations

from collections.abc import Mapping

from slm_ray.costs.cost import named_cpu
from slm_ray.load_records import LoadRate, LoadReport, ModelLoad, Quantile, Quantiles
from slm_ray.tables import format_table

_LATE = 0.1  # of p95: a client that is itself that late has measured itself
_HEAD = ("requests/s", "answered/s", "p50 s", "p95 s", "95 % interval", "p99 s", "first token p95 s", "sent", "429/503", "errors")  # fmt: skip


def summary(report: LoadReport, *, p95_s: float) -> str:
    """The table of every model, what it carries at a p95 of `p95_s`, and what to doubt."""
    lines: list[str] = []
    for spec, model in report.models.items():
        lines += [spec, *format_table([_HEAD, *(_row(rate) for rate in model.rates)], left=())]
        lines += [f"- {line}" for line in (_most(model, report, p95_s), *_doubts(model.rates, report.rows, p95_s))]
    return "\n".join(lines)


def _row(rate: LoadRate) -> tuple[str, ...]:
    times = rate.latency_s
    first = rate.first_token_s or Quantiles(p50=None, p95=None, p99=None)
    return (
        f"{rate.requests_per_s:g}", f"{rate.answered_per_s:.2f}", _seconds(times.p50), _seconds(times.p95),
        _interval(times.p95), _seconds(times.p99), _seconds(first.p95), str(rate.sent), str(rate.refused),
        str(rate.failed),
    )  # fmt: skip


def _seconds(quantile: Quantile | None) -> str:
    return "-" if quantile is None else "no answer" if quantile.value is None else f"{quantile.value:.3f}"


def _interval(quantile: Quantile | None) -> str:
    if quantile is None:
        return "-"
    lower, upper = ("∞" if bound is None else f"{bound:.3f}" for bound in (quantile.lower, quantile.upper))
    return f"{lower} to {upper}"


def _most(model: ModelLoad, report: LoadReport, p95_s: float) -> str:
    if not model.rates:
        return "no rate is measured"
    if model.most is None:
        return f"no rate held p95 ≤ {p95_s:g} s; measure lower ones, or set another p95_s"
    found = model.most
    until = (
        f"{found.fails_at:g} did not" if found.fails_at else "no higher one was measured, so that more may be possible"
    )
    line = f"most requests/s with p95 ≤ {found.p95_target_s:g} s: {found.requests_per_s:g} ({until})"
    if found.usd_per_thousand is None:
        return f"{line}; no price per request"
    if model.billing == "machine":
        paid = f"on {report.machine} at {report.hourly_usd:g} USD/h without idle time"
        if found.on_cpu and not named_cpu(report.machine):
            paid += " (hypothetical: what answered had no GPU; name its machine in cost.machine)"
    else:
        paid = "by the token"
    return f"{line}; {found.usd_per_thousand:.4g} USD per 1,000 requests, {paid}"


def _doubts(rates: tuple[LoadRate, ...], rows: int, p95_s: float) -> list[str]:
    """What makes the figures say less than they seem to."""
    found = []
    late = [
        rate
        for rate in rates
        if rate.client_late_s > _LATE * ((rate.latency_s.p95 and rate.latency_s.p95.value) or p95_s)
    ]
    for rate in late:
        found.append(
            f"at {rate.requests_per_s:g}/s this client itself sent up to {rate.client_late_s:.3f} s late (p99), which is in the"
            " latencies: the endpoint is faster than they say; measure from a faster host"
        )
    most_sent = max((rate.sent for rate in rates), default=0)
    if most_sent > rows:
        found.append(
            f"{most_sent} requests of one rate were made of {rows} rows: an endpoint with a prefix cache answers repeated"
            " prompts faster than new ones; give more rows"
        )
    reasons: Mapping[str, int] = {reason: count for rate in rates for reason, count in rate.reasons.items()}
    return found + [f"without an answer: {reason}" for reason in list(reasons)[:3]]
