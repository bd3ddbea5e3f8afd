"""Tracks: what a kind of task tells the model, which scorers judge it and which metrics decide.

The metric names are those of the scorers; nothing is scored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slm_ray.errors import ConfigError, choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A kind of task.

    `system` is the system prompt of rows that have none. `scorers` name entries of `scoring.SCORERS`; `primary` is the
    per-row metric that decides, `core` are the metrics that `compare` looks at. `template` and `completion` make a
    prompt and an answer of a row's own columns (`{column}`), for rows that have no prompt. `prefix` (CEP) goes in front
    of every user's turn, in training and inference alike. `labels` is the closed set of answers of a classification,
    `answer_schema` a JSON schema that answers are checked against, `strip` what is taken off answers before scoring.
    """

    name: str
    system: str
    scorers: tuple[str, ...]
    primary: str
    core: tuple[str, ...]
    template: str | None = None
    completion: str | None = None
    prefix: str = ""
    labels: tuple[str, ...] = ()
    answer_schema: Mapping[str, Any] | None = None
    strip: tuple[Literal["fences", "reasoning"], ...] = ()


TRACKS: dict[str, Track] = {
    "structured": Track(
        name="structured",
        system="You return valid JSON objects only. Do not add prose or code fences.",
        scorers=("structured",),
        primary="exact_match",
        core=("json_valid", "exact_match", "field_precision", "field_recall", "field_f1"),
    ),
    "toolcall": Track(
        name="toolcall",
        system=(
            'You return exactly one <tool_call name="...">{...}</tool_call> wrapper that matches the tool signature, '
            "with JSON arguments and nothing else."
        ),
        scorers=("toolcall",),
        primary="args_exact",
        core=("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1"),
    ),
}


def track(name: str) -> Track:
    """The track called `name`; ConfigError that lists the known ones otherwise."""
    try:
        return TRACKS[name]
    except KeyError:
        raise ConfigError(f"unknown track {name!r}: {choices(name, TRACKS)}") from None
