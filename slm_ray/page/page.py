"""One offline HTML page that shows the verdict and everything it rests on.

`page` is a pure function: same data, same bytes. Everything is escaped, the page loads nothing and runs one script, its
own (a content security policy forbids others), and an undefined number is shown as a dash, never as 0. It computes no
metric: it subtracts and averages what the reports say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from slm_ray.corpus.tracks import TRACKS, defined
from slm_ray.page import formatting
from slm_ray.page.charts import bars, curve, daily, differences, measured
from slm_ray.page.error_slices import classes, guards, slices
from slm_ray.page.rows_view import FILTERS, rows_view

_ACTIONS: dict[str, dict[str, str]] = {
    "swap": {"word": "Swap", "icon": "✓", "means": "The small model can take the large one’s place on this task."},
    "fine_tune": {"word": "Fine-tune", "icon": "↻", "means": "Fine-tune before the small model takes over."},
    "inconclusive": {
        "word": "Inconclusive",
        "icon": "?",
        "means": "These rows cannot tell; the reasons say what would.",
    },
    "none": {"word": "No decision", "icon": "–", "means": "Nothing was compared."},
}
_RULES = {
    "paired": "swap only if the lower bound of SLM − LLM, row by row, is above −delta",
    "point": "fine-tune if the LLM leads by more than delta on any core metric",
}
_STAGES = ("validation", "test")
_ROLES = {"llm": "LLM", "base": "base SLM", "adapter": "tuned SLM", "other": "other"}


def page(data: Mapping[str, Any]) -> str:
    """Render the page.

    `data` holds `title`, `generated`, `run_dir`, `tracks`, `environment`, `reproduce` and `client_snippet`, and
    `stand_in_note` when a stand-in answered as the LLM. A track holds `track`, `decisions`, `reports` by stage, the
    test stage's score `rows` and, if there are any, `adapter` (its manifest), `timings_s`, `cost` and `partial`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slm_ray", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=formatting.percent, sentence=formatting.sentence, figure=formatting.figure, points=formatting.points, seconds=formatting.seconds, count=formatting.count, signed=formatting.signed, csp_hash=formatting.csp_hash,
        data_block=formatting.data_block, thousand_usd=formatting.thousand_usd, moment=formatting.moment,
    )  # fmt: skip
    html = environment.get_template("page.html.j2").render(
        data={
            "stand_in_note": None,
            "environment": {},
            "reproduce": [],
            "client_snippet": "",
            "serve_command": "",
            "canary": "",
            **data,
        },
        tracks=[_track(track, bool(data.get("stand_in_note"))) for track in data["tracks"]],
        actions=_ACTIONS,
        rules=_RULES,
        filters=FILTERS,
    )
    # A text outside the rows may hold half of a surrogate pair, which no UTF-8 file can.
    return html.encode("utf-8", "replace").decode("utf-8")


def _track(track: Mapping[str, Any], noted: bool) -> dict[str, Any]:
    """One track as the template wants it: arms with roles, decisions, charts, tables and rows."""
    reports = {stage: track["reports"][stage] for stage in _STAGES if track["reports"].get(stage)}
    decisions = sorted(track.get("decisions") or (), key=lambda decision: _STAGES.index(decision["stage"]))
    arms = _arms(decisions, reports, (track.get("adapter") or {}).get("id"), noted)
    final = decisions[-1] if decisions else None
    carried = [defined(report["track_definition"]) for report in reports.values() if "track_definition" in report]
    known = carried[0] if carried else TRACKS.get(track["track"])
    primary = final["primary"] if final else known.primary if known else ""
    llm, slm = (final["llm"], final["slm"]) if final else ("", "")
    rows = rows_view(
        track.get("rows") or (), list(arms.values()), llm=llm, slm=slm, primary=primary,
        validity=known.core[0] if known else "", run=_run(reports),
    )  # fmt: skip
    last = list(reports)[-1] if reports else None
    cost, part, held = track.get("cost"), track.get("partial"), guards(final)
    shown = [{**decision, "llm_arm": arms[decision["llm"]], "slm_arm": arms[decision["slm"]]} for decision in decisions]
    return {
        "name": track["track"],
        "primary": primary,
        "core": known.core if known else (),
        "decisions": shown,
        "final": shown[-1] if shown else None,
        "action": final["action"] if final else "none",
        "stand_in": any(arm["stand_in"] for arm in arms.values()),
        "tuned": any(arm["role"] == "adapter" for arm in arms.values()),
        "differences": differences([_difference(decision) for decision in shown]),
        "guards": held,
        "guard_chart": differences(held["shown"]) if held else None,
        "stages": [_stage(stage, reports[stage], arms, primary, llm, shown) for stage in reversed(reports)],
        "last": last,
        "rows": rows,
        "rows_of": reports[last]["examples"]["n"] if last else 0,
        "adapter": track.get("adapter"),
        "timings_s": track.get("timings_s") or {},
        "cost": cost,
        "cost_rows": [(arms[spec], found) for spec, found in cost["arms"].items() if spec in arms] if cost else [],
        "daily": daily(cost) if cost else None,
        "partial": part,
        "curve": curve(part["curve"], part["delta"], part["validation_share"]) if part else None,
        "panels": measured(list(arms.values()), reports[last], primary, cost, track.get("rows") or ())
        if last
        else None,
    }


def _difference(decision: Mapping[str, Any]) -> dict[str, Any]:
    """A decision as the chart of differences wants it."""
    sides = (decision["slm_arm"], decision["llm_arm"])
    named = " − ".join(side["label"] for side in sides)
    return {
        **decision,
        "title": decision["stage"],
        "sub": named + " (stand-in)" * any(side["stand_in"] for side in sides),
    }


def _run(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """What the last report's rows and answers are, for ratings that are kept in the browser."""
    if not reports:
        return ""
    report = list(reports.values())[-1]
    digests = (report.get("trust") or {}).get("digests", {})
    return f"{report['examples']['digest']}:{digests.get('answers', '')}"


def _arms(
    decisions: Sequence[Mapping[str, Any]], reports: Mapping[str, Mapping[str, Any]], adapter: str | None, noted: bool
) -> dict[str, dict[str, Any]]:
    """Every model by spec with its role, in reading order: the LLM, the base, the adapter, others.

    The first decision's SLM is the base; a later one's other SLM, or one that carries the adapter's id, is tuned.
    """
    roles: dict[str, str] = {}
    for position, decision in enumerate(decisions):
        roles.setdefault(decision["llm"], "llm")
        tuned = position > 0 or (adapter is not None and adapter in decision["slm"])
        roles.setdefault(decision["slm"], "adapter" if tuned else "base")
    for report in reports.values():
        for spec in report["models"]:
            roles.setdefault(spec, "other")
    ordered = sorted(roles, key=lambda spec: list(_ROLES).index(roles[spec]))
    return {
        spec: {
            "spec": spec,
            "role": roles[spec],
            "label": _ROLES[roles[spec]],
            "stand_in": (noted and roles[spec] == "llm")
            or any(report["models"].get(spec, {}).get("stand_in") for report in reports.values()),
        }
        for spec in ordered
    }


def _stage(
    stage: str,
    report: Mapping[str, Any],
    arms: Mapping[str, dict[str, Any]],
    primary: str,
    llm: str,
    decisions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One evaluation: its arms, a table of metrics with gaps to the LLM, service figures and issue counts."""
    models = report["models"]
    present = [arm for spec, arm in arms.items() if spec in models]
    decision = next((decision for decision in decisions if decision["stage"] == stage), None)
    delta = decision["delta"] if decision else 0.0
    bounds = _bounds(decision)
    names = list(dict.fromkeys(name for arm in present for name in models[arm["spec"]]["metrics"]))
    issues = sorted({issue for arm in present for issue in models[arm["spec"]]["issues"]})
    rivals = [arm for arm in present if arm["spec"] != llm] if llm in models else []
    return {
        "stage": stage,
        "report": report,
        "arms": [{**arm, "model": models[arm["spec"]], "per_call": _per_call(models[arm["spec"]])} for arm in present],
        "rivals": rivals,
        "metrics": [_metric(name, models, present, rivals, llm, delta, bounds) for name in names],
        "issues": [
            {"name": issue, "counts": [models[arm["spec"]]["issues"].get(issue, 0) for arm in present]}
            for issue in issues
        ],
        "slices": slices(report, present, llm, primary),
        "classes": classes(report, present),
        "trust": report.get("trust"),
        "bars": bars([(arm, models[arm["spec"]]["metrics"].get(primary)) for arm in present]),
    }


def _bounds(decision: Mapping[str, Any] | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The paired bounds that the comparison has, by model and metric: those of the primary metric and of the gates."""
    if not decision:
        return {}
    found = {**(decision.get("gates") or {}), decision["primary"]: decision.get("interval")}
    return {(decision["slm"], name): interval for name, interval in found.items() if interval}


def _metric(
    name: str,
    models: Mapping[str, Any],
    present: Sequence[Mapping[str, Any]],
    rivals: Sequence[Mapping[str, Any]],
    llm: str,
    delta: float,
    bounds: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    values = {arm["spec"]: models[arm["spec"]]["metrics"].get(name) for arm in present}
    gaps = []
    for arm in rivals:
        large, small = values[llm], values[arm["spec"]]
        gap = small - large if small is not None and large is not None else None
        tone = "none" if gap is None else "behind" if gap < -delta - 1e-12 else "ahead" if gap > 0 else "level"
        gaps.append({"gap": gap, "tone": tone, "bounds": bounds.get((arm["spec"], name))})
    return {"name": name, "values": list(values.values()), "gaps": gaps}


def _per_call(model: Mapping[str, Any]) -> dict[str, float | None]:
    """Mean tokens per row; None where no usage was reported, which is not the same as free."""
    used, n = model.get("usage") or {}, model["n"]
    return {kind: used[f"{kind}_tokens"] / n if n and any(used.values()) else None for kind in ("prompt", "completion")}
