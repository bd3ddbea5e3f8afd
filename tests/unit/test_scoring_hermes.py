"""Hermes calls are scored as tool calls are; only their form differs."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.scoring import hermes, toolcall

GOOD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": {"c": [2]}}}\n</tool_call>'


def row(prediction: Any, reference: Any = GOOD) -> Any:
    found = hermes.score("1", prediction, reference)
    return {score.name: score.value for score in found.scores}, found.issues, found.counts


def test_a_call_equal_but_for_spacing_and_order_is_right() -> None:
    same = ' <tool_call>{"arguments": {"b": {"c": [2]}, "a": 1}, "name": "add"}</tool_call>\n'
    scores, issues, counts = row(same)
    assert set(scores.values()) == {1.0} and issues == () and counts == (2, 0, 0)


def test_names_and_arguments_are_judged_apart() -> None:
    other = '<tool_call>{"name": "sub", "arguments": {"a": 1, "b": 3}}</tool_call>'
    scores, issues, counts = row(other)
    assert (scores["valid_call"], scores["name_match"], scores["args_exact"]) == (1.0, 0.0, 0.0)
    assert counts == (1, 1, 1) and issues == ("tool_name_mismatch", "arguments_mismatch")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        '{"name": "add", "arguments": {}}',
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {}, "id": 1}</tool_call>',
        '<tool_call>["add", {}]</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        f"Sure. {GOOD}",
        GOOD + GOOD,
        '<tool_call name="add">{"a": 1}</tool_call>',
    ],
)
def test_anything_else_is_no_call_and_misses_every_argument(text: Any) -> None:
    scores, issues, counts = row(text)
    assert set(scores.values()) == {0.0} and issues == ("invalid_tool_call_format",) and counts == (0, 0, 2)


NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3))


@given(CALLS, CALLS)
def test_the_scores_are_those_of_the_same_calls_in_the_other_form(predicted: Any, expected: Any) -> None:
    def in_hermes(call: Any) -> Any:
        return f"<tool_call>{json.dumps({'name': call[0], 'arguments': call[1]})}</tool_call>"

    def in_toolcall(call: Any) -> Any:
        return f'<tool_call name="{call[0]}">{json.dumps(call[1])}</tool_call>'

    assert hermes.score("1", in_hermes(predicted), in_hermes(expected)) == toolcall.score(
        "1", in_toolcall(predicted), in_toolcall(expected)
    )


def test_of_a_repeated_key_the_last_value_counts() -> None:
    call = (
        '<tool_call>{"name": %s, "arguments": {"a": 9}, "arguments": {"a": 1, "b": {"c": [0], "c": [2]}}}</tool_call>'
    )
    assert set(row(call % '"sub", "name": "add"')[0].values()) == {1.0}
    scores, _, counts = row(call % '"add", "name": "sub"')
    assert (scores["name_match"], scores["args_exact"], counts) == (0.0, 1.0, (2, 0, 0))
