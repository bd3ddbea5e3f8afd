"""Tracks by name or by file: the tracks of the house, YAML files of a user's own, and the one that `prepare` wrote.

`prepare` puts the resolved track (labels filled in) as `track.yaml` beside the examples, so a folder of examples says
itself what its rows mean. Nothing of a track is read from anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slm_ray import storage
from slm_ray.corpus.tracks import TRACKS, Track, defined, definition, track
from slm_ray.errors import ConfigError, choices
from slm_ray.scoring.run import check, metrics, row_metrics
from slm_ray.yaml_file import read_yaml_mapping

TRACK_FILE = "track.yaml"
_SUFFIXES = (".yaml", ".yml")


class TrackFile(BaseModel):
    """What a track's file may say. `extends` names a track of the house that gives what the file leaves out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    extends: str | None = None
    system: str = Field(min_length=1)
    scorers: list[str] = Field(min_length=1)
    primary: str = Field(min_length=1)
    core: list[str] = Field(default=[])
    template: str | None = None
    target: str | None = None
    prefix: str = ""
    labels: list[str] = Field(default=[])
    answer_schema: dict[str, Any] | None = None
    strip: list[Literal["fences", "reasoning"]] = Field(default=[])
    guardrails: list[str] = Field(default=[])
    rubric: str = ""


def open_track(name_or_path: str, *, beside: str | Path | None = None) -> Track:
    """The track called so, or the one in that YAML file.

    With `beside`, a file of examples, the `track.yaml` in its folder comes first when it has that name: it knows the
    labels. ConfigError in one line that names file, key and fix.
    """
    if name_or_path.endswith(_SUFFIXES):
        return _read(Path(name_or_path))
    near = Path(beside).parent / TRACK_FILE if beside is not None else None
    if near is not None and near.is_file():
        found = _read(near)
        if found.name == name_or_path:
            return found
    if name_or_path not in TRACKS:
        raise ConfigError(
            f"unknown track {name_or_path!r}: {choices(name_or_path, TRACKS)}, or the path of a track's YAML file"
        )
    return track(name_or_path)


def write_track(folder: str | Path, found: Track) -> None:
    """Write the track beside the examples in `folder`, as `open_track` reads it back."""
    plain = {name: value for name, value in definition(found).items() if value not in (None, [], "")}
    storage.write_text(
        Path(folder) / TRACK_FILE, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10_000)
    )


def _read(path: Path) -> Track:
    tree = read_yaml_mapping(path, what="track")
    extends = tree.get("extends")
    if extends is not None:
        if extends not in TRACKS:
            raise ConfigError(f"{path}: 'extends' = {extends!r}: {choices(str(extends), TRACKS)}")
        tree = {**definition(TRACKS[extends]), **tree}
    try:
        given = TrackFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error)}") from None
    found = defined(given.model_dump(exclude={"extends"}))
    if not found.core:
        found = defined({**definition(found), "core": [found.primary]})
    _check(path, found)
    return found


def _check(path: Path, found: Track) -> None:
    """What pydantic cannot know: scorers and their metrics, and keys that belong together."""
    try:
        check(found)
        known = metrics(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if found.answer_schema is not None and "schema" not in found.scorers:
        raise ConfigError(f"{path}: 'answer_schema' is set, but no scorer reads it; add 'schema' to 'scorers'")
    _check_metrics(path, found, {"core": found.core}, known, "metric")
    # These decide by differences of rows, so a metric that only a run has (a macro average) cannot be one.
    _check_metrics(
        path, found, {"primary": (found.primary,), "guardrails": found.guardrails}, row_metrics(found), "row metric"
    )
    if (found.template is None) != (found.target is None):
        missing = "target" if found.target is None else "template"
        raise ConfigError(f"{path}: {missing!r} is not set; a template needs both 'template' and 'target'")


def _check_metrics(
    path: Path, found: Track, named: Mapping[str, Sequence[str]], known: Sequence[str], what: str
) -> None:
    for key, names in named.items():
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{path}: {key!r} = {name!r} is no {what} of {', '.join(found.scorers)}: {choices(name, known)}"
                )


def _explained(error: ValidationError) -> str:
    problems = []
    for problem in error.errors()[:5]:
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r}: {choices(key, TrackFile.model_fields)}")
        elif problem["type"] == "missing":
            problems.append(f"{key!r} is not set; add it, or say which track it 'extends'")
        else:
            problems.append(f"{key!r} = {problem['input']!r}: {problem['msg'].lower()}")
    return "; ".join(problems)
