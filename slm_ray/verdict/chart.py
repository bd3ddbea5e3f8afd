"""The geometry of the charts on the page, in SVG units: bars per arm, differences with their bounds, the curve of shares.

Numbers in, rounded coordinates out; the template draws them. An undefined value has no shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEFT, _RIGHT = 190.0, 700.0
_ROW = 46.0
_TOP = 26.0


def bars(arms: Sequence[tuple[Mapping[str, Any], float | None]]) -> dict[str, Any]:
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


def differences(decisions: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Estimate and bounds of each decision on one axis that shows zero and minus delta; None without any interval."""
    shown = [decision for decision in decisions if decision.get("interval")]
    if not shown:
        return None
    edges = [0.0, *(-float(decision["delta"]) for decision in shown)]
    for decision in shown:
        edges += [float(decision["interval"][bound]) for bound in ("estimate", "lower", "upper")]
    margin = max(max(edges) - min(edges), 0.05) * 0.08
    low, high = min(edges) - margin, max(edges) + margin

    def at(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 1)

    rows = [
        {
            "decision": decision,
            "y": _TOP + _ROW * (index + 0.5),
            "margin": at(-float(decision["delta"])),
            **{bound: at(float(decision["interval"][bound])) for bound in ("estimate", "lower", "upper")},
        }
        for index, decision in enumerate(shown)
    ]
    return {
        "left": _LEFT,
        "right": _RIGHT,
        "height": _TOP + _ROW * len(rows) + 8,
        "rows": rows,
        "zero": at(0.0),
        "margins": sorted({row["margin"] for row in rows}),
        "ticks": [
            {"x": at(value), "label": f"{100 * value:+g}".replace("-", "−")} for value in _ticks(low, high) if value
        ],
    }


def _ticks(low: float, high: float) -> list[float]:
    """About five round values inside [low, high]."""
    step = next((step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 7), 1.0)
    first, last = int(low / step) - 1, int(high / step) + 1
    return [round(count * step, 4) for count in range(first, last + 1) if low <= count * step <= high]
