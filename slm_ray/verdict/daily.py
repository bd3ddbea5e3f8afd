"""The break-even as a picture: what a day costs by its number of requests, on the LLM's tokens and on the SLM's machines.

Numbers in, rounded coordinates out; the template draws them. Machines are whole and stand there all day.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slm_ray.verdict.chart import ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 90.0, 700.0, 30.0, 220.0
_MACHINES = 4  # to show where no volume pays


def daily(cost: Mapping[str, Any]) -> dict[str, Any] | None:
    """USD a day by requests a day for both sides; None unless the LLM is paid by the token and the SLM by the machine."""
    llm, slm = cost["arms"].get(cost["llm"]), cost["arms"].get(cost["slm"])
    if not llm or not slm or (llm["kind"], slm["kind"]) != ("tokens", "machine"):
        return None
    slope, machine_usd, capacity = (
        llm["per_request_usd"],
        24 * cost["machine"]["hourly_usd"],
        slm["capacity_requests_per_day"],
    )
    if not slope or not machine_usd or not capacity:
        return None
    even = cost["break_even_requests_per_day"]
    most = float(2 * even if even else _MACHINES * capacity)
    machines = max(1, math.ceil(most / capacity))
    highest = 1.08 * float(max(slope * most, machine_usd * machines))

    def x(requests: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * requests / most, 1)

    def y(usd: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * usd / highest, 1)

    steps = [f"M{x(0)} {y(machine_usd)}"]
    for number in range(1, machines + 1):
        steps.append(f"H{x(min(number * capacity, most))}")
        if number < machines:
            steps.append(f"V{y((number + 1) * machine_usd)}")
    return {
        "left": _LEFT, "right": _RIGHT, "top": _TOP, "bottom": _BOTTOM,
        "llm": f"M{x(0)} {y(0)}L{x(most)} {y(slope * most)}", "slm": "".join(steps),
        "llm_end": y(slope * most), "slm_end": y(machines * machine_usd), "machines": machines,
        "hypothetical": llm["hypothetical"],
        "even": None if even is None else {"x": x(even), "y": y(slope * even), "requests": even},
        "x_ticks": [{"x": x(value), "label": f"{value:,.0f}" if most > 10 else f"{value:,.1f}"} for value in ticks(0.0, most)],
        "y_ticks": [{"y": y(value), "label": f"{value:,.10g}"} for value in ticks(0.0, highest)],
    }  # fmt: skip
