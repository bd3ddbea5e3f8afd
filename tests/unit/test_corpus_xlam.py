"""xLAM rows reproduce the earlier system's files byte for byte, and bad rows are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from slm_ray.corpus import formats
from slm_ray.corpus.jsonl import rows_in
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.read import Reader
from slm_ray.corpus.row_errors import RowError, refuse
from slm_ray.corpus.split import keep
from slm_ray.corpus.tracks import track as track_named
from slm_ray.errors import ConfigError, DataError

EARLIER = Path(__file__).parents[3] / "shared/data/slm_swap"


def row(**changes: Any) -> Any:
    tools = [
        {"name": "add", "description": "Adds.", "parameters": {"b": {"type": "int"}, "a": {"type": "int, optional"}}}
    ]
    answers = [{"name": "add", "arguments": {"b": 2, "a": "é"}}, {"name": "other", "arguments": {}}]
    return {"query": "Add  2", "tools": tools, "answers": answers} | changes


def read(text: Any, *, name: Any = "x.json", track: Any = "structured") -> tuple[list[ParsedRow], int]:
    """The good rows and how many were skipped; DataError for bad ones."""
    reader = Reader(track=track_named(track), format_name="xlam")
    rows = list(reader.rows((name, line, value) for line, value in rows_in(text, name)))
    refuse([found for found in rows if isinstance(found, RowError)])
    return [row for row in rows if isinstance(row, ParsedRow)], reader.skipped


def one(track: Any = "structured", **changes: Any) -> Any:
    ((parsed,), _) = read(json.dumps([row(**changes)]), track=track)
    return parsed.as_row()


@pytest.mark.skipif(not EARLIER.is_dir(), reason="the earlier system's data (shared/data/slm_swap) is not here")
@pytest.mark.parametrize("track", ["structured", "toolcall"])
def test_the_earlier_systems_files_are_reproduced(track: Any) -> None:
    source = EARLIER / "xlam_rows.json"
    sides = keep(read(source.read_text("utf-8"), name=source.name, track=track)[0], name=source.name)
    assert [len(rows) for rows in sides.values()] == [300, 60, 50]
    for side, file in zip(sides, ("train", "val", "test"), strict=True):
        written = [parsed.as_row() for parsed in sides[side]]
        lines = [json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) for row in written]
        assert ("\n".join(lines) + "\n").encode() == (EARLIER / track / f"{file}.jsonl").read_bytes()


def test_the_two_templates() -> None:
    assert one() == {
        "prompt": (
            "Return a JSON object with keys query, tool_name, arguments describing the API call.\nQuery: Add  2\n"
            "Chosen tool: add\nArguments should mirror the assistant's recommendation."
        ),
        "completion": '{"arguments": {"a": "\\u00e9", "b": 2}, "query": "Add  2", "tool_name": "add"}',
        "tags": {"tool": "add"},
        "group": "add 2",
    }
    ((parsed,), _) = read(json.dumps([row(id=7, split="val", domain="maths")]), track="toolcall")
    toolcall = parsed.as_row()
    assert toolcall["prompt"].splitlines()[1:] == [
        "Tool signature: add(b:int, a:int, optional)",
        "Tool description: Adds.",
        "Request: Add  2",
    ]
    assert toolcall["completion"] == '<tool_call name="add">{"a":"\\u00e9","b":2}</tool_call>'
    assert toolcall["tags"] == {"tool": "add", "domain": "maths"}
    assert (toolcall["id"], parsed.id, parsed.split, parsed.group) == (7, "7", "val", one()["group"])


def test_array_jsonl_and_texts_inside_texts_are_the_same() -> None:
    rows = [row(), row(query="Other", tools=json.dumps(row()["tools"]), answers=json.dumps(row()["answers"]))]
    array, _ = read("\ufeff" + json.dumps(rows, indent=1), track="toolcall")
    lines, _ = read("\r\n".join(map(json.dumps, rows)) + "\n", track="toolcall")
    assert [row.as_row() for row in array] == [row.as_row() for row in lines] and len(array) == 2
    assert array[0].target == array[1].target


def test_a_row_whose_tool_is_not_listed_is_skipped() -> None:
    rows = [row(), row(answers=[{"name": "gone", "arguments": {}}])]
    found, skipped = read(json.dumps(rows))
    assert (len(found), skipped) == (1, 1)


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
def test_a_bad_row_is_named_by_its_line(changes: Any, reason: Any) -> None:
    text = "[\n" + json.dumps(row()) + ",\n\n" + json.dumps(row(**changes)) + "\n]"
    with pytest.raises(DataError) as caught:
        read(text, track="toolcall")
    assert str(caught.value).startswith("x.json:4: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("[\n{]", "x.json:2:", "not JSON"),
        ('[\n{"query": "a"}', "x.json:2:", "breaks off here"),
        ("[]\n[]", "x.json:1:", "text follows the end"),
        ('{"query": "a"}\nnope', "x.json:2:", "not JSON"),
        ('[\n"row"]', "x.json:2:", "not a text"),
        ("[" * 100_000, "x.json:1:", "not JSON"),
    ],
)
def test_a_broken_file_is_named_by_line(text: Any, where: Any, reason: Any) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert where in str(caught.value) and reason in str(caught.value)


def test_an_unknown_track_lists_the_templates() -> None:
    with pytest.raises(ConfigError, match="xLAM rows have no template for the track 'chat'"):
        formats.FORMATS["xlam"](row(), track_named("chat"))
