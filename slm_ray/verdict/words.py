"""Cost and partial replacement as a person reads them: plain aligned text. Shows what is there and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 5


def cost_text(cost: Mapping[str, Any]) -> str:
    """A line per arm (money, correct answers, latency, where its rows go), the break-even, and what each figure is of."""
    machine = cost["machine"]
    lines = [
        ["cost", "USD/1,000 requests", "USD/1,000 correct", "p50 s", "p95 s", "p99 s", "rows go to"],
        *(_arm(spec, arm) for spec, arm in cost["arms"].items()),
    ]
    notes = [f"- {spec}: {arm['reason'] or _based(arm)}" for spec, arm in cost["arms"].items()]
    return "\n".join(
        [
            *_aligned(lines),
            f"prices as of {cost['prices_as_of']}; machine: {machine['name']}, {machine['hourly_usd']:g} USD/h,"
            f" utilisation {machine['utilisation']:g}",
            f"- {cost['break_even_because']}",
            *notes,
        ]
    )


def partial_text(partial: Mapping[str, Any]) -> str:
    """The one line of the verdict, what it rests on, and a few points of the validation curve."""
    lines = [f"partial: {partial['line']}", *(f"- {sentence}" for sentence in partial["because"])]
    curve = partial["curve"]
    if curve:
        step = max(1, (len(curve) - 1) // (_SHOWN - 1))
        points = [*curve[:-1:step][: _SHOWN - 1], curve[-1]]
        table = [["share", *(f"{point['share']:.0%}" for point in points)]]
        table.append(["quality", *(_number(point["quality"]) for point in points)])
        if any(point["per_request_usd"] is not None for point in points):
            table.append(["USD/1,000 req", *(_thousand(point["per_request_usd"]) for point in points)])
        lines += _aligned(table)
    return "\n".join(lines)


def _arm(spec: str, arm: Mapping[str, Any]) -> list[str]:
    latencies = [_number(arm["latency_s"].get(name)) for name in ("p50", "p95", "p99")]
    money = [_thousand(arm["per_request_usd"]), _thousand(arm["per_correct_usd"])]
    mark = " [hypothetical]" if arm["hypothetical"] else ""
    return [spec + mark, *money, *latencies, arm["goes_to"]["words"]]


def _based(arm: Mapping[str, Any]) -> str:
    said = arm["basis"]
    if arm["hypothetical"]:
        said = f"hypothetical, as if {arm['priced_as']} had used these tokens: {said}"
    return (
        said
        if arm["per_correct_usd"] is not None
        else f"{said}; no cost per correct answer: {arm['per_correct_reason']}"
    )


def _thousand(usd: float | None) -> str:
    if usd is None:
        return "-"
    return f"{1000 * usd:,.4f}" if usd == 0 or usd >= 1e-6 else f"{1000 * usd:.1e}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
