"""xLAM rows (`query`, `tools`, `answers`), with the templates of the earlier system.

Byte for byte what the earlier system wrote: JSON in Python's default form, tool calls compact, keys sorted. Of several
answers only the first is used. A row whose tool is not in its own tool list is skipped; any other fault is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slm_ray.corpus.calls import Call, call_text, with_tools
from slm_ray.corpus.fields import list_of, text_of
from slm_ray.corpus.parsed_row import Exchange, asked
from slm_ray.corpus.render import normalised, system_prompt
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.types import Message


def check(track: Track) -> None:
    """ConfigError for a track that xLAM rows have no template for."""
    if track.scorers[0] not in _TEMPLATES:
        raise ConfigError(f"xLAM rows have no template for the track {track.name!r}: {choices(track.name, _TEMPLATES)}")


def from_xlam(row: Mapping[str, Any], track: Track) -> Exchange | None:
    """`query`, `tools` and `answers`; None for a row whose tool is not in its tool list.

    The track's first scorer picks the template. `group` is the normalised query: splitting by it puts all tracks of one
    source on the same sides.
    """
    check(track)
    query = text_of(row, "query")
    answer = _first_answer(row)
    tools = _tools(row)
    tool = next((tool for tool in tools if tool.get("name") == answer["name"]), None)
    if tool is None:
        return None
    tags = {"tool": answer["name"]}
    if isinstance(row.get("domain"), str):
        tags["domain"] = row["domain"]
    turns, target = _TEMPLATES[track.scorers[0]](query, tool, answer["arguments"], tools, track)
    return Exchange(turns=turns, target=target, tags=tags, group=normalised(query))


def _first_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    answers = list_of(row, "answers")
    if not answers:
        raise BadRow("empty_list", "'answers' is empty", "add the expected call or delete the row")
    answer = answers[0]
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise BadRow("bad_call", "the first answer is no call", 'write {"name": …, "arguments": {…}}')
    if not isinstance(answer.get("arguments"), dict):
        raise BadRow("bad_call", "the first answer's 'arguments' is not an object", "write {} when there are none")
    return answer


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = list_of(row, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(
            "bad_tools", "'tools' holds something that is no object", 'write {"name", "description", "parameters"}'
        )  # fmt: skip
    return tools


def _structured(query: str, tool: Mapping[str, Any], arguments: Mapping[str, Any], *_: object) -> _Rendered:
    prompt = (
        "Return a JSON object with keys query, tool_name, arguments describing the API call.\n"
        f"Query: {query}\nChosen tool: {tool['name']}\nArguments should mirror the assistant's recommendation."
    )
    answer = {"query": query, "tool_name": tool["name"], "arguments": arguments}
    return asked(prompt), json.dumps(answer, sort_keys=True)


def _toolcall(query: str, tool: Mapping[str, Any], arguments: Mapping[str, Any], *_: object) -> _Rendered:
    prompt = (
        'Respond with exactly one <tool_call name="...">{...}</tool_call> wrapper.\n'
        f"Tool signature: {tool['name']}({_signature(tool)})\n"
        f"Tool description: {tool.get('description') or ''}\nRequest: {query}"
    )
    call = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    return asked(prompt), f'<tool_call name="{tool["name"]}">{call}</tool_call>'


def _hermes(
    query: str,
    tool: Mapping[str, Any],
    arguments: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]],
    track: Track,
) -> _Rendered:
    system = Message(role="system", content=with_tools(system_prompt(track), tools))
    call = Call(name=tool["name"], arguments=arguments)
    return (system, *asked(query)), call_text(call, query=query, track=track)


def _signature(tool: Mapping[str, Any]) -> str:
    parameters = tool.get("parameters") or {}
    if not isinstance(parameters, dict) or not all(
        isinstance(spec, dict) and isinstance(spec.get("type"), str) for spec in parameters.values()
    ):
        raise BadRow(
            "bad_tools",
            f"the parameters of {tool['name']!r} are not in xLAM's form",
            'write {"parameter": {"type": "str", "description": "…"}}',
        )
    return ", ".join(f"{parameter}:{spec['type']}" for parameter, spec in parameters.items())


_Rendered = tuple[tuple[Message, ...], str]
_TEMPLATES: dict[str, Callable[..., _Rendered]] = {"structured": _structured, "toolcall": _toolcall, "hermes": _hermes}
