"""Rows that would teach the wrong thing, left out and counted: length, cut answers, another script, refusals.

Each filter takes rows (examples, or what is an example and more) and gives those it keeps, in order and unchanged, with a
`Step` that counts the reasons. They are rules of thumb about text, so each is a person's choice and none runs by itself;
what they look for is said at each. Refusals are told in English only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from slm_ray.corpus.unicode_text import SCRIPTS, question, scripts, words
from slm_ray.errors import ConfigError, choices
from slm_ray.types import Example

Row = TypeVar("Row", bound=Example)

_OPENING_CHARS = 240
_PROSE_WORDS = 20
_LINE_WORDS = 8
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？]")
_HANGING = tuple(",;:([{-–—")
_LISTED = re.compile(r"\s*(?:[-*•|#>]|\d+[.)])")
_CANNOT = r"i ?(?:can(?:'t|not| not)|won't|will not|(?:am|'m) (?:unable|not able) to|could ?n[o']t)"
_HELP = (
    r"(?:help|assist|provide|answer|comply|fulfil|fulfill|do (?:that|this)|create|generate|write|discuss|engage|support|"
    r"share|give|offer|access|browse|complete|continue|process|satisfy)"
)
_SORRY = r"(?:(?:i'm|i am) (?:\w+ )?(?:sorry|afraid)|sorry|unfortunately|i apologi[sz]e|my apologies)\b[^.!?]{0,60}?"
_MACHINE = r"(?:ai|artificial intelligence|(?:large )?language model)(?: language model| model| assistant| system)?"
_REFUSAL = re.compile(
    rf"\bas an? {_MACHINE}, ?i ?(?:do not|don't|cannot|can't|can not|(?:am|'m) (?:not|unable)|have no|will not|won't)\b"
    rf"|^\W*(?:{_SORRY}\b)?{_CANNOT}(?: \w+)? {_HELP}\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did: its name, the rows that stayed, those that went, and a note for people."""

    name: str
    kept: int
    dropped: int
    note: str = ""

    def __str__(self) -> str:
        if not self.dropped:
            return f"{self.name}: {self.note or 'nothing dropped'}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {self.dropped:,} of {self.kept + self.dropped:,} rows dropped{note}"


def filter_rows(name: str, rows: Sequence[Row], reason: Callable[[Row], str | None]) -> tuple[list[Row], Step]:
    """The rows that `reason` has nothing against; the note counts each reason, the commonest first."""
    kept: list[Row] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        why = reason(row)
        if why is None:
            kept.append(row)
        else:
            reasons[why] += 1
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    note = ", ".join(f"{why}: {count:,}" for why, count in ranked)
    return kept, Step(name=name, kept=len(kept), dropped=len(rows) - len(kept), note=note)


def length(
    rows: Sequence[Row], *, prompt_words: tuple[int, int | None], target_words: tuple[int, int | None]
) -> tuple[list[Row], Step]:
    """Examples whose question and answer have at least the first and at most the second number of words (None: any)."""
    for name, (fewest, most) in (("prompt_words", prompt_words), ("target_words", target_words)):
        if most is not None and most < fewest:
            raise ConfigError(f"{name} asks for at least {fewest} and at most {most} words; turn them round")

    def outside(example: Example) -> str | None:
        return _outside(question(example), "question", *prompt_words) or _outside(
            example.target, "answer", *target_words
        )

    return filter_rows("length", rows, outside)


def cut(rows: Sequence[Row]) -> tuple[list[Row], Step]:
    """Examples whose answer has an end.

    One without: JSON, a code fence or a tool call left open; or prose, of twenty words and a full sentence or more,
    whose last line is long and stops at a letter, a comma or an opening bracket.
    """
    return filter_rows("cut answers", rows, lambda example: _open(example.target))


def script(rows: Sequence[Row], *, allowed: Collection[str], share: float = 0.5) -> tuple[list[Row], Step]:
    """Examples whose question and answer each have at least `share` of their letters in `allowed` scripts.

    A text without letters passes. ConfigError for a script that is not in `unicode_text.SCRIPTS`.
    """
    for name in allowed:
        if name not in SCRIPTS:
            raise ConfigError(f"unknown script {name!r}: {choices(name, SCRIPTS)}")

    def foreign(example: Example) -> str | None:
        for name, text in (("question", question(example)), ("answer", example.target)):
            found = scripts(text)
            if sum(found[known] for known in set(allowed)) < share * found.total():
                return f"{name} in {min(found, key=lambda known: (-found[known], known))}"
        return None

    return filter_rows("script", rows, foreign)


def refusals(rows: Sequence[Row]) -> tuple[list[Row], Step]:
    """Examples whose answer does not open by declining in English (`I'm sorry, but I can't …`, `As an AI …`)."""
    return filter_rows("refusals", rows, lambda example: "declines" if _declines(example.target) else None)


def _outside(text: str, name: str, fewest: int, most: int | None) -> str | None:
    found = len(words(text))
    if found < fewest:
        return f"{name} under {fewest} words"
    return f"{name} over {most} words" if most is not None and found > most else None


def _open(answer: str) -> str | None:
    """What is left open at the answer's end; None for an answer that ends."""
    text = answer.strip()
    if text.count("```") % 2:
        return "open code fence"
    if text.count("<tool_call") > text.count("</tool_call>"):
        return "open tool call"
    if text.startswith(("{", "[")) and _open_json(text):
        return "open JSON"
    return "open sentence" if _open_sentence(text) else None


def _open_json(text: str) -> bool:
    """Whether brackets outside of strings, or a string, are left open by a text that is not JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        # The last string may have no end: a bracket in it closes nothing.
        outside = re.sub(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', "", text, flags=re.DOTALL)
        return sum((char in "{[") - (char in "}]") for char in outside) > 0
    return False


def _open_sentence(text: str) -> bool:
    last = text.rsplit("\n", 1)[-1]
    if not (text[-1:].isalpha() or text.endswith(_HANGING)) or _LISTED.match(last):
        return False
    # Without an earlier full stop it may be a label, a title or a query: those never have one.
    return len(words(last)) >= _LINE_WORDS and len(words(text)) >= _PROSE_WORDS and bool(_SENTENCE_END.search(text))


def _declines(answer: str) -> bool:
    opening = answer.strip()[:_OPENING_CHARS].casefold().replace("’", "'")
    return bool(_REFUSAL.search(" ".join(opening.split())))
