"""Where an arm loses, out of a report's own breakdown: its lowest slices beside the LLM's, and its labels.

The arm is the last of those shown, which is the one to decide about. Guards are what a swap needs besides the primary
metric: gates that hold and no slice that is clearly worse. Computes no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm_ray.types import Interval
from slm_ray.verdict.decide import clearly_worse, not_worse

_SLICES = 6
_TABLES = 4
_GUARDS = 12


def guards(decision: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Gates, then slices with the lowest upper bounds first, each read as the paired rule reads it; None without any."""
    if decision is None or decision["rule"] != "paired":
        return None
    found = [
        _guard(name, "gate", interval, decision, "not shown to hold")
        for name, interval in (decision.get("gates") or {}).items()
    ]
    for part in sorted(decision.get("slices") or (), key=lambda part: float(part["interval"]["upper"])):
        name = f"{part['tag']}: {part['value']}"
        found.append(_guard(name, f"{part['n']} rows", part["interval"], decision, "not shown worse"))
    return {"shown": found[:_GUARDS], "count": len(found)} if found else None


def _guard(
    title: str, sub: str, interval: Mapping[str, Any], decision: Mapping[str, Any], unclear: str
) -> dict[str, Any]:
    bounds, delta = Interval(**interval), decision["delta"]
    action, reading = "inconclusive", unclear
    if clearly_worse(bounds, delta):
        action, reading = "fine_tune", "worse"
    elif not_worse(bounds, delta):
        action, reading = "swap", "not worse"
    return {"title": title, "sub": f"{sub}, {reading}", "interval": interval, "delta": delta, "action": action}


def slices(
    report: Mapping[str, Any], present: Sequence[Mapping[str, Any]], llm: str, primary: str
) -> list[dict[str, Any]]:
    """Per tag the arm's lowest values of the primary metric, with the LLM's on the same rows where its report has them."""
    if not present or "analysis" not in report["models"][present[-1]["spec"]]:
        return []
    arm = present[-1]
    large = next((other for other in present if other["spec"] == llm and other is not arm), None)
    theirs = _values(report["models"][llm], primary) if large else {}
    tables = []
    for found in report["models"][arm["spec"]]["analysis"]["slices"][:_TABLES]:
        worst = [
            {
                "value": part["value"], "n": part["n"], "own": part["metrics"].get(primary),
                "llm": theirs.get((found["tag"], part["value"])),
            }
            for part in found["worst"][:_SLICES]
        ]  # fmt: skip
        tables.append({"tag": found["tag"], "arm": arm, "llm": large, "worst": worst})
    return tables


def classes(report: Mapping[str, Any], present: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The label table of the arm, lowest F1 first, with what each label is mostly taken for; None on other tracks."""
    analysis = report["models"][present[-1]["spec"]].get("analysis", {}) if present else {}
    labels = analysis.get("labels")
    if labels is None:
        return None
    rows = [{**row, "mistaken": _mistaken(row["label"], labels["confusion"])} for row in labels["classes"]]
    rows.sort(key=lambda row: (row["f1"] is None, row["f1"], row["label"]))
    return {"arm": present[-1], "count": labels["count"], "outside": labels["outside"], "rows": rows}


def _mistaken(label: str, confusion: Mapping[str, Mapping[str, int]]) -> str:
    others = {given: n for given, n in confusion.get(label, {}).items() if given != label}
    if not others:
        return "–"
    most = max(others, key=lambda given: (others[given], given))
    return f"{most} ({others[most]})"


def _values(model: Mapping[str, Any], primary: str) -> dict[tuple[str, str], float | None]:
    found = model.get("analysis", {}).get("slices", ())
    return {(part["tag"], one["value"]): one["metrics"].get(primary) for part in found for one in part["worst"]}
