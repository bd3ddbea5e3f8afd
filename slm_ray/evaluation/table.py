"""A report as a person reads it: one column per model, one line per figure. Shows what is there and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(report: Mapping[str, Any]) -> str:
    """The report's metrics, latencies (seconds), tokens, failures and trust figures as plain aligned text; stand-ins are marked."""
    models: Mapping[str, Any] = report["models"]
    metrics = list(dict.fromkeys(name for model in models.values() for name in model["metrics"]))
    lines = [[f"{report['track']}, {report['examples']['n']} rows", *map(_title, models, models.values())]]
    lines += [[name, *(_number(model["metrics"].get(name)) for model in models.values())] for name in metrics]
    for name in ("p50", "p95", "p99"):
        lines.append([f"latency {name}, s", *(_number(model["latency_s"].get(name)) for model in models.values())])
    if any("first_token_s" in model for model in models.values()):
        firsts = (model.get("first_token_s", {}).get("p50") for model in models.values())
        lines.append(["first token p50, s", *map(_number, firsts)])
    lines.append(["tokens in/out", *(_tokens(model["usage"]) for model in models.values())])
    lines.append(["failures", *(_counts(model["failures"]) for model in models.values())])
    if any("noise" in model for model in models.values()):
        lines.append(
            ["agrees with itself", *(_number(model.get("noise", {}).get("agreement")) for model in models.values())]
        )
    if any(model["trained_on"] for model in models.values()):
        lines.append(["rows trained on", *(str(model["trained_on"]) for model in models.values())])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join([*(_aligned(line, widths) for line in lines), *_trusted(report.get("trust"))])


def _trusted(trust: Mapping[str, Any] | None) -> list[str]:
    if trust is None:
        return []
    return [
        f"{trust['rows_scored']} of {trust['rows_in']} rows scored, {trust['retries']} retries, {trust['refused']} refused; "
        f"calls that may have been paid for and were not heard of: {trust['ambiguous']}"
    ]


def _title(spec: str, model: Mapping[str, Any]) -> str:
    return f"{spec} [STAND-IN]" if model["stand_in"] else spec


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _tokens(usage: Mapping[str, int]) -> str:
    return f"{usage['prompt_tokens']}/{usage['completion_tokens']}"


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in failures.items()) or "0"


def _aligned(line: list[str], widths: list[int]) -> str:
    first, *rest = line
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
    return "  ".join(cells).rstrip()
