"""What a request may ask of the engine: bounds that hold before the first token, and one shape for what is refused.

The engine trusts its callers: it has no time-out for compiling a grammar (a schema of 116 bytes takes it ten seconds, and
all structured output waits), fails with 500 on fields that it does not expect, and answers whatever length is asked for.
So the ingress reads the body first. Unknown fields are refused, not ignored: whoever sends `guided_json` to a server that
has forgotten it gets answers that look right. Plain ASGI; knows nothing of models, and needs milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from slm_ray.serving.request_body import Arriving, Gone, Refused, decoded, replayed

MAX_ANSWER_TOKENS = 16_384  # of all choices together
MAX_LOGPROBS = 200_000  # alternatives × tokens of all choices: each is some 60 bytes of answer
MAX_MESSAGES = 2_000
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 200
MAX_LOGIT_BIAS = 300
# Grammars are compiled against the whole vocabulary; these bounds keep it at seconds for 128,000 tokens.
MAX_SCHEMA_BYTES = 64 * 2**10
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 2_000
MAX_REGEX_CHARACTERS, MAX_REGEX_REPEATS = 200, 500
MAX_REPEATS = 4_000  # counted ones (`maxLength`, `minItems`, `{3,20}` in a pattern) of a whole schema
_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_COUNTED = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
READ = "slm_ray.request"  # where in its scope the middleware inside find a request, read, and its size in bytes
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Check = Callable[[Any], str | None]  # what is wrong with a value, or None
ToolCheck = Callable[[Mapping[str, Any]], tuple[str, str] | None]  # of a request: the field at fault and what is wrong


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a request: what is wrong with a value of it, and how OpenAPI describes it."""

    check: Check
    schema: Mapping[str, Any]


class RequestLimits:
    """ASGI middleware: 413 for a body that is too large, 400 for one that is no request the engine should see.

    429 for a large one that comes in beside too many others.

    Without `fields` the bodies are not read: in front of models that judge for themselves what they take.
    """

    def __init__(self, app: ASGIApp, *, fields: bool = True, tools: ToolCheck | None = None) -> None:
        self.app = app
        self._fields = fields
        self._tools = tools  # None where no engine finds calls in answers: tools are refused
        self._arriving = Arriving()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            if "\n" in scope["path"]:  # routers ignore one at the end, and what is asked of a path here would not
                raise Refused("a path has no line's end in it", status=404, code="not_found")
            body = await self._arriving.whole(scope, receive)
            if self._fields and scope["path"].endswith("/completions"):
                request = decoded(body)
                chat = scope["path"].endswith("/chat/completions")
                check_request(request, chat=chat, tools=self._tools)
                scope[READ] = request, len(body)
        except Refused as error:
            await error.response()(scope, receive, send)
            return
        except Gone:
            return
        await self.app(scope, replayed(body, receive), send)


def check_request(request: Mapping[str, Any], *, chat: bool, tools: ToolCheck | None = None) -> None:
    """Refused, with the field and the bound, for a request that the engine should not see."""
    fields = _FIELDS | (_CHAT if chat else _TEXT) | (_TOOLS if chat and tools is not None else {})
    for name, value in request.items():
        field = fields.get(name)
        if field is None:
            raise Refused(f"the field {name[:60]!r} is not known here; leave it out", field=name[:60])
        if value is None and name != _NEEDED[chat]:
            continue
        if problem := field.check(value):
            raise Refused(f"{name}: {problem}", field=name)
    needed = _NEEDED[chat]
    if needed not in request:
        raise Refused(f"{needed} is missing", field=needed)
    if chat and tools is not None and (found := tools(request)):
        raise Refused(": ".join(found), field=found[0])
    _check_product(request)


def body_schema(*, chat: bool) -> dict[str, Any]:
    """What `check_request` takes, as JSON schema; the bounds of fields together and of schemas are not in it."""
    fields = _FIELDS | (_CHAT if chat else _TEXT)
    shapes = {name: field.schema if name == _NEEDED[chat] else _or_null(field.schema) for name, field in fields.items()}
    return {"type": "object", "properties": shapes, "required": [_NEEDED[chat]], "additionalProperties": False}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), {"type": "null"}]}


def _check_product(request: Mapping[str, Any]) -> None:
    """The answer as a whole: choices × tokens × alternatives of each. Whoever names no tokens gets `most_tokens`."""
    asked = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    tokens = (request.get("n") or 1) * asked
    if tokens > MAX_ANSWER_TOKENS:
        raise Refused(
            f"n × max_tokens is {tokens:,}, above {MAX_ANSWER_TOKENS:,}; ask for less", field="max_tokens",
        )  # fmt: skip
    shown = _alternatives(request.get("top_logprobs"), request.get("logprobs"))
    if tokens * shown > MAX_LOGPROBS:
        raise Refused(f"log-probabilities of {tokens * shown:,} tokens, above {MAX_LOGPROBS:,}", field="logprobs")


def most_tokens(*, n: int | None, logprobs: bool | int | None, top_logprobs: int | None = None) -> int:
    """Tokens of one choice that the bounds leave to a request."""
    choices, shown = n or 1, _alternatives(top_logprobs, logprobs)
    return min(MAX_ANSWER_TOKENS // choices, MAX_LOGPROBS // (choices * max(1, shown)))


def _alternatives(top: int | None, logprobs: bool | int | None) -> int:
    """Log-probabilities that are shown of one token: chat says so by two fields, plain completions by one."""
    return max(top or 0, int(logprobs or 0))


def schema_problem(schema: Any) -> str | None:
    """Why a JSON schema would keep the engine's compiler busy; None for one that does not."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.MsgspecError, RecursionError, UnicodeEncodeError):
            return "the schema is no JSON"
    if not isinstance(schema, dict | bool):
        return "a schema is an object"
    repeats = 0
    for nodes, (depth, node) in enumerate(_walk(schema), start=1):
        if depth > MAX_SCHEMA_DEPTH:
            return f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep"
        if nodes > MAX_SCHEMA_NODES:
            return f"the schema has more than {MAX_SCHEMA_NODES:,} parts"
        if isinstance(node, dict):
            for pattern in _patterns(node):
                if problem := regex_problem(pattern):
                    return problem
                repeats += _repeats(pattern)
            repeats += _counted(node)
    if repeats > MAX_REPEATS:
        return f"the schema counts {repeats:,} repetitions (maxLength, minItems, ...), above {MAX_REPEATS:,}"
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        return f"the schema is above {MAX_SCHEMA_BYTES // 2**10} KiB"
    return None


def _patterns(node: Mapping[str, Any]) -> list[str]:
    """The regular expressions that stand in a part of a schema, as a value or as keys."""
    pattern, keyed = node.get("pattern"), node.get("patternProperties")
    keys = islice(keyed, MAX_SCHEMA_NODES) if isinstance(keyed, dict) else ()  # with more there are too many parts
    return [*([pattern] if isinstance(pattern, str) else []), *keys]


def _counted(node: Mapping[str, Any]) -> int:
    """Repetitions that a part of a schema asks for."""
    counts = [node.get(name) for name in _COUNTED]
    return int(min(max((one for one in counts if isinstance(one, int | float)), default=0), MAX_REPEATS + 1))


def regex_problem(pattern: str) -> str | None:
    """Why a regular expression would keep the engine's compiler busy; None for one that does not."""
    if len(pattern) > MAX_REGEX_CHARACTERS:
        return f"a pattern of {len(pattern):,} characters, above {MAX_REGEX_CHARACTERS}"
    if (counted := _repeats(pattern)) > MAX_REGEX_REPEATS:
        return f"a pattern that counts {counted:,} repetitions, above {MAX_REGEX_REPEATS}"
    return None


def _repeats(pattern: str) -> int:
    """What the counted repetitions of a pattern come to; one within another multiplies, and is taken to be."""
    counts = [min(int(digits), 10**6) for found in _REPEAT.finditer(pattern) for digits in found.groups() if digits]
    return math.prod(count for count in counts if count > 1) if counts else 0


def _walk(schema: Any) -> Iterator[tuple[int, Any]]:
    """Every object, array and value of a schema with its depth; by a stack, since hostile ones are deep."""
    stack = [(1, schema)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack.extend((depth + 1, part) for part in inner)


def _number(low: float, high: float, *, whole: bool = False) -> _Field:
    def check(value: Any) -> str | None:
        right = isinstance(value, int) if whole else isinstance(value, int | float)
        if isinstance(value, bool) or not right or not low <= value <= high:
            return f"{'a whole number' if whole else 'a number'} from {low:,g} to {high:,g} is wanted"
        return None

    return _Field(check, {"type": "integer" if whole else "number", "minimum": low, "maximum": high})


def _kind(kind: type, *, words: str, schema: str) -> _Field:
    return _Field(lambda value: None if isinstance(value, kind) else f"{words} is wanted", {"type": schema})


def _messages(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return "a list of one message or more is wanted"
    if len(value) > MAX_MESSAGES:
        return f"{len(value):,} messages, above {MAX_MESSAGES:,}"
    for place, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"message {place} is no object with a role ({', '.join(_ROLES)})"
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                return f"message {place} has a part that is no text, which is all that is served here"
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
            return f"message {place} has no text as its content"
    return None


def _stop(value: Any) -> str | None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
        return f"a text, or at most {MAX_STOPS} of them, is wanted"
    if any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        return f"a stop has 1 to {MAX_STOP_CHARACTERS} characters"
    return None


def _logit_bias(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        return f"an object of at most {MAX_LOGIT_BIAS} tokens is wanted"
    right = _number(-100, 100).check
    if any(
        not token.isascii() or not token.isdigit() or len(token) > 9 or right(bias) for token, bias in value.items()
    ):
        return "token numbers with a bias from -100 to 100 are wanted"
    return None


def _response_format(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in ("text", "json_object"):
        return None
    named = value.get("json_schema") if kind == "json_schema" else None
    if isinstance(named, dict) and named.get("schema") is not None:
        return schema_problem(named["schema"])
    if isinstance(named, dict) and isinstance(named.get("name"), str):
        return None  # a track's own schema, which the ingress knows
    return "a type text, json_object or json_schema (with json_schema.schema, or a track's name) is wanted"


def _structured_outputs(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) != 1:
        return "an object with one of json, choice, regex, json_object is wanted"
    ((kind, wanted),) = value.items()
    if kind == "json":
        return schema_problem(wanted)
    if kind == "regex" and isinstance(wanted, str):
        return regex_problem(wanted)
    if kind == "choice" and isinstance(wanted, list) and all(isinstance(text, str) for text in wanted):
        return schema_problem({"enum": wanted})
    if kind == "json_object" and wanted is True:
        return None
    return f"{str(kind)[:40]} is none of json, choice, regex, json_object, or not of its type; a grammar is not served"


def _not_served(value: Any) -> str | None:
    return "tools are not served here; ask for a JSON schema by response_format" if value not in ([], "none") else None


_YES_OR_NO = _kind(bool, words="true or false", schema="boolean")
_STRING = _kind(str, words="a text", schema="string")
_OBJECT = _kind(dict, words="an object", schema="object")
_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": list(_ROLES)}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
_NEEDED = {True: "messages", False: "prompt"}
_FIELDS: dict[str, _Field] = {
    "model": _STRING,
    "max_tokens": _number(1, MAX_ANSWER_TOKENS, whole=True),
    "min_tokens": _number(0, MAX_ANSWER_TOKENS, whole=True),
    "n": _number(1, 16, whole=True),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _number(-1, 1_000_000, whole=True),
    "min_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 10),
    "seed": _number(-(2**63), 2**63 - 1, whole=True),
    "stop": _Field(_stop, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    "logit_bias": _Field(_logit_bias, {"type": "object", "additionalProperties": {"type": "number"}}),
    "stream": _YES_OR_NO,
    "stream_options": _OBJECT,
    "response_format": _Field(_response_format, {"type": "object"}),
    "structured_outputs": _Field(_structured_outputs, {"type": "object"}),
    "ignore_eos": _YES_OR_NO,
    "skip_special_tokens": _YES_OR_NO,
    "return_token_ids": _YES_OR_NO,
    "return_tokens_as_token_ids": _YES_OR_NO,
    "cache_salt": _STRING,
    "user": _STRING,
    # Of OpenAI's API, and without effect here.
    "metadata": _OBJECT,
    "store": _YES_OR_NO,
    "parallel_tool_calls": _YES_OR_NO,
    "service_tier": _STRING,
    "prompt_cache_key": _STRING,
    "safety_identifier": _STRING,
}
_CHAT: dict[str, _Field] = {
    "messages": _Field(_messages, {"type": "array", "items": _MESSAGE, "minItems": 1}),
    "max_completion_tokens": _number(1, MAX_ANSWER_TOKENS, whole=True),
    "logprobs": _YES_OR_NO,
    "top_logprobs": _number(0, 20, whole=True),
    "tools": _Field(_not_served, {"type": "array", "items": {"type": "object"}}),
    "tool_choice": _Field(_not_served, {}),
}
_LATER = _Field(lambda value: None, {})  # looked at together
_TOOLS = {"tools": _LATER, "tool_choice": _LATER}
_TEXT: dict[str, _Field] = {
    "prompt": _STRING,
    "logprobs": _number(0, 20, whole=True),
    "echo": _YES_OR_NO,
}
