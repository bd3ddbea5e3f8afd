"""Chats of other systems: OpenAI `messages`, ShareGPT `conversations`, and Hermes, which is the latter with tools.

The last assistant turn is the answer; everything before it is the question. Tool definitions go into the system turn,
tool calls become the track's call text, and what a tool gave back is shown as a user's turn inside `<tool_response>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from slm_ray.corpus.calls import Call, call_of, call_text, hermes_call, many_calls, shows_tools, tools_of, with_tools
from slm_ray.corpus.fields import filled, kind_of
from slm_ray.corpus.parsed_row import Exchange
from slm_ray.corpus.render import TOOL_RESPONSE, system_prompt
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track
from slm_ray.types import Message, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The keys of a turn and what its roles are to us; `tool` is the role of what a tool gave back."""

    role: str
    content: str
    roles: Mapping[str, str]


MESSAGES = Shape(
    role="role",
    content="content",
    roles={
        "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
        "function": "tool",
    },
)  # fmt: skip
SHAREGPT = Shape(
    role="from",
    content="value",
    roles={"system": "system", "human": "user", "gpt": "assistant", "tool": "tool", "function": "tool"},
)


def from_messages(row: Mapping[str, Any], track: Track) -> Exchange:
    """OpenAI's form: `messages`, `tools` if there are any, and `tool_calls` in assistant turns."""
    return _exchange(row, "messages", MESSAGES, track)


def from_sharegpt(row: Mapping[str, Any], track: Track) -> Exchange:
    """ShareGPT's form: `conversations` of `from` and `value`."""
    return _exchange(row, "conversations", SHAREGPT, track)


def from_hermes(row: Mapping[str, Any], track: Track) -> Exchange:
    """ShareGPT's form whose answer is one call as JSON inside `<tool_call>` tags.

    For a track whose scorer reads another form the call is written in that form.
    """
    exchange = from_sharegpt(row, track)
    call = hermes_call(exchange.target, "conversations[-1]")
    own = track.scorers[0] not in ("structured", "toolcall")
    target = exchange.target if own else call_text(call, query=_asked(exchange.turns), track=track)
    return dataclasses.replace(exchange, target=target, tags={"tool": call.name})


def is_hermes(row: Mapping[str, Any]) -> bool:
    """Whether the row's last turn is a tool call and it shows its tools; never raises."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        return False
    last, first = turns[-1].get("value"), turns[0].get("value")
    shown = bool(row.get("tools")) or (isinstance(first, str) and shows_tools(first))
    return shown and isinstance(last, str) and last.lstrip().startswith("<tool_call>")


def turns_of(value: object, key: str, shape: Shape = MESSAGES) -> list[Message]:
    """A list of plain turns; BadRow names the turn that is none."""
    return [_plain(turn, f"{key}[{place}]", shape) for place, turn in enumerate(_turn_list(value, key))]


def checked(turns: Sequence[Message]) -> tuple[Message, ...]:
    """`turns` if they are a question: system first or nowhere, then the user's, and the user's last. BadRow else."""
    if turns[-1].role != "user":
        raise BadRow("turn_order", f"the prompt ends with the {turns[-1].role}'s turn", "end it with the user's")
    if any(turn.role == "system" for turn in turns[1:]):
        raise BadRow("system_late", "a system turn stands after the first turn", "keep one, in front")
    first = turns[turns[0].role == "system"]
    if first.role == "assistant":
        raise BadRow("assistant_first", "the assistant speaks before any user", "put the user's turn in front")
    if _answers(first):
        raise BadRow("turn_order", "a tool answers before anything was asked", "put the user's turn in front")
    return tuple(turns)


def _exchange(row: Mapping[str, Any], key: str, shape: Shape, track: Track) -> Exchange:
    raw = _turn_list(row[key], key)
    turns: list[Message] = []
    calls: list[Call] = []
    for place, turn in enumerate(raw):
        calls = _calls(turn, f"{key}[{place}]") if shape is MESSAGES else []
        turns.append(_turn(turn, f"{key}[{place}]", shape, calls, turns, track))
        if len(turns) > 1 and _answers(turns[-1]) and _answers(turns[-2]):
            # Parallel calls have several results; most chat templates want users and assistants in turn.
            turns[-2:] = [Message(role="user", content=f"{turns[-2].content}\n{turns[-1].content}")]
    question, answer = _final_answer(turns, key)
    if len(calls) > 1:
        raise many_calls(len(calls), f"{key}[{len(raw) - 1}]")
    shown = _with_tools(checked(question), tools_of(row), track)
    if not calls:
        return Exchange(turns=shown, target=answer)
    return Exchange(turns=shown, target=answer, tags={"tool": calls[0].name})


def _turn(
    turn: Mapping[str, Any], where: str, shape: Shape, calls: Sequence[Call], before: Sequence[Message], track: Track
) -> Message:
    if not calls:
        return _plain(turn, where, shape)
    content = turn.get("content")
    if content not in (None, ""):
        raise BadRow("bad_call", f"{where!r} has a text and a tool call", "keep one of them, or make two turns of it")
    query = _asked(before)
    return Message(
        role="assistant", content="\n".join(call_text(call, query=query, track=track) for call in calls)
    )  # fmt: skip


def _plain(turn: object, where: str, shape: Shape) -> Message:
    if not isinstance(turn, dict) or shape.role not in turn or shape.content not in turn:
        raise BadRow(
            "bad_turn", f"{where!r} is no turn", f"write an object with {shape.role!r} and {shape.content!r}"
        )  # fmt: skip
    role = turn[shape.role]
    known = shape.roles.get(role) if isinstance(role, str) else None
    if known is None:
        raise BadRow("unknown_role", f"{where!r} has the unknown role {role!r}", f"use {', '.join(shape.roles)}")
    content = filled(turn[shape.content], f"{where}.{shape.content}")
    if known == "tool":
        return Message(role="user", content=f"{TOOL_RESPONSE}\n{content}\n</tool_response>")
    return Message(role=cast(Role, known), content=content)


def _calls(turn: object, where: str) -> list[Call]:
    """The calls of an assistant turn in OpenAI's form; its older form had one, under `function_call`."""
    if not isinstance(turn, dict) or turn.get("role") != "assistant":
        return []
    given = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not isinstance(given, list):
        raise BadRow("bad_call", f"'{where}.tool_calls' is {kind_of(given)}", "write a list of calls")
    return [call_of(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(given)]


def _turn_list(value: object, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRow("wrong_type", f"{key!r} is {kind_of(value)}", "write a list of turns")
    if not value:
        raise BadRow("empty_list", f"{key!r} is an empty list", "add the turns")
    return value


def _final_answer(turns: list[Message], key: str) -> tuple[list[Message], str]:
    if all(turn.role != "assistant" for turn in turns):
        raise BadRow("no_answer", f"{key!r} has no assistant turn", "add the expected answer as the last turn")
    if turns[-1].role != "assistant":
        raise BadRow(
            "turn_order",
            f"{key!r} ends with the {turns[-1].role}'s turn",
            "end it with the assistant's expected answer",
        )
    if len(turns) == 1:
        raise BadRow("no_prompt", f"{key!r} has nothing before the answer", "add the user's turn")
    return turns[:-1], turns[-1].content


def _with_tools(turns: tuple[Message, ...], tools: Sequence[Any], track: Track) -> tuple[Message, ...]:
    if not tools:
        return turns
    own = turns[0].role == "system"
    system = with_tools(turns[0].content if own else system_prompt(track), tools)
    return (Message(role="system", content=system), *turns[own:])


def _answers(turn: Message) -> bool:
    return turn.role == "user" and turn.content.startswith(TOOL_RESPONSE)


def _asked(turns: Sequence[Message]) -> str:
    """The user's last own words."""
    return next((turn.content for turn in reversed(turns) if turn.role == "user" and not _answers(turn)), "")
