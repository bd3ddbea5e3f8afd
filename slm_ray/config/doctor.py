"""Settings of the job that looks at every node of a cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.words import BaseAndAdapters, RunDir


class DoctorConfig(RunDir, BaseAndAdapters):
    """What every node is asked about."""

    run_dir: str = Field("", description="a folder that every node must be able to write to")
    adapters_dir: str = Field("", description="another one")
    base: str = Field("", description="folder of the base model, the same on every node")
    lock: str | None = Field(
        None, description="the lock that packages are held to; to those of the first node when not set"
    )
    output: Literal["table", "json"] = "table"
