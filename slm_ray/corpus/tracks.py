"""Tracks: what a kind of task tells the model, which scorers judge it and which metrics decide.

The metric names are those of the scorers; nothing is scored here. The six tracks of the house are Python, because they
are part of the program; a track of one's own is a YAML file (`slm_ray.tasks`) that becomes the same record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slm_ray.errors import ConfigError, choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A kind of task.

    `system` is the system prompt of rows that have none. `scorers` name entries of `scoring.SCORERS`; `primary` is the
    per-row metric that decides, `core` are the metrics that `compare` looks at, `guardrails` further per-row ones that must
    not be worse for a swap. `rubric` is what a judge is told to look at. `template` and `target` make a
    prompt and an answer of a row's own columns (`{column}`), for rows that have no prompt. `prefix` goes in front
    of every user's turn, in training and inference alike. `labels` is the closed set of answers of a classification,
    `answer_schema` a JSON schema that answers are checked against, `strip` what is taken off answers before scoring.
    """

    name: str
    system: str
    scorers: tuple[str, ...]
    primary: str
    core: tuple[str, ...]
    template: str | None = None
    target: str | None = None
    prefix: str = ""
    labels: tuple[str, ...] = ()
    answer_schema: Mapping[str, Any] | None = None
    strip: tuple[Literal["fences", "reasoning"], ...] = ()
    guardrails: tuple[str, ...] = ()
    rubric: str = ""

    def guardrails_with(self, further: Iterable[str]) -> tuple[str, ...]:
        """The track's guardrails, then those of the settings, each once."""
        return tuple(dict.fromkeys((*self.guardrails, *further)))


_CALL_METRICS = ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1")

# Right arguments for the wrong tool are no right call, and `args_exact` does not see it.
_CALL_GUARDRAILS = ("name_match",)

_CALL_RUBRIC = (
    "Is it one call of the right tool, with every argument of the request at its right value and "
    "none made up? Anything beside the call is a fault."
)

TRACKS: dict[str, Track] = {
    "structured": Track(
        name="structured",
        system="You return valid JSON objects only. Do not add prose or code fences.",
        scorers=("structured",),
        primary="exact_match",
        core=("json_valid", "exact_match", "field_precision", "field_recall", "field_f1"),
        rubric=(
            "Does the object hold every field that the task asks for at its right value, with none missing or made "
            "up? Anything but JSON is useless."
        ),
    ),
    "toolcall": Track(
        name="toolcall",
        system=(
            'You return exactly one <tool_call name="...">{...}</tool_call> wrapper that matches the tool signature, '
            "with JSON arguments and nothing else."
        ),
        scorers=("toolcall",),
        primary="args_exact",
        core=_CALL_METRICS,
        guardrails=_CALL_GUARDRAILS,
        rubric=_CALL_RUBRIC,
    ),
    "hermes": Track(
        name="hermes",
        system=(
            "You call functions. Their signatures are JSON inside <tools></tools>. Answer with exactly one call, as "
            'JSON inside tags: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, and nothing else.'
        ),
        scorers=("hermes",),
        primary="args_exact",
        core=_CALL_METRICS,
        guardrails=_CALL_GUARDRAILS,
        rubric=_CALL_RUBRIC,
    ),
    "gsm8k": Track(
        name="gsm8k",
        system="Solve the problem step by step. End with a line that holds #### and the final number.",
        scorers=("gsm8k",),
        primary="number_match",
        core=("number_match",),
        rubric=(
            "Is the final number right, and does every step lead to the next? A wrong number is no more than "
            "half right."
        ),
    ),
    "classify": Track(
        name="classify",
        system="Classify the text. Answer with its label and nothing else.",
        scorers=("classify",),
        primary="accuracy",
        core=("accuracy", "macro_f1"),
        rubric="Is it the label that fits the text best, and nothing but a label?",
    ),
    "chat": Track(
        name="chat",
        system="You are a helpful assistant.",
        scorers=("text",),
        primary="rouge_l",
        core=("rouge_1", "rouge_2", "rouge_l"),
        rubric="Does it do what was asked, correctly and completely, with nothing needless or made up?",
    ),
}


def track(name: str) -> Track:
    """The track of the house called `name`; ConfigError that lists the known ones otherwise."""
    try:
        return TRACKS[name]
    except KeyError:
        raise ConfigError(f"unknown track {name!r}: {choices(name, TRACKS)}") from None


def definition(track: Track) -> dict[str, Any]:
    """The track as a plain dict of lists and texts, which a report carries; `defined` reads it back."""
    fields = {field.name: getattr(track, field.name) for field in dataclasses.fields(track)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def defined(plain: Mapping[str, Any]) -> Track:
    """The track that `definition` made `plain` of."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
    return Track(**fields)
