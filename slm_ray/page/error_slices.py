"""Where an arm loses, out of a report's own breakdown: its lowest slices beside the LLM's, and its labels.

The arm is the last of those shown, which is the one to decide about. Guards are what a swap needs besides the primary
metric: guardrails that hold and no slice that is clearly worse. Computes no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.page.charts import Difference
from slm_ray.page.data import Arm, StageDecision
from slm_ray.records import ModelReport, Report
from slm_ray.types import Interval
from slm_ray.verdict.decide import clearly_worse, not_worse

_SLICES = 6
_TABLES = 4
_GUARDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The first of `count` guardrails and slices, each as the rule reads it; under `sequential` the words hold guardrails."""

    shown: tuple[Difference, ...]
    count: int


def guards(made: StageDecision | None, stand_in: bool) -> Guards | None:
    """Guardrails, then slices with the lowest upper bounds first; None without any."""
    if made is None or made.decision.rule == "point":
        return None
    delta = made.decision.delta
    found = [
        _guard(name, "guardrail", interval, delta, "not shown to hold", stand_in)
        for name, interval in made.comparison.guardrails.items()
        if made.decision.rule == "paired"
    ]
    for part in sorted(made.comparison.slices, key=lambda part: part.interval.upper):
        found.append(
            _guard(f"{part.tag}: {part.value}", f"{part.n} rows", part.interval, delta, "not shown worse", stand_in)
        )
    return Guards(shown=tuple(found[:_GUARDS]), count=len(found)) if found else None


def _guard(title: str, sub: str, interval: Interval, delta: float, unclear: str, stand_in: bool) -> Difference:
    tone, reading = "inconclusive", unclear
    if clearly_worse(interval, delta):
        tone, reading = "fine_tune", "worse"
    elif not_worse(interval, delta):
        tone, reading = "swap", "not worse"
    tone = "demonstration" if stand_in else tone
    return Difference(title=title, sub=f"{sub}, {reading}", interval=interval, delta=delta, tone=tone)


def slices(report: Report, present: Sequence[Arm], llm: str, primary: str) -> list[dict[str, Any]]:
    """Per tag the arm's lowest values of the primary metric, with the LLM's on the same rows where its report has them."""
    own = report.models[present[-1].spec].analysis if present else None
    if own is None:
        return []
    arm = present[-1]
    large = next((other for other in present if other.spec == llm and other is not arm), None)
    theirs = _values(report.models[llm], primary) if large else {}
    return [
        {
            "tag": found.tag, "arm": arm, "llm": large,
            "worst": [
                {
                    "value": part.value, "n": part.n, "own": part.metrics.get(primary),
                    "llm": theirs.get((found.tag, part.value)),
                }
                for part in found.worst[:_SLICES]
            ],
        }
        for found in own.slices[:_TABLES]
    ]  # fmt: skip


def classes(report: Report, present: Sequence[Arm]) -> dict[str, Any] | None:
    """The label table of the arm, lowest F1 first, with what each label is mostly taken for; None on other tracks."""
    analysis = report.models[present[-1].spec].analysis if present else None
    labels = analysis.labels if analysis else None
    if labels is None:
        return None
    worst = sorted(labels.classes, key=lambda row: (row.f1 is None, row.f1 or 0.0, row.label))
    rows = [{"figures": row, "mistaken": _mistaken(row.label, labels.confusion)} for row in worst]
    return {"arm": present[-1], "count": labels.count, "outside": labels.outside, "rows": rows}


def _mistaken(label: str, confusion: Mapping[str, Mapping[str, int]]) -> str:
    others = {given: n for given, n in confusion.get(label, {}).items() if given != label}
    if not others:
        return "–"
    most = max(others, key=lambda given: (others[given], given))
    return f"{most} ({others[most]})"


def _values(model: ModelReport, primary: str) -> dict[tuple[str, str], float | None]:
    found = model.analysis.slices if model.analysis else ()
    return {(part.tag, one.value): one.metrics.get(primary) for part in found for one in part.worst}
