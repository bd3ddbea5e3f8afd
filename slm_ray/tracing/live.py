"""A traffic log as spans: one trace per request, in it a generation for each arm that was asked. Pure, from the log's rows.

Ids come from the request's id and its arm, so a log that is sent again sends only what is new. Texts are those of the log,
redacted. What users said and how far the SLM agreed ride along as scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from slm_ray.tracing.otlp import SESSION, Span, digest, span
from slm_ray.tracing.spans import INPUT, OUTPUT, SCORE, Run
from slm_ray.traffic import ArmAnswer, TrafficRow

_META = "langfuse.observation.metadata."


def live_runs(rows: Iterable[TrafficRow]) -> Iterator[Run]:
    """One run per route and day in UTC; holds all rows in memory."""
    groups: dict[tuple[str, str], list[TrafficRow]] = {}
    for row in rows:
        groups.setdefault(_run_of(row), []).append(row)
    for (route, day), group in groups.items():
        session = digest("traffic", route, day)
        yield Run(kind=f"traffic {route} {day}", session=session, spans=tuple(_spans(group, session)))


def _run_of(row: TrafficRow) -> tuple[str, str]:
    return row.route, datetime.fromtimestamp(row.at, UTC).date().isoformat()


def _spans(rows: Iterable[TrafficRow], session: str) -> Iterator[Span]:
    for row in rows:
        trace_id, root_id = digest("trace", "traffic", row.id), digest("request", row.id, length=16)
        start_ns, asked = int(row.at * 1e9), _json(row.request.get("messages", dict(row.request)))
        served = row.answer_of(row.served) if row.served else None
        yield span(
            row.route, trace_id=trace_id, span_id=root_id, start_ns=start_ns,
            end_ns=max([start_ns, *(_end_ns(start_ns, answer) for answer in row.answers if answer is served)]),
            error=None if served is not None else "nobody answered",
            attributes={
                "langfuse.trace.name": row.route, SESSION: session, "user.id": row.user, INPUT: asked,
                OUTPUT: served.text if served else None, f"{_META}state": row.state, f"{_META}served": row.served,
                f"{_META}fallback": row.fallback, f"{_META}serial": row.serial, **_feedback(row),
            },
        )  # fmt: skip
        for place, answer in enumerate(row.answers):
            yield _generation(row, answer, place, trace_id=trace_id, parent_id=root_id, asked=asked, session=session)


def _generation(
    row: TrafficRow, answer: ArmAnswer, place: int, *, trace_id: str, parent_id: str, asked: str, session: str
) -> Span:
    start_ns = int(row.at * 1e9)
    return span(
        f"{row.route} {answer.arm}", trace_id=trace_id, parent_id=parent_id, start_ns=start_ns,
        span_id=digest("answer", row.id, answer.arm, str(place), length=16), end_ns=_end_ns(start_ns, answer),
        error=answer.reason or (None if answer.status == 200 else f"status {answer.status}"),
        attributes={
            "langfuse.observation.type": "generation", "langfuse.observation.model.name": answer.model, SESSION: session,
            INPUT: asked, OUTPUT: answer.text, "gen_ai.request.model": row.route, "gen_ai.response.model": answer.model,
            "gen_ai.usage.input_tokens": answer.prompt_tokens, "gen_ai.usage.output_tokens": answer.completion_tokens,
            f"{_META}valid": answer.valid, f"{_META}logprob": answer.logprob, f"{_META}cost_usd": answer.cost_usd,
            f"{SCORE}agreement": answer.score if answer.arm == "slm" else None,
        },
    )  # fmt: skip


def _feedback(row: TrafficRow) -> dict[str, float | str | None]:
    """What was said last."""
    scores = [said.score for said in row.feedback if said.score is not None]
    answers = [said.answer for said in row.feedback if said.answer is not None]
    return {
        f"{SCORE}feedback": scores[-1] if scores else None,
        f"{_META}corrected": answers[-1] if answers else None,
    }


def _end_ns(start_ns: int, answer: ArmAnswer) -> int:
    return start_ns + int(answer.latency_s * 1e9)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
