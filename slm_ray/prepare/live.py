"""Requests of a traffic log as rows: which answer is to be learned, and which requests are left out, each step counted.

A user's own correction comes first, then the LLM's answer, unless a user scored it wrong; the SLM's own answer is learned
only where a user scored it right. An answer that something was taken out of is not learned: a model would answer with the
placeholder. A request is nobody's file to repair, so one that makes no row is left out and counted
by its reason, and never refuses a source; a damaged part of the log does. The filters choose among training rows alone. Test
and validation rows are a sample of the traffic, since a verdict on chosen ones would say nothing of it: they are drawn from
the requests that the LLM was asked whatever the SLM made of them, which are all of record and shadow, and the audited ones.
Elsewhere the LLM has answered what the SLM failed at or was unsure of; such rows are for training only. Nothing here says
whether an answer is right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slm_ray.config import Live
from slm_ray.corpus.call_logs import plain_turns
from slm_ray.corpus.filters import Step
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.read import parsed
from slm_ray.corpus.render import prompt_hash
from slm_ray.corpus.row_errors import BadRow, RowError
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.scoring import score, unreadable
from slm_ray.scoring.parsed import parsed as as_read
from slm_ray.traffic import ArmAnswer, Feedback, TrafficRow, is_traffic
from slm_ray.traffic.read import located_rows
from slm_ray.traffic.record import encoded
from slm_ray.traffic.redaction import WITHHELD

TARGET_TAG = "target_from"
NOT_ASKED, REDACTED = "the LLM was not asked", "the answer was redacted"
_WRONG_BELOW, _RIGHT = 0.5, 1.0  # a user's score
_AGREES = 0.5  # by the primary metric; most of them are 0 or 1
Spot = tuple[str, int]
Origin = Literal["user", "llm", "slm", "to_ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRow:
    """A row, the request that it is of, and whose answer it holds; `to_ask`: the SLM's, until the LLM has been asked."""

    row: ParsedRow
    request: TrafficRow
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRows:
    """The rows of a log, what of it is damaged, and what each step left out.

    `held_back` are the places (file, number) of rows that the filters keep out of training, `trains_only` those of rows that
    are no sample of the traffic. The sample comes first, oldest first, then the others: where one of equal rows is kept it
    is that which may be measured on, so that how often a question is asked and audited does not decide where it ends up.
    """

    found: tuple[LiveRow, ...]
    held_back: frozenset[Spot]
    trains_only: frozenset[Spot]
    errors: tuple[RowError, ...]
    steps: tuple[Step, ...]

    @property
    def rows(self) -> tuple[ParsedRow, ...]:
        """The rows alone."""
        return tuple(each.row for each in self.found)

    @property
    def sampled(self) -> tuple[ParsedRow, ...]:
        """The rows that are a sample of the traffic."""
        return tuple(each.row for each in self.found if spot(each.row) not in self.trains_only)


def is_live(source: str) -> bool:
    """Whether the source is a traffic log."""
    named = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    return not ("://" in source and "." in named) and is_traffic(source)


def live_rows(folder: str, track: Track, settings: Live, *, ask_again: bool = False) -> LiveRows:
    """The rows of the log at `folder`. ConfigError where `route` is needed or unknown.

    With `ask_again` also the requests that only the SLM answered: whoever takes them asks the LLM before they are learned.
    """
    errors: list[RowError] = []
    found: list[tuple[str, int, TrafficRow]] = []
    for file, number, row in located_rows(folder):
        if isinstance(row, ValueError):
            errors.append(BadRow("damaged", str(row), "put the file back from a copy, or remove it").at(file, number))
        else:
            found.append((file, number, row))
    steps: list[Step] = []
    _check_route(folder, settings.route, {row.route for _, _, row in found})
    if settings.route is not None:
        every, found = found, [each for each in found if each[2].route == settings.route]
        steps.append(Step(name="route", kept=len(found), dropped=len(every) - len(found), note=settings.route))
    found.sort(key=lambda each: (each[2].at, each[2].id))
    rows, step = _learnable(found, track, ask_again=ask_again)
    steps.append(step)
    trained_on = rows
    for chosen in _filters(track, settings):
        trained_on, step = chosen(trained_on)
        steps.append(dataclasses.replace(step, name=f"{step.name} (of training rows)"))
    held_back = {spot(each.row) for each in rows} - {spot(each.row) for each in trained_on}
    trains_only = {spot(each.row) for each in rows if not _is_sample(each.request)}
    if trains_only:
        sampled = len(rows) - len(trains_only)
        note = f"{sampled:,} of {len(rows):,} rows, audited or in record or shadow; the others are for training only"
        steps.append(Step(name="sample of the traffic", kept=sampled, dropped=0, note=note))
    rows.sort(key=lambda each: spot(each.row) in trains_only)
    return LiveRows(
        found=tuple(rows), held_back=frozenset(held_back), trains_only=frozenset(trains_only), errors=tuple(errors),
        steps=tuple(steps),
    )  # fmt: skip


def without_held_back(rows: Sequence[ParsedRow], held_back: Collection[Spot]) -> tuple[list[ParsedRow], Step]:
    """The training rows without those that the filters keep out of training."""
    kept = [row for row in rows if spot(row) not in held_back]
    note = "they choose no test and validation rows"
    return kept, Step(name="live filters", kept=len(kept), dropped=len(rows) - len(kept), note=note)


def spot(row: ParsedRow) -> Spot:
    """Where the row stands: its file and its number in it."""
    return row.file, row.line


def _is_sample(request: TrafficRow) -> bool:
    """Whether the LLM was asked this whatever the SLM made of it."""
    return request.audited or request.state in ("record", "shadow")


def live_fingerprint(folder: str) -> str:
    """SHA-256 in hex of what the log holds, whether in parts or in journals, and in whatever order."""
    total = 0
    for file, number, row in located_rows(folder):
        said = f"{file}:{number}:{row}".encode() if isinstance(row, ValueError) else encoded(row)
        total += int.from_bytes(hashlib.sha256(said).digest())
    return hashlib.sha256(str(total).encode()).hexdigest()


def _check_route(folder: str, route: str | None, routes: set[str]) -> None:
    if route is None and len(routes) > 1:
        raise ConfigError(
            f"live.route: {folder} holds the routes {', '.join(sorted(routes))}; name the one to learn from"
        )
    if route is not None and routes and route not in routes:
        raise ConfigError(f"live.route: {folder} has no route {route!r}; {choices(route, routes)}")


def _learnable(
    found: Sequence[tuple[str, int, TrafficRow]], track: Track, *, ask_again: bool
) -> tuple[list[LiveRow], Step]:
    """The requests that are rows of the track, with the answer to learn."""
    rows: list[LiveRow] = []
    reasons: Counter[str] = Counter()
    for file, number, request in found:
        chosen = _target(request, track)
        slm = request.answer_of("slm")
        if chosen == NOT_ASKED and ask_again and slm is not None and _usable(slm) and not slm.redacted:
            chosen = str(slm.text), "to_ask"
        if isinstance(chosen, str):
            reasons[chosen] += 1
            continue
        text, origin = chosen
        row = _row(request, text, origin, track, file, number)
        if isinstance(row, str):
            reasons[row] += 1
        else:
            rows.append(LiveRow(row=row, request=request, origin=origin))
    return rows, _step("live requests", len(rows), reasons)


def _target(request: TrafficRow, track: Track) -> tuple[str, Origin] | str:
    """The answer to learn and whose it is, or why there is none."""
    corrected = [said for said in request.feedback if said.answer and said.answer.strip()]
    if corrected:
        said, form = _latest_readable(corrected, track)
        if form is not None and not said.redacted:
            return f"the answer that a user gave is not {form}"
        return REDACTED if said.redacted else (str(said.answer), "user")
    scores = [said.score for said in request.feedback if said.score is not None]
    served = request.answer_of(request.served) if request.served else None
    if served is not None and scores and scores[-1] < _WRONG_BELOW and served.arm == "llm":
        return "a user scored the LLM's answer wrong"
    llm, slm = request.answer_of("llm"), request.answer_of("slm")
    if llm is not None and _usable(llm):
        return REDACTED if llm.redacted else (str(llm.text), "llm")
    if slm is not None and served is slm and scores and scores[-1] >= _RIGHT and _usable(slm):
        return REDACTED if slm.redacted else (str(slm.text), "slm")
    if any(answer.text is None and answer.chars for answer in request.answers):
        return "no text was kept"
    if llm is None:
        return NOT_ASKED
    return "the LLM's answer has the wrong form" if llm.valid is False else "the LLM did not answer"


def _latest_readable(corrected: Sequence[Feedback], track: Track) -> tuple[Feedback, str | None]:
    """The latest answer that the track can read, as the roll-out's front counts labels; else the latest, and its lack."""
    forms = [_lack(track, str(said.answer)) for said in corrected]
    readable = [said for said, form in zip(corrected, forms, strict=True) if form is None]
    return (readable[-1], None) if readable else (corrected[-1], forms[-1])


def _lack(track: Track, answer: str) -> str | None:
    """What form the answer is not in. Calls in OpenAI's list are none's: they get the track's own form with their row."""
    return None if "tool_calls" in _turn(answer) else unreadable(track, answer)


def _usable(answer: ArmAnswer) -> bool:
    said = answer.text is not None and bool(answer.text.strip()) and answer.text != WITHHELD
    return said and answer.status == 200 and answer.reason is None and answer.valid is not False


def _row(request: TrafficRow, target: str, origin: Origin, track: Track, file: str, number: int) -> ParsedRow | str:
    """The request as a row of the track, or why it is none."""
    body = request.request
    try:
        if WITHHELD in json.dumps(body.get("messages"), ensure_ascii=False):
            return "its text was withheld"
        turns = [*plain_turns(body.get("messages")), _turn(target)]
    except BadRow as bad:
        return bad.kind
    raw: dict[str, Any] = {
        "messages": turns,
        "id": request.id,
        "tags": {TARGET_TAG: "llm" if origin == "to_ask" else origin},
    }
    if body.get("tools"):
        raw["tools"] = body["tools"]
    (row,) = parsed([(file, number, raw)], track, "messages")
    if not isinstance(row, ParsedRow):
        return row.kind if isinstance(row, RowError) else "no row"
    if (form := unreadable(track, row.target)) is not None:
        return f"the answer is not {form}"
    return row


def _turn(target: str) -> dict[str, Any]:
    """The answer as an assistant's turn; tool calls are logged as the JSON text of OpenAI's list."""
    if target.lstrip().startswith("["):
        try:
            calls = json.loads(target)
        except (ValueError, RecursionError):
            calls = None
        if isinstance(calls, list) and calls and all(isinstance(call, dict) and "function" in call for call in calls):
            return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": "assistant", "content": target}


Filter = Callable[[Sequence[LiveRow]], tuple[list[LiveRow], Step]]


def _filters(track: Track, settings: Live) -> Iterator[Filter]:
    """The filters that the settings ask for, in their order."""
    share, most = settings.self_agreement, settings.most
    if share is not None:
        yield lambda rows: _agreeing(rows, track, share)
    if settings.disagreement == "drop":
        yield lambda rows: _without_disagreement(rows, track)
    if most is not None:
        yield lambda rows: _latest(rows, track, most, hard_first=settings.disagreement == "first")


def _agreeing(rows: Sequence[LiveRow], track: Track, share: float) -> tuple[list[LiveRow], Step]:
    """Without the questions to which the LLM's answers differ too much, and without its answers in the minority.

    Two answers are the same when the track's scorers read the same in them. What a user corrected stays.
    """
    asked: Mapping[str, list[LiveRow]] = defaultdict(list)
    for each in rows:
        if each.origin == "llm":
            asked[prompt_hash(each.row.prompt)].append(each)
    reasons: Counter[str] = Counter()
    dropped: set[str] = set()
    for same in asked.values():
        said = [as_read(track, each.row.target) for each in same]
        answer, votes = Counter(said).most_common(1)[0]
        settled = votes >= share * len(said)
        for each, text in zip(same, said, strict=True):
            if not settled or text != answer:
                dropped.add(each.request.id)
                reasons["in the minority" if settled else f"fewer than {share:.0%} say the same"] += 1
    kept = [each for each in rows if each.request.id not in dropped]
    return kept, _step("self-agreement", len(kept), reasons)


def _without_disagreement(rows: Sequence[LiveRow], track: Track) -> tuple[list[LiveRow], Step]:
    kept = [each for each in rows if not _disagree(each.request, track)]
    reasons = Counter({"LLM and SLM disagree": len(rows) - len(kept)})
    return kept, _step("disagreement", len(kept), reasons)


def _latest(rows: Sequence[LiveRow], track: Track, most: int, *, hard_first: bool) -> tuple[list[LiveRow], Step]:
    hard = {each.request.id for each in rows if hard_first and _disagree(each.request, track)}
    ranked = sorted(range(len(rows)), key=lambda at: (rows[at].request.id not in hard, -at))[:most]
    kept = [rows[at] for at in sorted(ranked)]
    note = f"the latest{f', {len(hard):,} on which LLM and SLM disagree before others' if hard_first else ''}"
    return kept, Step(name="most", kept=len(kept), dropped=len(rows) - len(kept), note=note)


def _disagree(request: TrafficRow, track: Track) -> bool:
    """Whether both arms answered and the SLM's answer scores below 0.5 against the LLM's by the track's primary metric."""
    llm, slm = request.answer_of("llm"), request.answer_of("slm")
    if llm is None or slm is None or not _usable(llm) or slm.status != 200:
        return False
    agreement = slm.score
    if agreement is None:
        found = score(track, request.id, slm.text, str(llm.text)).scores
        agreement = next((each.value for each in found if each.name == track.primary), None)
    return agreement is not None and agreement < _AGREES


def _step(name: str, kept: int, reasons: Counter[str]) -> Step:
    ranked = sorted(((why, count) for why, count in reasons.items() if count), key=lambda item: (-item[1], item[0]))
    note = ", ".join(f"{why}: {count:,}" for why, count in ranked)
    return Step(name=name, kept=kept, dropped=sum(reasons.values()), note=note)
