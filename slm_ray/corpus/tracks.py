"""The two tracks: what each tells the model, which scorer judges it and which metrics decide.

Adding a track means adding an entry to `TRACKS`. The metric names are those of the scorer; nothing is scored here.
"""

from __future__ import annotations

from dataclasses import dataclass

from slm_ray.errors import ConfigError, choices


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A kind of task: its system prompt, its scorer, the per-row metric that decides and the core metrics of `compare`."""

    name: str
    system: str
    scorer: str
    primary: str
    core: tuple[str, ...]


TRACKS: dict[str, Track] = {
    "structured": Track(
        name="structured",
        system="You return valid JSON objects only. Do not add prose or code fences.",
        scorer="structured",
        primary="exact_match",
        core=("json_valid", "exact_match", "field_precision", "field_recall", "field_f1"),
    ),
    "toolcall": Track(
        name="toolcall",
        system=(
            'You return exactly one <tool_call name="...">{...}</tool_call> wrapper that matches the tool signature, '
            "with JSON arguments and nothing else."
        ),
        scorer="toolcall",
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
