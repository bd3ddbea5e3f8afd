"""Settings of what becomes of task rows: where they come from, what is left out of them, and how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.frozen import Knobs, Track

Format = Literal[
    "auto", "prompt", "messages", "sharegpt", "hermes", "template", "alpaca", "xlam", "gsm8k", "labelled"
]  # fmt: skip


class CurationConfig(Knobs):
    """Which rows are left out, in this order, each step counted. Nothing but equal rows is, unless asked."""

    duplicates: Literal["refuse", "exact", "near"] = Field(
        "refuse", description="equal rows are a fault, or are dropped; `near` drops rows that say almost the same too"
    )
    near_threshold: float = Field(0.8, gt=0, le=1, description="share of word triples from which rows are the same")
    question_words: tuple[int, int | None] = Field((0, None), description="fewest and most words")
    answer_words: tuple[int, int | None] = Field((0, None), description="fewest and most words")
    drop_cut: bool = Field(False, description="leave out answers that stop in the middle")
    drop_refusals: bool = Field(False, description="leave out answers that decline, in English")
    scripts: tuple[str, ...] = Field((), description="the writing systems to keep, such as latin; all when empty")
    cap: int | None = Field(None, ge=1, description="most rows of a class")
    balance: float | None = Field(None, ge=1, description="most rows of a class, in times of the smallest class")
    class_tag: str | None = Field(None, description="the tag whose values are the classes; the answer when not set")
    max_tokens: int | None = Field(None, ge=16, description="tokens of prompt and answer; a longer row is a bad row")
    order: Literal["none", "shortest_first", "by_source"] = Field("none", description="of the training rows")


class SourceConfig(Knobs):
    """One track's rows: where they are, what is done with bad ones, and how they are split."""

    track: Track = Field("structured", description="a track's name, or the path of its YAML file")
    source: str | dict[str, float] = Field(
        description="file, folder, URI or hf:NAME; or several of them, each with its weight"
    )
    validation_source: str | None = Field(None, description="where validation rows are, when not drawn from `source`")
    test_source: str | None = Field(None, description="where test rows are, when not drawn from `source`")
    format: Format = Field("auto", description="told from each row's keys, or named")
    validation: int | None = Field(60, ge=1, description="rows; all of `validation_source` when null")
    test: int | None = Field(100, ge=1, description="rows; all of `test_source` when null")
    train: int | None = Field(None, ge=1, description="rows; all that are left when not set")
    keep_split: bool = Field(False, description="use the rows' own `split` field instead of drawing one")
    stratify: str | None = Field(None, description="a tag, such as tool or label, whose values every split gets alike")
    separate_near: bool = Field(False, description="near-duplicates stand in one split, not only equal prompts")
    demonstrations: int = Field(
        0,
        ge=0,
        description="similar training rows in front of each training prompt, for an adapter that is asked so too",
    )
    skip_bad: bool = Field(False, description="leave bad rows out instead of refusing the source")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="with skip_bad: above this share it is refused anyway")
    fan_out_bytes: int | None = Field(
        64 * 2**20,
        ge=0,
        description="several files of this many bytes together are read as Ray tasks, and as long work on many rows is; never when null",
    )
    curation: CurationConfig = CurationConfig()


class PrepareConfig(SourceConfig):
    """Task rows in, examples with stable ids and three splits out."""

    out_dir: str = Field(
        description="folder for train.jsonl, validation.jsonl, test.jsonl, track.yaml and prepare.json"
    )
    base: str | None = Field(None, description="folder or hub name of the base whose tokens max_tokens counts")
    seed: int = 42


class TrackConfig(SourceConfig):
    """One track of the loop."""

    track: Track = Field(description="a track's name, or the path of its YAML file")
