"""What can be wrong with a row: its kind, the reason, the fix, and where it stands.

A converter raises BadRow without knowing where; the reader adds file and line. A row has one error, its first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slm_ray.errors import DataError

KINDS = {
    "not_utf8": "bytes that are not UTF-8",
    "not_json": "a line that is not JSON",
    "nan": "NaN or infinity, which JSON does not have",
    "surrogate": "half of a surrogate pair",
    "not_object": "a scalar or a list where a row should be",
    "columns": "more or fewer fields than the header",
    "ambiguous": "two formats or two expected answers in one row",
    "missing_key": "a key that the format needs is not there",
    "null": "null where a text should be",
    "wrong_type": "another type than the format has there",
    "empty_text": "an empty text",
    "empty_list": "an empty list",
    "bad_turn": "something that is no turn",
    "unknown_role": "a role that the format does not have",
    "system_late": "a system turn after the first turn",
    "assistant_first": "an assistant's turn before any user's",
    "no_answer": "no assistant turn to learn from",
    "no_prompt": "nothing before the answer",
    "cut_answer": "an answer that stopped at a limit before its end",
    "damaged": "a part or a line of a traffic log that cannot be read",
    "turn_order": "a chat that does not end with question and answer",
    "bad_call": "a tool call without a name or with arguments that are no object",
    "many_calls": "several tool calls where the track's answer is one",
    "bad_tools": "tool definitions that cannot be read",
    "no_final_number": "an answer without #### and a number",
    "unknown_label": "a label outside the track's labels",
    "unscorable": "an answer that the track's scorer cannot read, so that no model could match it",
    "bad_id": "an id or a group that is no text and no whole number of 64 bits",
    "bad_tags": "tags that are not an object of texts",
    "duplicate_id": "an id that an earlier row has",
    "duplicate_content": "a row equal to an earlier one, and no ids to tell them apart",
    "too_long": "more tokens than max_tokens",
    "refused_chat": "a chat that the base's chat template refuses",
}
_SHOWN = 5


class BadRow(ValueError):
    """Why one row cannot be used, and the fix; the reader adds where. `kind` is one of KINDS."""

    def __init__(self, kind: str, reason: str, fix: str) -> None:
        super().__init__(kind, reason, fix)
        self.kind, self.reason, self.fix = kind, reason, fix

    def at(self, file: str, line: int) -> RowError:
        """The same, with its place."""
        return RowError(file=file, line=line, kind=self.kind, reason=self.reason, fix=self.fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A bad row and where it stands; `line` is the row's number in a Parquet file or a data set."""

    file: str
    line: int
    kind: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}; {self.fix}"


def refuse(errors: Sequence[RowError], *, hint: str = "") -> None:
    """Raise one DataError that spells out the first five `errors`, then `hint`; nothing when there are none."""
    if errors:
        more = len(errors) - _SHOWN
        tail = f" | and {more} more bad row{'s' * (more > 1)}" if more > 0 else ""
        raise DataError(" | ".join(map(str, errors[:_SHOWN])) + tail + (f" | {hint}" if hint else ""))


def table(errors: Iterable[RowError]) -> str:
    """How many rows of each kind there are, most frequent first, with the first place of each; one line per kind."""
    found = list(errors)
    first: dict[str, RowError] = {}
    for error in found:
        first.setdefault(error.kind, error)
    counts = sorted(Counter(error.kind for error in found).items(), key=lambda item: (-item[1], item[0]))
    lines = [("rows", "kind", "first at", "fix")]
    lines += [(str(n), kind, f"{first[kind].file}:{first[kind].line}", first[kind].fix) for kind, n in counts]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{line[0]:>{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:<{widths[2]}}  {line[3]}" for line in lines
    )
