"""What is taken off an answer before it is scored, when its track says so: reasoning in tags, and a code fence.

Nothing else repairs an answer. It is done to every model's answers alike and never to references, and each answer that
needed it is counted as an issue of its own, which is a note and no error. The time is linear in the answer's length.
"""

from __future__ import annotations

import re
from collections.abc import Collection

STRIPPED_REASONING, STRIPPED_FENCES = "stripped_reasoning", "stripped_fences"
NOTES = frozenset({STRIPPED_REASONING, STRIPPED_FENCES})

_OPENING = re.compile(r"\s*<(think|reasoning)>", re.IGNORECASE)
_CLOSING = re.compile(r"</(think|reasoning)>", re.IGNORECASE)
_FENCE = re.compile(r"(`{3,}+|~{3,}+)[^`]*")


def strip(text: str | None, what: Collection[str]) -> tuple[str | None, tuple[str, ...]]:
    """The text without what `what` names (`reasoning`, `fences`), and notes on what was taken off.

    Reasoning goes first, whatever the order in `what`: a fence is one only around all that is left.
    """
    if text is None:
        return None, ()
    notes = []
    for name, taken_off, note in (
        ("reasoning", _without_reasoning, STRIPPED_REASONING),
        ("fences", _without_fence, STRIPPED_FENCES),
    ):
        if name in what and (left := taken_off(text)) != text:
            text = left
            notes.append(note)
    return text, tuple(notes)


def _without_reasoning(text: str) -> str:
    """The text behind its leading `<think>…</think>` or `<reasoning>…</reasoning>` blocks.

    A block that never closes is all the answer there is, so nothing is left. A closing tag with no opening one ends
    reasoning that the prompt's template began. Tags further on belong to the answer.
    """
    opening = _OPENING.match(text)
    if opening is None:
        closing = _CLOSING.search(text)
        begun = closing is not None and f"<{closing[1]}>".lower() not in text[: closing.start()].lower()
        return text[closing.end() :].lstrip() if closing is not None and begun else text
    while opening is not None:
        tag = opening[1].lower()
        close = next((found for found in _CLOSING.finditer(text, opening.end()) if found[1].lower() == tag), None)
        if close is None:
            return ""
        end = close.end()
        opening = _OPENING.match(text, end)
    return text[end:].lstrip()


def _without_fence(text: str) -> str:
    """The inside of a fence that encloses the whole text; a fence with anything around it stays.

    As in CommonMark a fence ends at the first line that is its mark, or more of the same.
    """
    first, *lines = text.strip().split("\n")
    opening = _FENCE.fullmatch(first)
    if opening is None:
        return text
    ends = [at for at, line in enumerate(lines) if _ends(line.strip(), opening[1])]
    return "\n".join(lines[:-1]) if ends and ends[0] == len(lines) - 1 else text


def _ends(line: str, mark: str) -> bool:
    return line.startswith(mark) and not line.strip(mark[0])
