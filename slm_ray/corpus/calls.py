"""Tool calls and tool definitions as text: what a track's answer looks like, and where the model reads its tools.

A call is a name and an object of arguments. Which text it becomes is the scorer's business: the first scorer of a track
decides, and everything else gets the Hermes form. JSON written here keeps Unicode as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.corpus.fields import inner_json
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track

_TOOLS = re.compile(r"<tools>\s*[\[{]")  # a prompt may speak of the tags without showing tools
_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any]


def call_of(value: object, where: str) -> Call:
    """The call in `{"name", "arguments"}`, or in that under `function`; arguments may be a text of JSON. BadRow else."""
    inner = value.get("function", value) if isinstance(value, dict) else value
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(name, str) or not name.strip():
        raise BadRow("bad_call", f"{where!r} is a tool call without a name", 'write {"name": …, "arguments": {…}}')
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        raise BadRow("bad_call", f"the arguments of {where!r} are not an object", "write {} when there are none")
    return Call(name=name, arguments=arguments)


def hermes_call(text: str, where: str) -> Call:
    """The one call that `text` is, as JSON inside `<tool_call>` tags; BadRow for none, several, or text beside it."""
    bodies = _HERMES.findall(text)
    if len(bodies) > 1:
        raise many_calls(len(bodies), where)
    if not bodies or _HERMES.sub("", text).strip():
        raise BadRow(
            "bad_call", f"{where!r} is not one <tool_call>{{…}}</tool_call>", "write the call and nothing else"
        )
    return call_of(_json(bodies[0]), where)


def many_calls(count: int, where: str) -> BadRow:
    """The refusal of an answer that makes several calls."""
    return BadRow(
        "many_calls", f"{where!r} makes {count} tool calls, the track's answer is one", "keep one or delete the row"
    )


def call_text(call: Call, *, query: str, track: Track) -> str:
    """The call as the track's answer; `query` is what the user asked, which structured answers repeat."""
    match track.scorers[0]:
        case "structured":
            answer = {"query": query, "tool_name": call.name, "arguments": call.arguments}
            return json.dumps(answer, sort_keys=True, ensure_ascii=False)
        case "toolcall":
            body = json.dumps(call.arguments, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            return f'<tool_call name="{call.name}">{body}</tool_call>'
        case _:
            body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            return f"<tool_call>\n{body}\n</tool_call>"


def shows_tools(text: str) -> bool:
    """Whether tool definitions stand in the text."""
    return bool(_TOOLS.search(text))


def with_tools(system: str, tools: Sequence[Any]) -> str:
    """A system prompt with the tool definitions as JSON below it, unless it shows tools already."""
    if not tools or shows_tools(system):
        return system
    return f"{system}\n<tools>\n{json.dumps(list(tools), ensure_ascii=False)}\n</tools>"


def tools_of(row: Mapping[str, Any]) -> list[Any]:
    """The row's tool definitions (`tools`, or `functions`), a list or a text of JSON; none when it has no such key."""
    key = "functions" if "functions" in row and "tools" not in row else "tools"
    value = row.get(key)
    if value in (None, "", []):
        return []
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("bad_tools", f"{key!r} is not a list of tool definitions", "write a JSON list of objects")
    return value


def _json(text: str) -> Any:
    try:
        return inner_json(text)
    except ValueError:
        return None
