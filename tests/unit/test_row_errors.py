"""Bad rows: every kind is told apart, nothing that a file can hold makes the reader fall over, the table counts all."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.formats import AUTO, FORMATS
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.read import Reader
from slm_ray.corpus.row_errors import KINDS, BadRow, RowError, refuse, table
from slm_ray.corpus.tracks import TRACKS, track
from slm_ray.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}
CALL = {"name": "find", "arguments": {"a": 1}}
TOOL = {"name": "find", "description": "d", "parameters": {"a": {"type": "int"}}}
ROW = {"prompt": "p", "completion": "c"}


def called(*calls: Any) -> Any:
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": c} for c in calls]}]}


CASES = [
    ("not_json", "structured", "{'prompt': 1}"),
    ("not_json", "toolcall", {"query": "q", "tools": "[", "answers": [CALL]}),
    ("nan", "structured", '{"prompt": "p", "completion": NaN}'),
    ("nan", "structured", {"prompt": "p", "completion": "c", "score": float("inf")}),
    ("surrogate", "structured", '{"prompt": "\\ud83d", "completion": "c"}'),
    ("not_object", "structured", "7"),
    ("not_object", "structured", '["p", "c"]'),
    ("ambiguous", "structured", {**ROW, "messages": [USER, ASSISTANT]}),
    ("ambiguous", "structured", {**ROW, "target": "c"}),
    ("missing_key", "structured", {"prompt": "p"}),
    ("null", "structured", {"prompt": "p", "completion": None}),
    ("wrong_type", "structured", {"prompt": 3, "completion": "c"}),
    ("wrong_type", "classify", {"text": "t", "label": 3}),
    ("empty_text", "structured", {"prompt": "p", "completion": " \n"}),
    ("empty_list", "structured", {"messages": []}),
    ("bad_turn", "structured", {"messages": ["hi"]}),
    ("unknown_role", "structured", {"messages": [{"role": "critic", "content": "x"}, ASSISTANT]}),
    ("system_late", "structured", {"messages": [USER, {"role": "system", "content": "s"}, USER, ASSISTANT]}),
    ("assistant_first", "structured", {"messages": [ASSISTANT, USER, ASSISTANT]}),
    ("no_answer", "structured", {"messages": [USER]}),
    ("cut_answer", "structured", {"messages": [USER], "choices": [{"message": ASSISTANT, "finish_reason": "length"}]}),
    ("no_prompt", "structured", {"messages": [ASSISTANT]}),
    ("turn_order", "structured", {"messages": [USER, ASSISTANT, USER]}),
    ("bad_call", "toolcall", called({"arguments": {}})),
    ("bad_call", "toolcall", called({"name": "find", "arguments": [1]})),
    ("bad_call", "toolcall", {"query": "q", "tools": [TOOL], "answers": [{"arguments": {}}]}),
    ("many_calls", "toolcall", called(CALL, CALL)),
    ("bad_tools", "toolcall", {"query": "q", "tools": [3], "answers": [CALL]}),
    ("bad_tools", "toolcall", {"messages": [USER, ASSISTANT], "tools": "no JSON"}),
    ("no_final_number", "gsm8k", {"question": "1+1?", "answer": "It is two."}),
    ("unknown_label", "mood", {"text": "t", "label": "gald"}),
    ("bad_id", "structured", {**ROW, "id": 1.5}),
    ("bad_tags", "structured", {**ROW, "tags": {"a": 1}}),
    ("duplicate_id", "structured", {"id": "good", "prompt": "other", "completion": "c"}),
    ("duplicate_content", "structured", {"prompt": "twice", "completion": "c"}),
]
ELSEWHERE = {
    "not_utf8",
    "columns",
    "too_long",
    "refused_chat",
    "unscorable",
    "damaged",
}  # told by the sources, the tokenizer, the scorers and traffic logs: tests/unit/test_prepare_bad.py, test_live_rows.py
GOOD = [{"id": "good", "prompt": "good?", "completion": "yes"}, {"prompt": "twice", "completion": "c"}]


def named(name: Any) -> Any:
    if name != "mood":
        return track(name)
    return type(track("classify"))(
        name="mood", system="s", scorers=("classify",), primary="accuracy", core=("accuracy",), labels=("glad", "sad")
    )


def read(rows: Any, name: Any = "structured", format_name: Any = AUTO) -> Any:
    raw = ((f"{name}.jsonl", number, row) for number, row in enumerate(rows, start=1))
    return list(Reader(track=named(name), format_name=format_name).rows(raw))


@pytest.mark.parametrize(("kind", "name", "row"), CASES, ids=[kind for kind, _, _ in CASES])
def test_every_kind_is_told_with_place_reason_and_fix(kind: Any, name: Any, row: Any) -> None:
    good = GOOD if name != "gsm8k" and name != "mood" else []
    *before, problem = read([*good, row], name)
    assert all(isinstance(found, ParsedRow) for found in before)
    assert isinstance(problem, RowError)
    assert (problem.kind, problem.file, problem.line) == (kind, f"{name}.jsonl", len(good) + 1)
    assert problem.reason and problem.fix and "\n" not in str(problem)


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES} == KINDS.keys() - ELSEWHERE
    assert len(KINDS) >= 14


def test_a_label_that_is_nearly_right_is_suggested() -> None:
    (problem,) = read([{"text": "t", "label": "gald"}], "mood")
    assert "did you mean 'glad'?" in problem.fix


def test_the_fix_alone_says_which_key_to_add() -> None:
    (problem,) = read([{"prompt": "p"}])
    assert problem.fix == "add 'completion'"


def test_an_equal_row_in_another_file_is_named_with_that_file() -> None:
    raw = [("a.jsonl", 4, dict(ROW)), ("b.jsonl", 9, dict(ROW))]
    _, problem = Reader(track=track("structured")).rows(raw)
    assert isinstance(problem, RowError)
    assert (problem.kind, problem.file, problem.line) == ("duplicate_content", "b.jsonl", 9)
    assert "line 4 of a.jsonl" in problem.reason


KEYS = st.sampled_from(
    ["prompt", "completion", "messages", "conversations", "role", "content", "from", "value", "tool_calls", "function",
     "function_call", "name", "arguments", "tools", "functions", "query", "parameters", "type", "question", "answer",
     "instruction", "input", "output", "text", "label", "category", "id", "tags", "group", "split", "domain"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "find", "", " ", "{}", "[]", "#### 3", "[{}]", "\ud800",
     '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<tool_call>3</tool_call>", "<tools>"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


OPENAI = st.fixed_dictionaries(
    {"role": WORDS, "content": WORDS | VALUES},
    optional={"tool_calls": VALUES | st.just([CALL]), "function_call": VALUES | st.just(CALL)},
)
SHAREGPT = st.fixed_dictionaries({"from": WORDS, "value": WORDS | VALUES})
CHATS = st.one_of(
    st.fixed_dictionaries({"messages": st.lists(OPENAI, max_size=5)}, optional={"tools": VALUES, "id": VALUES}),
    st.fixed_dictionaries(
        {"conversations": st.lists(SHAREGPT, max_size=5)}, optional={"tools": VALUES, "tags": VALUES}
    ),
    st.fixed_dictionaries({"prompt": st.lists(OPENAI, max_size=3) | WORDS, "completion": st.lists(OPENAI) | WORDS}),
)
FLAT = st.dictionaries(KEYS, WORDS | VALUES, min_size=2, max_size=6)
ROWS = st.one_of(CHATS, FLAT, CHATS.map(json.dumps), VALUES.map(json.dumps), VALUES, st.text(max_size=30))
XLAM = st.fixed_dictionaries({"query": WORDS, "tools": VALUES | st.just([TOOL]), "answers": VALUES | st.just([CALL])})


def check(found: Any) -> None:
    if isinstance(found, ParsedRow):
        turns = found.prompt.messages
        assert turns[-1].role == "user" and found.target.strip()
        "".join([found.id, found.target, *(turn.content for turn in turns)]).encode("utf-8")
    else:
        assert found.kind in KINDS and found.reason and found.fix and "\n" not in str(found)


@given(
    row=ROWS,
    name=st.sampled_from([*TRACKS, "mood"]),
    format_name=st.sampled_from([AUTO, *(FORMATS.keys() - {"xlam", "template"})]),
)
def test_whatever_a_row_holds_it_is_an_example_or_a_problem(row: Any, name: Any, format_name: Any) -> None:
    for found in read([row], name, format_name):
        check(found)


@given(row=XLAM, name=st.sampled_from(["structured", "toolcall", "hermes"]))
def test_whatever_an_xlam_row_holds_it_is_an_example_or_a_problem_or_skipped(row: Any, name: Any) -> None:
    for found in read([row], name):
        check(found)


@given(seed=st.integers(0, 2**32), cut=st.integers(1, 19))
def test_ids_do_not_depend_on_order_or_on_how_rows_are_spread_over_files(seed: Any, cut: Any) -> None:
    rows = [{"prompt": f"p{number}", "completion": "c"} for number in range(20)]
    expected = {found.turns[-1].content: found.id for found in read(rows)}
    random.Random(seed).shuffle(rows)
    raw = [("a.jsonl", n, r) for n, r in enumerate(rows[:cut])] + [("b.jsonl", n, r) for n, r in enumerate(rows[cut:])]
    found = list(Reader(track=track("structured")).rows(raw))
    assert {row.turns[-1].content: row.id for row in found if isinstance(row, ParsedRow)} == expected


def problem(kind: Any, line: Any) -> Any:
    return BadRow(kind, f"reason {line}", f"fix {kind}").at("rows.jsonl", line)


def test_the_table_counts_each_kind_and_shows_where_it_is_first() -> None:
    lines = table([problem("null", 2), problem("nan", 3), problem("null", 9), problem("empty_text", 4)]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["2", "null", "rows.jsonl:2", "fix", "null"],
        ["1", "empty_text", "rows.jsonl:4", "fix", "empty_text"],
        ["1", "nan", "rows.jsonl:3", "fix", "nan"],
    ]
    assert len({line.index("rows.jsonl") for line in lines[1:]}) == 1


def test_no_problems_are_no_refusal() -> None:
    refuse([])
    with pytest.raises(DataError, match=r"^rows\.jsonl:2: reason 2; fix null$"):
        refuse([problem("null", 2)])
