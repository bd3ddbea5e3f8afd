"""What the three panels show: each arm's quality with its interval, cost per thousand requests, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.verdict.panels import Measure, panels, wilson

_UNKNOWN = "not known"


def measured(
    arms: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    primary: str,
    cost: Mapping[str, Any] | None,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """The panels of one evaluation; the quality has its interval where every row is right or wrong."""
    shown = [arm for arm in arms if arm["spec"] in report["models"]]
    if not shown or not primary:
        return None
    models = [report["models"][arm["spec"]] for arm in shown]
    binary = all(
        answer["scores"].get(primary) in (0, 1) for row in rows for answer in row["models"].values()
    )  # fmt: skip
    priced = (cost or {}).get("arms", {})
    found = {
        ("Quality", f"{primary}, %"): [_quality(model, primary, binary and bool(rows)) for model in models],
        ("Cost", "USD per 1,000 requests"): [_cost(priced.get(arm["spec"])) for arm in shown],
        ("Latency", "seconds, p50 to p95"): [_latency(model["latency_s"]) for model in models],
    }
    return {**panels(shown, found), "wilson": binary and bool(rows)}


def _quality(model: Mapping[str, Any], primary: str, binary: bool) -> Measure:
    value = model["metrics"].get(primary)
    if value is None:
        return Measure(value=None, text=_UNKNOWN)
    low, high = (wilson(value, model["n"]) if binary else None) or (None, None)
    percent = [None if one is None else 100 * one for one in (value, low, high)]
    return Measure(value=percent[0], low=percent[1], high=percent[2], text=f"{100 * value:.1f} %")


def _cost(arm: Mapping[str, Any] | None) -> Measure:
    if arm is None or arm["per_request_usd"] is None:
        return Measure(value=None, text="no price")
    thousand = 1000 * arm["per_request_usd"]
    return Measure(value=thousand, text=f"{thousand:.3g}{' (hypothetical)' if arm['hypothetical'] else ''}")


def _latency(latency_s: Mapping[str, float | None]) -> Measure:
    median, slow = latency_s.get("p50"), latency_s.get("p95")
    if median is None:
        return Measure(value=None, text=_UNKNOWN)
    return Measure(value=median, low=median, high=slow if slow is not None else median, text=f"{median:.3g} s")
