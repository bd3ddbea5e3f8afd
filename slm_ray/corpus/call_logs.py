"""Logs of model calls as rows: OpenAI's stored completions and request/response pairs, and Langfuse's generations.

What was sent is the question, what came back the expected answer; whether that answer is any good, a log does not say. An
answer that failed, was refused or stopped at a limit is no answer to learn from: such a row is a bad one. Parts of a
message that are text are put together, others (images, audio) make the row a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm_ray.corpus.chat import from_messages
from slm_ray.corpus.fields import filled, inner_json, kind_of
from slm_ray.corpus.parsed_row import Exchange
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track

_TEXT_PARTS = ("text", "input_text", "output_text")
_GENERATION = "GENERATION"
_MOST_REASON = 200  # characters
_UNFINISHED = {"length": "stopped at its token limit", "content_filter": "was filtered"}


def is_openai_log(row: Mapping[str, Any]) -> bool:
    """Whether the row is a call with its answer: `messages` and `choices` or `response`, or `request` and `response`."""
    return ("messages" in row and ("choices" in row or "response" in row)) or {"request", "response"} <= row.keys()


def is_langfuse(row: Mapping[str, Any]) -> bool:
    """Whether the row is an observation of Langfuse: `input` and `output`, and no `instruction` (that is Alpaca's)."""
    return {"input", "output"} <= row.keys() and "instruction" not in row


def from_openai_log(row: Mapping[str, Any], track: Track) -> Exchange:
    """A request's `messages` (and `tools`), and `choices` of the answer, beside it or inside `request` and `response`.

    Either may stand in `body`, as the Batch API has it, or be a text of JSON.
    """
    request = row if "messages" in row else _body(row.get("request"), "request")
    response = row if "choices" in row else _body(row.get("response"), "response")
    if "messages" not in request:
        raise BadRow("missing_key", "the request has no 'messages'", "add them; other endpoints' logs are not read")
    return _exchange(request, _choice(response), track)


def from_langfuse(row: Mapping[str, Any], track: Track) -> Exchange | None:
    """A generation's `input` (messages, an object with them, or a text) and `output`; None for another observation."""
    kind = row.get("type", _GENERATION)
    if kind != _GENERATION:
        return None
    if row.get("level") == "ERROR":
        why = " ".join(str(row.get("statusMessage") or "no reason given")[:_MOST_REASON].split())
        raise BadRow("no_answer", f"the call failed ({why})", "leave it out")
    asked, answer = _opened(row.get("input")), _opened(row.get("output"))
    request = asked if isinstance(asked, dict) and "messages" in asked else {"messages": asked}
    if isinstance(asked, str):
        request = {"messages": [{"role": "user", "content": asked}]}
    if isinstance(answer, dict) and "choices" in answer:
        return _exchange(request, _choice(answer), track)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    turn = {"role": "assistant", "content": answer} if not isinstance(answer, dict) else answer
    # An answer in structured output may be logged as the object itself; an object with a role is a turn.
    if "role" not in turn and "content" not in turn and "tool_calls" not in turn:
        turn = {"role": "assistant", "content": row["output"]}
    return _exchange(request, {"role": "assistant"} | turn, track)


def plain_turns(messages: object, key: str = "messages") -> list[Any]:
    """OpenAI's messages with their text parts put together; what is no turn is left for who reads them. BadRow for other parts."""
    if not isinstance(messages, list):
        raise BadRow("wrong_type", f"{key!r} is {kind_of(messages)}", "write a list of turns")
    return [
        turn | {"content": _text(turn["content"], f"{key}[{place}]")}
        if isinstance(turn, dict) and isinstance(turn.get("content"), list)
        else turn
        for place, turn in enumerate(messages)
    ]


def _exchange(request: Mapping[str, Any], answer: Mapping[str, Any], track: Track) -> Exchange:
    if not (answer.get("tool_calls") or answer.get("function_call")):
        answer = {"role": "assistant", "content": _content(answer)}
    turns = plain_turns([*plain_turns(request["messages"]), answer])
    tools = {"tools": request["tools"]} if request.get("tools") else {}
    return from_messages({"messages": turns, **tools}, track)


def _content(answer: Mapping[str, Any]) -> object:
    if answer.get("refusal"):
        raise BadRow("no_answer", "the model refused", "leave the row out")
    content = answer.get("content")
    return content if isinstance(content, list) else filled(content, "the answer's content")


def _choice(response: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message of the one choice."""
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        said = response.get("error")
        raise BadRow("no_answer", f"the call has no choices{' but an error' if said else ''}", "leave the row out")
    if len(choices) > 1:
        raise BadRow("ambiguous", f"the call has {len(choices)} choices", "keep the one that is the expected answer")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadRow("no_answer", "its choice has no 'message'", "leave the row out; streamed chunks are not read")
    if (why := _UNFINISHED.get(str(choice.get("finish_reason")))) is not None:
        raise BadRow("cut_answer", f"the answer {why}", "leave the row out")
    return message


def _body(value: object, key: str) -> Mapping[str, Any]:
    """The object under `key`, or that in its `body`; either may be a text of JSON."""
    opened = _opened(value)
    inner = _opened(opened["body"]) if isinstance(opened, dict) and "body" in opened else opened
    if not isinstance(inner, dict):
        raise BadRow("wrong_type", f"{key!r} is {kind_of(inner)}", "write the object that was sent or came back")
    return inner


def _opened(value: object) -> Any:
    """What a text of JSON holds, where it holds an object or a list; everything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return inner_json(value)
        except ValueError:
            return value
    return value


def _text(parts: list[Any], where: str) -> str:
    found = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _TEXT_PARTS else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise BadRow("wrong_type", f"{where!r} holds a part that is no text ({kind})", "leave the row out")
        found.append(text)
    return "\n".join(found)
