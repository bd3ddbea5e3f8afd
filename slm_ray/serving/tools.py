"""What a request may say about tools, where the engine was given a parser for calls: the bounds of `limits`, on all tools together.

The engine compiles the schemas of tools to one grammar where they are `strict` or a call is demanded, so they count as one. Plain Python; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from slm_ray.serving.limits import schema_problem

MAX_TOOLS = 128
MAX_CALLS = 128  # in one message
MAX_DESCRIPTION = 4_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def tool_problem(request: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field at fault and what is wrong with it; None for a request that may go on."""
    tools, choice = request.get("tools"), request.get("tool_choice")
    names: list[str] = []
    if tools is not None:
        if problem := _tools(tools):
            return "tools", problem
        names = [tool["function"]["name"] for tool in tools]
    if choice is not None and (problem := _choice(choice, names)):
        return "tool_choice", problem
    for place, message in enumerate(request.get("messages") or []):
        if problem := _message(message):
            return "messages", f"message {place} {problem}"
    return None


def _tools(tools: Any) -> str | None:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        return f"a list of at most {MAX_TOOLS} tools is wanted"
    schemas = []
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            return f"tool {place} is no object with type function and a function"
        if not _NAME.fullmatch(str(function.get("name", ""))):
            return f"tool {place} has no name of 1 to 64 letters, digits, '_' and '-'"
        told = function.get("description")
        if told is not None and (not isinstance(told, str) or len(told) > MAX_DESCRIPTION):
            return f"the description of tool {place} is no text of at most {MAX_DESCRIPTION:,} characters"
        if function.get("strict") not in (None, True, False):
            return f"strict of tool {place} is neither true nor false"
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            return f"the parameters of tool {place} are no JSON schema"
        schemas.append(parameters or {})
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        return "two tools have the same name"
    problem = schema_problem({"tools": schemas})
    return f"the tools' parameters together: {problem}" if problem else None


def _choice(choice: Any, names: list[str]) -> str | None:
    if choice == "none":
        return None
    if not names:
        return "there are no tools to choose from"
    if choice in ("auto", "required"):
        return None
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if isinstance(function, dict) and function.get("name") in names:
        return None
    return "none, auto, required or one of the tools by name is wanted"


def _message(message: Any) -> str | None:
    """Calls of an assistant's turn and a tool's answer; everything else of a message is checked elsewhere."""
    if not isinstance(message, dict):
        return None
    if message.get("role") == "tool" and not isinstance(message.get("tool_call_id"), str):
        return "is a tool's answer without its tool_call_id"
    calls = message.get("tool_calls")
    if calls is None:
        return None
    if message.get("role") != "assistant" or not isinstance(calls, list) or len(calls) > MAX_CALLS:
        return f"has tool_calls that are no list of at most {MAX_CALLS} calls of an assistant"
    if not all(_is_call(call) for call in calls):
        return "has a tool call without an id, a function's name, or arguments that are a JSON object as text"
    return None


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(call.get("id"), str) or call.get("type") != "function":
        return False
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeEncodeError):
        return False
    return isinstance(arguments, dict) and bool(_NAME.fullmatch(str(function.get("name", ""))))
