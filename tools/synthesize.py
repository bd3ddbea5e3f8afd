"""Makes function-calling rows in xLAM's format out of a catalogue of tools, phrasings and values.

Promises: the same catalogue, count and seed give the same rows; tools are balanced to within one row; no query occurs
twice; an argument is in the answer if and only if the query's template names it (a `{slot}`, or a `fixed` value that
the wording implies); slot values stand in the query as they stand in the answer. A mistake in the catalogue raises
ValueError with the tool and the template. Does not read or write files, paraphrase, or split the rows.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection
from functools import partial
from typing import Any

from slm_ray.corpus.read import examples
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.types import Example

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "List[str]": list}
RESERVED = frozenset({"query", "arguments", "tool_name"})  # the field names of a structured completion
MAX_DISTRACTORS = 2
MAX_DRAWS = 500
_json = partial(json.dumps, ensure_ascii=False)
SLOT = re.compile(r"\{(\w+)\}")
SNAKE_CASE = re.compile(r"[a-z][a-z0-9_]*")


def synthesize(catalogue: dict[str, Any], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows `{id, query, tools, answers}`, the last two as JSON text; ValueError when a tool runs out of queries."""
    check(catalogue)
    rng = random.Random(seed)
    tools, seen, rows = catalogue["tools"], set[str](), []
    templates = {tool["name"]: rng.sample(tool["templates"], len(tool["templates"])) for tool in tools}
    order = [tool for _ in range(-(-n // len(tools))) for tool in rng.sample(tools, len(tools))][:n]
    for number, tool in enumerate(order):
        turn = number // len(tools)  # each tool comes once per turn, and takes its templates in turns
        query, arguments = _unseen(tool, templates[tool["name"]], turn, catalogue["pools"], seen, rng)
        answers = _json([{"name": tool["name"], "arguments": arguments}])
        rows.append({"id": number, "query": query, "tools": _json(_shown(tool, tools, rng)), "answers": answers})
    return rows


def examples_of(catalogue: dict[str, Any], track: Track, n: int, seed: int) -> list[Example]:
    """`n` rows as the track shows them; the tag `tool` names each row's tool."""
    lines = (json.dumps(row) for row in synthesize(catalogue, n, seed))
    return list(examples(lines, name="the catalogue", track=track))


def domain_of(catalogue: dict[str, Any], named: Collection[str], *, setting: str) -> dict[str, str]:
    """The domain of every tool; ConfigError where one that the setting names is none."""
    domains = {tool["name"]: tool["domain"] for tool in catalogue["tools"]}
    if unknown := set(named) - set(domains.values()):
        raise ConfigError(f"{setting}: {choices(min(unknown), set(domains.values()))}")
    return domains


def rows_text(rows: list[dict[str, Any]]) -> str:
    """The rows as one JSON array, one row per line."""
    return "[\n" + ",\n".join(_json(row) for row in rows) + "\n]\n"


def check(catalogue: dict[str, Any]) -> None:
    """Raises ValueError, naming the tool and the template or parameter, for the first mistake in the catalogue."""
    names = [tool["name"] for tool in catalogue["tools"]]
    for tool in catalogue["tools"]:
        if not SNAKE_CASE.fullmatch(tool["name"]) or names.count(tool["name"]) > 1:
            raise ValueError(f"tool {tool['name']!r}: a name is snake_case and declared once; rename it")
        for name, parameter in tool["parameters"].items():
            _check_parameter(f"tool {tool['name']!r}, parameter {name!r}", name, parameter, catalogue["pools"])
        for template in tool["templates"]:
            _check_template(tool, template)


def _check_parameter(where: str, name: str, parameter: dict[str, Any], pools: dict[str, Any]) -> None:
    kind = parameter["type"]
    if name in RESERVED:
        raise ValueError(f"{where}: the name is reserved (a structured completion uses it); rename it")
    if kind not in TYPES:
        raise ValueError(f"{where}: unknown type {kind!r}; known: {', '.join(TYPES)}")
    if "default" in parameter and not (parameter.get("optional") and _fits(parameter["default"], kind)):
        raise ValueError(f"{where}: a default needs `optional: true` and the type {kind}")
    pool = parameter.get("pool")
    if pool is not None and pool not in pools:
        raise ValueError(f"{where}: unknown pool {pool!r}; add it under `pools`")
    item = "str" if kind == "List[str]" else kind
    for value in _values(pools.get(pool or "", [])):
        if not _fits(value, item):
            raise ValueError(f"{where}: pool {pool!r} holds {value!r}, not {item}; quote or fix it")


def _check_template(tool: dict[str, Any], template: Any) -> None:
    text, fixed = _parts(template)
    where = f"tool {tool['name']!r}, template {text!r}"
    named = [*SLOT.findall(text), *fixed]
    for name in named:
        if name not in tool["parameters"]:
            raise ValueError(f"{where}: {name!r} is not a parameter; declared: {', '.join(tool['parameters'])}")
        if name not in fixed and "pool" not in tool["parameters"][name]:
            raise ValueError(f"{where}: slot {name!r} has no pool; give the parameter one or fix its value")
    for name, value in fixed.items():
        if not _fits(value, tool["parameters"][name]["type"]):
            raise ValueError(f"{where}: fixed {name!r} is {value!r}, not {tool['parameters'][name]['type']}")
    if not named or len(set(named)) < len(named) or re.search(r"[{}]", SLOT.sub("", text)):
        raise ValueError(f"{where}: it must name at least one argument, none twice, and have no stray brace")
    for name, parameter in tool["parameters"].items():
        if not parameter.get("optional") and name not in named:
            raise ValueError(f"{where}: the required parameter {name!r} is missing")


def _fits(value: Any, kind: str) -> bool:
    return type(value) is TYPES[kind]  # exact, since a bool is an int to isinstance


def _parts(template: Any) -> tuple[str, dict[str, Any]]:
    return (template, {}) if isinstance(template, str) else (template["text"], template["fixed"])


def _values(pool: Any) -> list[Any]:
    if isinstance(pool, list):
        return pool
    low, step = pool["low"], pool.get("step", 1)
    return [round(low + step * index, 2) for index in range(int((pool["high"] - low) / step + 1e-6) + 1)]


def _unseen(
    tool: dict[str, Any], templates: list[Any], first: int, pools: dict[str, Any], seen: set[str], rng: random.Random
) -> tuple[str, dict[str, Any]]:
    for attempt in range(first, first + MAX_DRAWS):
        query, arguments = _fill(tool, templates[attempt % len(templates)], pools, rng)
        normalised = " ".join(query.casefold().split())
        if normalised not in seen:
            seen.add(normalised)
            return query, arguments
    raise ValueError(
        f"tool {tool['name']!r}, template {_parts(templates[0])[0]!r} and the others: no new query in "
        f"{MAX_DRAWS} draws; add templates or pool values, or ask for fewer rows"
    )


def _fill(tool: dict[str, Any], template: Any, pools: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, Any]]:
    text, fixed = _parts(template)
    chosen = dict(fixed)
    for slot in SLOT.findall(text):
        parameter = tool["parameters"][slot]
        # Two slots never share a value: nobody flies from LIS to LIS.
        free = [value for value in _values(pools[parameter["pool"]]) if value not in chosen.values()]
        chosen[slot] = rng.sample(free, rng.randint(2, 3)) if parameter["type"] == "List[str]" else rng.choice(free)
    query = SLOT.sub(lambda match: _spoken(chosen[match[1]]), text)
    return query, {name: chosen[name] for name in tool["parameters"] if name in chosen}


def _spoken(value: Any) -> str:
    return f"{', '.join(value[:-1])} and {value[-1]}" if isinstance(value, list) else str(value)


def _shown(tool: dict[str, Any], tools: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    others = [other for other in tools if other["domain"] == tool["domain"] and other is not tool]
    shown = [tool, *rng.sample(others, min(len(others), rng.randint(0, MAX_DISTRACTORS)))]
    return [_declaration(one) for one in rng.sample(shown, len(shown))]


def _declaration(tool: dict[str, Any]) -> dict[str, Any]:
    parameters = {}
    for name, parameter in tool["parameters"].items():
        kind = parameter["type"] + (", optional" if parameter.get("optional") else "")
        default = {"default": parameter["default"]} if "default" in parameter else {}
        parameters[name] = {"type": kind, "description": parameter["description"], **default}
    return {"name": tool["name"], "description": tool["description"], "parameters": parameters}
