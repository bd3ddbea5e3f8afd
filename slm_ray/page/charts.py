"""The charts of the page, in SVG units: bars per arm, differences with bounds, the break-even, panels, the curve of shares.

Numbers in, rounded coordinates out; the template draws them. What is undefined has no shape, what is not known is said in
words, and different units share no axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from slm_ray.cost_records import ArmCost, CostReport
from slm_ray.page.data import Arm
from slm_ray.records import MixturePoint, ModelReport, Report, RowResult
from slm_ray.types import Interval, Percentiles

_LEFT, _RIGHT = 190.0, 700.0
_ROW = 46.0
_TOP = 26.0
_TITLE = 22  # letters that fit beside a row
_DAY_LEFT, _DAY_RIGHT, _DAY_TOP, _DAY_BOTTOM = 90.0, 700.0, 30.0, 220.0
_MACHINES = 4  # to show where no volume pays
_PANEL_LEFT, _PANEL_WIDTH, _PANEL_GAP = 130.0, 200.0, 50.0
_PANEL_TOP, _PANEL_ROW = 62.0, 52.0
_TEXT_ROOM = 60.0
_UNKNOWN = "not known"


def bars(arms: Sequence[tuple[Arm, float | None]]) -> dict[str, Any]:
    """One horizontal bar per (arm, value in [0, 1] or None), on a scale from 0 to 100 %."""
    width = _RIGHT - _LEFT
    rows = [
        {
            "arm": arm,
            "value": value,
            "y": _TOP + _ROW * index,
            "width": round(width * value, 1) if value is not None else None,
            "end": round(_LEFT + width * (value or 0), 1),
        }
        for index, (arm, value) in enumerate(arms)
    ]
    ticks = [{"x": round(_LEFT + width * share / 4, 1), "label": f"{25 * share} %"} for share in range(5)]
    return {"left": _LEFT, "right": _RIGHT, "height": _TOP + _ROW * len(rows), "rows": rows, "ticks": ticks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row of the chart of differences; `action` is how it is read."""

    title: str
    sub: str
    interval: Interval
    delta: float
    action: str


def differences(shown: Sequence[Difference]) -> dict[str, Any] | None:
    """Estimate and bounds of each difference on one axis that shows zero and minus delta; None without any."""
    if not shown:
        return None
    edges = [0.0, *(-one.delta for one in shown)]
    for one in shown:
        edges += [one.interval.estimate, one.interval.lower, one.interval.upper]
    margin = max(max(edges) - min(edges), 0.05) * 0.08
    low, high = min(edges) - margin, max(edges) + margin

    def at(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 1)

    rows = [
        {
            "title": one.title, "sub": one.sub, "action": one.action, "interval": one.interval,
            "short": one.title if len(one.title) <= _TITLE else one.title[: _TITLE - 1] + "…",
            "y": _TOP + _ROW * (index + 0.5),
            "margin": at(-one.delta),
            "estimate": at(one.interval.estimate), "lower": at(one.interval.lower), "upper": at(one.interval.upper),
        }
        for index, one in enumerate(shown)
    ]  # fmt: skip
    return {
        "left": _LEFT,
        "right": _RIGHT,
        "height": _TOP + _ROW * len(rows) + 8,
        "rows": rows,
        "zero": at(0.0),
        "margins": sorted({at(-one.delta) for one in shown}),
        "ticks": [
            {"x": at(value), "label": f"{100 * value:+g}".replace("-", "−")} for value in ticks(low, high) if value
        ],
    }


def ticks(low: float, high: float) -> list[float]:
    """Two to eight round values inside [low, high]."""
    if not high > low:
        return []
    rough = (high - low) / 7
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * part for part in (1, 2, 5, 10) if unit * part >= rough)
    places = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, places) + 0.0 for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def daily(cost: CostReport) -> dict[str, Any] | None:
    """USD a day by requests a day for both sides; None unless the LLM is paid by the token and the SLM by the machine."""
    llm, slm = cost.arms.get(cost.llm), cost.arms.get(cost.slm)
    if not llm or not slm or (llm.kind, slm.kind) != ("tokens", "machine"):
        return None
    slope, machine_usd, capacity = llm.per_request_usd, 24 * cost.machine.hourly_usd, slm.capacity_requests_per_day
    if not slope or not machine_usd or not capacity:
        return None
    even = cost.break_even.requests_per_day
    most = 2 * even if even else _MACHINES * capacity
    machines = max(1, math.ceil(most / capacity))
    highest = 1.08 * max(slope * most, machine_usd * machines)

    def x(requests: float) -> float:
        return round(_DAY_LEFT + (_DAY_RIGHT - _DAY_LEFT) * requests / most, 1)

    def y(usd: float) -> float:
        return round(_DAY_BOTTOM - (_DAY_BOTTOM - _DAY_TOP) * usd / highest, 1)

    steps = [f"M{x(0)} {y(machine_usd)}"]
    for number in range(1, machines + 1):
        steps.append(f"H{x(min(number * capacity, most))}")
        if number < machines:
            steps.append(f"V{y((number + 1) * machine_usd)}")
    return {
        "left": _DAY_LEFT, "right": _DAY_RIGHT, "top": _DAY_TOP, "bottom": _DAY_BOTTOM,
        "llm": f"M{x(0)} {y(0)}L{x(most)} {y(slope * most)}", "slm": "".join(steps),
        "llm_end": y(slope * most), "slm_end": y(machines * machine_usd), "machines": machines,
        "hypothetical": llm.hypothetical,
        "even": None if even is None else {"x": x(even), "y": y(slope * even), "requests": even},
        "x_ticks": [{"x": x(value), "label": f"{value:,.0f}" if most > 10 else f"{value:,.1f}"} for value in ticks(0.0, most)],
        "y_ticks": [{"y": y(value), "label": f"{value:,.10g}"} for value in ticks(0.0, highest)],
    }  # fmt: skip


def measured(
    arms: Sequence[Arm],
    report: Report,
    primary: str,
    cost: CostReport | None,
    rows: Sequence[RowResult],
) -> dict[str, Any] | None:
    """The panels of one evaluation; the quality has its interval where every row is right or wrong."""
    shown = [arm for arm in arms if arm.spec in report.models]
    if not shown or not primary:
        return None
    models = [report.models[arm.spec] for arm in shown]
    binary = all(
        answer.scores.get(primary) in (0, 1) for row in rows for answer in row.models.values()
    )  # fmt: skip
    priced = cost.arms if cost else {}
    found = {
        ("Quality", f"{primary}, %"): [_quality(model, primary, binary and bool(rows)) for model in models],
        ("Cost", "USD per 1,000 requests"): [_cost(priced.get(arm.spec)) for arm in shown],
        ("Latency", "seconds, p50 to p95"): [_latency(model.latency_s) for model in models],
    }
    return {**panels(shown, found), "wilson": binary and bool(rows)}


def _quality(model: ModelReport, primary: str, binary: bool) -> Measure:
    value = model.metrics.get(primary)
    if value is None:
        return Measure(value=None, text=_UNKNOWN)
    low, high = (wilson(value, model.n) if binary else None) or (None, None)
    percent = [None if one is None else 100 * one for one in (value, low, high)]
    return Measure(value=percent[0], low=percent[1], high=percent[2], text=f"{100 * value:.1f} %")


def _cost(arm: ArmCost | None) -> Measure:
    if arm is None or arm.per_request_usd is None:
        return Measure(value=None, text="no price")
    thousand = 1000 * arm.per_request_usd
    return Measure(value=thousand, text=f"{thousand:.3g}{' (hypothetical)' if arm.hypothetical else ''}")


def _latency(latency_s: Percentiles) -> Measure:
    median, slow = latency_s.p50, latency_s.p95
    if median is None:
        return Measure(value=None, text=_UNKNOWN)
    return Measure(value=median, low=median, high=slow if slow is not None else median, text=f"{median:.3g} s")


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


def panels(arms: Sequence[Arm], measures: Mapping[tuple[str, str], Sequence[Measure]]) -> dict[str, Any]:
    """One panel per (title, unit), its measures in the order of `arms`; every scale starts at 0."""
    rows = [(arm, _PANEL_TOP + _PANEL_ROW * place) for place, arm in enumerate(arms)]
    drawn = []
    for place, ((title, unit), found) in enumerate(measures.items()):
        left = _PANEL_LEFT + place * (_PANEL_WIDTH + _PANEL_GAP)
        marks = [_mark(one, *row, left, _largest(found)) for one, row in zip(found, rows, strict=True)]
        drawn.append({"title": title, "unit": unit, "left": left, "marks": marks})
    return {
        "height": _PANEL_TOP + _PANEL_ROW * len(rows) - 8,
        "rows": [{"arm": arm, "y": y} for arm, y in rows],
        "panels": drawn,
    }


def curve(points: Sequence[MixturePoint], delta: float, chosen: float | None) -> dict[str, Any] | None:
    """Difference and lower bound of the mixture by the SLM's share (0 to 1), below it its cost; None without two points."""
    if len(points) < 2:
        return None
    ordered = sorted(points, key=lambda point: point.share)
    values = [value for point in ordered for value in (point.difference, point.lower)] + [0.0, -delta]
    low, high = min(values), max(values)
    room = max(high - low, 0.02) * 0.08
    low, high = low - room, high + room
    left, right, top, bottom = 90.0, 830.0, 20.0, 260.0

    def x(share: float) -> float:
        return round(left + (right - left) * share, 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    def path(values: Sequence[float]) -> str:
        return "M" + "L".join(f"{x(point.share)} {y(value)}" for point, value in zip(ordered, values, strict=True))

    marks = [point for point in ordered if chosen is not None and abs(point.share - chosen) < 1e-9]
    return {
        "left": left, "right": right, "height": bottom, "margin": y(-delta), "line": path([point.difference for point in ordered]),
        "lower": path([point.lower for point in ordered]),
        "x_ticks": [{"x": x(part / 4), "label": f"{25 * part} %"} for part in range(5)],
        "y_ticks": [{"y": y(value), "label": f"{100 * value:+g}".replace("-", "−") if value else "0"} for value in ticks(low, high)],
        "cost": _share_cost(ordered, x, bottom + 60),
        "chosen": [{"x": x(point.share), "y": y(point.difference)} for point in marks[:1]],
    }  # fmt: skip


def _share_cost(points: Sequence[MixturePoint], x: Callable[[float], float], top: float) -> dict[str, Any] | None:
    """USD per 1,000 requests over the same shares, on a scale of its own that starts at 0; None where a price is missing."""
    usd = [1000 * point.per_request_usd for point in points if point.per_request_usd is not None]
    if len(usd) < len(points):
        return None
    bottom, highest = top + 110, max(usd) * 1.1 or 1.0

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value / highest, 1)

    path = "L".join(f"{x(point.share)} {y(value)}" for point, value in zip(points, usd, strict=True))
    labels = [{"y": y(value), "label": f"{value:.10g}"} for value in ticks(0.0, highest)]
    return {"top": top, "bottom": bottom, "line": f"M{path}", "y_ticks": labels[:: 1 + len(labels) // 5]}


def _largest(found: Sequence[Measure]) -> float:
    return max([value for one in found for value in (one.value, one.high) if value is not None], default=0.0) or 1.0


def _mark(one: Measure, arm: Arm, y: float, left: float, largest: float) -> dict[str, Any]:
    def at(value: float | None) -> float | None:
        return None if value is None else round(left + (_PANEL_WIDTH - 20) * value / largest, 1)

    x = at(one.value)
    end = (x or 0.0) > left + _PANEL_WIDTH - _TEXT_ROOM
    return {
        "x": x, "y": y, "low": at(one.low), "high": at(one.high), "text": one.text, "role": arm.role,
        "shape": "square" if arm.role == "llm" else "circle",
        "text_x": (x or 0.0) + (6 if end else -6), "anchor": "end" if end else "start",
    }  # fmt: skip
