"""xLAM rows reproduce the earlier system's files byte for byte, and bad rows are named."""

import json
from pathlib import Path

import pytest

from slm_ray.corpus.split import keep
from slm_ray.corpus.xlam import rows_to_pairs
from slm_ray.errors import ConfigError, DataError

EARLIER = Path(__file__).parents[3] / "shared/data/slm_swap"


def row(**changes):
    tools = [
        {"name": "add", "description": "Adds.", "parameters": {"b": {"type": "int"}, "a": {"type": "int, optional"}}}
    ]
    answers = [{"name": "add", "arguments": {"b": 2, "a": "é"}}, {"name": "other", "arguments": {}}]
    return {"query": "Add  2", "tools": tools, "answers": answers} | changes


def one(track="structured", **changes):
    (pair,) = rows_to_pairs(json.dumps([row(**changes)]), name="x.json", track=track)
    return pair


@pytest.mark.skipif(not EARLIER.is_dir(), reason="the earlier system's data (shared/data/slm_swap) is not here")
@pytest.mark.parametrize("track", ["structured", "toolcall"])
def test_the_earlier_systems_files_are_reproduced(track):
    source = EARLIER / "xlam_rows.json"
    sides = keep(rows_to_pairs(source.read_text("utf-8"), name=source.name, track=track), name=source.name)
    assert [len(rows) for rows in sides.values()] == [300, 60, 50]
    for side, file in zip(sides, ("train", "val", "test"), strict=True):
        lines = [json.dumps({"prompt": pair["prompt"], "completion": pair["completion"]}) for pair in sides[side]]
        assert ("\n".join(lines) + "\n").encode() == (EARLIER / track / f"{file}.jsonl").read_bytes()


def test_the_two_templates():
    assert one() == {
        "prompt": (
            "Return a JSON object with keys query, tool_name, arguments describing the API call.\nQuery: Add  2\n"
            "Chosen tool: add\nArguments should mirror the assistant's recommendation."
        ),
        "completion": '{"arguments": {"a": "\\u00e9", "b": 2}, "query": "Add  2", "tool_name": "add"}',
        "tags": {"tool": "add"},
        "group": "add 2",
    }
    toolcall = one("toolcall", id=7, split="val", domain="maths")
    assert toolcall["prompt"].splitlines()[1:] == [
        "Tool signature: add(b:int, a:int, optional)",
        "Tool description: Adds.",
        "Request: Add  2",
    ]
    assert toolcall["completion"] == '<tool_call name="add">{"a":"\\u00e9","b":2}</tool_call>'
    assert toolcall["tags"] == {"tool": "add", "domain": "maths"}
    assert (toolcall["id"], toolcall["split"], toolcall["group"]) == (7, "val", one()["group"])


def test_array_jsonl_and_texts_inside_texts_are_the_same():
    rows = [row(), row(query="Other", tools=json.dumps(row()["tools"]), answers=json.dumps(row()["answers"]))]
    array = rows_to_pairs("\ufeff" + json.dumps(rows, indent=1), name="x", track="toolcall")
    lines = rows_to_pairs("\r\n".join(map(json.dumps, rows)) + "\n", name="x", track="toolcall")
    assert array == lines and len(array) == 2
    assert array[0]["completion"] == array[1]["completion"]


def test_a_row_whose_tool_is_not_listed_is_skipped():
    rows = [row(), row(answers=[{"name": "gone", "arguments": {}}])]
    assert len(rows_to_pairs(json.dumps(rows), name="x", track="structured")) == 1
    with pytest.raises(DataError, match="none of its 1 rows answers with a tool of its own"):
        rows_to_pairs(json.dumps(rows[1:]), name="x", track="structured")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"query": None}, "'query' is null"),
        ({"query": 3}, "'query' is a number"),
        ({"tools": "[{"}, "'tools' is a text that is not JSON"),
        ({"tools": [3]}, "'tools' holds something that is no object"),
        ({"tools": {"name": "add"}}, "'tools' is not a list"),
        ({"answers": []}, "'answers' is empty"),
        ({"answers": [{"arguments": {}}]}, "the first answer is no call"),
        ({"answers": [{"name": "add", "arguments": "{}"}]}, "'arguments' is not an object"),
        ({"tools": [{"name": "add", "parameters": {"type": "object", "properties": {}}}]}, "not in xLAM's form"),
    ],
)
def test_a_bad_row_is_named_by_its_line(changes, reason):
    text = "[\n" + json.dumps(row()) + ",\n\n" + json.dumps(row(**changes)) + "\n]"
    with pytest.raises(DataError) as caught:
        rows_to_pairs(text, name="x.json", track="toolcall")
    assert str(caught.value).startswith("x.json:4: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("", "x.json:", "there are no rows"),
        ("[]", "x.json:", "there are no rows"),
        ("[\n{]", "x.json:2:", "not JSON"),
        ('[\n{"query": "a"}', "x.json:2:", "breaks off here"),
        ("[]\n[]", "x.json:1:", "text follows the end"),
        ('{"query": "a"}\nnope', "x.json:2:", "not JSON"),
        ('[\n"row"]', "x.json:2:", "not a text"),
        ("[" * 100_000, "x.json:1:", "not JSON"),
    ],
)
def test_a_broken_file_is_named_by_line(text, where, reason):
    with pytest.raises(DataError) as caught:
        rows_to_pairs(text, name="x.json", track="structured")
    assert where in str(caught.value) and reason in str(caught.value)


def test_an_unknown_track_lists_the_templates():
    with pytest.raises(ConfigError, match="did you mean 'toolcall'"):
        rows_to_pairs("[]", name="x", track="tool_call")
