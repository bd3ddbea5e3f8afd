"""xLAM rows (`query`, `tools`, `answers`) into prompt/completion pairs, with the templates of the earlier system.

Byte for byte what the earlier system wrote: JSON in Python's default form, tool calls compact, keys sorted. Of several
answers only the first is used. A row whose tool is not in its own tool list is skipped; any other fault is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slm_ray.corpus.read import BadRow, checked_object, json_object, refuse, text_of
from slm_ray.corpus.render import normalised
from slm_ray.errors import ConfigError, DataError, choices

_DECODER = json.JSONDecoder()


def rows_to_pairs(text: str, *, name: str, track: str) -> list[dict[str, Any]]:
    """Parse `text`, a JSON array or JSONL called `name`, and render its rows for `track`.

    Each pair is `{"prompt", "completion", "tags": {"tool", "domain"?}, "group", "id"?, "split"?}`. `group` is the
    normalised query: splitting by it puts both tracks of one source on the same sides.
    """
    if track not in _TEMPLATES:
        raise ConfigError(f"xLAM rows have no template for the track {track!r}: {choices(track, _TEMPLATES)}")
    text = text.removeprefix("\ufeff")
    array = text.lstrip().startswith("[")
    rows = _elements(text, name) if array else _lines(text)
    parse: Callable[[Any], dict[str, Any]] = checked_object if array else json_object
    pairs, problems, seen = [], [], 0
    for line, row in rows:
        seen += 1
        try:
            pair = _pair(parse(row), track)
        except BadRow as problem:
            problems.append(f"{name}:{line}: {problem}")
        else:
            pairs.extend([pair] if pair else [])
    refuse(problems)
    if not pairs:
        what = (
            f"none of its {seen} rows answers with a tool of its own tool list" if seen else "there are no rows in it"
        )
        raise DataError(f"{name}: {what}; give xLAM rows (query, tools, answers)")
    return pairs


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((line, row) for line, row in enumerate(text.split("\n"), start=1) if row.strip())


def _elements(text: str, name: str) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array with their line numbers, which `json.loads` would lose."""
    position, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply or a number too long")
            at = text.count("\n", 0, getattr(error, "pos", position)) + 1
            raise DataError(f"{name}:{at}: this is not JSON ({reason}); fix the syntax") from None
        yield line, value
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            at = text.count("\n", 0, position) + 1
            raise DataError(f"{name}:{at}: the JSON array breaks off here; put a comma between rows and ] at the end")
    if text[position + 1 :].strip():
        at = text.count("\n", 0, position) + 1
        raise DataError(f"{name}:{at}: text follows the end of the JSON array; keep one array per file")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def _pair(row: Mapping[str, Any], track: str) -> dict[str, Any] | None:
    query = text_of(row, "query")
    answer = _first_answer(row)
    tool = next((tool for tool in _tools(row) if tool.get("name") == answer["name"]), None)
    if tool is None:
        return None
    prompt, completion = _TEMPLATES[track](query, tool, answer["arguments"])
    tags = {"tool": answer["name"]}
    if isinstance(row.get("domain"), str):
        tags["domain"] = row["domain"]
    pair = {"prompt": prompt, "completion": completion, "tags": tags, "group": normalised(query)}
    return pair | {key: row[key] for key in ("id", "split") if row.get(key) is not None}


def _first_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    answers = _list(row, "answers")
    if not answers:
        raise BadRow("'answers' is empty; add the expected call or delete the row")
    answer = answers[0]
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise BadRow('the first answer is no call; write {"name": …, "arguments": {…}}')
    if not isinstance(answer.get("arguments"), dict):
        raise BadRow("the first answer's 'arguments' is not an object; write {} when there are none")
    return answer


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = _list(row, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow('\'tools\' holds something that is no object; write {"name", "description", "parameters"}')
    return tools


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(f"{key!r} is a text that is not JSON; write a JSON list") from None
    if not isinstance(value, list):
        raise BadRow(f"{key!r} is not a list; write a JSON list, or a text that holds one")
    return value


def _structured(query: str, tool: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, str]:
    prompt = (
        "Return a JSON object with keys query, tool_name, arguments describing the API call.\n"
        f"Query: {query}\nChosen tool: {tool['name']}\nArguments should mirror the assistant's recommendation."
    )
    answer = {"query": query, "tool_name": tool["name"], "arguments": arguments}
    return prompt, json.dumps(answer, sort_keys=True)


def _toolcall(query: str, tool: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, str]:
    prompt = (
        'Respond with exactly one <tool_call name="...">{...}</tool_call> wrapper.\n'
        f"Tool signature: {tool['name']}({_signature(tool)})\n"
        f"Tool description: {tool.get('description') or ''}\nRequest: {query}"
    )
    call = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    return prompt, f'<tool_call name="{tool["name"]}">{call}</tool_call>'


def _signature(tool: Mapping[str, Any]) -> str:
    parameters = tool.get("parameters") or {}
    if not isinstance(parameters, dict) or not all(
        isinstance(spec, dict) and isinstance(spec.get("type"), str) for spec in parameters.values()
    ):
        raise BadRow(
            f"the parameters of {tool['name']!r} are not in xLAM's form; write "
            '{"parameter": {"type": "str", "description": "…"}}'
        )
    return ", ".join(f"{parameter}:{spec['type']}" for parameter, spec in parameters.items())


_Template = Callable[[str, Mapping[str, Any], Mapping[str, Any]], tuple[str, str]]
_TEMPLATES: dict[str, _Template] = {"structured": _structured, "toolcall": _toolcall}
