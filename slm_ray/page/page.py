"""One offline HTML page that shows the verdict and everything it rests on.

`page` is a pure function: same data, same bytes. Everything is escaped, the page loads nothing and runs one script, its
own (a content security policy forbids others), and an undefined number is shown as a dash, never as 0. It computes no
metric: it subtracts and averages what the reports say.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from slm_ray.corpus.tracks import defined
from slm_ray.page import formatting
from slm_ray.page.charts import Difference, bars, curve, daily, differences, measured, quality, sequence
from slm_ray.page.data import Arm, LoopReport, Stage, StageDecision, TrackResult
from slm_ray.page.error_slices import classes, guards, slices
from slm_ray.page.rows_view import MOST_ROWS, Sides, graded, rows_view
from slm_ray.page.summary import summary
from slm_ray.page.template import encodable, environment
from slm_ray.records import ModelReport, Report, RowResult
from slm_ray.types import Comparison, Interval, Usage

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
    "sequential": "swap or fine-tune as soon as the confidence sequence clears −delta, however often one looks",
    "point": "fine-tune if the LLM leads by more than delta on any core metric",
}
LIMIT_BYTES = 20_000_000  # of the file, nearly: what stands beside the rows is small and bounded
_FOR_THE_REST = 500_000
_EARLIER = 12  # candidates with a line of figures
_STAGES: tuple[Stage, ...] = ("validation", "test")
_ROLES = {"llm": "LLM", "base": "base SLM", "adapter": "tuned SLM", "other": "other"}


def page(data: LoopReport, rows: Mapping[str, Sequence[RowResult]]) -> str:
    """Render the page, of `LIMIT_BYTES` at most; `rows` are all rows of each track's last report."""
    room = (LIMIT_BYTES - _FOR_THE_REST) // max(1, sum(bool(rows.get(track.track)) for track in data.tracks))
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            tracks=[
                _track(track, rows.get(track.track, ()), noted=data.stand_in_note is not None, room=room)
                for track in data.tracks
            ],
            actions=_ACTIONS,
            rules=_RULES,
            limit_mb=LIMIT_BYTES // 1_000_000,
            most_rows=MOST_ROWS,
        )
    )
    return encodable(html)


@functools.cache
def _environment() -> jinja2.Environment:
    return environment(
        percent=formatting.percent, sentence=formatting.sentence, figure=formatting.figure, points=formatting.points, seconds=formatting.seconds, count=formatting.count, csp_hash=formatting.csp_hash,
        data_block=formatting.data_block, thousand_usd=formatting.thousand_usd, moment=formatting.moment, half_width=formatting.half_width,
        margin=formatting.margin, in_points=formatting.in_points, money=formatting.money, share=formatting.share, sure=formatting.sure,
        row_link=formatting.row_link,
    )  # fmt: skip


def _track(track: TrackResult, rows: Sequence[RowResult], *, noted: bool, room: int) -> dict[str, Any]:
    """One track as the template wants it: arms with roles, decisions, charts, tables and rows."""
    reports = {stage: track.reports[stage] for stage in _STAGES if stage in track.reports}
    decisions = sorted(track.decisions, key=lambda made: _STAGES.index(made.stage))
    arms = _arms(decisions, reports, str(track.adapter["id"]) if track.adapter else None, noted)
    final = decisions[-1] if decisions else None
    last = list(reports)[-1] if reports else None
    known = defined(reports[last].track_definition) if last else None
    primary = final.comparison.primary if final else known.primary if known else ""
    llm, slm = (final.comparison.llm, final.comparison.slm) if final else ("", "")
    stand_in = any(arm.stand_in for arm in arms.values())
    sides = Sides(arms=tuple(arms.values()), llm=llm, slm=slm, primary=primary, graded=graded(rows, primary))
    binary = bool(rows) and not sides.graded
    cost, partial, held = track.cost, track.partial_replacement, guards(final, stand_in)
    shown = [_shown(made, arms, stand_in, reports.get(made.stage)) for made in decisions]
    drawn = rows_view(rows, sides, run=_run(reports[last]) if last else "", limit_bytes=room)
    return {
        "name": track.track,
        "primary": primary,
        "core": known.core if known else (),
        "decisions": shown,
        "final": shown[-1] if shown else None,
        "action": final.decision.action if final else "none",
        "tone": "demonstration" if stand_in and final else final.decision.action if final else "none",
        "stand_in": stand_in,
        "tuned": any(arm.role == "adapter" for arm in arms.values()),
        "differences": differences([_difference(made, arms) for made in decisions]),
        "rest": _rest(reports[last], arms) if last else [],
        "sequence": sequence(final.comparison.sequential, final.decision.delta)
        if final and final.comparison.sequential
        else None,
        "guards": held,
        "floors": final.comparison.floors if final else {},
        "before": _before(final) if final and final.decision.earlier else None,
        "graded": sides.graded,
        "guard_chart": differences(held.shown) if held else None,
        "stages": [
            _stage(stage, reports[stage], arms, primary, llm, decisions, binary and stage == last)
            for stage in reversed(reports)
        ],
        "last": last,
        "rows": drawn,
        "summary": summary(
            track, final, reports[last] if last else None, drawn.lost_by, stand_in=stand_in, graded=sides.graded
        ),
        "rows_of": reports[last].examples.n if last else 0,
        "adapter": track.adapter,
        "timings_s": track.timings_s,
        "cost": cost,
        "cost_rows": [(arms[spec], arm_cost) for spec, arm_cost in cost.arms.items() if spec in arms] if cost else [],
        "daily": daily(cost) if cost else None,
        "volumes": formatting.volumes(cost, stand_in=stand_in),
        "partial": partial,
        "curve": curve(partial.curve, partial.delta, partial.validation_share) if partial else None,
        "panels": measured(list(arms.values()), reports[last], primary, cost, binary) if last else None,
    }


def _shown(made: StageDecision, arms: Mapping[str, Arm], stand_in: bool, report: Report | None) -> dict[str, Any]:
    """A decision as the template wants it."""
    comparison, decision = made.comparison, made.decision
    return {
        "stage": made.stage, "action": decision.action, "rule": decision.rule, "delta": decision.delta,
        "tone": "demonstration" if stand_in else decision.action,
        "sentences": decision.sentences, "llm": comparison.llm, "slm": comparison.slm, "n": comparison.n,
        "rows": _paired(comparison),
        "primary": comparison.primary, "interval": made.interval,
        "llm_arm": arms[comparison.llm], "slm_arm": arms[comparison.slm], "declared": _declared(made, report),
        "candidate": decision.candidate, "level": comparison.level,
    }  # fmt: skip


def _paired(comparison: Comparison) -> str:
    """On how many rows the decision stands, and what they are worth where they come in groups."""
    said = f"{comparison.n:,} paired rows"
    if comparison.largest_group > 1:
        said += f" in {comparison.groups:,} groups of {comparison.largest_group:,} at most"
    if comparison.largest_group > 1 and comparison.effective_n is not None:
        said += f", worth {comparison.effective_n:,.0f} independent ones"
    if comparison.undefined:
        said += f"; on {comparison.undefined:,} more {comparison.primary} is not defined"
    return said


def _declared(made: StageDecision, report: Report | None) -> str:
    """What is known of when the rule was fixed."""
    if made.decision.exploratory is not None:
        return "Exploratory: not the rule that was declared"
    pair = (made.comparison.llm, made.comparison.slm)
    recorded = [spec for spec, model in (report.models if report else {}).items() if model.facts.kind == "recorded"]
    if set(pair) & set(recorded):
        return "Recorded answers were there before any rule could be declared"
    declared = made.declared
    if declared is None:
        return "No rule was declared before the first call"
    if declared.answers_before:
        return f"The rule was declared when {declared.answers_before:,} answers were already there"
    return "Declared before the first call"


def _before(final: StageDecision) -> dict[str, Any]:
    """The candidates before this one on its rows, the last ones, and the one that it is held against row by row."""
    earlier = final.decision.earlier
    return {
        "shown": earlier[-_EARLIER:],
        "left_out": max(0, len(earlier) - _EARLIER),
        "without": sum(one.figures is None for one in earlier[-_EARLIER:]),
        "since": next((one for one in earlier if one.changes), None),
        "now": final.figures,
    }


def _rest(report: Report, arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """What each arm was asked beyond the row that decided."""
    rest = report.sequential.rest if report.sequential else {}
    return [{"arm": arms[spec], "of": of} for spec, of in rest.items() if spec in arms and of.calls]


def _difference(made: StageDecision, arms: Mapping[str, Arm]) -> Difference:
    """A decision as the chart of differences wants it."""
    pair = (arms[made.comparison.slm], arms[made.comparison.llm])
    stand_in = any(arm.stand_in for arm in pair)
    return Difference(
        title=f"{made.stage} rows",
        sub=" − ".join(arm.label for arm in pair) + " (stand-in)" * stand_in,
        interval=made.interval,
        delta=made.decision.delta,
        tone="demonstration" if stand_in else made.decision.action,
    )


def _run(report: Report) -> str:
    """What the last report's rows and answers are, for ratings that are kept in the browser."""
    return f"{report.examples.digest}:{report.provenance.digests.answers if report.provenance else ''}"


def _arms(
    decisions: Sequence[StageDecision], reports: Mapping[Stage, Report], adapter: str | None, noted: bool
) -> dict[str, Arm]:
    """Every model by spec with its role, in reading order: the LLM, the base, the adapter, others.

    The first decision's SLM is the base; a later one's other SLM, or one that carries the adapter's id, is tuned.
    """
    models = [(spec, model) for report in reports.values() for spec, model in report.models.items()]
    tuned = {spec for spec, model in models if adapter is not None and model.facts.adapter == adapter}
    stand_ins = {spec for spec, model in models if model.stand_in}
    roles: dict[str, str] = {}
    for position, made in enumerate(decisions):
        roles.setdefault(made.comparison.llm, "llm")
        slm = made.comparison.slm
        roles.setdefault(slm, "adapter" if position > 0 or slm in tuned else "base")
    for spec, _ in models:
        roles.setdefault(spec, "other")
    return {
        spec: Arm(
            spec=spec,
            role=roles[spec],
            label=_ROLES[roles[spec]],
            stand_in=(noted and roles[spec] == "llm") or spec in stand_ins,
        )
        for spec in sorted(roles, key=lambda spec: list(_ROLES).index(roles[spec]))
    }


def _stage(
    stage: Stage,
    report: Report,
    arms: Mapping[str, Arm],
    primary: str,
    llm: str,
    decisions: Sequence[StageDecision],
    binary: bool,
) -> dict[str, Any]:
    """One evaluation: its arms, a table of metrics with gaps to the LLM, service figures and issue counts."""
    models = report.models
    present = [arm for spec, arm in arms.items() if spec in models]
    made = next((made for made in decisions if made.stage == stage), None)
    names = list(dict.fromkeys(name for arm in present for name in models[arm.spec].metrics))
    issues = sorted({issue for arm in present for issue in models[arm.spec].issues})
    rivals = [arm for arm in present if arm.spec != llm] if llm in models else []
    return {
        "stage": stage,
        "report": report,
        "arms": [(arm, models[arm.spec], _per_call(models[arm.spec])) for arm in present],
        "rivals": rivals,
        "metrics": [_metric(name, models, present, rivals, llm, made) for name in names],
        "issues": [(issue, [models[arm.spec].issues.get(issue, 0) for arm in present]) for issue in issues],
        "slices": slices(report, present, llm, primary),
        "classes": classes(report, present),
        "provenance": report.provenance,
        "bars": bars(
            [(arm, quality(models[arm.spec].metrics.get(primary), models[arm.spec].n, binary)) for arm in present], 1.0
        ),
    }


def _metric(
    name: str, models: Mapping[str, ModelReport], present: Sequence[Arm], rivals: Sequence[Arm], llm: str,
    made: StageDecision | None,
) -> dict[str, Any]:  # fmt: skip
    values = {arm.spec: models[arm.spec].metrics.get(name) for arm in present}
    delta = made.decision.delta if made else 0.0
    gaps = []
    for arm in rivals:
        large, small = values[llm], values[arm.spec]
        gap = small - large if small is not None and large is not None else None
        tone = "none" if gap is None else "behind" if gap < -delta - 1e-12 else "ahead" if gap > 0 else "level"
        gaps.append({"gap": gap, "tone": tone, "bounds": _bounds(made, arm.spec, name)})
    return {"name": name, "values": list(values.values()), "gaps": gaps}


def _bounds(made: StageDecision | None, spec: str, name: str) -> Interval | None:
    """The paired bounds that the comparison has for a model and a metric: those of the primary one and of guardrails."""
    if made is None or made.comparison.slm != spec:
        return None
    return made.interval if name == made.comparison.primary else made.comparison.guardrails.get(name)


def _per_call(model: ModelReport) -> dict[str, float | None]:
    """Mean tokens per row; None where no usage was reported, which is not the same as free."""
    stated = model.n > 0 and model.usage != Usage()
    return {
        "prompt": model.usage.prompt_tokens / model.n if stated else None,
        "completion": model.usage.completion_tokens / model.n if stated else None,
    }
