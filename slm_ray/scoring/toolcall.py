"""The toolcall track: exactly one `<tool_call name="NAME">{JSON object}</tool_call>`, per row.

Gives the earlier system's numbers. Knows nothing of tool lists or schemas: a name is right when it is the expected one.
Raises on no text.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm_ray.scoring.items import Document, fields, overlap, parse, ratios
from slm_ray.types import RowScore, Score

_OPEN, _NAME_END, _CLOSE = '<tool_call name="', '">', "</tool_call>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A well-formed tool call."""

    name: str
    arguments: Document


def read_call(text: str | None) -> Call | None:
    """The one call that the stripped text is, or None. The name is non-empty; the body is a strict JSON object."""
    stripped = (text or "").strip()
    if not (stripped.startswith(_OPEN) and stripped.endswith(_CLOSE)):
        return None
    name, quote, rest = stripped.removeprefix(_OPEN).partition('"')
    if not name or not (quote + rest).startswith(_NAME_END):
        return None
    # A second call would leave its tags between the braces, which is no JSON; a tag inside a JSON string is just text.
    arguments = parse(rest.removeprefix(">").removesuffix(_CLOSE).strip())
    return Call(name=name, arguments=arguments) if arguments is not None and fields(arguments) is not None else None


def score(example_id: str, prediction: str | None, target: str) -> RowScore:
    """Score one answer; `prediction` None is a failed call and scores like a malformed one.

    `args_exact` is Python's `==` on the argument objects, whatever the name; items compare by JSON text. A malformed
    call misses all expected arguments. Of an argument given twice the last value counts. A target that is no call matches nothing.
    """
    return judge(example_id, read_call(prediction), read_call(target))


def judge(example_id: str, predicted: Call | None, expected: Call | None) -> RowScore:
    """Score calls that have been read, whatever the form they were written in; None is a malformed or failed one."""
    counts = overlap(predicted.arguments if predicted else None, expected.arguments if expected else None)
    precision, recall, f1 = ratios(counts)
    name_match = predicted is not None and expected is not None and predicted.name == expected.name
    args_exact = (
        predicted is not None and expected is not None and bool(predicted.arguments.value == expected.arguments.value)
    )
    scores = {
        "valid_call": float(predicted is not None),
        "name_match": float(name_match),
        "args_exact": float(args_exact),
        "args_precision": precision or 0.0,
        "args_recall": recall or 0.0,
        "args_f1": f1 or 0.0,
    }
    return RowScore(
        example_id=example_id,
        scores=tuple(Score(name=name, value=value) for name, value in scores.items()),
        issues=_issues(predicted is not None, name_match, args_exact),
        counts=counts,
    )


def _issues(valid: bool, name_match: bool, args_exact: bool) -> tuple[str, ...]:
    if not valid:
        return ("invalid_tool_call_format",)
    found = {"tool_name_mismatch": not name_match, "arguments_mismatch": not args_exact}
    return tuple(issue for issue, present in found.items() if present)
