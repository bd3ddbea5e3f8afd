"""Reading rows: every accepted shape, and every bad row named by line with a reason and a fix."""

import json
from typing import Any

import pytest

from slm_ray.corpus.formats import parse
from slm_ray.corpus.read import examples
from slm_ray.corpus.tracks import track
from slm_ray.errors import DataError

STRUCTURED = track("structured")
GOOD = json.dumps({"prompt": "good?", "completion": "{}"})


def read(*lines: Any) -> Any:
    return examples(lines, name="rows.jsonl", track=STRUCTURED)


def only(row: Any) -> Any:
    (example,) = read(json.dumps(row))
    return example


def refusal(line: Any) -> Any:
    with pytest.raises(DataError) as caught:
        read(GOOD, line)
    return str(caught.value)


USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [USER], "completion": "ho"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    ],
)
def test_every_shape_gives_the_same_example(row: Any) -> None:
    example = only(row)
    assert [(turn.role, turn.content) for turn in example.prompt.messages] == [
        ("system", STRUCTURED.system),
        ("user", "hi"),
    ]
    assert example.target == "ho"
    assert example == only({"prompt": "hi", "completion": "ho"})


def test_a_row_keeps_its_own_system_prompt_and_earlier_turns() -> None:
    example = only({"messages": [{"role": "system", "content": "mine"}, USER, ASSISTANT, USER, ASSISTANT]})
    assert [turn.role for turn in example.prompt.messages] == ["system", "user", "assistant", "user"]
    assert example.prompt.messages[0].content == "mine"


def test_ids_are_the_rows_own_or_stable_content_hashes() -> None:
    assert only({"id": 7, "prompt": "a", "completion": "b"}).id == "7"
    assert only({"id": "x", "prompt": "a", "completion": "b"}).id == "x"
    first, second = read('{"prompt":"a","completion":"b"}', '{"prompt":"a","completion":"c"}')
    assert len(first.id) == 16 and first.id != second.id
    assert first.id == only({"completion": "b", "prompt": "a"}).id


def test_tags_are_copied() -> None:
    assert only({"prompt": "a", "completion": "b", "tags": {"tool": "t"}}).tags == {"tool": "t"}
    assert only({"prompt": "a", "completion": "b"}).tags == {}


def test_a_written_row_reads_back_unchanged() -> None:
    row = {"id": 7, "prompt": "a\u2028é", "completion": "b", "tags": {"tool": "t"}, "group": "g"}
    written = parse(row, STRUCTURED).as_row()
    assert written == row
    assert only(written) == only(row)


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated() -> None:
    assert len(read("\ufeff" + GOOD + "\r\n", "\r\n", "  ", '{"prompt":"2","completion":"{}"}\r\n')) == 2


ROW = {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'prompt': 1}", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("9" * 5000, "this is not JSON"),
        ('["prompt"]', "a row is a JSON object, not a list"),
        ("null", "not null"),
        ('{"completion": "c"}', "there is no 'prompt'"),
        ("{}", "there is no 'prompt'"),
        ('{"prompt": "p"}', "there is no 'completion'"),
        ('{"prompt": 3, "completion": "c"}', "'prompt' is a number"),
        ('{"prompt": {"a": 1}, "completion": "c"}', "'prompt' is an object"),
        ('{"prompt": true, "completion": "c"}', "'prompt' is true or false"),
        ('{"prompt": " \\n", "completion": "c"}', "'prompt' is empty"),
        ('{"prompt": [], "completion": "c"}', "'prompt' is an empty list"),
        ('{"prompt": "p", "completion": ""}', "'completion' is empty"),
        ('{"prompt": "p", "completion": null}', "'completion' is null"),
        (json.dumps({**ROW, "messages": []}), "more than one of"),
        (json.dumps({"prompt": "p", "completion": [USER]}), "not a single assistant turn"),
        (json.dumps({"prompt": [USER, ASSISTANT], "completion": "c"}), "the prompt ends with the assistant's turn"),
        (json.dumps({"messages": "hi"}), "'messages' is a text"),
        (json.dumps({"messages": ["hi"]}), "'messages[0]' is no turn"),
        (json.dumps({"messages": [USER, {"role": "assistant", "content": None}]}), "'messages[1].content' is null"),
        (json.dumps({"messages": [USER, {"role": "assistant", "content": []}]}), "'messages[1].content' is a list"),
        (json.dumps({"messages": [{"role": "critic", "content": "x"}, ASSISTANT]}), "unknown role 'critic'"),
        (json.dumps({"messages": [{"role": ["user"], "content": "x"}, ASSISTANT]}), "unknown role ['user']"),
        (json.dumps({"messages": [USER]}), "has no assistant turn"),
        (json.dumps({"messages": [ASSISTANT]}), "nothing before the answer"),
        (json.dumps({"messages": [USER, ASSISTANT, USER]}), "ends with the user's turn"),
        (json.dumps({"messages": [ASSISTANT, ASSISTANT]}), "the prompt ends with the assistant's turn"),
        (json.dumps({"messages": [USER, {"role": "system", "content": "s"}, USER, ASSISTANT]}), "a system turn stands"),
        (json.dumps({"conversations": [{"from": "user", "value": "x"}]}), "unknown role 'user'"),
        (json.dumps({**ROW, "id": 1.5}), "'id' is a number"),
        (json.dumps({**ROW, "id": True}), "'id' is true or false"),
        (json.dumps({**ROW, "id": " "}), "'id' is empty"),
        (json.dumps({**ROW, "tags": ["a"]}), "'tags' is not an object of texts"),
        (json.dumps({**ROW, "tags": {"a": 1}}), "'tags' is not an object of texts"),
        ('{"prompt": "\\ud83d", "completion": "c"}', "half of a surrogate pair"),
        ('{"prompt": "p", "completion": "c", "id": "\\udc00"}', "half of a surrogate pair"),
        (GOOD, "is already used in line 1"),
    ],
)
def test_a_bad_row_is_named_by_line_with_reason_and_fix(line: Any, reason: Any) -> None:
    message = refusal(line)
    assert message.startswith("rows.jsonl:2: ")
    assert reason in message
    assert "; " in message and "\n" not in message


def test_duplicate_ids_are_refused_even_with_other_content() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the id '7' is already used in line 1; give each row its own"):
        read('{"id": 7, "prompt": "a", "completion": "b"}', '{"id": "7", "prompt": "c", "completion": "d"}')


def test_all_bad_rows_are_collected_and_the_first_five_listed() -> None:
    with pytest.raises(DataError) as caught:
        read(GOOD, *["nope"] * 7)
    message = str(caught.value)
    assert [f"rows.jsonl:{line}:" in message for line in range(1, 9)] == [False] + [True] * 5 + [False] * 2
    assert message.endswith("and 2 more bad rows")


@pytest.mark.parametrize("lines", [(), ("", " \n")])
def test_an_empty_file_is_refused(lines: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: there are no rows"):
        read(*lines)


def test_a_group_comes_back_as_a_text_and_an_example_is_written_with_it() -> None:
    example = only({"prompt": "hi", "completion": "ho", "group": 7})
    assert (example.group, only({"prompt": "hi", "completion": "ho"}).group) == ("7", None)
    written = parse({"prompt": "hi", "completion": "ho", "group": 7}, STRUCTURED).as_row()
    assert written["group"] == "7"
    assert only(written) == example
