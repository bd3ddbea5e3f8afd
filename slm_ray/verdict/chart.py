"""The geometry of the charts on the page, in SVG units: bars per arm, differences with their bounds, the curve of shares.

Numbers in, rounded coordinates out; the template draws them. An undefined value has no shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LEFT, _RIGHT = 190.0, 700.0
_ROW = 46.0
_TOP = 26.0
_TITLE = 22  # letters that fit beside a row


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


def differences(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Estimate and bounds of each difference on one axis that shows zero and minus delta; None without any interval.

    A difference has `interval`, `delta`, `action` (how it is read), a `title` and a `sub`title.
    """
    shown = [one for one in found if one.get("interval")]
    if not shown:
        return None
    edges = [0.0, *(-float(one["delta"]) for one in shown)]
    for one in shown:
        edges += [float(one["interval"][bound]) for bound in ("estimate", "lower", "upper")]
    margin = max(max(edges) - min(edges), 0.05) * 0.08
    low, high = min(edges) - margin, max(edges) + margin

    def at(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low), 1)

    rows = [
        {
            **one,
            "short": one["title"] if len(one["title"]) <= _TITLE else one["title"][: _TITLE - 1] + "…",
            "y": _TOP + _ROW * (index + 0.5),
            "margin": at(-float(one["delta"])),
            **{bound: at(float(one["interval"][bound])) for bound in ("estimate", "lower", "upper")},
        }
        for index, one in enumerate(shown)
    ]
    return {
        "left": _LEFT,
        "right": _RIGHT,
        "height": _TOP + _ROW * len(rows) + 8,
        "rows": rows,
        "zero": at(0.0),
        "margins": sorted({row["margin"] for row in rows}),
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
