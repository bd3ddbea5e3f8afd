"""Every format of task rows, each a function from a row to what it asks and answers, and how a row's format is told from its keys.

A format is chosen by name or, with `auto`, row by row: keys are what tells formats apart, so one file may mix them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from slm_ray.corpus import xlam
from slm_ray.corpus.call_logs import from_langfuse, from_openai_log, is_langfuse, is_openai_log
from slm_ray.corpus.chat import MESSAGES, checked, from_hermes, from_messages, from_sharegpt, is_hermes, turns_of
from slm_ray.corpus.fields import filled, kind_of, text_of
from slm_ray.corpus.parsed_row import Exchange, ParsedRow, asked, own_group, own_id, own_split, own_tags, parsed_row
from slm_ray.corpus.row_errors import BadRow
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices

Convert = Callable[[Mapping[str, Any], Track], Exchange | None]

_SHAPES = ("prompt", "messages", "conversations")
_COLUMN = re.compile(r"\{(\w+)\}")
_FINAL = re.compile(r"####\s*[-+]?\$?[-+]?\.?\d")


def from_prompt(row: Mapping[str, Any], track: Track) -> Exchange:
    """`prompt` and `completion` (or `target`), each a text or a list of messages."""
    given = row.get("prompt")
    turns = checked(turns_of(given, "prompt")) if isinstance(given, list) else asked(text_of(row, "prompt"))
    return Exchange(turns=turns, target=_target(row))


def from_template(row: Mapping[str, Any], track: Track) -> Exchange:
    """The row's own columns in the track's `template` and `target`."""
    turns, answer = asked(_fill(track.template or "", row)), _fill(track.target or "", row)
    return Exchange(turns=turns, target=answer)


def from_alpaca(row: Mapping[str, Any], track: Track) -> Exchange:
    """`instruction`, `input` (may be empty or left out) and `output`."""
    question = text_of(row, "instruction")
    if row.get("input") not in (None, ""):
        question = f"{question}\n\n{filled(row['input'], 'input')}"
    return Exchange(turns=asked(question), target=text_of(row, "output"))


def from_gsm8k(row: Mapping[str, Any], track: Track) -> Exchange:
    """`question` and `answer`; where a track scores numbers, the answer works towards `#### NUMBER`."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if "gsm8k" in track.scorers and not _FINAL.search(answer):
        raise BadRow(
            "no_final_number", "'answer' has no #### with a number", "end it with a line of #### and the number"
        )  # fmt: skip
    return Exchange(turns=asked(question), target=answer)


def from_labelled(row: Mapping[str, Any], track: Track) -> Exchange:
    """`text` and its `label` (or `category`), which is a tag too."""
    key = "category" if "category" in row and "label" not in row else "label"
    if isinstance(row.get(key), int):
        raise BadRow("wrong_type", f"{key!r} is {kind_of(row[key])}", "write the label's name")
    label = text_of(row, key)
    return Exchange(turns=asked(text_of(row, "text")), target=label, tags={"label": label})


FORMATS: dict[str, Convert] = {
    "prompt": from_prompt,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "hermes": from_hermes,
    "template": from_template,
    "alpaca": from_alpaca,
    "xlam": xlam.from_xlam,
    "gsm8k": from_gsm8k,
    "labelled": from_labelled,
    "openai_log": from_openai_log,
    "langfuse": from_langfuse,
}
_LOGS = ("openai_log", "langfuse")  # their other keys (tags, split, group) are not ours
_NEEDS = {"messages": "messages", "sharegpt": "conversations", "hermes": "conversations"}
AUTO = "auto"


def parse(
    row: Mapping[str, Any], track: Track, format_name: str = AUTO, *, file: str = "", line: int = 0
) -> ParsedRow | None:
    """The row, parsed; None for one that is left out by its format: an xLAM row whose tool is not in its own list, and what
    Langfuse saw that is no generation. BadRow for a row that is bad.

    Where a track classifies, the target of a row of any format is one of its labels, and the tag `label`.
    """
    name = format_name if format_name != AUTO else detect(row, track)
    key = _NEEDS.get(name)
    if key is not None and key not in row:
        text_of(row, key)
    exchange = FORMATS[name](row, track)
    if exchange is None:
        return None
    if name in _LOGS:
        row = {"id": row.get("id")}
    row_id, group, split, tags = own_id(row), own_group(row), own_split(row), own_tags(row)
    if exchange.tags:
        tags = {**exchange.tags, **tags}
    if "classify" in track.scorers:
        tags = _labelled(exchange.target, tags, track)
    if tags or group:
        exchange = dataclasses.replace(exchange, tags=tags, group=exchange.group or group)
    return parsed_row(track, exchange, own_id=row_id, split=split, file=file, line=line)


def check(format_name: str, track: Track) -> None:
    """ConfigError for a format that is not known, or that the track cannot take."""
    if format_name not in (AUTO, *FORMATS):
        raise ConfigError(f"unknown format {format_name!r}: {choices(format_name, (AUTO, *FORMATS))}")
    if format_name == "template" and not (track.template and track.target):
        raise ConfigError(f"track {track.name} has no template and target; add both to its file")


def detect(row: Mapping[str, Any], track: Track) -> str:
    """The name of the row's format, told from its keys; BadRow for two at once or none."""
    if is_openai_log(row):
        return "openai_log"
    shapes = [shape for shape in _SHAPES if shape in row]
    if len(shapes) > 1:
        raise BadRow("ambiguous", "it has more than one of 'prompt', 'messages' and 'conversations'", "keep one")
    if shapes:
        return {"prompt": "prompt", "messages": "messages"}.get(shapes[0]) or (
            "hermes" if is_hermes(row) else "sharegpt"
        )
    if track.template and track.target:
        return "template"
    keys = row.keys()
    if {"query", "tools", "answers"} <= keys:
        return "xlam"
    if {"question", "answer"} <= keys:
        return "gsm8k"
    if "instruction" in keys:
        return "alpaca"
    if "text" in keys and ("label" in keys or "category" in keys):
        return "labelled"
    return "langfuse" if is_langfuse(row) else "prompt"


def _target(row: Mapping[str, Any]) -> str:
    if "completion" in row and "target" in row:
        raise BadRow("ambiguous", "it has both 'completion' and 'target'", "keep the one that is the expected answer")
    key = "target" if "target" in row else "completion"
    if not isinstance(row.get(key), list):
        return text_of(row, key)
    turns = turns_of(row[key], key, MESSAGES)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow("turn_order", f"{key!r} is not a single assistant turn", "move the other turns into 'prompt'")
    return turns[0].content


def _labelled(label: str, tags: Mapping[str, str], track: Track) -> Mapping[str, str]:
    """`tags` with the tag `label`; BadRow for a label that the track does not have."""
    if track.labels and label not in track.labels:
        raise BadRow("unknown_label", f"{label!r} is no label of track {track.name}", choices(label, track.labels))
    return tags if "label" in tags else {"label": label, **tags}


def _fill(template: str, row: Mapping[str, Any]) -> str:
    """`template` with each `{column}` replaced; other braces stay, since prompts often hold JSON."""
    return _COLUMN.sub(lambda match: _column(match.group(1), row), template)


def _column(name: str, row: Mapping[str, Any]) -> str:
    if name not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise BadRow(
            "missing_key", f"the track's template needs {name!r} (keys: {keys})", f"add {name!r} or change the template"
        )
    value = row[name]
    if isinstance(value, bool | int | float | dict | list):
        return json.dumps(value, ensure_ascii=False)
    return filled(value, name)
