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
from dataclasses import dataclass
from typing import Any

from slm_ray.page.data import Arm
from slm_ray.records import AnswerResult, RowResult

_CALL = re.compile(r'\s*(<tool_call name="[^"]*">)(.*)(</tool_call>)\s*', re.DOTALL)
_TITLE = 150
_COMPARED = 1_000_000  # pairs of lines
_DRAWN = 60  # rows that the script draws at once

FILTERS = {
    "all": "All",
    "different": "LLM and SLM disagree",
    "lost": "SLM lost",
    "won": "SLM won",
    "invalid": "Invalid or failed",
    "refused": "Refused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """One row: the filters that show it, its tags, and what the page's script draws (`data`, with short keys)."""

    kinds: tuple[str, ...]
    tags: Mapping[str, str]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsView:
    """What the script draws of all rows, how many each filter shows, and where the SLM loses by tag."""

    data: dict[str, Any]
    n: int
    counts: Mapping[str, int]
    lost_by: dict[str, Any] | None


def rows_view(
    rows: Sequence[RowResult],
    arms: Sequence[Arm],
    *,
    llm: str,
    slm: str,
    primary: str,
    validity: str,
    run: str = "",
) -> RowsView:
    """The rows for the page, turns that rows share only once. `run` says whose rows they are."""
    earlier: dict[str, int] = {}
    shown = [_row(row, arms, llm, slm, primary, validity, earlier) for row in rows]
    specs = [arm.spec for arm in arms]
    data = {
        "arms": [{"label": arm.label, "spec": arm.spec, "standIn": arm.stand_in} for arm in arms],
        "slm": specs.index(slm) if slm in specs else None,
        "earlier": [json.loads(turns) for turns in earlier],
        "primary": primary,
        "open": _first(shown[:_DRAWN]),
        "run": run,
        "rows": [row.data for row in shown],
    }
    counts = {name: sum(name == "all" or name in row.kinds for row in shown) for name in FILTERS}
    return RowsView(data=data, n=len(shown), counts=counts, lost_by=_lost_by(shown))


def _row(
    row: RowResult, arms: Sequence[Arm], llm: str, slm: str, primary: str, validity: str, earlier: dict[str, int]
) -> DrawnRow:
    """i: id, t: title, q: question, e: earlier turns (an index), g: tags, x: expected (xr as it stands in the file, where
    that differs), a: answers, k: filters."""
    expected = _lines(row.target)
    asked = [(place, arm.spec) for place, arm in enumerate(arms) if arm.spec in row.models]
    outcome = {spec: _outcome(row.models[spec], primary, validity) for _, spec in asked}
    kinds = _kinds(outcome, outcome.get(llm), outcome.get(slm))
    *before, question = row.prompt
    turns = json.dumps([[turn.role, turn.content] for turn in before])
    data = {
        "i": row.id,
        "t": _title(question.content),
        "q": question.content,
        "e": earlier.setdefault(turns, len(earlier)),
        "g": dict(row.tags),
        **_both("x", row.target, expected),
        "a": [_answer(row.models[spec], place, outcome[spec], expected, primary) for place, spec in asked],
        "k": kinds,
    }
    return DrawnRow(kinds=tuple(kinds), tags=row.tags, data=data)


def _first(rows: Sequence[DrawnRow]) -> int:
    """Of the rows that are drawn at once, one that shows most: lost by the SLM, else won, else any."""
    found = (place for kind in ("lost", "won") for place, row in enumerate(rows) if kind in row.kinds)
    return next(found, 0)


def _kinds(outcome: Mapping[str, str], large: str | None, small: str | None) -> list[str]:
    kinds = []
    if large and small and (large == "right") != (small == "right"):
        kinds += ["different", "lost" if large == "right" else "won"]
    if {"invalid", "failed", "refused"} & set(outcome.values()):
        kinds.append("invalid")
    return kinds + ["refused"] * ("refused" in outcome.values())


def _both(key: str, raw: str, lines: Sequence[str]) -> dict[str, str]:
    """The text as it is read, and as it was where that is another one."""
    pretty = "\n".join(lines)
    return {key: pretty} if pretty == raw else {key: pretty, f"{key}r": raw}


def _outcome(answer: AnswerResult, primary: str, validity: str) -> str:
    if answer.failure:
        return "refused" if answer.failure.kind == "refused" else "failed"
    if (answer.scores.get(primary) or 0) >= 1:
        return "right"
    return "invalid" if answer.scores.get(validity) == 0 else "wrong"


def _answer(answer: AnswerResult, place: int, outcome: str, expected: Sequence[str], primary: str) -> dict[str, Any]:
    """m: arm (an index), o: outcome, t: text (and tr), d: its lines that the expected answer has not, f: failure,
    s: issues, v: score, l: latency in seconds, u: prompt and completion tokens."""
    failure, text, usage = answer.failure, answer.text, answer.usage
    lines = [] if text is None else _lines(text)
    return {
        "m": place,
        "o": outcome,
        **({} if text is None else _both("t", text, lines)),
        **({"d": odd} if outcome == "wrong" and (odd := _odd(expected, lines)) else {}),
        **({"f": f"{failure.kind}: {failure.reason}"} if failure else {}),
        **({"s": list(answer.issues)} if answer.issues else {}),
        "v": answer.scores.get(primary),
        "l": answer.latency_s,
        **({"u": [usage.prompt_tokens, usage.completion_tokens]} if usage else {}),
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


def _odd(expected: Sequence[str], given: Sequence[str]) -> list[int]:
    """Which of the given lines the expected answer does not have (a trailing comma is no difference); none for huge answers."""
    if len(expected) * len(given) > _COMPARED:
        return []
    left, right = ([line.rstrip(",") for line in lines] for lines in (expected, given))
    blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    same = {block.b + offset for block in blocks for offset in range(block.size)}
    return [position for position in range(len(given)) if position not in same]


def _title(text: str) -> str:
    """The line that tells rows apart: the query of a template, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    named = [line.split(": ", 1)[1] for line in lines if line.startswith(("Query: ", "Request: "))]
    title = named[-1] if named else lines[-1]
    return title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"


def _lost_by(rows: Sequence[DrawnRow]) -> dict[str, Any] | None:
    """Rows lost by the SLM, counted by domain or else by tool: the five worst; None when nothing is lost or tagged."""
    tag = next((tag for tag in ("domain", "tool") if any(tag in row.tags for row in rows)), None)
    if tag is None:
        return None
    lost = Counter(row.tags[tag] for row in rows if tag in row.tags and "lost" in row.kinds)
    if not lost:
        return None
    total = Counter(row.tags[tag] for row in rows if tag in row.tags)
    worst = sorted(lost, key=lambda name: (-lost[name], name))[:5]
    return {"tag": tag, "worst": [{"name": name, "lost": lost[name], "of": total[name]} for name in worst]}
