"""The hermes track: exactly one `<tool_call>{"name": NAME, "arguments": {…}}</tool_call>`, per row.

The metrics are those of the toolcall track; only the form of the call differs. Raises on no text.
"""

from __future__ import annotations

from slm_ray.scoring.items import Document, fields, parse
from slm_ray.scoring.toolcall import Call, judge
from slm_ray.types import RowScore

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def read_call(text: str | None) -> Call | None:
    """The one call that the stripped text is, or None: a strict JSON object of a non-empty `name` and an `arguments` object."""
    stripped = (text or "").strip()
    if not (stripped.startswith(_OPEN) and stripped.endswith(_CLOSE)):
        return None
    body = parse(stripped.removeprefix(_OPEN).removesuffix(_CLOSE).strip())
    call = fields(body)
    if body is None or call is None or call.keys() != {"name", "arguments"}:
        return None
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    items = frozenset(item for item in body.items if item[0] != "name")
    return Call(name=name, arguments=Document(value=arguments, items=items))


def score(example_id: str, prediction: str | None, target: str) -> RowScore:
    """Score one answer as the toolcall track does; `prediction` None is a failed call and scores like a malformed one.

    Of a key given twice, `name` and `arguments` included, the last value counts.
    """
    return judge(example_id, read_call(prediction), read_call(target))
