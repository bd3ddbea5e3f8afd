"""The project's own tool-call rows: made again from the catalogue byte for byte, balanced, unique, and answerable."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.synthesize import check, rows_text, synthesize

FOLDER = Path(__file__).parents[2] / "data" / "tools"
KINDS = {"str": str, "int": int, "float": float, "bool": bool, "List[str]": list}


@pytest.fixture(scope="module")
def catalogue() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "catalogue.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "rows.json").read_text(encoding="utf-8"))


def call_of(row: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The tool's name, the arguments of the one answer, and the parameters that the row declares for it."""
    (answer,) = json.loads(row["answers"])
    (tool,) = [tool for tool in json.loads(row["tools"]) if tool["name"] == answer["name"]]
    return answer["name"], answer["arguments"], tool["parameters"]


def small() -> dict[str, Any]:
    """A catalogue of one tool, to be spoiled in one place."""
    return {
        "pools": {"rooms": ["den", "hall", "attic", "porch"]},
        "tools": [
            {
                "name": "switch_lights",
                "domain": "home",
                "description": "Turns lights on or off.",
                "parameters": {
                    "room": {"type": "str", "pool": "rooms", "description": "Room."},
                    "on": {"type": "bool", "optional": True, "default": True, "description": "On or off."},
                },
                "templates": ["Lights in the {room}.", {"text": "Darken the {room}.", "fixed": {"on": False}}],
            }
        ],
    }


def test_the_catalogue_is_large_enough_and_without_mistakes(catalogue: dict[str, Any]) -> None:
    check(catalogue)
    assert len(catalogue["tools"]) >= 64
    assert len({tool["domain"] for tool in catalogue["tools"]}) >= 8
    assert all(6 <= len(tool["templates"]) <= 10 for tool in catalogue["tools"])


def test_the_same_seed_gives_the_committed_bytes(catalogue: dict[str, Any]) -> None:
    assert rows_text(synthesize(catalogue, 3360, 42)).encode() == (FOLDER / "rows.json").read_bytes()


def test_another_seed_gives_other_rows(catalogue: dict[str, Any]) -> None:
    assert synthesize(catalogue, 40, 1) == synthesize(catalogue, 40, 1)
    assert synthesize(catalogue, 40, 1) != synthesize(catalogue, 40, 2)


def test_the_catalogue_is_left_as_it_was(catalogue: dict[str, Any]) -> None:
    before = copy.deepcopy(catalogue)
    synthesize(catalogue, 100, 3)
    assert catalogue == before


@pytest.mark.parametrize("count", [0, 1, 67, 68, 69, 3360])
def test_tools_are_balanced_to_within_one_row(catalogue: dict[str, Any], count: int) -> None:
    made = synthesize(catalogue, count, 7)
    uses = Counter(call_of(row)[0] for row in made)
    per_tool = [uses[tool["name"]] for tool in catalogue["tools"]]
    assert sum(per_tool) == count
    assert max(per_tool) - min(per_tool) <= 1
    assert [row["id"] for row in made] == list(range(count))


def test_no_query_occurs_twice(rows: list[dict[str, Any]]) -> None:
    assert len({" ".join(row["query"].casefold().split()) for row in rows}) == len(rows) == 3360


def test_answers_fit_their_declarations(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        _, arguments, parameters = call_of(row)
        assert 1 <= len(arguments) <= 4, row
        assert set(arguments) <= set(parameters), row
        for name, value in arguments.items():
            assert type(value) is KINDS[parameters[name]["type"].removesuffix(", optional")], row
        required = {name for name, parameter in parameters.items() if not parameter["type"].endswith(", optional")}
        assert required <= set(arguments), row


def test_values_stand_in_the_query_as_they_stand_in_the_answer(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for value in call_of(row)[1].values():
            if not isinstance(value, bool):  # a yes/no is implied by the wording
                for part in value if isinstance(value, list) else [value]:
                    whole = rf"(?<![\w.]){re.escape(str(part))}(?!\w|\.\d)"  # 5 is not found in 15, 51 or 5.5
                    assert re.search(whole, row["query"]), row


def test_arguments_are_the_ones_that_some_template_of_the_tool_names(
    catalogue: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    named: dict[str, set[frozenset[str]]] = {}
    for tool in catalogue["tools"]:
        for template in tool["templates"]:
            text, fixed = (template, {}) if isinstance(template, str) else (template["text"], template["fixed"])
            named.setdefault(tool["name"], set()).add(frozenset([*re.findall(r"\{(\w+)\}", text), *fixed]))
    for row in rows:
        name, arguments, _ = call_of(row)
        assert frozenset(arguments) in named[name], row


def test_distractors_come_from_the_same_domain_and_do_not_give_the_place_away(
    catalogue: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    domains = {tool["name"]: tool["domain"] for tool in catalogue["tools"]}
    places: Counter[int] = Counter()
    for row in rows:
        names = [tool["name"] for tool in json.loads(row["tools"])]
        assert 1 <= len(set(names)) == len(names) <= 3
        assert len({domains[name] for name in names}) == 1
        if len(names) == 3:
            places[names.index(call_of(row)[0])] += 1
    assert set(places) == {0, 1, 2}


def test_a_declaration_carries_type_description_and_default() -> None:
    (tool,) = json.loads(synthesize(small(), 1, 0)[0]["tools"])
    assert tool == {
        "name": "switch_lights",
        "description": "Turns lights on or off.",
        "parameters": {
            "room": {"type": "str", "description": "Room."},
            "on": {"type": "bool, optional", "description": "On or off.", "default": True},
        },
    }


def test_a_fixed_value_is_in_the_answer_only_where_the_wording_implies_it() -> None:
    calls = {row["query"]: call_of(row)[1] for row in synthesize(small(), 8, 0)}
    assert calls["Darken the den."] == {"room": "den", "on": False}
    assert calls["Lights in the den."] == {"room": "den"}


def test_text_outside_ascii_is_kept_readable(rows: list[dict[str, Any]]) -> None:
    text = (FOLDER / "rows.json").read_text(encoding="utf-8")
    assert "São Paulo" in text
    assert "\\u00" not in text
    assert len(text.splitlines()) == len(rows) + 2


def test_two_slots_of_one_query_never_share_a_value(rows: list[dict[str, Any]]) -> None:
    conversions = [call_of(row)[1] for row in rows if call_of(row)[0] == "convert_currency"]
    assert conversions
    assert all(arguments["from_currency"] != arguments["to_currency"] for arguments in conversions)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("templates", ["Lit {hall}."], ["switch_lights", "Lit {hall}.", "'hall' is not a parameter"]),
        ("templates", ["{room} {on}"], ["switch_lights", "{room} {on}", "slot 'on' has no pool"]),
        ("templates", [{"text": "Dark!", "fixed": {"on": False}}], ["switch_lights", "Dark!", "'room' is missing"]),
        ("templates", [{"text": "Dim {room}", "fixed": {"on": "no"}}], ["switch_lights", "Dim {room}", "not bool"]),
        ("templates", ["{room} and {room}"], ["switch_lights", "{room} and {room}", "none twice"]),
        ("templates", ["Lights {room} {"], ["switch_lights", "Lights {room} {", "stray brace"]),
        ("name", "switchLights", ["switchLights", "snake_case"]),
    ],
)
def test_a_mistake_in_a_template_names_tool_and_template(key: str, value: Any, told: list[str]) -> None:
    catalogue = small()
    catalogue["tools"][0][key] = value
    with pytest.raises(ValueError) as caught:
        synthesize(catalogue, 1, 0)
    assert all(words in str(caught.value) for words in told)


@pytest.mark.parametrize(
    ("name", "parameter", "told"),
    [
        ("room", {"type": "text", "pool": "rooms"}, "unknown type 'text'"),
        ("room", {"type": "str", "pool": "chambers"}, "unknown pool 'chambers'"),
        ("room", {"type": "int", "pool": "rooms"}, "holds 'den', not int"),
        ("on", {"type": "bool", "default": True}, "a default needs"),
        ("on", {"type": "bool", "optional": True, "default": 1}, "a default needs"),
        ("query", {"type": "str", "pool": "rooms"}, "reserved"),
    ],
)
def test_a_mistake_in_a_parameter_names_tool_and_parameter(name: str, parameter: dict[str, Any], told: str) -> None:
    catalogue = small()
    catalogue["tools"][0]["parameters"][name] = {"description": "", **parameter}
    with pytest.raises(ValueError, match=re.escape(f"tool 'switch_lights', parameter {name!r}: ")) as caught:
        check(catalogue)
    assert told in str(caught.value)


def test_a_name_declared_twice_is_refused() -> None:
    catalogue = small()
    catalogue["tools"] *= 2
    with pytest.raises(ValueError, match=r"'switch_lights'.*declared once"):
        check(catalogue)


def test_asking_for_more_queries_than_there_are_says_so() -> None:
    assert len(synthesize(small(), 8, 0)) == 8  # 2 phrasings of 4 rooms
    with pytest.raises(ValueError, match=r"'switch_lights'.*no new query"):
        synthesize(small(), 9, 0)
