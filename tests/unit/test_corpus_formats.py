"""Every format of rows becomes the same kind of parsed row; detection goes by keys; the text comes through unchanged."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.config.shared import Format
from slm_ray.corpus.formats import AUTO, FORMATS, check, detect, parse
from slm_ray.corpus.read import examples
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, DataError
from slm_ray.scoring import score

DATA = Path(__file__).parents[3] / "shared" / "data"
CHAT, TOOLCALL, HERMES, GSM8K, CLASSIFY, STRUCTURED = (
    TRACKS[name] for name in ("chat", "toolcall", "hermes", "gsm8k", "classify", "structured")
)
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": "é"}'}}
SYSTEM = f"Call functions.\n<tools>\n{json.dumps([TOOL])}\n</tools>"
HERMES_ROW = {
    "conversations": [
        {"from": "system", "value": SYSTEM},
        {"from": "human", "value": "Add"},
        {"from": "gpt", "value": '<tool_call>\n{"arguments": {"b": 2, "a": "é"}, "name": "add"}\n</tool_call>'},
    ]
}
XLAM_ROW = {
    "query": "Add",
    "tools": [{"name": "add", "description": "Adds.", "parameters": {"a": {"type": "str"}, "b": {"type": "int"}}}],
    "answers": [{"name": "add", "arguments": {"b": 2, "a": "é"}}],
}


def said(row: Any, track: Any = CHAT, name: Any = AUTO) -> Any:
    """Roles and texts of the turns, and the answer."""
    made = parse(row, track, name)
    return [(turn.role, turn.content) for turn in made.turns], made.target


def kind(row: Any, track: Any = CHAT, name: Any = AUTO) -> Any:
    with pytest.raises(BadRow) as caught:
        parse(row, track, name)
    return caught.value.kind


def test_the_expected_answer_may_be_called_target() -> None:
    assert said({"prompt": "p", "target": "t"}, CHAT) == said({"prompt": "p", "completion": "t"}, CHAT)
    turns = [{"role": "assistant", "content": "t"}]
    assert said({"prompt": "p", "target": turns}, CHAT)[1] == "t"
    with pytest.raises(BadRow, match="'target' is null"):
        parse({"prompt": "p", "target": None}, CHAT)


def test_the_knob_knows_every_format() -> None:
    assert set(get_args(Format)) == {AUTO, *FORMATS}
    for name in FORMATS.keys() - {"template"}:
        check(name, CHAT)
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        check("alpacca", CHAT)
    with pytest.raises(ConfigError, match="track chat has no template and target"):
        check("template", CHAT)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"conversations": []}, "sharegpt"),
        (HERMES_ROW, "hermes"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        (XLAM_ROW, "xlam"),
        ({"question": "a", "answer": "#### 1"}, "gsm8k"),
        ({"text": "a", "category": "b"}, "labelled"),
        ({"text": "a", "label": "b"}, "labelled"),
    ],
)
def test_a_format_is_told_by_its_keys(row: Any, name: Any) -> None:
    assert detect(row, CHAT) == name


def test_alpaca_joins_instruction_and_input() -> None:
    assert said({"instruction": "Do", "input": "this", "output": "done"}) == ([("user", "Do\n\nthis")], "done")
    assert said({"instruction": "Do", "output": "done"}) == ([("user", "Do")], "done")
    assert kind({"instruction": "Do", "input": 3, "output": "x"}) == "wrong_type"
    assert kind({"instruction": "Do", "input": "", "output": ""}) == "empty_text"


def test_gsm8k_wants_a_final_number_where_numbers_are_scored() -> None:
    assert said({"question": "q", "answer": "1+1\n#### 2"}, GSM8K) == ([("user", "q")], "1+1\n#### 2")
    assert kind({"question": "q", "answer": "two"}, GSM8K) == "no_final_number"
    assert said({"question": "q", "answer": "two"}, CHAT)[1] == "two"


def test_a_label_is_answer_and_tag_and_belongs_to_the_labels() -> None:
    made = parse({"text": "t", "category": "a b", "tags": {"x": "y"}}, CLASSIFY)
    assert (made.target, dict(made.tags)) == ("a b", {"label": "a b", "x": "y"})
    closed = dataclasses.replace(CLASSIFY, labels=("ale", "stout"))
    assert kind({"text": "t", "label": "alle"}, closed) == "unknown_label"
    assert kind({"text": "t", "label": 3}, closed) == "wrong_type"


def test_a_template_takes_the_rows_columns_and_leaves_other_braces() -> None:
    own = dataclasses.replace(CHAT, template='Rate {text} as {"score": n}, {n} times', target="{score}")
    assert said({"text": "é", "n": 3, "score": 0.5}, own) == ([("user", 'Rate é as {"score": n}, 3 times')], "0.5")
    assert said({"prompt": "p", "completion": "c"}, own) == ([("user", "p")], "c")
    assert kind({"text": "a", "score": 1}, own) == "missing_key"
    assert kind({"text": "a", "n": None, "score": 1}, own) == "null"
    beers = dataclasses.replace(CLASSIFY, template="{review}", target="{style}", labels=("ale", "stout"))
    assert dict(parse({"review": "dark", "style": "stout"}, beers).tags) == {"label": "stout"}
    assert kind({"review": "dark", "style": "wine"}, beers) == "unknown_label"


def test_openai_tools_go_into_the_system_turn_and_calls_become_the_tracks_text() -> None:
    row = {
        "tools": [TOOL],
        "messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    }
    turns, answer = said(row, TOOLCALL)
    assert turns[0] == ("system", f"{TOOLCALL.system}\n<tools>\n{json.dumps([TOOL])}\n</tools>")
    assert turns[1:] == [("user", "Add")]
    assert answer == '<tool_call name="add">{"a":"é","b":2}</tool_call>'
    assert said(row, HERMES)[1] == '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": "é"}}\n</tool_call>'
    assert json.loads(said(row, STRUCTURED)[1]) == {"query": "Add", "tool_name": "add", "arguments": {"a": "é", "b": 2}}
    assert dict(parse(row, TOOLCALL).tags) == {"tool": "add"}


def test_tool_results_are_shown_and_several_at_once_are_one_turn() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Add twice"},
            {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "4"},
            {"role": "tool", "tool_call_id": "2", "content": "5"},
            {"role": "assistant", "content": "4 and 5"},
        ]
    }
    turns, answer = said(row, TOOLCALL)
    assert [role for role, _ in turns] == ["user", "assistant", "user"]
    assert turns[1][1].count("<tool_call name=") == 2
    assert turns[2][1] == "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>"
    assert answer == "4 and 5"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"function": {"arguments": "{}"}}, "bad_call"),
        ({"function": {"name": " ", "arguments": "{}"}}, "bad_call"),
        ({"function": {"name": "f", "arguments": "{"}}, "bad_call"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "bad_call"),
        ({"function": {"name": "f", "arguments": '{"a": NaN}'}}, "bad_call"),
        ("f", "bad_call"),
    ],
)
def test_a_broken_tool_call_is_refused(call: Any, expected: Any) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert kind({"messages": turns}, TOOLCALL) == expected


def test_what_else_is_wrong_with_chats_and_calls() -> None:
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    both = {"role": "assistant", "content": "text", "tool_calls": [CALL]}
    assert kind({"messages": [user, both]}, TOOLCALL) == "bad_call"
    assert kind({"messages": [user, {"role": "assistant", "tool_calls": [CALL, CALL]}]}, TOOLCALL) == "many_calls"
    assert kind({"messages": [answer, user, answer]}) == "assistant_first"
    assert kind({"messages": [{"role": "tool", "content": "4"}, answer]}) == "turn_order"
    assert kind({"messages": [user, answer], "tools": "nonsense"}) == "bad_tools"
    assert kind({"text": "a"}, name="messages") == "missing_key"


def test_hermes_is_kept_or_becomes_the_tracks_own_call() -> None:
    assert said(HERMES_ROW, HERMES) == (
        [("system", SYSTEM), ("user", "Add")],
        HERMES_ROW["conversations"][2]["value"],
    )
    assert said(HERMES_ROW, TOOLCALL)[1] == '<tool_call name="add">{"a":"é","b":2}</tool_call>'
    apart = {"tools": json.dumps([TOOL]), "conversations": HERMES_ROW["conversations"][1:]}
    assert said(apart, HERMES)[0][0] == ("system", f"{HERMES.system}\n<tools>\n{json.dumps([TOOL])}\n</tools>")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<tool_call>{'name': 'add'}</tool_call>", "bad_call"),
        ("It is 4.", "bad_call"),
        ('Sure: <tool_call>{"name": "f", "arguments": {}}</tool_call>', "bad_call"),
        ('<tool_call>{"name": "f"}</tool_call>' * 2, "many_calls"),
    ],
)
def test_an_answer_that_is_not_one_hermes_call_is_refused(answer: Any, expected: Any) -> None:
    turns = [*HERMES_ROW["conversations"][:2], {"from": "gpt", "value": answer}]
    assert kind({"conversations": turns}, HERMES, "hermes") == expected


@pytest.mark.parametrize("row", [HERMES_ROW, XLAM_ROW], ids=["hermes", "xlam"])
@pytest.mark.parametrize("name", ["structured", "toolcall", "hermes"])
def test_every_call_format_gives_every_call_track_answers_that_score_1(row: Any, name: Any) -> None:
    made = parse(row, TRACKS[name])
    assert score(TRACKS[name], "1", made.target, made.target).value(TRACKS[name].primary) == 1.0


def test_the_prefix_stands_in_front_of_every_users_turn_once() -> None:
    own = dataclasses.replace(STRUCTURED, prefix="Rules: raw JSON only.\n")
    rows = [{"prompt": "a", "completion": "{}"}, {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "{}"}, {"role": "user", "content": "b"},
        {"role": "assistant", "content": "{}"}]}]  # fmt: skip
    first, second = examples([json.dumps(row) for row in rows], name="x", track=own)
    assert first.prompt == prompt_of(own, "a")
    assert [turn.content for turn in second.prompt.messages[1:]] == [
        "Rules: raw JSON only.\n\na", "{}", "Rules: raw JSON only.\n\nb"
    ]  # fmt: skip
    (again,) = examples([json.dumps({"prompt": first.prompt.as_dicts(), "completion": "{}"})], name="x", track=own)
    assert again == first


def test_labels_are_listed_up_to_a_hundred() -> None:
    assert (
        prompt_of(dataclasses.replace(CLASSIFY, labels=("a", "b")), "x").messages[0].content.endswith("\nLabels: a, b")
    )
    many = dataclasses.replace(CLASSIFY, labels=tuple(f"l{n}" for n in range(101)))
    assert prompt_of(many, "x").messages[0].content == CLASSIFY.system


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(question=TEXT, answer=TEXT, escape=st.booleans())
def test_unicode_comes_through_unchanged_in_every_shape(question: Any, answer: Any, escape: Any) -> None:
    rows = [
        {"prompt": question, "completion": answer},
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"instruction": question, "input": "", "output": answer},
    ]
    for row in rows:
        (found,) = examples([json.dumps(row, ensure_ascii=escape)], name="x", track=CHAT)
        assert (found.prompt.messages[-1].content, found.target) == (question, answer)
        (again,) = examples([json.dumps(parse(row, CHAT).as_row(), ensure_ascii=escape)], name="x", track=CHAT)
        assert again == found


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8, unique=True), st.randoms())
def test_ids_do_not_depend_on_order_or_on_the_file(pairs: Any, random: Any) -> None:
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs]
    ids = {line: examples([line], name="one", track=CHAT)[0].id for line in lines}
    random.shuffle(lines)
    assert [row.id for row in examples(lines, name="all", track=CHAT)] == [ids[line] for line in lines]


def test_xlam_rows_that_would_be_skipped_are_never_dropped_silently() -> None:
    gone = {**XLAM_ROW, "answers": [{"name": "gone", "arguments": {}}]}
    assert parse(gone, TOOLCALL) is None
    with pytest.raises(DataError, match="x: 1 rows answer with a tool that is not in their own tool list"):
        examples([json.dumps(XLAM_ROW), json.dumps(gone)], name="x", track=TOOLCALL)


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason="GSM8K (shared/data/gsm8k) is not here")
@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_all_of_gsm8k_is_read(name: Any, count: Any) -> None:
    lines = (DATA / "gsm8k" / f"{name}.jsonl").read_text("utf-8").split("\n")
    assert len(examples(lines, name=name, track=GSM8K)) == count


def test_every_format_has_its_label_and_its_tool_as_a_tag() -> None:
    closed = dataclasses.replace(CLASSIFY, labels=("ale", "stout"))
    asked = {"role": "user", "content": "Which?"}
    for row in (
        {"prompt": "Which?", "completion": "ale"},
        {"messages": [asked, {"role": "assistant", "content": "ale"}]},
        {"instruction": "Which?", "output": "ale"},
    ):
        assert dict(parse(row, closed).tags) == {"label": "ale"}
    assert dict(parse({"prompt": "p", "completion": "ale", "tags": {"label": "own"}}, closed).tags) == {"label": "own"}
    assert kind({"prompt": "p", "completion": "alle"}, closed) == "unknown_label"
    assert dict(parse({"prompt": "p", "completion": "c"}, CHAT).tags) == {}
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    hermes = {"conversations": [{"from": "system", "value": '<tools>[{"name": "add"}]</tools>'},
                                {"from": "human", "value": "Add"}, {"from": "gpt", "value": call}]}  # fmt: skip
    for track in (HERMES, TOOLCALL, STRUCTURED):
        assert dict(parse(hermes, track).tags) == {"tool": "add"}


def test_ids_groups_and_splits_are_what_they_should_be() -> None:
    row = {"prompt": "p", "completion": "c"}
    assert (parse(row | {"group": 7}, CHAT).group, parse(row | {"group": "a", "split": "test"}, CHAT).split) == (
        "7",
        "test",
    )
    for key in ("id", "group"):
        assert (
            kind(row | {key: 2**63}, CHAT) == kind(row | {key: [1]}, CHAT) == kind(row | {key: True}, CHAT) == "bad_id"
        )
        assert kind(row | {key: " "}, CHAT) == "empty_text"
    assert kind(row | {"split": ["train"]}, CHAT) == kind(row | {"split": 3}, CHAT) == "wrong_type"
