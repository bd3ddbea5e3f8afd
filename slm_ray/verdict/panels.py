"""Quality, cost and latency of every arm side by side, each on a scale of its own: different units share no axis.

Numbers in, rounded coordinates out; the template draws them. What is not known is said in words and has no mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from slm_ray.verdict.chart import ticks

_LEFT, _WIDTH, _GAP = 130.0, 200.0, 50.0
_TOP, _ROW = 62.0, 52.0
_TEXT_ROOM = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One arm's value with its whisker; `text` is how it reads, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    text: str


def wilson(share: float | None, n: int) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of a share of n right-or-wrong rows."""
    if share is None or n == 0:
        return None
    low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(low), float(high)


def panels(arms: Sequence[Mapping[str, Any]], measures: Mapping[tuple[str, str], Sequence[Measure]]) -> dict[str, Any]:
    """One panel per (title, unit), its measures in the order of `arms`; every scale starts at 0."""
    rows = [{"arm": arm, "y": _TOP + _ROW * place} for place, arm in enumerate(arms)]
    drawn = []
    for place, ((title, unit), found) in enumerate(measures.items()):
        left = _LEFT + place * (_WIDTH + _GAP)
        marks = [_mark(one, row, left, _largest(found)) for one, row in zip(found, rows, strict=True)]
        drawn.append({"title": title, "unit": unit, "left": left, "marks": marks})
    return {"height": _TOP + _ROW * len(rows) - 8, "rows": rows, "panels": drawn}


def curve(points: Sequence[Mapping[str, Any]], delta: float, chosen: float | None) -> dict[str, Any] | None:
    """Difference and lower bound of the mixture by the SLM's share (0 to 1), below it its cost; None without two points."""
    if len(points) < 2:
        return None
    ordered = sorted(points, key=lambda point: float(point["share"]))
    values = [float(point[name]) for point in ordered for name in ("difference", "lower")] + [0.0, -delta]
    low, high = min(values), max(values)
    room = max(high - low, 0.02) * 0.08
    low, high = low - room, high + room
    left, right, top, bottom = 90.0, 830.0, 20.0, 260.0

    def x(share: float) -> float:
        return round(left + (right - left) * share, 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    def path(name: str) -> str:
        return "M" + "L".join(f"{x(float(point['share']))} {y(float(point[name]))}" for point in ordered)

    marks = [point for point in ordered if chosen is not None and abs(float(point["share"]) - chosen) < 1e-9]
    return {
        "left": left, "right": right, "height": bottom, "margin": y(-delta), "line": path("difference"),
        "lower": path("lower"),
        "x_ticks": [{"x": x(part / 4), "label": f"{25 * part} %"} for part in range(5)],
        "y_ticks": [{"y": y(value), "label": f"{100 * value:+g}".replace("-", "−") if value else "0"} for value in ticks(low, high)],
        "cost": _share_cost(ordered, x, bottom + 60),
        "chosen": [{"x": x(float(point["share"])), "y": y(float(point["difference"]))} for point in marks[:1]],
    }  # fmt: skip


def _share_cost(points: Sequence[Mapping[str, Any]], x: Callable[[float], float], top: float) -> dict[str, Any] | None:
    """USD per 1,000 requests over the same shares, on a scale of its own that starts at 0; None where a price is missing."""
    if any(point.get("per_request_usd") is None for point in points):
        return None
    usd = [1000 * float(point["per_request_usd"]) for point in points]
    bottom, highest = top + 110, max(usd) * 1.1 or 1.0

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value / highest, 1)

    path = "L".join(f"{x(float(point['share']))} {y(value)}" for point, value in zip(points, usd, strict=True))
    labels = [{"y": y(value), "label": f"{value:.10g}"} for value in ticks(0.0, highest)]
    return {"top": top, "bottom": bottom, "line": f"M{path}", "y_ticks": labels[:: 1 + len(labels) // 5]}


def _largest(found: Sequence[Measure]) -> float:
    return max([value for one in found for value in (one.value, one.high) if value is not None], default=0.0) or 1.0


def _mark(one: Measure, row: Mapping[str, Any], left: float, largest: float) -> dict[str, Any]:
    def at(value: float | None) -> float | None:
        return None if value is None else round(left + (_WIDTH - 20) * value / largest, 1)

    x = at(one.value)
    end = (x or 0.0) > left + _WIDTH - _TEXT_ROOM
    arm = row["arm"]
    return {
        "x": x, "y": row["y"], "low": at(one.low), "high": at(one.high), "text": one.text, "role": arm["role"],
        "shape": "square" if arm["role"] == "llm" else "circle",
        "text_x": (x or 0.0) + (6 if end else -6), "anchor": "end" if end else "start",
    }  # fmt: skip
