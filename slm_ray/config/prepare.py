"""Settings of the job that makes train, validation and test rows of a source."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Source
from slm_ray.config.words import OnBase, Seeded


class PrepareConfig(Seeded, OnBase, Source):
    """Task rows in, examples with stable ids and three splits out."""

    track: str = Field("structured", description="a track's name, or the path of its YAML file")
    out_dir: str = Field(
        description="folder for train.jsonl, validation.jsonl, test.jsonl, track.yaml and prepare.json"
    )
    base: str = Field("", description="folder or hub name of the base whose tokens max_tokens counts")
