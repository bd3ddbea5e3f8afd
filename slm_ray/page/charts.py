"""The charts of the page: values per arm, differences with bounds, the break-even, the curve of shares.

Numbers in, positions out, in percent of whatever width and height the reader's screen has (0 at the left and at the top):
nothing is cut on a phone and no letter shrinks. What is undefined has no shape, what is not known is said in words, and
different units share no axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import scipy

from slm_ray.cost_records import ArmCost, CostReport
from slm_ray.page.data import Arm
from slm_ray.page.formatting import half_width, percent, seconds, thousand_usd
from slm_ray.records import MixturePoint, ModelReport, Report
from slm_ray.types import Interval, Percentiles, SequentialResult

_MACHINES = 4  # to show where no volume pays
_NEAR = 15.0  # percent from an edge, where a text beside a line turns inwards
_UNKNOWN = "not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One arm's value with its whisker; `text` is how it reads, or why there is none, `half` the whisker's width."""

    value: float | None
    low: float | None = None
    high: float | None = None
    text: str
    half: str = ""


def quality(value: float | None, n: int, binary: bool) -> Measure:
    """A share of n rows; with its 95 % Wilson interval where rows are right or wrong."""
    if value is None:
        return Measure(value=None, text=_UNKNOWN)
    bounds = wilson(value, n) if binary else None
    if bounds is None:
        return Measure(value=value, text=percent(value))
    half = half_width(Interval(estimate=value, lower=bounds[0], upper=bounds[1]))
    return Measure(value=value, low=bounds[0], high=bounds[1], text=percent(value), half=half)


def wilson(share: float | None, n: int) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of a share of n right-or-wrong rows."""
    if share is None or n == 0:
        return None
    low, high = scipy.stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(low), float(high)


def bars(arms: Sequence[tuple[Arm, Measure]], largest: float | None = None) -> list[dict[str, Any]]:
    """One row per (arm, measure) on a scale from 0 to `largest`, else to the largest that is drawn."""
    ends = [value for _, one in arms for value in (one.value, one.high) if value is not None]
    highest = largest or max(ends, default=0.0) or 1.0

    def at(value: float | None) -> float | None:
        return None if value is None else _share(value, 0.0, highest)

    return [
        {
            "arm": arm,
            "text": one.text,
            "half": one.half,
            "value": at(one.value),
            "low": at(one.low),
            "high": at(one.high),
        }
        for arm, one in arms
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One row of the chart of differences; `tone` is how it is read: an action, or `demonstration`."""

    title: str
    sub: str
    interval: Interval
    delta: float
    tone: str


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
        return _share(value, low, high)

    rows = [
        {
            "title": one.title, "sub": one.sub, "tone": one.tone, "interval": one.interval, "margin": at(-one.delta),
            "estimate": at(one.interval.estimate), "lower": at(one.interval.lower), "upper": at(one.interval.upper),
        }
        for one in shown
    ]  # fmt: skip
    return {
        "rows": rows,
        "zero": at(0.0),
        "margins": [{"x": x, "anchor": "start" if x < _NEAR else "end"} for x in sorted({at(-one.delta) for one in shown})],
        "ticks": [{"x": at(value), "label": _signed(value)} for value in ticks(low, high)],
    }  # fmt: skip


def ticks(low: float, high: float) -> list[float]:
    """Two to eight round values inside [low, high]."""
    if not high > low:
        return []
    rough = (high - low) / 7
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * part for part in (1, 2, 5, 10) if unit * part >= rough)
    places = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, places) + 0.0 for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def sequence(result: SequentialResult, delta: float) -> dict[str, Any] | None:
    """The estimate with its band over the rows asked, minus delta, and the row at which it was decided; None without rows.

    The axis is that of the later rows, where the band is narrow enough to be read; early on it leaves the frame.
    """
    path = result.path
    if not path:
        return None
    late = path[len(path) // 3 :]
    edges = [0.0, -delta, *(value for point in late for value in (point.estimate, point.lower, point.upper))]
    room = max(max(edges) - min(edges), 0.05) * 0.08
    low, high = max(min(edges) - room, -1.05), min(max(edges) + room, 1.05)

    def x(rows: float) -> float:
        return _share(rows, 0.0, result.rows)

    def y(value: float) -> float:
        return _share(value, high, low)

    band = [(x(point.rows), y(point.upper)) for point in path] + [
        (x(point.rows), y(point.lower)) for point in reversed(path)
    ]
    return {
        "line": _line([(x(point.rows), y(point.estimate)) for point in path]), "band": f"{_line(band)}Z",
        "margin": y(-delta), "zero": y(0.0), "rows": result.rows,
        "decided": None if result.decided_at is None else {"x": x(result.decided_at), "at": result.decided_at},
        "rest": 0 if result.decided_at is None else result.rows - result.decided_at,
        "x_ticks": [{"x": x(value), "label": f"{value:,.0f}"} for value in ticks(0.0, result.rows) if value == int(value)],
        "y_ticks": [{"y": y(value), "label": _signed(value)} for value in ticks(low, high)],
    }  # fmt: skip


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
        return _share(requests, 0.0, most)

    def y(usd: float) -> float:
        return _share(usd, highest, 0.0)

    steps = [f"M{x(0)} {y(machine_usd)}"]
    for number in range(1, machines + 1):
        steps.append(f"H{x(min(number * capacity, most))}")
        if number < machines:
            steps.append(f"V{y((number + 1) * machine_usd)}")
    return {
        "llm": f"M{x(0)} {y(0)}L{x(most)} {y(slope * most)}", "slm": "".join(steps), "machines": machines,
        "hypothetical": llm.hypothetical,
        "even": None if even is None else {"x": x(even), "y": y(slope * even), "requests": even},
        "x_ticks": [{"x": x(value), "label": f"{value:,.0f}" if most > 10 else f"{value:,.1f}"} for value in ticks(0.0, most)],
        "y_ticks": [{"y": y(value), "label": f"{value:,.10g}"} for value in ticks(0.0, highest)],
    }  # fmt: skip


def measured(
    arms: Sequence[Arm], report: Report, primary: str, cost: CostReport | None, binary: bool
) -> dict[str, Any] | None:
    """Quality, cost and latency of one evaluation, each on a scale of its own; the interval where rows are `binary`."""
    shown = [arm for arm in arms if arm.spec in report.models]
    if not shown or not primary:
        return None
    models = [report.models[arm.spec] for arm in shown]
    priced = cost.arms if cost else {}
    panels: dict[tuple[str, str], list[Measure]] = {
        ("Quality", primary): [_quality(model, primary, binary) for model in models],
        ("Cost", "USD per 1,000 requests"): [_cost(priced.get(arm.spec)) for arm in shown],
        ("Latency", "p50, whisker to p95"): [_latency(model.latency_s) for model in models],
    }
    return {
        "panels": [
            {"title": title, "unit": unit, "rows": bars(list(zip(shown, measures, strict=True)))}
            for (title, unit), measures in panels.items()
        ],
        "wilson": binary,
    }  # fmt: skip


def curve(points: Sequence[MixturePoint], delta: float, chosen: float | None) -> dict[str, Any] | None:
    """Difference and lower bound of the mixture by the SLM's share (0 to 1), below it its cost; None without two points."""
    if len(points) < 2:
        return None
    ordered = sorted(points, key=lambda point: point.share)
    values = [value for point in ordered for value in (point.difference, point.lower)] + [0.0, -delta]
    room = max(max(values) - min(values), 0.02) * 0.08
    low, high = min(values) - room, max(values) + room

    def y(value: float) -> float:
        return _share(value, high, low)

    def line(values: Sequence[float]) -> str:
        return _line([(100 * point.share, y(value)) for point, value in zip(ordered, values, strict=True)])

    marks = [point for point in ordered if chosen is not None and abs(point.share - chosen) < 1e-9]
    return {
        "margin": y(-delta), "line": line([point.difference for point in ordered]),
        "lower": line([point.lower for point in ordered]),
        "x_ticks": [{"x": 25.0 * part, "label": f"{25 * part} %"} for part in range(5)],
        "y_ticks": [{"y": y(value), "label": _signed(value)} for value in ticks(low, high)],
        "cost": _share_cost(ordered),
        "chosen": [{"x": round(100 * point.share, 2), "y": y(point.difference)} for point in marks[:1]],
    }  # fmt: skip


def _share_cost(points: Sequence[MixturePoint]) -> dict[str, Any] | None:
    """USD per 1,000 requests over the same shares, on a scale of its own that starts at 0; None where a price is missing."""
    usd = [1000 * point.per_request_usd for point in points if point.per_request_usd is not None]
    if len(usd) < len(points):
        return None
    highest = max(usd) * 1.1 or 1.0
    line = _line([(100 * point.share, _share(value, highest, 0.0)) for point, value in zip(points, usd, strict=True)])
    labels = [{"y": _share(value, highest, 0.0), "label": f"{value:.10g}"} for value in ticks(0.0, highest)]
    return {"line": line, "y_ticks": labels[:: 1 + len(labels) // 5]}


def _share(value: float, start: float, end: float) -> float:
    """Where a value lies between two, in percent of the way."""
    return round(100 * (value - start) / (end - start), 2)


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{round(x, 2)} {round(y, 2)}" for x, y in points)


def _signed(value: float) -> str:
    return f"{100 * value:+g}".replace("-", "−") if value else "0"


def _quality(model: ModelReport, primary: str, binary: bool) -> Measure:
    return quality(model.metrics.get(primary), model.n, binary)


def _cost(arm: ArmCost | None) -> Measure:
    if arm is None or arm.per_request_usd is None:
        return Measure(value=None, text="no price")
    text = thousand_usd(arm.per_request_usd) + " (hypothetical)" * arm.hypothetical
    return Measure(value=1000 * arm.per_request_usd, text=text)


def _latency(latency_s: Percentiles) -> Measure:
    median, slow = latency_s.p50, latency_s.p95
    if median is None:
        return Measure(value=None, text=_UNKNOWN)
    return Measure(value=median, low=median, high=slow if slow is not None else median, text=seconds(median))
