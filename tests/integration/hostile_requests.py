"""Requests to the endpoint made from its own OpenAPI, from what it describes spoilt in one place, and from junk."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

JUNK = st.sampled_from(
    [None, True, -1, 0, 2**70, 1e308, "", "\ud800", "x" * 10_000, "../../etc/passwd", "a\0b", [], {}, [[]], {"a": None}, [None] * 50]
)  # fmt: skip
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["tiny-base", "tiny-base:nobody", "nobody@champion", "user", "text", "é" * 5]
)
CHAT = "/v1/chat/completions"


def values(schema: Any, known: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a JSON schema of the OpenAPI describes, as far as it says; junk where it says nothing."""
    if not isinstance(schema, dict) or depth > 4:
        return JUNK
    if "$ref" in schema:
        return values(known[schema["$ref"].rpartition("/")[2]], known, depth + 1)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    if parts := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return st.one_of([values(part, known, depth + 1) for part in parts])
    match schema.get("type"):
        case "object":
            fields = {name: values(part, known, depth + 1) for name, part in schema.get("properties", {}).items()}
            needed = {name: fields.pop(name) for name in schema.get("required", []) if name in fields}
            some = st.dictionaries(st.sampled_from(sorted(fields)), st.none(), max_size=4) if fields else st.just({})
            return some.flatmap(lambda names: st.fixed_dictionaries(needed | {name: fields[name] for name in names}))
        case "array":
            return st.lists(values(schema.get("items"), known, depth + 1), max_size=3)
        case "string":
            return TEXTS
        case "integer":
            return st.integers(-2, 40) | st.sampled_from([10**6, -(2**40)])
        case "number":
            return st.floats(-3, 3) | st.sampled_from([1e300])
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JUNK


def requests(openapi: Mapping[str, Any]) -> st.SearchStrategy[tuple[str, str, Any]]:
    """(method, path, body) of every operation: as described, with one field made junk, or junk altogether."""
    known = openapi.get("components", {}).get("schemas", {})
    operations = []
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            described = values(content.get("application/json", {}).get("schema"), known)
            spoilt = st.tuples(described, st.sampled_from(["messages", "model", "n", "stop", "stream"]), JUNK).map(
                _spoilt
            )
            names = st.text(max_size=10) | st.sampled_from(["tiny-base", "..", "a/b", "%2e%2e"])
            place = names.map(functools.partial(_filled, path))
            operations.append(st.tuples(st.just(method.upper()), place, described | spoilt | JUNK))
    return st.one_of(operations)


def _spoilt(parts: tuple[Any, str, Any]) -> Any:
    body, field, junk = parts
    return body | {field: junk} if isinstance(body, dict) else body


def _filled(path: str, name: str) -> str:
    before, brace, rest = path.partition("{")
    filled = before + quote(name, safe="/%") + rest.partition("}")[2] if brace else path
    return f"{filled}?api-version=1" if "deployments" in path else filled


def body_of(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def check(reply: httpx.Response, asked: object) -> None:
    """No fault of the endpoint, and one shape of what it refuses."""
    assert reply.status_code < 500, (asked, reply.status_code, reply.text[:500])
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert set(error) == {"code", "message", "type", "param"} and len(error["message"]) <= 600, (
            asked,
            reply.text[:500],
        )
        told = json.dumps(error)
        assert not [
            word for word in ("Traceback", "RayTask", "site-packages", "Request ID", "pydantic.dev") if word in told
        ], told


def each_of(made: st.SearchStrategy[Any], ask: Callable[[Any], None], *, examples: int = 250) -> None:
    """Ask `examples` of them, the same in every run; without shrinking, which would ask a thousand more."""
    generated = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    generated(given(made)(ask))()
