"""Answers against a JSON schema: validity, schemas that are none, references that lead nowhere, nothing fetched."""

from __future__ import annotations

import datetime
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.scoring import check, score, summarise

CALL = {
    "type": "object",
    "properties": {"tool": {"enum": ["a", "b"]}, "arguments": {"$ref": "#/$defs/arguments"}},
    "required": ["tool"],
    "additionalProperties": False,
    "$defs": {"arguments": {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}},
}
CIRCLE: dict[str, Any] = {}
CIRCLE["items"] = CIRCLE
TREE = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}


def track(schema: Mapping[str, Any] | None, *strip: Any) -> Track:
    return Track(
        name="mine", system="", scorers=("schema",), primary="schema_valid", core=("schema_valid",),
        answer_schema=schema, strip=strip,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "raw", "valid", "issues"),
    [
        ('{"tool": "a", "arguments": {"x": 1}}', 1.0, 1.0, ()),
        ('{"tool": "c"}', 1.0, 0.0, ("schema_violation",)),
        ('{"tool": "a", "arguments": {"x": [1]}}', 1.0, 0.0, ("schema_violation",)),
        ('{"tool": "a", "more": 1}', 1.0, 0.0, ("schema_violation",)),
        ("[]", 1.0, 0.0, ("schema_violation",)),
        ("tool: a", 0.0, 0.0, ("not_json",)),
        ('```json\n{"tool": "a"}\n```', 0.0, 0.0, ("not_json",)),
        (None, 0.0, 0.0, ("not_json",)),
    ],
)
def test_answers(answer: str | None, raw: float, valid: float, issues: tuple[str, ...]) -> None:
    row = score(track(CALL), "r", answer, "")
    assert (row.value("json_valid_raw"), row.value("schema_valid"), row.issues) == (raw, valid, issues)


def test_stripping_makes_a_schema_valid_but_not_the_raw_answer() -> None:
    row = score(track(CALL, "fences"), "r", '```json\n{"tool": "a"}\n```', "")
    assert (row.value("json_valid_raw"), row.value("schema_valid")) == (0.0, 1.0)
    assert row.issues == ("stripped_fences",)


def test_without_a_schema_only_json_is_judged() -> None:
    rows = [score(track(None), str(i), text, "") for i, text in enumerate(["{}", "no"])]
    assert [row.value("schema_valid") for row in rows] == [None, None]
    assert [row.issues for row in rows] == [(), ("not_json",)]
    assert summarise(track(None), rows) == {"json_valid_raw": 0.5, "schema_valid": None}


BAD: dict[str, Any] = {
    r"answer_schema\.properties\.a\.type: 'strng'": {"properties": {"a": {"type": "strng"}}},
    r"answer_schema\.anyOf\[1\]\.required: 'a' is not of type 'array'": {"anyOf": [True, {"required": "a"}]},
    r"answer_schema\.pattern: '\(' is not a 'regex'": {"pattern": "("},
    r"answer_schema\.\$schema: unknown dialect 'urn:x'; known: https": {"$schema": "urn:x"},
    r"answer_schema\.\$schema: unknown dialect 7; known": {"$schema": 7},
    r"\$ref 'https://example\.invalid/x' leads to nothing": {"items": {"$ref": "https://example.invalid/x"}},
    r"\$ref 'file:///x' leads to nothing": {"$ref": "file:///x"},
    r"\$ref '#/\$defs/b' leads to nothing": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}}},
    r"\$ref '#/d' leads to nothing": {"$ref": "#/unknown/b", "unknown": {"b": {"items": {"$ref": "#/d"}}}},
    r"\$dynamicRef|\$ref '#gone' leads to nothing": {"$dynamicRef": "#gone"},
    r"leads back to itself without end": {"allOf": [{"$ref": "#"}]},
    r"leads back to itself without end; refer to a part": {"properties": {"x": {"$ref": "#/properties/x"}}},
    r"leads back to itself without end;": {
        "items": {"$ref": "#/$defs/a"},
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}},
    },
    r"answer_schema: behind \$ref '#/x'\.type: 5 is not": {"items": {"$ref": "#/x"}, "x": {"type": 5}},
    r"answer_schema: behind \$ref '#/x': \[1\] is not": {"items": {"$ref": "#/x"}, "x": [1]},
    r"answer_schema is not JSON: datetime\.date\(2026, 1, 2\) is no JSON value": {"const": datetime.date(2026, 1, 2)},
    r"answer_schema is not JSON: Out of range": {"const": float("nan")},
    r"answer_schema is not JSON: Circular": CIRCLE,
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_schema_is_refused_with_its_place(said: str) -> None:
    for refused in (check, lambda bad: score(bad, "r", "{}", "")):
        with pytest.raises(ConfigError, match=rf"^track mine: (.*){said}"):
            refused(track(BAD[said]))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, "2", "1"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}, '[1, "a"]', '["a"]'),
        ({"prefixItems": [{"type": "integer"}]}, '[1, "a"]', '["a"]'),  # 2020-12 when none is named
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, '{"type": "object"}', '{"type": 5}'),
        ({"properties": {"$ref": {"type": "string"}}}, '{"$ref": "x"}', '{"$ref": 1}'),
        ({"const": {"$ref": "nowhere"}}, '{"$ref": "nowhere"}', "{}"),
        ({"format": "date", "type": "string"}, '"not a date"', "1"),
        ({"$id": "urn:a", "$ref": "#b", "$defs": {"x": {"$anchor": "b", "type": "null"}}}, "null", "1"),
        (
            {"properties": {"allOf": {"$ref": "#"}, "x": {"type": "null"}}},
            '{"allOf": {"x": null}}',
            '{"allOf": {"x": 1}}',
        ),
        ({"items": {"$ref": "#/x"}, "x": {"type": "null"}}, "[null]", "[1]"),
        (TREE, '{"next": {"next": {}}}', '{"next": {"next": {"x": 1}}}'),
    ],
)
def test_dialects_and_references(schema: Mapping[str, Any], good: str, bad: str) -> None:
    assert score(track(schema), "r", good, "").value("schema_valid") == 1.0
    assert score(track(schema), "r", bad, "").value("schema_valid") == 0.0


def test_nothing_is_ever_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        for schema in ({"$ref": f"http://127.0.0.1:{port}/x"}, {"$schema": f"http://127.0.0.1:{port}/y"}):
            with pytest.raises(ConfigError):
                score(track(schema), "r", "{}", "")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("answer", ["1" + "0" * 4000, "1e400", '{"next":' * 199 + "1" + "}" * 199, "[" * 10_000])
def test_answers_that_no_validator_can_follow_are_invalid(answer: str) -> None:
    schema = {**TREE, "type": ["object", "number"], "multipleOf": 0.3}
    assert score(track(schema), "r", answer, "").value("schema_valid") == 0.0


@given(st.text(alphabet=st.characters(codec=None)) | st.none())
def test_no_text_raises(answer: str | None) -> None:
    row = score(track(CALL, "fences", "reasoning"), "r", answer, "")
    assert row.value("schema_valid") in (0.0, 1.0)


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, 0.5, "", "1", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(VALUES, max_size=6))
def test_unique_items_are_those_of_the_library(items: list[Any]) -> None:
    schema = {"type": "array", "uniqueItems": True}
    theirs = jsonschema.Draft202012Validator(schema).is_valid(items)
    assert score(track(schema), "1", json.dumps(items), "").value("schema_valid") == float(theirs)
    assert score(track({"uniqueItems": False}), "1", json.dumps(items), "").value("schema_valid") == 1.0


def test_many_unique_items_take_no_hours() -> None:
    answer = json.dumps([{"a": n} for n in range(50_000)])
    started = time.process_time()
    assert score(track({"items": {"type": "object"}, "uniqueItems": True}), "1", answer, "").value("schema_valid") == 1
    assert time.process_time() - started < 5
