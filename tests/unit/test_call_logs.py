"""Logs of calls as rows: what was asked and answered is read in every shape, and what failed is no answer to learn."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.formats import detect, parse
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.row_errors import KINDS, BadRow
from slm_ray.corpus.tracks import track

CHAT, TOOLCALL = track("chat"), track("toolcall")
ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]
ANSWER = {"role": "assistant", "content": "4", "refusal": None}
CHOICES = [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
BODY = {"model": "gpt-5", "messages": ASKED, "temperature": 0}
GENERATION = {"id": "o1", "traceId": "t1", "type": "GENERATION", "input": ASKED, "output": ANSWER, "tags": ["a"]}


def said(row: Any, name: Any = "auto") -> Any:
    found = parse(row, CHAT, name)
    assert found is not None
    return [(turn.role, turn.content) for turn in found.turns], found.target


@pytest.mark.parametrize(
    "row",
    [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "messages": ASKED,
            "choices": CHOICES,
            "metadata": {"a": "b"},
        },
        {"messages": ASKED, "response": {"choices": CHOICES}},
        {"request": BODY, "response": {"choices": CHOICES, "usage": {}}},
        {"request": {"method": "POST", "body": BODY}, "response": {"status_code": 200, "body": {"choices": CHOICES}}},
        {"request": json.dumps(BODY), "response": json.dumps({"choices": CHOICES}), "tags": ["x"], "split": 7},
    ],
)
def test_every_shape_of_an_openai_log_is_read(row: Any) -> None:
    assert detect(row, CHAT) == "openai_log"
    assert said(row) == said(row, "openai_log") == ([("system", "s"), ("user", "2+2?")], "4")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ASKED, ANSWER), (ASKED, "4"), ({"messages": ASKED, "tools": []}, ANSWER), (ASKED, [ANSWER]),
        (ASKED, {"content": "4"}), ({"messages": ASKED}, {"choices": CHOICES}),
        (json.dumps(ASKED), json.dumps(ANSWER)), (json.dumps({"messages": ASKED}), "4"),
    ],
)  # fmt: skip
def test_every_shape_of_a_langfuse_generation_is_read(asked: Any, answer: Any) -> None:
    row = GENERATION | {"input": asked, "output": answer}
    assert detect(row, CHAT) == "langfuse"
    assert said(row) == ([("system", "s"), ("user", "2+2?")], "4")


def test_a_generation_may_be_plain_texts_and_an_answer_that_is_json_stays_as_it_was_written() -> None:
    assert said(GENERATION | {"input": "2+2?", "output": "4"}) == ([("user", "2+2?")], "4")
    assert said(GENERATION | {"output": '{"query":  "a"}'})[1] == '{"query":  "a"}'


def test_what_langfuse_saw_that_is_no_generation_is_left_out() -> None:
    assert parse(GENERATION | {"type": "SPAN"}, CHAT) is None
    assert parse({"input": "a", "output": "b"}, CHAT) is not None


def test_the_row_keeps_its_id_and_none_of_the_logs_other_keys() -> None:
    found = parse(GENERATION, CHAT)
    assert found is not None and found.id == "o1" and not found.tags and found.split is None


def test_calls_and_tools_become_those_of_the_track() -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    question = [{"role": "user", "content": "2+2?"}]
    asked: dict[str, Any] = {"messages": question, "tools": TOOLS}
    logged = parse(asked | {"choices": [{"message": answer, "finish_reason": "tool_calls"}]}, TOOLCALL)
    traced = parse(GENERATION | {"input": asked, "output": answer}, TOOLCALL)
    plain = parse({"messages": [*question, answer], "tools": TOOLS}, TOOLCALL)
    assert logged is not None and traced is not None and plain is not None
    assert logged.turns == traced.turns == plain.turns and logged.target == traced.target == plain.target
    assert "add" in plain.target


def test_parts_of_text_are_put_together() -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}]
    assert said({"messages": [{"role": "user", "content": parts}], "choices": CHOICES})[0] == [("user", "2\n+2?")]


IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": ASKED, "choices": []}, "no_answer"),
        ({"messages": ASKED, "response": {"error": {"message": "429"}}}, "no_answer"),
        ({"messages": ASKED, "response": None}, "wrong_type"),
        ({"messages": ASKED, "choices": [{"delta": {"content": "4"}}]}, "no_answer"),
        ({"messages": ASKED, "choices": [{"message": ANSWER, "finish_reason": "length"}]}, "cut_answer"),
        ({"messages": ASKED, "choices": [{"message": {"content": None, "refusal": "I cannot"}}]}, "no_answer"),
        ({"messages": ASKED, "choices": [{"message": {"content": None}}]}, "null"),
        ({"messages": ASKED, "choices": CHOICES * 2}, "ambiguous"),
        ({"messages": [{"role": "user", "content": IMAGE}], "choices": CHOICES}, "wrong_type"),
        ({"messages": "2+2?", "choices": CHOICES}, "wrong_type"),
        ({"request": {"input": "2+2?"}, "response": {"choices": CHOICES}}, "missing_key"),
        ({"request": "GET /", "response": {"choices": CHOICES}}, "wrong_type"),
        (GENERATION | {"level": "ERROR", "statusMessage": "time-out"}, "no_answer"),
        (GENERATION | {"output": None}, "null"),
        (GENERATION | {"output": ""}, "empty_text"),
        (GENERATION | {"input": None}, "wrong_type"),
        (GENERATION | {"input": "[" * 100_000}, "any"),
    ],
)
def test_what_failed_or_cannot_be_read_is_no_row(row: Any, kind: str) -> None:
    if kind == "any":
        assert isinstance(parse(row, CHAT), ParsedRow)  # a question that only begins like JSON
        return
    with pytest.raises(BadRow) as caught:
        parse(row, CHAT)
    assert caught.value.kind == kind and kind in KINDS


def test_a_reason_of_any_length_is_one_short_line() -> None:
    with pytest.raises(BadRow, match=r"the call failed \(line one line two x+\)") as caught:
        parse(GENERATION | {"level": "ERROR", "statusMessage": "line one\nline two " + "x" * 10_000}, CHAT)
    assert len(str(caught.value)) < 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("4"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "messages", "choices", "message", "body", "text", "type"]), inner
        )
    ),
    max_leaves=6,
)
KEYS = ["messages", "choices", "response", "request", "input", "output", "type", "level", "id", "tools", "tags"]


@given(
    row=st.dictionaries(st.sampled_from(KEYS), VALUES | st.sampled_from([ASKED, CHOICES, BODY, ANSWER, "GENERATION"]))
)
def test_whatever_a_log_holds_it_is_a_row_or_a_problem(row: Any) -> None:
    for name in ("auto", "openai_log", "langfuse"):
        try:
            found = parse(row, CHAT, name)
        except BadRow as bad:
            assert bad.kind in KINDS and bad.reason and bad.fix
        else:
            assert found is None or found.target.strip()
