"""Score rows as a person reads them: what was asked, what was expected, what each arm said, and who was right.

Right means a primary score of 1; lost means that the LLM was right and the SLM was not; invalid means that an arm's
call failed or that its answer is not even of the right form. Nothing is scored again.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_CALL = re.compile(r'\s*(<tool_call name="[^"]*">)(.*)(</tool_call>)\s*', re.DOTALL)
_TITLE = 150

FILTERS = {
    "all": "All",
    "different": "LLM and SLM disagree",
    "lost": "SLM lost",
    "invalid": "Invalid or failed",
}


def rows_view(
    rows: Sequence[Mapping[str, Any]],
    arms: Sequence[Mapping[str, Any]],
    *,
    llm: str,
    slm: str,
    primary: str,
    validity: str,
) -> dict[str, Any]:
    """The rows for the page, how many each filter shows, where the SLM loses by tag and which row is open at first."""
    shown = [_row(row, arms, llm, slm, primary, validity) for row in rows]
    counts = {name: sum(name in row["kinds"] for row in shown) for name in FILTERS}
    first = next((position for position, row in enumerate(shown) if "lost" in row["kinds"]), 0)
    return {"rows": shown, "counts": counts, "lost_by": _lost_by(shown), "open": first}


def _row(
    row: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], llm: str, slm: str, primary: str, validity: str
) -> dict[str, Any]:
    expected = _lines(row["reference"])
    answers = [
        _answer(row["models"][arm["spec"]], arm, expected, primary, validity)
        for arm in arms
        if arm["spec"] in row["models"]
    ]
    outcome = {answer["arm"]["spec"]: answer["outcome"] for answer in answers}
    large, small = outcome.get(llm), outcome.get(slm)
    kinds = ["all"]
    if large and small and (large == "right") != (small == "right"):
        kinds += ["different"] + ["lost"] * (large == "right")
    if {"invalid", "failed"} & set(outcome.values()):
        kinds.append("invalid")
    *earlier, question = row["prompt"]
    return {
        "id": row["id"],
        "title": _title(question["content"]),
        "question": question["content"],
        "earlier": earlier,
        "tags": dict(row.get("tags") or {}),
        "expected": [{"text": line, "odd": False} for line in expected],
        "answers": answers,
        "kinds": kinds,
    }


def _answer(
    answer: Mapping[str, Any], arm: Mapping[str, Any], expected: Sequence[str], primary: str, validity: str
) -> dict[str, Any]:
    failure, scores = answer.get("failure"), answer.get("scores") or {}
    if failure:
        outcome = "failed"
    elif (scores.get(primary) or 0) >= 1:
        outcome = "right"
    else:
        outcome = "invalid" if scores.get(validity) == 0 else "wrong"
    lines = [] if answer.get("text") is None else _lines(answer["text"])
    return {
        "arm": arm,
        "outcome": outcome,
        "failure": failure,
        "lines": _against(expected, lines, mark=outcome == "wrong"),
        "issues": list(answer.get("issues") or ()),
        "latency_s": answer.get("latency_s"),
    }


def _lines(text: str) -> list[str]:
    """JSON, alone or in a tool call, spread over lines with sorted keys so that two answers align; else as it is."""
    call = _CALL.fullmatch(text)
    before, body, after = call.groups() if call else ("", text, "")
    try:
        body = json.dumps(json.loads(body), indent=2, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text.splitlines() or [""]
    return [line for line in (before, *body.splitlines(), after) if line]


def _against(expected: Sequence[str], given: Sequence[str], *, mark: bool) -> list[dict[str, Any]]:
    """The given lines, `odd` where the expected answer has no such line (a trailing comma is no difference)."""
    left, right = ([line.rstrip(",") for line in lines] for lines in (expected, given))
    blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks() if mark else []
    same = {block.b + offset for block in blocks for offset in range(block.size)}
    return [{"text": line, "odd": mark and position not in same} for position, line in enumerate(given)]


def _title(text: str) -> str:
    """The line that tells rows apart: the query of a template, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    named = [line.split(": ", 1)[1] for line in lines if line.startswith(("Query: ", "Request: "))]
    title = named[-1] if named else lines[-1]
    return title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"


def _lost_by(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows lost by the SLM, counted by domain or else by tool: the five worst; None when nothing is lost or tagged."""
    tag = next((tag for tag in ("domain", "tool") if any(tag in row["tags"] for row in rows)), None)
    lost = Counter(row["tags"][tag] for row in rows if tag in row["tags"] and "lost" in row["kinds"])
    if tag is None or not lost:
        return None
    total = Counter(row["tags"][tag] for row in rows if tag in row["tags"])
    worst = sorted(lost, key=lambda name: (-lost[name], name))[:5]
    return {"tag": tag, "worst": [{"name": name, "lost": lost[name], "of": total[name]} for name in worst]}
