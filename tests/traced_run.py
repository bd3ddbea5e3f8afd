"""A finished evaluation's directory, made of real records without asking any model: log, report, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from log_files import log_of
from plain_records import build

from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.reports.files import write_report
from slm_ray.runlog import Response
from slm_ray.types import Completion, Example, Failure, Usage

LLM, SLM = "azure:gpt", "served:tiny:structured-0123456789ab"
BEGAN_NS = 1_760_000_000_000_000_000


def example(n: int, question: str = "question") -> Example:
    reference = json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})
    return Example(
        id=f"r{n}",
        prompt=prompt_of(track("structured"), f"{question} {n} \u2028"),
        target=reference,
        tags={"tool": f"t{n % 3}"},
    )


def entry(spec: str, row: Example, n: int, *, text: str | None = None, failed: bool = False) -> Response:
    completion = Completion(
        text=None if failed else text or row.target,
        failure=Failure(kind="error", reason="HTTP 500", status=500) if failed else None,
        latency_s=0.25 + n / 1e4, usage=Usage(prompt_tokens=20, completion_tokens=7, cached_tokens=4), served_by="m-1",
    )  # fmt: skip
    at_ns = BEGAN_NS + n * 10_000_000
    return Response(
        key=f"{spec} {row.id} {failed}", spec=spec, example_id=row.id, completion=completion, answered_ns=at_ns
    )


def finished(folder: Path, rows: int = 20, *, long_text: str | None = None, failing: bool = True) -> dict[str, Any]:
    """Write the directory and return report, rows and answers; the LLM's row 1 fails where `failing` is set."""
    examples = [example(n) for n in range(rows)]
    answers = {
        LLM: {row.id: entry(LLM, row, n, failed=failing and n == 1) for n, row in enumerate(examples)},
        SLM: {row.id: entry(SLM, row, n, text=long_text if n == 2 else "{}") for n, row in enumerate(examples)},
    }
    log_of(folder, (response for given in answers.values() for response in given.values())).close()
    completions = {spec: {key: one.completion for key, one in given.items()} for spec, given in answers.items()}
    report, scored = build(track("structured"), examples, completions, trained_on={})
    write_report(folder, report, scored)
    return {"report": report, "rows": scored, "answers": answers}
