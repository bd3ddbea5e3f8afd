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


def rows_view(
    rows: Sequence[Mapping[str, Any]],
    arms: Sequence[Mapping[str, Any]],
    *,
    llm: str,
    slm: str,
    primary: str,
    validity: str,
    run: str = "",
) -> dict[str, Any]:
    """The rows for the page, how many each filter shows, where the SLM loses by tag and which row is open at first.

    `data` is what the page's script draws: short keys, and turns that rows share only once. `run` says whose rows they are.
    """
    earlier: dict[str, int] = {}
    shown = [_row(row, arms, llm, slm, primary, validity, earlier) for row in rows]
    counts = {name: sum(name == "all" or name in row["k"] for row in shown) for name in FILTERS}
    specs = [arm["spec"] for arm in arms]
    data = {
        "arms": [{"label": arm["label"], "spec": arm["spec"], "standIn": arm["stand_in"]} for arm in arms],
        "slm": specs.index(slm) if slm in specs else None,
        "earlier": [json.loads(turns) for turns in earlier],
        "primary": primary,
        "open": _first(shown[:_DRAWN]),
        "run": run,
        "rows": shown,
    }
    return {"data": data, "n": len(shown), "counts": counts, "lost_by": _lost_by(shown)}


def _row(
    row: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], llm: str, slm: str, primary: str, validity: str,
    earlier: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    """i: id, t: title, q: question, e: earlier turns (an index), g: tags, x: expected (xr as it stands in the file, where
    that differs), a: answers, k: filters."""
    expected = _lines(row["reference"])
    answers = [
        _answer(row["models"][arm["spec"]], place, expected, primary, validity)
        for place, arm in enumerate(arms)
        if arm["spec"] in row["models"]
    ]
    outcome = {arms[answer["m"]]["spec"]: answer["o"] for answer in answers}
    *before, question = row["prompt"]
    turns = json.dumps([[turn["role"], turn["content"]] for turn in before])
    return {
        "i": row["id"],
        "t": _title(question["content"]),
        "q": question["content"],
        "e": earlier.setdefault(turns, len(earlier)),
        "g": dict(row.get("tags") or {}),
        **_both("x", row["reference"], expected),
        "a": answers,
        "k": _kinds(outcome, outcome.get(llm), outcome.get(slm)),
    }


def _first(rows: Sequence[Mapping[str, Any]]) -> int:
    """Of the rows that are drawn at once, one that shows most: lost by the SLM, else won, else any."""
    found = (place for kind in ("lost", "won") for place, row in enumerate(rows) if kind in row["k"])
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


def _answer(
    answer: Mapping[str, Any], place: int, expected: Sequence[str], primary: str, validity: str
) -> dict[str, Any]:
    """m: arm (an index), o: outcome, t: text (and tr), d: its lines that the expected answer has not, f: failure,
    s: issues, v: score, l: latency in seconds, u: prompt and completion tokens."""
    failure, scores, text = answer.get("failure"), answer.get("scores") or {}, answer.get("text")
    if failure:
        outcome = "refused" if failure["kind"] == "refused" else "failed"
    elif (scores.get(primary) or 0) >= 1:
        outcome = "right"
    else:
        outcome = "invalid" if scores.get(validity) == 0 else "wrong"
    lines = [] if text is None else _lines(text)
    used = answer.get("usage")
    return {
        "m": place,
        "o": outcome,
        **({} if text is None else _both("t", text, lines)),
        **({"d": odd} if outcome == "wrong" and (odd := _odd(expected, lines)) else {}),
        **({"f": f"{failure['kind']}: {failure['reason']}"} if failure else {}),
        **({"s": list(answer["issues"])} if answer.get("issues") else {}),
        "v": scores.get(primary),
        "l": answer.get("latency_s"),
        **({"u": [used["prompt_tokens"], used["completion_tokens"]]} if used else {}),
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


def _lost_by(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows lost by the SLM, counted by domain or else by tool: the five worst; None when nothing is lost or tagged."""
    tag = next((tag for tag in ("domain", "tool") if any(tag in row["g"] for row in rows)), None)
    lost = Counter(row["g"][tag] for row in rows if tag in row["g"] and "lost" in row["k"])
    if tag is None or not lost:
        return None
    total = Counter(row["g"][tag] for row in rows if tag in row["g"])
    worst = sorted(lost, key=lambda name: (-lost[name], name))[:5]
    return {"tag": tag, "worst": [{"name": name, "lost": lost[name], "of": total[name]} for name in worst]}
