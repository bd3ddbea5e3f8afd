"""Score rows as a person reads them: what was asked, what was expected, what each arm said, and who was right.

A metric that says right or wrong is told so; one that grades is told by its score, and lost then means a lower one.
Invalid is an answer that the scorers could not read, failed a call without an answer. Nothing is scored again. Of more
rows than a page may hold those most worth reading are kept: where the LLM and the SLM differ, then what went wrong, then
a sample.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.page.data import Arm
from slm_ray.page.formatting import json_text
from slm_ray.records import AnswerResult, RowResult

_CALL = re.compile(r'\s*(<tool_call name="[^"]*">)(.*)(</tool_call>)\s*', re.DOTALL)
_TITLE = 150
_STATIC = 5  # rows that are there without the script
_DRAWN = 60  # rows that the script draws at once
MOST_ROWS = 20_000
_UNPACKED = 4  # times what a page may hold packed: what a browser has to read
_MISFITS = 100  # rows in turn that are too large for what room is left, after which no smaller one is looked for
_UNREADABLE = frozenset(
    ("prediction_not_valid_json", "not_json", "invalid_tool_call_format", "no_number", "outside_labels")
)
_FILTERS = {
    "all": ("All", "All"),
    "different": ("LLM and SLM disagree", "Scores differ"),
    "lost": ("SLM lost", "SLM scored lower"),
    "won": ("SLM won", "SLM scored higher"),
    "invalid": ("Invalid or failed", "Invalid or failed"),
    "refused": ("Refused", "Refused"),
    "both": ("Both right", "Same score"),
    "neither": ("Both wrong", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Who is compared and by what: `graded` metrics say how good, the others right or wrong."""

    arms: tuple[Arm, ...]
    llm: str
    slm: str
    primary: str
    graded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """One row: the filters that show it, its tags, and what the page's script draws (`data`, with short keys)."""

    kinds: tuple[str, ...]
    tags: Mapping[str, str]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsView:
    """What the script draws of the rows that fit (`n` of `of`), the filters with their labels and counts, where the SLM
    loses by tag, and over all rows how often both, one or neither of LLM and SLM was right (None: graded)."""

    data: dict[str, Any]
    n: int
    of: int
    filters: Mapping[str, tuple[str, int]]
    lost_by: dict[str, Any] | None
    two_by_two: Mapping[str, int] | None
    first: tuple[DrawnRow, ...]


def graded(rows: Sequence[RowResult], primary: str) -> bool:
    """Whether the primary metric says how good an answer is, and not only whether it is right."""
    scores = (answer.scores.get(primary) for row in rows for answer in row.models.values())
    return any(score is not None and 0 < score < 1 for score in scores)


def rows_view(rows: Sequence[RowResult], sides: Sides, *, run: str = "", limit_bytes: int) -> RowsView:
    """The rows for the page, turns that rows share only once, of `limit_bytes` at most as the page packs them. `run` says whose they are."""
    kinds = [_kinds(row, sides) for row in rows]
    earlier: dict[str, int] = {}
    places = dict(_fitting(rows, kinds, sides, earlier, limit_bytes))
    shown = [places[place] for place in sorted(places)]
    specs = [arm.spec for arm in sides.arms]
    data = {
        "arms": [{"label": arm.label, "spec": arm.spec, "standIn": arm.stand_in} for arm in sides.arms],
        "slm": specs.index(sides.slm) if sides.slm in specs else None,
        "earlier": [json.loads(turns) for turns in earlier],
        "primary": sides.primary,
        "graded": sides.graded,
        "open": _first(shown[:_DRAWN]),
        "run": run,
        "rows": [row.data for row in shown],
    }
    counts = {name: sum(name == "all" or name in row.kinds for row in shown) for name in _FILTERS}
    filters = {name: (labels[sides.graded], counts[name]) for name, labels in _FILTERS.items() if labels[sides.graded]}
    of_all = Counter(kind for each in kinds for kind in each)
    both = {name: of_all[name] for name in ("both", "lost", "won", "neither")}
    return RowsView(
        data=data, n=len(shown), of=len(rows), filters=filters, lost_by=_lost_by(rows, kinds),
        two_by_two=None if sides.graded or not sum(both.values()) else both,
        first=tuple(places[place] for place in list(places)[:_STATIC]),
    )  # fmt: skip


def _fitting(
    rows: Sequence[RowResult], kinds: Sequence[Sequence[str]], sides: Sides, earlier: dict[str, int], limit_bytes: int
) -> Iterator[tuple[int, DrawnRow]]:
    """Those most worth reading first, until there is no room; the order among equals is drawn by their ids."""

    def worth(place: int) -> tuple[int, int, int]:
        rank = 0 if "different" in kinds[place] else 1 if "invalid" in kinds[place] else 2
        return rank, zlib.crc32(rows[place].id.encode("utf-8", "replace")), place

    # The fastest packing is the least tight, so that the page's own takes less than what is counted here.
    packer = zlib.compressobj(1)
    room, unpacked, misfits = limit_bytes, _UNPACKED * limit_bytes, 0
    for place in sorted(range(len(rows)), key=worth)[:MOST_ROWS]:
        turns = json.dumps([[turn.role, turn.content] for turn in rows[place].prompt[:-1]])
        drawn = _row(rows[place], kinds[place], sides, earlier.get(turns, len(earlier)))
        text = (json_text(drawn.data) + ("" if turns in earlier else turns)).encode("utf-8", "replace")
        packed = 4 * len(packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)) // 3
        if packed > room or len(text) > unpacked:
            misfits += 1
            if misfits == _MISFITS:
                return
            continue
        room, unpacked, misfits = room - packed, unpacked - len(text), 0
        earlier.setdefault(turns, len(earlier))
        yield place, drawn


def _row(row: RowResult, kinds: Sequence[str], sides: Sides, earlier: int) -> DrawnRow:
    """i: id, t: title, q: question, e: earlier turns (an index), g: tags, x: expected (xr as it stands in the file, where
    that differs), a: answers, k: filters."""
    question = row.prompt[-1]
    data = {
        "i": row.id,
        "t": _title(question.content),
        "q": question.content,
        "e": earlier,
        "g": dict(row.tags),
        **_both("x", row.target),
        "a": [
            _answer(row.models[arm.spec], place, sides)
            for place, arm in enumerate(sides.arms)
            if arm.spec in row.models
        ],
        "k": list(kinds),
    }
    return DrawnRow(kinds=tuple(kinds), tags=row.tags, data=data)


def _first(rows: Sequence[DrawnRow]) -> int:
    """Of the rows that are drawn at once, one that shows most: lost by the SLM, else won, else any."""
    found = (place for kind in ("lost", "won") for place, row in enumerate(rows) if kind in row.kinds)
    return next(found, 0)


def _kinds(row: RowResult, sides: Sides) -> list[str]:
    """The filters that show a row."""
    outcomes = {spec: _outcome(answer, sides) for spec, answer in row.models.items()}
    kinds = []
    if sides.llm in outcomes and sides.slm in outcomes:
        if sides.graded:
            large, small = (row.models[spec].scores.get(sides.primary) or 0.0 for spec in (sides.llm, sides.slm))
        else:
            large, small = (float(outcomes[spec] == "right") for spec in (sides.llm, sides.slm))
        if large != small:
            kinds += ["different", "lost" if large > small else "won"]
        elif small or sides.graded:
            kinds.append("both")
        else:
            kinds.append("neither")
    if {"invalid", "failed", "refused"} & set(outcomes.values()):
        kinds.append("invalid")
    return kinds + ["refused"] * ("refused" in outcomes.values())


def _both(key: str, raw: str) -> dict[str, str]:
    """The text as it is read, and as it was where that is another one."""
    pretty = "\n".join(_lines(raw))
    return {key: pretty} if pretty == raw else {key: pretty, f"{key}r": raw}


def _outcome(answer: AnswerResult, sides: Sides) -> str:
    """One word, but `graded` where only the score says it and `unscored` where there is none."""
    if answer.failure:
        return "refused" if answer.failure.kind == "refused" else "failed"
    score = answer.scores.get(sides.primary)
    if score is not None and score >= 1:
        return "graded" if sides.graded else "right"
    if _UNREADABLE.intersection(answer.issues):
        return "invalid"
    return "unscored" if score is None else "graded" if sides.graded else "wrong"


def _answer(answer: AnswerResult, place: int, sides: Sides) -> dict[str, Any]:
    """m: arm (an index), o: outcome, t: text (and tr), f: failure, s: issues, v: score, l: latency in seconds,
    u: prompt and completion tokens."""
    failure, usage = answer.failure, answer.usage
    return {
        "m": place,
        "o": _outcome(answer, sides),
        **({} if answer.text is None else _both("t", answer.text)),
        **({"f": f"{failure.kind}: {failure.reason}"} if failure else {}),
        **({"s": list(answer.issues)} if answer.issues else {}),
        "v": answer.scores.get(sides.primary),
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
        return text.split("\n")  # and not at what only Unicode calls a line's end, which would hide it
    return [line for line in (before, *body.split("\n"), after) if line]


def _title(text: str) -> str:
    """The line that tells rows apart: the query of a template, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    named = [line.split(": ", 1)[1] for line in lines if line.startswith(("Query: ", "Request: "))]
    title = named[-1] if named else lines[-1]
    return title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"


def _lost_by(rows: Sequence[RowResult], kinds: Sequence[Sequence[str]]) -> dict[str, Any] | None:
    """Rows lost by the SLM, counted by domain or else by tool: the five worst; None when nothing is lost or tagged."""
    tag = next((tag for tag in ("domain", "tool") if any(tag in row.tags for row in rows)), None)
    if tag is None:
        return None
    lost = Counter(row.tags[tag] for row, each in zip(rows, kinds, strict=True) if tag in row.tags and "lost" in each)
    if not lost:
        return None
    total = Counter(row.tags[tag] for row in rows if tag in row.tags)
    worst = sorted(lost, key=lambda name: (-lost[name], name))[:5]
    return {"tag": tag, "worst": [{"name": name, "lost": lost[name], "of": total[name]} for name in worst]}
