"""What several jobs are told alike, one word each: one meaning, one type and one description wherever the word stands.

`Config` is the parent of every config: unknown keys are refused, and so is what cannot be meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo


class Config(BaseModel):
    """The parent of every config: frozen, closed to unknown keys, without infinities and NUL bytes.

    A setting that has settings of its own and is given in part keeps the others as this config presets them, which is what
    `--help` shows. Nothing (`key:` in YAML, `--set key=`) is the empty text where that is what the setting has by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _with_presets(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: _with_preset(cls.model_fields.get(name), value) for name, value in given.items()}

    @field_validator("*")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        if any("\0" in text for text in _texts(value)):
            raise ValueError("a text holds a NUL byte, which no file name and no model may; remove it")
        return value


def _with_preset(field: FieldInfo | None, value: Any) -> Any:
    preset = field.default if field is not None else None
    if isinstance(preset, BaseModel) and isinstance(value, dict):
        return preset.model_dump(exclude_unset=True) | value
    return "" if value is None and preset == "" else value


def _texts(value: Any) -> Iterable[str]:
    """All texts in a value; nested configs have looked after their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


class Seeded(Config):
    """A job that draws at random."""

    seed: int = Field(42, description="what is drawn at random follows from it")


class RunDir(Config):
    """A job that keeps what it does in a folder, and goes on there."""

    run_dir: str = Field(description="folder of the run: what is finished there is not done again")


class Tracked(Config):
    """A job on rows of one track."""

    track: str = Field(description="a track's name, or the path of its YAML file")


class Endpoint(Config):
    """A job that asks models."""

    endpoint: str = Field("http://127.0.0.1:8000", description="where `served:` models answer")


class Examples(Config):
    """A job on the rows of a file."""

    examples: str = Field(description="JSONL whose rows are the prompts")


class Models(Config):
    """A job on the answers of models."""

    models: tuple[str, ...] = Field(min_length=1, description="model specs, each asked every row")


class AskedRows(Endpoint, RunDir, Tracked, Examples, Models):
    """A job that asks models the rows of a file."""


class Margin(Config):
    """A job that asks whether the SLM is as good as the LLM."""

    delta: float = Field(0.02, ge=0, le=1, description="non-inferiority margin: how much worse still counts as good")


class Large(Config):
    """A job that knows which model is the LLM."""

    llm: str = Field(description="azure:DEPLOYMENT, openai:MODEL@BASE_URL or any other model spec")


class Small(Config):
    """A job that knows which model is the SLM."""

    slm: str = Field(description="served:BASE:ADAPTER, by the adapter's id or an alias; or any other model spec")


class Pair(Small, Large):
    """The two models that are weighed against each other."""


class Finished(Config):
    """A job on an evaluation that is over."""

    report: str = Field(description="a finished evaluation: its run directory or report.json")


class Train(Config):
    """A job that knows which rows are learned."""

    train: str = Field(description="training JSONL")


class LeakChecked(Train):
    """A job that scores rows nobody may have been trained on."""

    train: str = Field("", description="training JSONL: an evaluation that holds one of its rows is refused")


class Validation(Config):
    """A job in which held-out rows say how good a training is."""

    validation: str = Field(description="validation JSONL")


class Shortened(Config):
    """A job that may learn a part of its rows."""

    train_rows: int | None = Field(None, ge=1, description="training rows, how many; all when not set")


class Written(Config):
    """A job that writes one file."""

    out: str = Field(description="the file to write")


class Stratified(Config):
    """A job that takes rows by their tags."""

    stratify: str | None = Field(
        None, description="a tag, such as tool or label, whose values every part of the rows has in the same shares"
    )


class RoutesDir(Config):
    """A job on the routes of a roll-out."""

    routes_dir: str = Field("runs/routes", description="folder of the routes, their history and their watches")


class OnBase(Config):
    """A job on one base."""

    base: str = Field("data/tiny_base", description="folder of the base model, or a hub name")


class Adapters(Config):
    """A job that looks at adapters."""

    adapters_dir: str = Field("runs/adapters", description="folder of published adapters")


class BaseAndAdapters(OnBase, Adapters):
    """A base, and where the adapters on it lie."""
