"""What is traced of an evaluation, a comparison and a training run, as spans: pure, from the records of the run alone.

An evaluation is one trace for the run (with one span per model) and one trace for each answer, which is also the run
item of a Langfuse experiment: one experiment per model, over one dataset item per example. The run's id comes from the
rows and the answers, so the same answers are the same run, and answers that changed are another one: what a trace server
holds cannot be changed. Scores ride along as `slm_ray.score.NAME` and become Langfuse scores when they are sent.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from slm_ray.records import Report, RowResult
from slm_ray.reports.encoding import encode
from slm_ray.runlog import Response
from slm_ray.tracing.otlp import SESSION, Span, Value, digest, digest_of, span
from slm_ray.types import Comparison, Completion, Decision

SCORE, LABEL = "slm_ray.score.", "slm_ray.label."
DATASET, EXPERIMENT = "slm_ray.dataset", "slm_ray.experiment"
INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"
ITEM_ID, ITEM_METADATA = "langfuse.experiment.item.id", "langfuse.experiment.item.metadata"
EXPECTED = "langfuse.experiment.item.expected_output"
_META = "langfuse.observation.metadata."
_CURVE_POINTS = 200

Rows = Sequence[RowResult]
Entries = Mapping[str, Mapping[str, Response]]
Lineage = Mapping[str, str | int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The spans of one run. A later run of the same `kind` takes its place in a trace file; `session` is its id.

    Spans may be gone through any number of times; those of an evaluation are made anew each time, in the thread that holds
    its log.
    """

    kind: str
    session: str
    spans: Iterable[Span]


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """What a function yields, each time anew."""

    make: Callable[[], Iterator[Span]]

    def __iter__(self) -> Iterator[Span]:
        return self.make()


def evaluation(report: Report, rows: Rows, answers: Entries, lineage: Mapping[str, Lineage] | None = None) -> Run:
    """An evaluation. `answers[spec][example_id]` are the log's; `lineage` says where a model comes from, by spec."""
    track, data = report.track, report.examples.digest
    ids = [row.id for row in rows]
    session = digest_of(itertools.chain(("evaluation", track, data), _identities(ids, answers)))
    entries = (answers[spec][one] for spec in report.models for one in ids if one in answers[spec])
    bounds = _bounds(entries)
    made = functools.partial(_spans, report, rows, answers, lineage or {}, session, bounds)
    return Run(kind="evaluate", session=session, spans=Made(made))


def _spans(
    report: Report, rows: Rows, answers: Entries, lineage: Mapping[str, Lineage], session: str,
    bounds: tuple[int, int],
) -> Iterator[Span]:  # fmt: skip
    track, data = report.track, report.examples.digest
    trace_id = digest("trace", session)
    root = _run_span(f"evaluate {track}", session, *bounds, {"track": track, "rows": len(rows), "data_digest": data})
    yield root
    for spec, model in report.models.items():
        known = dict(lineage.get(spec, {}))
        experiment = {
            "langfuse.experiment.id": digest("experiment", session, spec, length=16),
            "langfuse.experiment.name": f"{track} {spec} {session[:8]}",
            "langfuse.experiment.metadata": _json({"model": spec, "track": track, "data_digest": data, **known}),
        }
        facts = {
            name: value for name, value in encode(model).items() if name not in ("metrics", "n") and value is not None
        }
        yield span(
            spec, trace_id=trace_id, span_id=digest("model", session, spec, length=16), parent_id=root["spanId"],
            start_ns=bounds[0], end_ns=bounds[1],
            attributes={
                SESSION: session, EXPERIMENT: experiment["langfuse.experiment.id"], **_metadata({**facts, **known}),
                **_scores(model.metrics),
            },
        )  # fmt: skip
        shared = {SESSION: session, DATASET: f"{track}-{data[:12]}", **experiment, **_metadata(known)}
        for row in rows:
            if spec in row.models:  # one that was decided early is on the first rows only
                yield _answer(track, spec, row, answers[spec][row.id], shared)


def comparison(found: Comparison, decision: Decision, *, at_ns: int) -> Run:
    """A comparison with its verdict; the same reports and rule give the same id, whenever it is done again."""
    facts = {"comparison": dataclasses.asdict(found), "decision": dataclasses.asdict(decision)}
    session = digest("comparison", json.dumps(facts, sort_keys=True, default=str))
    bounds = found.interval
    scores = {"difference": bounds.estimate, "lower": bounds.lower, "upper": bounds.upper}
    root = _run_span(
        f"compare {found.track}", session, at_ns, at_ns,
        {
            "track": found.track, "llm": found.llm, "slm": found.slm, "rows": found.n, "data_digest": found.digest,
            "primary": found.primary, "rule": decision.rule, "delta": decision.delta, "action": decision.action,
            "lower": bounds.lower, "upper": bounds.upper, "method": bounds.method, "gaps": dict(found.gaps),
        },
        {
            INPUT: _json({"llm": dict(found.llm_metrics), "slm": dict(found.slm_metrics)}),
            OUTPUT: _json({"action": decision.action, "because": list(decision.sentences)}),
            f"{LABEL}verdict": decision.action, **_scores(scores),
        },
    )  # fmt: skip
    return Run(kind=f"compare {found.llm} {found.slm} {decision.rule}", session=session, spans=(root,))


def training(
    name: str, *, lineage: Lineage, metrics: Mapping[str, Any], curve: Sequence[Mapping[str, float]], bounds_ns: tuple[int, int]
) -> Run:  # fmt: skip
    """A training run: figures as scores, the loss curve as events, at most 200 of them spread evenly."""
    session = digest("training", name, _json(dict(lineage)))
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    others = {key: value for key, value in metrics.items() if key not in numbers}
    root = _run_span(f"train {name}", session, *bounds_ns, {**lineage, **others}, _scores(numbers))
    every = max(1, -(-len(curve) // _CURVE_POINTS))
    kept = [point for at, point in enumerate(curve) if at % every == 0 or at == len(curve) - 1]
    steps = max((point["step"] for point in kept), default=1) or 1
    events = [
        span(
            f"step {point['step']:g}", trace_id=root["traceId"], parent_id=root["spanId"],
            span_id=digest("point", session, f"{point['step']:g}", length=16), start_ns=at_ns, end_ns=at_ns,
            attributes={"langfuse.observation.type": "event", SESSION: session, **_metadata(dict(point))},
        )
        for point in kept
        # A point's own time is not kept: it stands where its step lies in the run.
        for at_ns in [bounds_ns[0] + int((bounds_ns[1] - bounds_ns[0]) * point["step"] / steps)]
    ]  # fmt: skip
    return Run(kind=f"train {name}", session=session, spans=(root, *events))


def item_id(dataset: str, example_id: str) -> str:
    """A dataset item's id: unique in a project, since a dataset's name holds its content."""
    return digest("item", dataset, example_id)


def _answer(track: str, spec: str, row: RowResult, entry: Response, shared: Mapping[str, Value | None]) -> Span:
    session, example_id = str(shared[SESSION]), row.id
    completion, judged = entry.completion, row.models[spec]
    failure, span_id = completion.failure, digest("answer", session, spec, example_id, length=16)
    return span(
        f"{track} {spec}", trace_id=digest("trace", session, spec, example_id), span_id=span_id,
        start_ns=_start_ns(entry), end_ns=entry.answered_ns, error=f"{failure.kind}: {failure.reason}" if failure else None,
        attributes={
            "langfuse.trace.name": f"{track} {spec}", "langfuse.observation.type": "generation",
            "langfuse.observation.model.name": completion.served_by or spec,
            "langfuse.observation.level": "ERROR" if failure else None,
            INPUT: _json(encode(row.prompt)), OUTPUT: completion.text,
            **shared,
            ITEM_ID: item_id(str(shared[DATASET]), example_id), EXPECTED: row.target,
            ITEM_METADATA: _json({"example_id": example_id, **row.tags}),
            "langfuse.experiment.item.root_observation_id": span_id,
            "gen_ai.request.model": spec, "gen_ai.response.model": completion.served_by, **_usage(entry),
            "slm_ray.example_id": example_id, "slm_ray.attempts": completion.attempts,
            "slm_ray.failure": failure.kind if failure else None, "slm_ray.latency_s": completion.latency_s,
            "slm_ray.logprob": completion.logprob,
            "slm_ray.issues": ", ".join(judged.issues) or None,
            **_scores(judged.scores),
        },
    )  # fmt: skip


def _usage(entry: Response) -> dict[str, Value | None]:
    completion, usage = entry.completion, entry.completion.usage
    began = None
    if completion.first_token_s is not None:
        began = datetime.fromtimestamp(_start_ns(entry) / 1e9 + completion.first_token_s, UTC).isoformat()
    if usage is None:
        return {"langfuse.observation.completion_start_time": began}
    fresh = usage.prompt_tokens - usage.cached_tokens
    parts = {"input": fresh, "input_cached_tokens": usage.cached_tokens, "output": usage.completion_tokens}
    return {
        "langfuse.observation.completion_start_time": began,
        "langfuse.observation.usage_details": _json({name: count for name, count in parts.items() if count}),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }


def _run_span(
    name: str, session: str, start_ns: int, end_ns: int, facts: Mapping[str, Any],
    further: Mapping[str, Value | None] | None = None,
) -> Span:  # fmt: skip
    return span(
        name, trace_id=digest("trace", session), span_id=digest("run", session, length=16), start_ns=start_ns,
        end_ns=end_ns,
        attributes={"langfuse.trace.name": name, SESSION: session, **_metadata(facts), **(further or {})},
    )  # fmt: skip


def _bounds(entries: Iterable[Response]) -> tuple[int, int]:
    """When the first of the answers was asked for and the last one came."""
    start_ns, end_ns = 2**63, 0
    for entry in entries:
        start_ns, end_ns = min(start_ns, _start_ns(entry)), max(end_ns, entry.answered_ns)
    return start_ns, end_ns


def _identities(ids: Sequence[str], answers: Entries) -> Iterator[str]:
    for spec, given in answers.items():
        for example_id in ids:
            if example_id in given:
                entry = given[example_id]
                yield f"{spec}\n{example_id}\n{entry.answered_ns}\n{_said(entry.completion)}"


def _said(completion: Completion) -> str:
    return completion.text if completion.text is not None else f"\0{completion.failure}"


def _start_ns(entry: Response) -> int:
    return entry.answered_ns - int((entry.completion.latency_s or 0.0) * 1e9)


def _scores(found: Mapping[str, float | None]) -> dict[str, Value | None]:
    return {f"{SCORE}{name}": float(value) if value is not None else None for name, value in found.items()}


def _metadata(facts: Mapping[str, Any]) -> dict[str, Value | None]:
    return {
        f"{_META}{name}": value if value is None or isinstance(value, str | bool | int | float) else _json(value)
        for name, value in facts.items()
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
