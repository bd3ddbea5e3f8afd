"""A report as a person reads it: one column per model, one line per figure. Shows what is there and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from slm_ray.records import ModelReport, Provenance, Report, SequentialRun
from slm_ray.tables import format_table
from slm_ray.types import Percentiles, Usage
from slm_ray.verdict.candidates import percent


def summary(report: Report) -> str:
    """The report's metrics, latencies (seconds), tokens, failures and provenance as plain aligned text; stand-ins are marked."""
    models = list(report.models.values())
    metrics = dict.fromkeys(name for model in models for name in model.metrics)
    lines = [[f"{report.track}, {report.examples.n} rows", *map(_title, report.models, models)]]
    lines += [[name, *(_number(model.metrics.get(name)) for model in models)] for name in metrics]
    lines += [
        ["latency p50, s", *(_number(model.latency_s.p50) for model in models)],
        ["latency p95, s", *(_number(model.latency_s.p95) for model in models)],
        ["latency p99, s", *(_number(model.latency_s.p99) for model in models)],
    ]
    if any(model.first_token_s for model in models):
        lines.append(["first token p50, s", *(_number((model.first_token_s or Percentiles()).p50) for model in models)])
    lines.append(["tokens in/out", *(_tokens(model.usage) for model in models)])
    lines.append(["failures", *(_counts(model.failures) for model in models)])
    if any(model.noise for model in models):
        lines.append(
            ["agrees with itself", *(_number(model.noise.agreement if model.noise else None) for model in models)]
        )
    if any(model.trained_on for model in models):
        lines.append(["rows trained on", *(str(model.trained_on) for model in models)])
    return "\n".join([*format_table(lines), *_looks(report.sequential), *_origin(report.provenance)])


def _looks(run: SequentialRun | None) -> list[str]:
    """At which row each candidate was decided, and what was asked beyond that."""
    if run is None:
        return []
    lines = []
    for spec, look in run.candidates.items():
        decided = (
            f"decided at row {look.decided_at}: {look.action}" if look.action else f"not decided by {look.rows} rows"
        )
        lines.append(
            f"{spec}: {decided} (of {run.rows} rows; sequential, delta {run.delta:g}, level {percent(look.level)})"
        )
    rest = [one for one in run.rest.values() if one.calls]
    if rest:
        priced = [one.usd for one in rest if one.usd is not None]
        usd = f", {sum(priced):.4f} USD" if priced else ""
        when = "beyond that row" if run.stop == "never" else "in flight when it was decided"
        lines.append(f"{when}: {sum(one.calls for one in rest)} calls, {sum(one.tokens for one in rest)} tokens{usd}")
    return lines


def _origin(provenance: Provenance | None) -> list[str]:
    """Rows, retries, and both kinds of calls that may have been paid for without an answer."""
    if provenance is None:
        return []
    silent, doubtful = provenance.possibly_billed, provenance.in_doubt
    return [
        f"{provenance.rows_scored} of {provenance.rows_in} rows scored, {provenance.retries} retries,"
        f" {provenance.refused} refused; calls that may have been paid for without an answer: {silent + doubtful}"
        f" ({silent} sent and never answered, {doubtful} under way when a run was cut off)"
    ]


def _title(spec: str, model: ModelReport) -> str:
    return f"{spec} [STAND-IN]" if model.stand_in else spec


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _tokens(usage: Usage) -> str:
    return f"{usage.prompt_tokens}/{usage.completion_tokens}"


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in failures.items()) or "0"
